#include "ops/backend_cpu.h"

typedef struct ValueResidual { RkValueResidualRows a; size_t n; } ValueResidual;

static ValueResidual value_residual_rows(const RkValueResidual *o) {
    return (ValueResidual){{.v0 = rk_f32(o->v0), .v_first = rk_f32(o->v_first), .nu = rk_f32(o->nu), .v = rk_f32(o->v),
                            .dv = rk_f32(o->dv), .dv0 = rk_f32(o->dv0), .dnu = rk_f32(o->dnu), .dv_first = rk_f32(o->dv_first)},
                           rk_numel(o->v0)};
}

static void value_residual_task(void *ctx, size_t task) {
    const ValueResidual *s = ctx;
    RkCpuRange e = rk_cpu_range(task, RK_CPU_GRAIN, s->n);
    rk_k.value_residual_fwd(&s->a, e.lo, e.hi);
}

int rk_cpu_value_residual_fwd(const RkValueResidual *o) {
    ValueResidual s = value_residual_rows(o);
    rk_parallel(rk_cpu_tasks(s.n, RK_CPU_GRAIN), value_residual_task, &s);
    return RK_OK;
}

static void value_residual_task_bwd(void *ctx, size_t task) {
    const ValueResidual *s = ctx;
    RkCpuRange e = rk_cpu_range(task, RK_CPU_GRAIN, s->n);
    rk_k.value_residual_bwd(&s->a, e.lo, e.hi);
}

int rk_cpu_value_residual_bwd(const RkValueResidual *o) {
    ValueResidual s = value_residual_rows(o);
    rk_parallel(rk_cpu_tasks(s.n, RK_CPU_GRAIN), value_residual_task_bwd, &s);
    return RK_OK;
}
