/* lowrank_cpu.c - two thin products with an activation between; few rows (decoding) take own kernels, as in linear_cpu.c. */
#include "ops/backend_cpu.h"

#include <string.h>

#include "kernels/gemm.h"

typedef struct Lowrank { const RkLowrank *o; size_t R, C, D, O; } Lowrank;

static Lowrank lowrank_sizes(const RkLowrank *o) {
    size_t C = rk_rows(o->m1), D = rk_rows(o->m2), O = (size_t)rk_cols(o->m2);
    return (Lowrank){o, rk_numel(o->h) / D, C, D, O};
}

static void activate(int act, float *h, size_t n) {
    if (act == RK_ACT_TANH) rk_k.tanh(h, n);
    else if (act == RK_ACT_SIGMOID) rk_k.sigmoid(h, n);
}

/* ---- few rows ---- */

static RkRowsTimesMatrix first_product(const RkLowrank *o) {
    Lowrank s = lowrank_sizes(o);
    return (RkRowsTimesMatrix){.x = rk_f32(o->x), .m = o->m1.p, .dtype = o->m1.dtype, .y = rk_f32(o->h), .R = s.R, .K = s.C, .M = s.D, .ldx = s.C};
}

static RkRowsTimesMatrix second_product(const RkLowrank *o) {
    Lowrank s = lowrank_sizes(o);
    return (RkRowsTimesMatrix){.x = rk_f32(o->h), .m = o->m2.p, .dtype = o->m2.dtype, .bias = rk_f32(o->bias), .y = rk_f32(o->y),
                               .R = s.R, .K = s.D, .M = s.O, .ldx = s.D};
}

/* Matrices and first thin factors in one region, second factors in another. */
static int few_rows(const RkProducts *o) {
    RkCpuProducts first = {.n_dots = 0}, second = {.n_dots = 0};
    for (int i = 0; i < RK_MAX_PRODUCTS; i++) {
        if (o->linear[i]) first.dots[first.n_dots++] = rk_cpu_few_rows_linear(o->linear[i]);
        if (!o->lowrank[i]) continue;
        if (o->lowrank[i]->x.p) first.sums[first.n_sums++] = first_product(o->lowrank[i]);
        second.sums[second.n_sums++] = second_product(o->lowrank[i]);
    }
    RK_TRY(rk_cpu_few_rows_run(&first));
    for (int i = 0; i < RK_MAX_PRODUCTS; i++)
        if (o->lowrank[i] && o->lowrank[i]->x.p) activate(o->lowrank[i]->act, rk_f32(o->lowrank[i]->h), rk_numel(o->lowrank[i]->h));
    return second.n_sums ? rk_cpu_few_rows_run(&second) : RK_OK;
}

int rk_cpu_products_fwd(const RkProducts *o) {
    int few = 1;
    for (int i = 0; i < RK_MAX_PRODUCTS; i++) {
        if (o->linear[i] && rk_rows(o->linear[i]->x) > RK_FEW_ROWS) few = 0;
        if (o->lowrank[i] && rk_rows(o->lowrank[i]->h) > RK_FEW_ROWS) few = 0;
    }
    if (few) return few_rows(o);
    for (int i = 0; i < RK_MAX_PRODUCTS; i++) {
        if (o->linear[i]) RK_TRY(rk_cpu_linear_fwd(o->linear[i]));
        if (o->lowrank[i]) RK_TRY(rk_cpu_lowrank_fwd(o->lowrank[i]));
    }
    return RK_OK;
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
    if (s.R <= RK_FEW_ROWS) return few_rows(&(RkProducts){.lowrank = {o}});
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
