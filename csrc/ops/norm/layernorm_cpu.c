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

static void layernorm_task_columns(void *ctx, size_t task) {
    const RkLayerNormRows *a = ctx;
    RkCpuRange cols = rk_cpu_range(task, rk_cpu_columns_per_task(a->C), a->C);
    rk_k.layernorm_bwd_columns(a, cols.lo, cols.hi);
}

static void layernorm_task_rows(void *ctx, size_t task) {
    const RkLayerNormRows *a = ctx;
    RkCpuRange rows = rk_cpu_range(task, rk_cpu_rows_per_task(a->C), a->R);
    rk_k.layernorm_bwd_rows(a, rows.lo, rows.hi);
}

int rk_cpu_layernorm_bwd(const RkLayerNorm *o) {
    RkLayerNormRows a = layernorm_rows(o);
    rk_parallel(rk_cpu_tasks(a.C, rk_cpu_columns_per_task(a.C)), layernorm_task_columns, &a);
    rk_parallel(rk_cpu_tasks(a.R, rk_cpu_rows_per_task(a.C)), layernorm_task_rows, &a);
    return RK_OK;
}

typedef struct ColumnSums { const float *src; float *dst; size_t R, C; } ColumnSums;

static void column_sums_task(void *ctx, size_t task) {
    const ColumnSums *s = ctx;
    RkCpuRange cols = rk_cpu_range(task, rk_cpu_columns_per_task(s->C), s->C);
    rk_k.column_sums(s->src, s->dst, s->R, s->C, cols.lo, cols.hi);
}

void rk_cpu_column_sums(const float *src, float *dst, size_t R, size_t C) {
    ColumnSums s = {src, dst, R, C};
    rk_parallel(rk_cpu_tasks(C, rk_cpu_columns_per_task(C)), column_sums_task, &s);
}
