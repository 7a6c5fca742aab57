/* backend_cpu.h - what the files of the cpu backend share: their function names and how work is cut into tasks.
 * Cuts are functions of the shape alone, so results are the same bits for any number of threads. */
#ifndef RK_OPS_BACKEND_CPU_H
#define RK_OPS_BACKEND_CPU_H

#include "base/parallel.h"
#include "kernels/kernels.h"
#include "ops/linear/by_column.h"
#include "ops/ops.h"

/* rk_cpu_<op>_fwd and rk_cpu_<op>_bwd; add, xent, sum, adamw, sumsq and clip have no backward. */
#define X(op, Args, FIELDS) int rk_cpu_##op##_fwd(const Args *o); int rk_cpu_##op##_bwd(const Args *o);
RK_OPS(X)
#undef X

enum { RK_CPU_GRAIN = 1 << 14 }; /* elements of one task: a few microseconds, well above the cost of handing it out */

typedef struct RkCpuRange { size_t lo, hi; } RkCpuRange;

static inline size_t rk_cpu_tasks(size_t n, size_t per_task) { return (n + per_task - 1) / per_task; }
static inline RkCpuRange rk_cpu_range(size_t task, size_t per_task, size_t n) {
    size_t lo = task * per_task;
    return (RkCpuRange){lo, lo + per_task < n ? lo + per_task : n};
}

/* Rows of one task where a row costs about `cols` elements. */
static inline size_t rk_cpu_rows_per_task(size_t cols) { return cols < RK_CPU_GRAIN ? RK_CPU_GRAIN / cols : 1; }

/* A pass over R rows whose gradients of parameters are sums over them: blocks of rows, cut by the shape alone, sum into rows of their own,
 * which are then added to the gradients in order. Tasks that own columns instead walk short pieces of all rows, at half the bandwidth. */
enum { RK_CPU_ROW_SUMS_MAX = 8 };
typedef struct RkCpuRowSums {
    /* Rows [rows.lo, rows.hi), adding to sums[0 .. n), (C) each, all zeros before. */
    void (*block)(const void *ctx, RkCpuRange rows, float *const *sums);
    const void *ctx;
    size_t R, C, n;
    float *to[RK_CPU_ROW_SUMS_MAX]; /* where sum i goes; NULL: nowhere, it is room for the block */
} RkCpuRowSums;
int rk_cpu_row_sums(const RkCpuRowSums *s);

/* An op on (R, H, N) rows whose arguments `op##_rows` turns into the kernels' Rows `a`; then where `a` has its parameters' gradients. */
#define RK_CPU_HEADS_OP(op, Args, Rows, ...)                                                    \
    static void op##_task(void *ctx, size_t task) {                                             \
        const Rows *a = ctx;                                                                    \
        RkCpuRange rows = rk_cpu_range(task, rk_cpu_rows_per_task(a->H * a->N), a->R);          \
        rk_k.op##_fwd(a, rows.lo, rows.hi);                                                     \
    }                                                                                           \
    static void op##_block(const void *ctx, RkCpuRange rows, float *const *sums) {              \
        Rows a = *(const Rows *)ctx;                                                            \
        float **const gradients[] = {__VA_ARGS__};                                              \
        for (size_t i = 0; i < sizeof gradients / sizeof *gradients; i++) *gradients[i] = sums[i]; \
        rk_k.op##_bwd(&a, rows.lo, rows.hi);                                                    \
    }                                                                                           \
    int rk_cpu_##op##_fwd(const Args *o) {                                                      \
        Rows a = op##_rows(o);                                                                  \
        rk_parallel(rk_cpu_tasks(a.R, rk_cpu_rows_per_task(a.H * a.N)), op##_task, &a);         \
        return RK_OK;                                                                           \
    }                                                                                           \
    int rk_cpu_##op##_bwd(const Args *o) {                                                      \
        Rows a = op##_rows(o);                                                                  \
        float **const gradients[] = {__VA_ARGS__};                                              \
        RkCpuRowSums s = {op##_block, &a, a.R, a.H * a.N, sizeof gradients / sizeof *gradients, {NULL}}; \
        for (size_t i = 0; i < s.n; i++) s.to[i] = *gradients[i];                               \
        return rk_cpu_row_sums(&s);                                                             \
    }

/* An op y = f(x), element by element. */
#define RK_CPU_FUNCTION_OP(op, Args)                                                                    \
    static void op##_task(void *ctx, size_t task) {                                                     \
        const Args *o = ctx;                                                                            \
        RkCpuRange e = rk_cpu_range(task, RK_CPU_GRAIN, rk_numel(o->x));                                \
        rk_k.op##_fwd(rk_f32(o->x) + e.lo, rk_f32(o->y) + e.lo, e.hi - e.lo);                           \
    }                                                                                                   \
    static void op##_task_bwd(void *ctx, size_t task) {                                                 \
        const Args *o = ctx;                                                                            \
        RkCpuRange e = rk_cpu_range(task, RK_CPU_GRAIN, rk_numel(o->x));                                \
        rk_k.op##_bwd(rk_f32(o->x) + e.lo, rk_f32(o->dy) + e.lo, rk_f32(o->dx) + e.lo, e.hi - e.lo);    \
    }                                                                                                   \
    int rk_cpu_##op##_fwd(const Args *o) {                                                              \
        rk_parallel(rk_cpu_tasks(rk_numel(o->x), RK_CPU_GRAIN), op##_task, (void *)o);                  \
        return RK_OK;                                                                                   \
    }                                                                                                   \
    int rk_cpu_##op##_bwd(const Args *o) {                                                              \
        rk_parallel(rk_cpu_tasks(rk_numel(o->x), RK_CPU_GRAIN), op##_task_bwd, (void *)o);              \
        return RK_OK;                                                                                   \
    }

/* dst[c] += sum over rows of src (R,C). */
void rk_cpu_column_sums(const float *src, float *dst, size_t R, size_t C);

/* Products of few rows (decoding) that do not depend on each other, in one parallel region. */
typedef struct RkCpuProducts {
    RkRowsTimesTransposed dots[RK_MAX_PRODUCTS];
    RkRowsTimesMatrix sums[RK_MAX_MIX];
    size_t n_dots, n_sums;
} RkCpuProducts;
int rk_cpu_few_rows_run(RkCpuProducts *p); /* quantises x where w is */

int rk_cpu_columns_linear(const RkLinear *o); /* the forward of few rows with columns */
RkRowsTimesTransposed rk_cpu_few_rows_linear(const RkLinear *o);
int rk_cpu_products_fwd(const RkProducts *o);

size_t rk_cpu_wkv6_scratch_bytes(int head_size);
size_t rk_cpu_wkv7_scratch_bytes(int head_size);
size_t rk_cpu_attention_scratch_bytes(int head_size);

#endif
