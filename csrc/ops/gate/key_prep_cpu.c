#include "ops/backend_cpu.h"

static RkKeyPrepRows key_prep_rows(const RkKeyPrep *o) {
    return (RkKeyPrepRows){
        .k0 = rk_f32(o->k0), .a = rk_f32(o->a), .k_k = rk_f32(o->k_k), .k_a = rk_f32(o->k_a), .dk = rk_f32(o->dk),
        .dalpha = rk_f32(o->dalpha), .dbeta = rk_f32(o->dbeta), .k = rk_f32(o->k), .alpha = rk_f32(o->alpha),
        .beta = rk_f32(o->beta), .dk0 = rk_f32(o->dk0), .da = rk_f32(o->da), .dk_k = rk_f32(o->dk_k), .dk_a = rk_f32(o->dk_a),
        .R = (size_t)o->k0.d[0] * (size_t)o->k0.d[1], .H = (size_t)o->k0.d[2], .N = (size_t)o->k0.d[3]};
}

static void key_prep_task(void *ctx, size_t task) {
    const RkKeyPrepRows *a = ctx;
    RkCpuRange rows = rk_cpu_range(task, rk_cpu_rows_per_task(a->H * a->N), a->R);
    rk_k.key_prep_fwd(a, rows.lo, rows.hi);
}

int rk_cpu_key_prep_fwd(const RkKeyPrep *o) {
    RkKeyPrepRows a = key_prep_rows(o);
    rk_parallel(rk_cpu_tasks(a.R, rk_cpu_rows_per_task(a.H * a.N)), key_prep_task, &a);
    return RK_OK;
}

/* Heads own their parameters' gradients: a task takes heads and walks all rows. */
static void key_prep_task_bwd(void *ctx, size_t task) {
    const RkKeyPrepRows *a = ctx;
    RkCpuRange heads = rk_cpu_range(task, rk_cpu_heads_per_task(a->H, a->N), a->H);
    rk_k.key_prep_bwd(a, heads.lo, heads.hi);
}

int rk_cpu_key_prep_bwd(const RkKeyPrep *o) {
    RkKeyPrepRows a = key_prep_rows(o);
    rk_parallel(rk_cpu_tasks(a.H, rk_cpu_heads_per_task(a.H, a.N)), key_prep_task_bwd, &a);
    return RK_OK;
}
