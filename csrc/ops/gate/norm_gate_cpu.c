#include "ops/backend_cpu.h"

static RkNormGateRows norm_gate_rows(const RkNormGate *o) {
    return (RkNormGateRows){
        .y = rk_f32(o->y), .w = rk_f32(o->w), .b = rk_f32(o->b), .g = rk_f32(o->g), .do_ = rk_f32(o->do_), .o = rk_f32(o->o),
        .dy = rk_f32(o->dy), .dg = rk_f32(o->dg), .dw = rk_f32(o->dw), .db = rk_f32(o->db),
        .R = (size_t)o->y.d[0] * (size_t)o->y.d[1], .H = (size_t)o->y.d[2], .N = (size_t)o->y.d[3], .eps = (float)o->eps};
}

static void norm_gate_task(void *ctx, size_t task) {
    const RkNormGateRows *a = ctx;
    RkCpuRange rows = rk_cpu_range(task, rk_cpu_rows_per_task(a->H * a->N), a->R);
    rk_k.norm_gate_fwd(a, rows.lo, rows.hi);
}

int rk_cpu_norm_gate_fwd(const RkNormGate *o) {
    RkNormGateRows a = norm_gate_rows(o);
    rk_parallel(rk_cpu_tasks(a.R, rk_cpu_rows_per_task(a.H * a.N)), norm_gate_task, &a);
    return RK_OK;
}

/* Heads own their parameters' gradients: a task takes heads and walks all rows. */
static void norm_gate_task_bwd(void *ctx, size_t task) {
    const RkNormGateRows *a = ctx;
    RkCpuRange heads = rk_cpu_range(task, rk_cpu_heads_per_task(a->H, a->N), a->H);
    rk_k.norm_gate_bwd(a, heads.lo, heads.hi);
}

int rk_cpu_norm_gate_bwd(const RkNormGate *o) {
    RkNormGateRows a = norm_gate_rows(o);
    rk_parallel(rk_cpu_tasks(a.H, rk_cpu_heads_per_task(a.H, a.N)), norm_gate_task_bwd, &a);
    return RK_OK;
}
