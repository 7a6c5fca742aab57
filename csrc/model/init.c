/* init.c - the reference initialisation, parameter by parameter (the rules themselves stand in the mixers' tables).
 *
 * Orthogonal matrices: a Gaussian matrix with its shorter side orthonormalised, which is the Q of its QR
 * factorisation with a positive diagonal of R: the same distribution as torch.nn.init.orthogonal_. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/gemm.h"
#include "base/parallel.h"
#include "base/rng.h"
#include "model/manifest.h"

static void store(RkTensor t, size_t i, double value) {
    if (t.dtype == RK_F64) ((double *)t.p)[i] = value;
    else rk_f32(t)[i] = (float)value;
}

/* Rows to be made orthonormal, PANEL of them at a time. */
enum { PANEL = 32 };
typedef struct { float *q, *along; size_t rows, length, row, end; RkRng rng; } Ortho;

static void fill_row(void *ctx, size_t r, int thread) {
    (void)thread;
    Ortho *o = ctx;
    for (size_t i = 0; i < o->length; i++) o->q[r * o->length + i] = (float)rk_rng_normal(o->rng, r * o->length + i);
}

static double dot(const float *a, const float *b, size_t n) {
    double lane[4] = {0, 0, 0, 0};
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (size_t j = 0; j < 4; j++) lane[j] += (double)a[i + j] * (double)b[i + j];
    for (; i < n; i++) lane[0] += (double)a[i] * (double)b[i];
    return (lane[0] + lane[1]) + (lane[2] + lane[3]);
}

/* Takes the direction of the finished row out of a later row of its panel. */
static void project_row(void *ctx, size_t task, int thread) {
    (void)thread;
    Ortho *o = ctx;
    const float *done = o->q + o->row * o->length;
    float *q = o->q + (o->row + 1 + task) * o->length;
    float along = (float)dot(done, q, o->length);
    for (size_t i = 0; i < o->length; i++) q[i] -= along * done[i];
}

/* Takes the directions of all rows before `first` out of rows [first, first + n): two matrix products. */
static void project_panel(Ortho *o, size_t first, size_t n) {
    if (!first) return;
    int length = (int)o->length, N = (int)n, done = (int)first;
    float *panel = o->q + first * o->length;
    rk_gemm(&(RkGemm){.M = N, .N = done, .K = length, .A = panel, .lda = length, .B = o->q, .ldb = length, .trans_b = 1,
                      .C = o->along, .ldc = done});
    for (size_t i = 0; i < n * first; i++) o->along[i] = -o->along[i];
    rk_gemm(&(RkGemm){.M = N, .N = length, .K = done, .A = o->along, .lda = done, .B = o->q, .ldb = length,
                      .C = panel, .ldc = length, .accumulate = 1});
}

/* Block Gram-Schmidt; every projection is made twice, which is enough for full float32 orthogonality. */
static void orthonormalise(Ortho *o) {
    rk_parallel(o->rows, fill_row, o);
    for (size_t first = 0; first < o->rows; first += PANEL) {
        size_t n = o->rows - first < PANEL ? o->rows - first : PANEL;
        for (int pass = 0; pass < 2; pass++) {
            project_panel(o, first, n);
            for (o->row = first; o->row < first + n; o->row++) {
                float *q = o->q + o->row * o->length, scale = (float)(1 / sqrt(dot(q, q, o->length)));
                for (size_t i = 0; i < o->length; i++) q[i] *= scale;
                rk_parallel(first + n - o->row - 1, project_row, o);
            }
        }
    }
}

static int init_ortho(const RkParam *p, RkRng rng, double gain) {
    size_t rows = rk_rows(p->value), cols = (size_t)rk_cols(p->value), wide = rows <= cols;
    Ortho o = {.rows = wide ? rows : cols, .length = wide ? cols : rows, .rng = rng};
    o.q = malloc(rows * cols * sizeof *o.q);
    o.along = malloc(PANEL * o.rows * sizeof *o.along);
    int rc = RK_OK;
    if (!o.q || !o.along) {
        rc = rk_fail(RK_ENOMEM, "no memory to initialise %s (%zu x %zu)", p->name, rows, cols);
    } else {
        if (p->init.kind == INIT_ORTHO_TALL && !wide) gain *= sqrt((double)rows / (double)cols);
        orthonormalise(&o);
        for (size_t r = 0; r < rows; r++)
            for (size_t c = 0; c < cols; c++)
                store(p->value, r * cols + c, gain * (double)o.q[wide ? r * cols + c : c * rows + r]);
    }
    free(o.q);
    free(o.along);
    return rc;
}

static int init_param(const RkParam *p, const RkConfig *cfg, uint64_t seed) {
    RkRng rng = rk_rng(seed, p->name);
    RkInitAt at = {p->layer, cfg->L, cfg->C, cfg->block[p->layer < 0 ? 0 : p->layer].N};
    size_t n = rk_numel(p->value);
    switch (p->init.kind) {
    case INIT_ORTHO:
    case INIT_ORTHO_TALL: return init_ortho(p, rng, p->init.arg);
    case INIT_CONST:
        for (size_t i = 0; i < n; i++) store(p->value, i, p->init.arg);
        return RK_OK;
    case INIT_UNIFORM:
        for (size_t i = 0; i < n; i++) store(p->value, i, p->init.arg * (2 * rk_rng_uniform(rng, i) - 1));
        return RK_OK;
    case INIT_RAMP:
        for (size_t i = 0; i < n; i++) store(p->value, i, (double)(float)p->init.ramp(&at, (int)i));
        return RK_OK;
    }
    return rk_fail(RK_EINVAL, "%s has no initialisation rule", p->name);
}

int rk_manifest_init(RkManifest *m, const RkConfig *cfg, uint64_t seed) {
    for (int i = 0; i < m->n; i++) RK_TRY(init_param(&m->param[i], cfg, seed));
    return RK_OK;
}
