#include "ops/backend_cpu.h"

static RkSigmoidGateRows sigmoid_gate_rows(const RkSigmoidGate *o) {
    return (RkSigmoidGateRows){.q = rk_f32(o->q), .v = rk_f32(o->v), .dy = rk_f32(o->dy), .y = rk_f32(o->y), .dq = rk_f32(o->dq),
                               .dv = rk_f32(o->dv)};
}

static void sigmoid_gate_task(void *ctx, size_t task) {
    const RkSigmoidGate *o = ctx;
    RkSigmoidGateRows a = sigmoid_gate_rows(o);
    RkCpuRange e = rk_cpu_range(task, RK_CPU_GRAIN, rk_numel(o->q));
    rk_k.sigmoid_gate_fwd(&a, e.lo, e.hi);
}

int rk_cpu_sigmoid_gate_fwd(const RkSigmoidGate *o) {
    rk_parallel(rk_cpu_tasks(rk_numel(o->q), RK_CPU_GRAIN), sigmoid_gate_task, (void *)o);
    return RK_OK;
}

static void sigmoid_gate_task_bwd(void *ctx, size_t task) {
    const RkSigmoidGate *o = ctx;
    RkSigmoidGateRows a = sigmoid_gate_rows(o);
    RkCpuRange e = rk_cpu_range(task, RK_CPU_GRAIN, rk_numel(o->q));
    rk_k.sigmoid_gate_bwd(&a, e.lo, e.hi);
}

int rk_cpu_sigmoid_gate_bwd(const RkSigmoidGate *o) {
    rk_parallel(rk_cpu_tasks(rk_numel(o->q), RK_CPU_GRAIN), sigmoid_gate_task_bwd, (void *)o);
    return RK_OK;
}
