/* lowrank_cpu.c - two thin products with an activation between; few rows (decoding) take own kernels, as in linear_cpu.c. */
#include "ops/backend_cpu.h"

#include <string.h>

#include "kernels/gemm.h"

typedef struct Lowrank { const RkLowrank *o; size_t R, C, D, O; } Lowrank;

static Lowrank lowrank_sizes(const RkLowrank *o) {
    size_t C = rk_rows(o->m1), D = rk_rows(o->m2), O = (size_t)rk_cols(o->m2);
    return (Lowrank){o, rk_numel(o->h) / D, C, D, O};
}

/* ---- few rows ---- */

static void few_rows_task(void *ctx, size_t task) {
    const RkRowsTimesMatrix *a = ctx;
    RkCpuRange out = rk_cpu_range(task, RK_COLUMNS_MAX, a->M);
    rk_k.rows_times_matrix(a, out.lo, out.hi);
}

void rk_cpu_few_rows_product(const RkRowsTimesMatrix *a) { rk_parallel(rk_cpu_tasks(a->M, RK_COLUMNS_MAX), few_rows_task, (void *)a); }

static void activate(int act, float *h, size_t n) {
    if (act == RK_ACT_TANH) rk_k.tanh(h, n);
    else if (act == RK_ACT_SIGMOID) rk_k.sigmoid(h, n);
}

static void lowrank_few_rows(const Lowrank *s) {
    const RkLowrank *o = s->o;
    float *h = rk_f32(o->h);
    if (o->x.p) {
        rk_cpu_few_rows_product(&(RkRowsTimesMatrix){.x = rk_f32(o->x), .m = o->m1.p, .dtype = o->m1.dtype, .y = h, .R = s->R, .K = s->C, .M = s->D});
        activate(o->act, h, s->R * s->D);
    }
    rk_cpu_few_rows_product(&(RkRowsTimesMatrix){.x = h, .m = o->m2.p, .dtype = o->m2.dtype, .bias = rk_f32(o->bias), .y = rk_f32(o->y),
                                                 .R = s->R, .K = s->D, .M = s->O});
}

/* ---- many rows ---- */

static void activate_task(void *ctx, size_t task) {
    const Lowrank *s = ctx;
    RkCpuRange e = rk_cpu_range(task, RK_CPU_GRAIN, s->R * s->D);
    activate(s->o->act, rk_f32(s->o->h) + e.lo, e.hi - e.lo);
}

static void bias_task(void *ctx, size_t task) {
    const Lowrank *s = ctx;
    RkCpuRange rows = rk_cpu_range(task, rk_cpu_rows_per_task(s->O), s->R);
    for (size_t r = rows.lo; r < rows.hi; r++) memcpy(rk_f32(s->o->y) + r * s->O, rk_f32(s->o->bias), s->O * sizeof(float));
}

/* h = f(x m1) */
static int lowrank_hidden(const Lowrank *s) {
    const RkLowrank *o = s->o;
    int C = (int)s->C, D = (int)s->D;
    RK_TRY(rk_gemm(&(RkGemm){.M = (int)s->R, .N = D, .K = C,
                             .A = rk_f32(o->x), .lda = C,
                             .B = o->m1.p, .B_dtype = o->m1.dtype, .ldb = D,
                             .C = rk_f32(o->h), .ldc = D}));
    if (o->act != RK_ACT_NONE) rk_parallel(rk_cpu_tasks(s->R * s->D, RK_CPU_GRAIN), activate_task, (void *)s);
    return RK_OK;
}

int rk_cpu_lowrank_fwd(const RkLowrank *o) {
    Lowrank s = lowrank_sizes(o);
    int R = (int)s.R, D = (int)s.D, O = (int)s.O;
    if (s.R <= RK_FEW_ROWS) {
        lowrank_few_rows(&s);
        return RK_OK;
    }
    if (o->x.p) RK_TRY(lowrank_hidden(&s));
    if (o->bias.p) rk_parallel(rk_cpu_tasks(s.R, rk_cpu_rows_per_task(s.O)), bias_task, &s);
    RK_TRY(rk_gemm(&(RkGemm){.M = R, .N = O, .K = D,
                             .A = rk_f32(o->h), .lda = D,
                             .B = o->m2.p, .B_dtype = o->m2.dtype, .ldb = O,
                             .C = rk_f32(o->y), .ldc = O, .accumulate = o->bias.p != NULL}));
    return RK_OK;
}

static void slope_task(void *ctx, size_t task) {
    const Lowrank *s = ctx;
    RkCpuRange e = rk_cpu_range(task, RK_CPU_GRAIN, s->R * s->D);
    const float *h = rk_f32(s->o->h) + e.lo;
    float *dh = rk_f32(s->o->dh) + e.lo;
    if (s->o->act == RK_ACT_TANH) rk_k.tanh_slope(h, dh, e.hi - e.lo);
    else rk_k.sigmoid_slope(h, dh, e.hi - e.lo);
}

int rk_cpu_lowrank_bwd(const RkLowrank *o) {
    Lowrank s = lowrank_sizes(o);
    int R = (int)s.R, C = (int)s.C, D = (int)s.D, O = (int)s.O;
    RK_TRY(rk_gemm(&(RkGemm){.M = R, .N = D, .K = O,
                             .A = rk_f32(o->dy), .lda = O,
                             .B = rk_f32(o->m2), .ldb = O, .trans_b = 1,
                             .C = rk_f32(o->dh), .ldc = D}));
    if (o->act != RK_ACT_NONE) rk_parallel(rk_cpu_tasks(s.R * s.D, RK_CPU_GRAIN), slope_task, &s);
    RK_TRY(rk_gemm(&(RkGemm){.M = D, .N = O, .K = R,
                             .A = rk_f32(o->h), .lda = D, .trans_a = 1,
                             .B = rk_f32(o->dy), .ldb = O,
                             .C = rk_f32(o->dm2), .ldc = O, .accumulate = 1}));
    if (o->dbias.p) rk_cpu_column_sums(rk_f32(o->dy), rk_f32(o->dbias), s.R, s.O);
    RK_TRY(rk_gemm(&(RkGemm){.M = C, .N = D, .K = R,
                             .A = rk_f32(o->x), .lda = C, .trans_a = 1,
                             .B = rk_f32(o->dh), .ldb = D,
                             .C = rk_f32(o->dm1), .ldc = D, .accumulate = 1}));
    RK_TRY(rk_gemm(&(RkGemm){.M = R, .N = C, .K = D,
                             .A = rk_f32(o->dh), .lda = D,
                             .B = rk_f32(o->m1), .ldb = D, .trans_b = 1,
                             .C = rk_f32(o->dx), .ldc = C}));
    return RK_OK;
}
