#include "ops/backend_cpu.h"

static void relu2_range(void *ctx, size_t task) {
    const RkRelu2 *o = ctx;
    RkCpuRange e = rk_cpu_range(task, RK_CPU_GRAIN, rk_numel(o->x));
    rk_k.relu2_fwd(rk_f32(o->x) + e.lo, rk_f32(o->y) + e.lo, e.hi - e.lo);
}

int rk_cpu_relu2_fwd(const RkRelu2 *o) {
    rk_parallel(rk_cpu_tasks(rk_numel(o->x), RK_CPU_GRAIN), relu2_range, (void *)o);
    return RK_OK;
}

static void relu2_range_bwd(void *ctx, size_t task) {
    const RkRelu2 *o = ctx;
    RkCpuRange e = rk_cpu_range(task, RK_CPU_GRAIN, rk_numel(o->x));
    rk_k.relu2_bwd(rk_f32(o->x) + e.lo, rk_f32(o->dy) + e.lo, rk_f32(o->dx) + e.lo, e.hi - e.lo);
}

int rk_cpu_relu2_bwd(const RkRelu2 *o) {
    rk_parallel(rk_cpu_tasks(rk_numel(o->x), RK_CPU_GRAIN), relu2_range_bwd, (void *)o);
    return RK_OK;
}
