/* ddlerp_cpu.c - matrix products with one walk over the rows between each; the coefficients are computed where the mixed
 * inputs go, and again in the backward, so that only h is kept. Few rows (decoding) take own kernels, as in linear_cpu.c. */
#include "ops/backend_cpu.h"

#include <string.h>

#include "kernels/gemm.h"

typedef struct Ddlerp { const RkDdlerp *o; size_t B, T, R, C, n, D, W; int z; } Ddlerp;

static Ddlerp ddlerp_sizes(const RkDdlerp *o) {
    size_t B = (size_t)o->x.d[0], T = (size_t)o->x.d[1], n = (size_t)o->m2.d[0], D = (size_t)o->m2.d[1];
    return (Ddlerp){o, B, T, B * T, (size_t)o->x.d[2], n, D, n * D, 0};
}
static size_t rows_per_task(const Ddlerp *s) { return rk_cpu_rows_per_task(s->C * (s->n + 1)); }
static void each_row(Ddlerp *s, RkTaskFn task) { rk_parallel(rk_cpu_tasks(s->R, rows_per_task(s)), task, s); }

static const float *before(const Ddlerp *s, size_t r) {
    if (r % s->T) return rk_f32(s->o->x) + (r - 1) * s->C;
    return s->o->prev.p ? rk_f32(s->o->prev) + r / s->T * s->C : NULL;
}

/* ---- forward ---- */

/* mixed = x + delta mu_x */
static void mix_task(void *ctx, size_t task) {
    const Ddlerp *s = ctx;
    RkCpuRange rows = rk_cpu_range(task, rows_per_task(s), s->R);
    for (size_t r = rows.lo; r < rows.hi; r++) {
        RkShiftLerpRow a = {.x = rk_f32(s->o->x) + r * s->C, .before = before(s, r), .mu = {rk_f32(s->o->mu_x)},
                            .y = {rk_f32(s->o->mixed) + r * s->C}, .C = s->C, .n = 1};
        rk_k.shift_lerp_fwd(&a);
    }
}

static void lerp_task(void *ctx, size_t task) {
    const Ddlerp *s = ctx;
    RkCpuRange rows = rk_cpu_range(task, rows_per_task(s), s->R);
    for (size_t r = rows.lo; r < rows.hi; r++) {
        RkShiftLerpRow a = {.x = rk_f32(s->o->x) + r * s->C, .before = before(s, r), .C = s->C, .n = (int)s->n};
        for (size_t z = 0; z < s->n; z++) a.mu[z] = rk_f32(s->o->mu[z]), a.y[z] = rk_f32(s->o->y[z]) + r * s->C;
        rk_k.ddlerp_fwd(&a);
    }
}

static void tanh_task(void *ctx, size_t task) {
    const Ddlerp *s = ctx;
    RkCpuRange e = rk_cpu_range(task, RK_CPU_GRAIN, s->R * s->W);
    rk_k.tanh(rk_f32(s->o->h) + e.lo, e.hi - e.lo);
}

/* out = h_z m2_z */
static RkRowsTimesMatrix few_rows_coefficients(const Ddlerp *s, size_t z, float *out) {
    return (RkRowsTimesMatrix){.x = rk_f32(s->o->h) + z * s->D, .ldx = s->W, .m = rk_f32(s->o->m2) + z * s->D * s->C, .y = out,
                               .R = s->R, .K = s->D, .M = s->C};
}

static int coefficients(const Ddlerp *s, size_t z, float *out) {
    if (s->R <= RK_FEW_ROWS) return rk_cpu_few_rows_run(&(RkCpuProducts){.sums = {few_rows_coefficients(s, z, out)}, .n_sums = 1});
    const float *h = rk_f32(s->o->h) + z * s->D, *m2 = rk_f32(s->o->m2) + z * s->D * s->C;
    return rk_gemm(&(RkGemm){.M = (int)s->R, .N = (int)s->C, .K = (int)s->D, .A = h, .lda = (int)s->W, .B = m2, .ldb = (int)s->C,
                             .C = out, .ldc = (int)s->C});
}

static int all_coefficients(const Ddlerp *s) {
    RkCpuProducts products = {.n_sums = 0};
    for (size_t z = 0; z < s->n; z++) {
        if (s->R <= RK_FEW_ROWS) products.sums[products.n_sums++] = few_rows_coefficients(s, z, rk_f32(s->o->y[z]));
        else RK_TRY(coefficients(s, z, rk_f32(s->o->y[z])));
    }
    return s->R <= RK_FEW_ROWS ? rk_cpu_few_rows_run(&products) : RK_OK;
}

int rk_cpu_ddlerp_fwd(const RkDdlerp *o) {
    Ddlerp s = ddlerp_sizes(o);
    each_row(&s, mix_task);
    if (s.R > RK_FEW_ROWS)
        RK_TRY(rk_gemm(&(RkGemm){.M = (int)s.R, .N = (int)s.W, .K = (int)s.C, .A = rk_f32(o->mixed), .lda = (int)s.C,
                                 .B = rk_f32(o->m1), .ldb = (int)s.W, .C = rk_f32(o->h), .ldc = (int)s.W}));
    else
        RK_TRY(rk_cpu_few_rows_run(&(RkCpuProducts){.sums = {{.x = rk_f32(o->mixed), .ldx = s.C, .m = rk_f32(o->m1), .y = rk_f32(o->h),
                                                              .R = s.R, .K = s.C, .M = s.W}}, .n_sums = 1}));
    rk_parallel(rk_cpu_tasks(s.R * s.W, RK_CPU_GRAIN), tanh_task, &s);
    RK_TRY(all_coefficients(&s));
    each_row(&s, lerp_task);
    for (size_t b = 0; o->last.p && b < s.B; b++) /* after the tasks: it may be the memory of prev */
        memcpy(rk_f32(o->last) + b * s.C, rk_f32(o->x) + (b * s.T + s.T - 1) * s.C, s.C * sizeof(float));
    return RK_OK;
}

/* ---- backward ---- */

static void zero_task(void *ctx, size_t task) {
    const Ddlerp *s = ctx;
    RkCpuRange rows = rk_cpu_range(task, rows_per_task(s), s->R);
    size_t at = rows.lo * s->C, bytes = (rows.hi - rows.lo) * s->C * sizeof(float);
    memset(rk_f32(s->o->e) + at, 0, bytes);
    memset(rk_f32(s->o->dx) + at, 0, bytes);
}

/* Lerp z, or with z = -1 the one inside: coefficients (or the gradient f) in `mixed`, the coefficients' gradients out. */
static void lerp_bwd_task(void *ctx, size_t task) {
    const Ddlerp *s = ctx;
    const RkDdlerp *o = s->o;
    RkCpuRange rows = rk_cpu_range(task, rows_per_task(s), s->R);
    int inside = s->z < 0;
    const float *dy = rk_f32(inside ? o->mixed : o->dy[s->z]), *mu = rk_f32(inside ? o->mu_x : o->mu[s->z]);
    for (size_t r = rows.lo; r < rows.hi; r++) {
        size_t at = r * s->C;
        RkDdlerpGrad a = {.x = rk_f32(o->x) + at, .before = before(s, r), .mu = mu, .dy = dy + at, .m = rk_f32(o->mixed) + at,
                          .e = rk_f32(o->e) + at, .dx = rk_f32(o->dx) + at, .C = s->C, .no_m = inside};
        rk_k.ddlerp_bwd(&a);
    }
}

static void slope_task(void *ctx, size_t task) {
    const Ddlerp *s = ctx;
    RkCpuRange e = rk_cpu_range(task, RK_CPU_GRAIN, s->R * s->W);
    rk_k.tanh_slope(rk_f32(s->o->h) + e.lo, rk_f32(s->o->dh) + e.lo, e.hi - e.lo);
}

/* What each token gets from the one after it. */
static void next_task(void *ctx, size_t task) {
    const Ddlerp *s = ctx;
    RkCpuRange rows = rk_cpu_range(task, rows_per_task(s), s->R);
    for (size_t r = rows.lo; r < rows.hi; r++) {
        float *dx = rk_f32(s->o->dx) + r * s->C;
        if ((r + 1) % s->T) rk_k.add(dx, rk_f32(s->o->e) + (r + 1) * s->C, dx, s->C);
        else if (s->o->dlast.p) rk_k.add(dx, rk_f32(s->o->dlast) + r / s->T * s->C, dx, s->C);
    }
}

static int lerps_bwd(Ddlerp *s) {
    const RkDdlerp *o = s->o;
    int R = (int)s->R, C = (int)s->C, D = (int)s->D, W = (int)s->W;
    for (size_t z = 0; z < s->n; z++) {
        s->z = (int)z;
        RK_TRY(coefficients(s, z, rk_f32(o->mixed)));
        each_row(s, lerp_bwd_task);
        rk_cpu_column_sums(rk_f32(o->mixed), rk_f32(o->dmu[z]), s->R, s->C);
        RK_TRY(rk_gemm(&(RkGemm){.M = D, .N = C, .K = R, .A = rk_f32(o->h) + z * s->D, .lda = W, .trans_a = 1, .B = rk_f32(o->mixed),
                                 .ldb = C, .C = rk_f32(o->dm2) + z * s->D * s->C, .ldc = C, .accumulate = 1}));
        RK_TRY(rk_gemm(&(RkGemm){.M = R, .N = D, .K = C, .A = rk_f32(o->mixed), .lda = C, .B = rk_f32(o->m2) + z * s->D * s->C, .ldb = C,
                                 .trans_b = 1, .C = rk_f32(o->dh) + z * s->D, .ldc = W}));
    }
    return RK_OK;
}

int rk_cpu_ddlerp_bwd(const RkDdlerp *o) {
    Ddlerp s = ddlerp_sizes(o);
    int R = (int)s.R, C = (int)s.C, W = (int)s.W;
    each_row(&s, zero_task);
    RK_TRY(lerps_bwd(&s));
    rk_parallel(rk_cpu_tasks(s.R * s.W, RK_CPU_GRAIN), slope_task, &s);
    each_row(&s, mix_task);
    RK_TRY(rk_gemm(&(RkGemm){.M = C, .N = W, .K = R, .A = rk_f32(o->mixed), .lda = C, .trans_a = 1, .B = rk_f32(o->dh), .ldb = W,
                             .C = rk_f32(o->dm1), .ldc = W, .accumulate = 1}));
    RK_TRY(rk_gemm(&(RkGemm){.M = R, .N = C, .K = W, .A = rk_f32(o->dh), .lda = W, .B = rk_f32(o->m1), .ldb = W, .trans_b = 1,
                             .C = rk_f32(o->mixed), .ldc = C}));
    s.z = -1;
    each_row(&s, lerp_bwd_task);
    rk_cpu_column_sums(rk_f32(o->mixed), rk_f32(o->dmu_x), s.R, s.C);
    each_row(&s, next_task);
    for (size_t b = 0; o->dprev.p && b < s.B; b++)
        memcpy(rk_f32(o->dprev) + b * s.C, rk_f32(o->e) + b * s.T * s.C, s.C * sizeof(float));
    return RK_OK;
}
