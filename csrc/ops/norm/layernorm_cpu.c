#include "ops/backend_cpu.h"

static RkLayerNormRows layernorm_rows(const RkLayerNorm *o) {
    return (RkLayerNormRows){
        .x = rk_f32(o->x), .w = rk_f32(o->w), .b = rk_f32(o->b), .dy = rk_f32(o->dy), .dres = rk_f32(o->dres),
        .y = rk_f32(o->y), .stats = rk_f32(o->stats), .dx = rk_f32(o->dx), .dw = rk_f32(o->dw), .db = rk_f32(o->db),
        .R = rk_rows(o->x), .C = (size_t)rk_cols(o->x), .eps = (float)o->eps};
}

static void layernorm_task(void *ctx, size_t task) {
    const RkLayerNormRows *a = ctx;
    RkCpuRange rows = rk_cpu_range(task, rk_cpu_rows_per_task(a->C), a->R);
    rk_k.layernorm_fwd(a, rows.lo, rows.hi);
}

int rk_cpu_layernorm_fwd(const RkLayerNorm *o) {
    RkLayerNormRows a = layernorm_rows(o);
    rk_parallel(rk_cpu_tasks(a.R, rk_cpu_rows_per_task(a.C)), layernorm_task, &a);
    return RK_OK;
}

static void layernorm_block(const void *ctx, RkCpuRange rows, float *const *sums) {
    RkLayerNormRows a = *(const RkLayerNormRows *)ctx;
    a.dw = sums[0], a.db = sums[1];
    rk_k.layernorm_bwd(&a, rows.lo, rows.hi);
}

int rk_cpu_layernorm_bwd(const RkLayerNorm *o) {
    RkLayerNormRows a = layernorm_rows(o);
    return rk_cpu_row_sums(&(RkCpuRowSums){layernorm_block, &a, a.R, a.C, 2, {a.dw, a.db}});
}
