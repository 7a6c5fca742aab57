#include "ops/backend_cpu.h"

#include "base/quant.h"

static void embed_rows(void *ctx, size_t task) {
    const RkEmbed *o = ctx;
    size_t C = (size_t)rk_cols(o->y);
    RkCpuRange rows = rk_cpu_range(task, rk_cpu_rows_per_task(C), rk_rows(o->y));
    for (size_t r = rows.lo; r < rows.hi; r++)
        rk_row_to_f32(o->w.dtype, rk_slice_rows(o->w, (size_t)o->ids[r], 1).p, rk_f32(o->y) + r * C, C);
}

int rk_cpu_embed_fwd(const RkEmbed *o) {
    rk_parallel(rk_cpu_tasks(rk_rows(o->y), rk_cpu_rows_per_task((size_t)rk_cols(o->y))), embed_rows, (void *)o);
    return RK_OK;
}

/* Ids repeat, so a task owns columns and takes the rows in order. */
static void embed_columns_bwd(void *ctx, size_t task) {
    const RkEmbed *o = ctx;
    size_t R = rk_rows(o->dy), C = (size_t)rk_cols(o->dy);
    RkCpuRange cols = rk_cpu_range(task, RK_COLUMNS_MAX, C);
    for (size_t r = 0; r < R; r++) {
        float *dw = rk_f32(o->dw) + (size_t)o->ids[r] * C + cols.lo;
        rk_k.add(dw, rk_f32(o->dy) + r * C + cols.lo, dw, cols.hi - cols.lo);
    }
}

int rk_cpu_embed_bwd(const RkEmbed *o) {
    rk_parallel(rk_cpu_tasks((size_t)rk_cols(o->dy), RK_COLUMNS_MAX), embed_columns_bwd, (void *)o);
    return RK_OK;
}
