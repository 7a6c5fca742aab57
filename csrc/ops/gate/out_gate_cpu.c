#include "ops/backend_cpu.h"

static RkOutGateRows out_gate_rows(const RkOutGate *o) {
    return (RkOutGateRows){
        .y = rk_f32(o->y), .r = rk_f32(o->r), .k = rk_f32(o->k), .v = rk_f32(o->v), .r_k = rk_f32(o->r_k), .w = rk_f32(o->w),
        .b = rk_f32(o->b), .g = rk_f32(o->g), .do_ = rk_f32(o->do_), .o = rk_f32(o->o), .dy = rk_f32(o->dy), .dr = rk_f32(o->dr),
        .dk = rk_f32(o->dk), .dv = rk_f32(o->dv), .dg = rk_f32(o->dg), .dr_k = rk_f32(o->dr_k), .dw = rk_f32(o->dw),
        .db = rk_f32(o->db), .R = (size_t)o->y.d[0] * (size_t)o->y.d[1], .H = (size_t)o->y.d[2], .N = (size_t)o->y.d[3],
        .eps = (float)o->eps};
}

static void out_gate_task(void *ctx, size_t task) {
    const RkOutGateRows *a = ctx;
    RkCpuRange rows = rk_cpu_range(task, rk_cpu_rows_per_task(a->H * a->N), a->R);
    rk_k.out_gate_fwd(a, rows.lo, rows.hi);
}

int rk_cpu_out_gate_fwd(const RkOutGate *o) {
    RkOutGateRows a = out_gate_rows(o);
    rk_parallel(rk_cpu_tasks(a.R, rk_cpu_rows_per_task(a.H * a.N)), out_gate_task, &a);
    return RK_OK;
}

/* Heads own their parameters' gradients: a task takes heads and walks all rows. */
static void out_gate_task_bwd(void *ctx, size_t task) {
    const RkOutGateRows *a = ctx;
    RkCpuRange heads = rk_cpu_range(task, rk_cpu_heads_per_task(a->H, a->N), a->H);
    rk_k.out_gate_bwd(a, heads.lo, heads.hi);
}

int rk_cpu_out_gate_bwd(const RkOutGate *o) {
    RkOutGateRows a = out_gate_rows(o);
    rk_parallel(rk_cpu_tasks(a.H, rk_cpu_heads_per_task(a.H, a.N)), out_gate_task_bwd, &a);
    return RK_OK;
}
