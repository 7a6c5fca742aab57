/* init.c - the reference initialisation, parameter by parameter (the rules themselves stand in the mixers' tables).
 *
 * Orthogonal matrices: a Gaussian matrix with its shorter side orthonormalised, which is the Q of its QR
 * factorisation with a positive diagonal of R: the same distribution as torch.nn.init.orthogonal_. */
#include <math.h>
#include <stdlib.h>

#include "kernels/gemm.h"
#include "base/parallel.h"
#include "base/rng.h"
#include "model/manifest.h"

static void store(RkTensor t, size_t i, double value) {
    if (t.dtype == RK_F64) ((double *)t.p)[i] = value;
    else rk_f32(t)[i] = (float)value;
}

/* Rows to be made orthonormal; PANEL of them at most without matrix products. */
enum { PANEL = 32 };
typedef struct { float *q, *along; size_t rows, length, row; RkRng rng; } Ortho;

static void fill_row(void *ctx, size_t r) {
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
static void project_row(void *ctx, size_t task) {
    Ortho *o = ctx;
    const float *done = o->q + o->row * o->length;
    float *q = o->q + (o->row + 1 + task) * o->length;
    float along = (float)dot(done, q, o->length);
    for (size_t i = 0; i < o->length; i++) q[i] -= along * done[i];
}

/* Takes the directions of rows [first, first + done) out of the n rows after them: two matrix products. */
static int project_rows(Ortho *o, size_t first, size_t done, size_t n) {
    int length = (int)o->length;
    const float *q = o->q + first * o->length;
    float *rest = o->q + (first + done) * o->length;
    RK_TRY(rk_gemm(&(RkGemm){.M = (int)n, .N = (int)done, .K = length, .A = rest, .lda = length, .B = q, .ldb = length,
                             .trans_b = 1, .C = o->along, .ldc = (int)done}));
    for (size_t i = 0; i < n * done; i++) o->along[i] = -o->along[i];
    return rk_gemm(&(RkGemm){.M = (int)n, .N = length, .K = (int)done, .A = o->along, .lda = (int)done, .B = q, .ldb = length,
                             .C = rest, .ldc = length, .accumulate = 1});
}

/* Gram-Schmidt by halves, so that nearly all the work is in large matrix products. */
static int orthonormalise_rows(Ortho *o, size_t first, size_t n) {
    if (n > PANEL) {
        size_t half = n / 2;
        RK_TRY(orthonormalise_rows(o, first, half));
        RK_TRY(project_rows(o, first, half, n - half));
        return orthonormalise_rows(o, first + half, n - half);
    }
    for (o->row = first; o->row < first + n; o->row++) {
        float *q = o->q + o->row * o->length, scale = (float)(1 / sqrt(dot(q, q, o->length)));
        for (size_t i = 0; i < o->length; i++) q[i] *= scale;
        rk_parallel(first + n - o->row - 1, project_row, o);
    }
    return RK_OK;
}

/* Twice: the second time the rows are nearly orthonormal already, and what rounding left is taken out. */
static int orthonormalise(Ortho *o) {
    rk_parallel(o->rows, fill_row, o);
    for (int pass = 0; pass < 2; pass++) RK_TRY(orthonormalise_rows(o, 0, o->rows));
    return RK_OK;
}

typedef struct { const RkParam *p; const Ortho *o; double gain; } Transfer;

/* Row r of the parameter from the orthonormal rows, which are its columns when it is tall. */
static void transfer_row(void *ctx, size_t r) {
    const Transfer *t = ctx;
    size_t cols = (size_t)rk_cols(t->p->value), wide = t->o->length == cols;
    for (size_t c = 0; c < cols; c++)
        store(t->p->value, r * cols + c, t->gain * (double)t->o->q[wide ? r * cols + c : c * t->o->length + r]);
}

static int init_ortho(const RkParam *p, RkRng rng) {
    size_t rows = rk_rows(p->value), cols = (size_t)rk_cols(p->value), wide = rows <= cols;
    Ortho o = {.rows = wide ? rows : cols, .length = wide ? cols : rows, .rng = rng};
    Transfer t = {p, &o, p->init.arg};
    if (p->init.kind == INIT_ORTHO_TALL && !wide) t.gain *= sqrt((double)rows / (double)cols);
    o.q = malloc(rows * cols * sizeof *o.q);
    o.along = malloc((o.rows + 1) * (o.rows + 1) / 4 * sizeof *o.along + 1);
    int rc = RK_OK;
    if (!o.q || !o.along) {
        rc = rk_fail(RK_ENOMEM, "no memory to initialise %s (%zu x %zu)", p->name, rows, cols);
    } else {
        rc = orthonormalise(&o);
        if (!rc) rk_parallel(rows, transfer_row, &t);
    }
    free(o.q);
    free(o.along);
    return rc;
}

/* ---- everything else: element by element ---- */

enum { FILL_BLOCK = 1 << 16 };
typedef struct { const RkParam *p; RkRng rng; RkInitAt at; } Fill;

static double element(const Fill *f, size_t i) {
    const RkInit *init = &f->p->init;
    if (init->kind == INIT_CONST) return init->arg;
    if (init->kind == INIT_NORMAL) return init->arg * rk_rng_normal(f->rng, i);
    if (init->kind == INIT_NORMAL_DEEP) return init->arg / sqrt(2.0 * f->at.n_layer) * rk_rng_normal(f->rng, i);
    if (init->kind == INIT_UNIFORM) return init->arg * (2 * rk_rng_uniform(f->rng, i) - 1);
    return (double)(float)init->ramp(&f->at, (int)i); /* a float32 value also in a float64 model */
}

static void fill_block(void *ctx, size_t task) {
    const Fill *f = ctx;
    size_t n = rk_numel(f->p->value), end = (task + 1) * FILL_BLOCK < n ? (task + 1) * FILL_BLOCK : n;
    for (size_t i = task * FILL_BLOCK; i < end; i++) store(f->p->value, i, element(f, i));
}

/* One parameter, in the host's memory. */
static int init_one(const RkParam *p, const RkConfig *cfg, uint64_t seed) {
    RkRng rng = rk_rng(seed, p->name);
    if (p->init.kind == INIT_ORTHO || p->init.kind == INIT_ORTHO_TALL) return init_ortho(p, rng);
    Fill f = {p, rng, {p->layer, cfg->L, cfg->C, cfg->block[p->layer < 0 ? 0 : p->layer].N}};
    rk_parallel((rk_numel(p->value) + FILL_BLOCK - 1) / FILL_BLOCK, fill_block, &f);
    return RK_OK;
}

/* For a parameter elsewhere: in float32 here, then there. */
static int init_elsewhere(const RkParam *p, const RkConfig *cfg, RkMemory *memory, uint64_t seed) {
    RkParam here = *p;
    here.value.dtype = RK_F32;
    here.value.p = malloc(rk_numel(p->value) * sizeof(float));
    if (!here.value.p) return rk_fail(RK_ENOMEM, "no memory to initialise %s", p->name);
    int rc = init_one(&here, cfg, seed);
    if (!rc) rc = rk_tensor_write(memory, p->value, here.value.p);
    free(here.value.p);
    return rc;
}

int rk_manifest_init(RkManifest *m, const RkConfig *cfg, RkMemory *memory, uint64_t seed) {
    for (int i = 0; i < m->n; i++)
        RK_TRY(rk_on_host(memory) ? init_one(&m->param[i], cfg, seed) : init_elsewhere(&m->param[i], cfg, memory, seed));
    return RK_OK;
}
