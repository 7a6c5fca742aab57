/* by_column_cpu.c - products of few rows, most of which is zero, with a matrix by its columns: a task per panel of outputs. */
#include "ops/backend_cpu.h"

#include <stdatomic.h>
#include <string.h>

static _Atomic uint64_t columns_read, columns_all;

RkColumnsRead rk_cpu_columns_read(void) { return (RkColumnsRead){atomic_load(&columns_read), atomic_load(&columns_all)}; }

/* The columns that any row of x needs, in their order; a NaN counts. */
static size_t used_columns(const float *x, size_t R, size_t K, uint32_t *used) {
    unsigned char *any = (unsigned char *)(used + K);
    for (size_t k = 0; k < K; k++) any[k] = x[k] != 0;
    for (size_t r = 1; r < R; r++)
        for (size_t k = 0; k < K; k++) any[k] |= x[r * K + k] != 0;
    size_t n = 0;
    for (size_t k = 0; k < K; k++) {
        used[n] = (uint32_t)k;
        n += any[k];
    }
    return n;
}

static void panel_task(void *ctx, size_t panel) { rk_k.rows_times_columns(ctx, panel); }

int rk_cpu_columns_linear(const RkLinear *o) {
    size_t K = (size_t)rk_cols(o->w), R = rk_numel(o->x) / K;
    uint32_t *used = rk_thread_scratch(K * (sizeof *used + 1));
    if (!used) return rk_fail(RK_ENOMEM, "linear: no memory for a list of %zu columns", K);
    RkRowsTimesColumns a = {.x = rk_f32(o->x), .columns = o->columns.p, .y = rk_f32(o->y), .used = used,
                            .R = R, .K = K, .M = rk_rows(o->w), .dtype = o->w.dtype};
    a.n_used = used_columns(a.x, R, K, used);
    atomic_fetch_add_explicit(&columns_read, a.n_used, memory_order_relaxed);
    atomic_fetch_add_explicit(&columns_all, K, memory_order_relaxed);
    rk_parallel(rk_cpu_tasks(a.M, RK_PANEL), panel_task, &a);
    return RK_OK;
}
