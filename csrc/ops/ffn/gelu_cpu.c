#include "ops/backend_cpu.h"

static void gelu_range(void *ctx, size_t task) {
    const RkGelu *o = ctx;
    RkCpuRange e = rk_cpu_range(task, RK_CPU_GRAIN, rk_numel(o->x));
    rk_k.gelu_fwd(rk_f32(o->x) + e.lo, rk_f32(o->y) + e.lo, e.hi - e.lo);
}

int rk_cpu_gelu_fwd(const RkGelu *o) {
    rk_parallel(rk_cpu_tasks(rk_numel(o->x), RK_CPU_GRAIN), gelu_range, (void *)o);
    return RK_OK;
}

static void gelu_range_bwd(void *ctx, size_t task) {
    const RkGelu *o = ctx;
    RkCpuRange e = rk_cpu_range(task, RK_CPU_GRAIN, rk_numel(o->x));
    rk_k.gelu_bwd(rk_f32(o->x) + e.lo, rk_f32(o->dy) + e.lo, rk_f32(o->dx) + e.lo, e.hi - e.lo);
}

int rk_cpu_gelu_bwd(const RkGelu *o) {
    rk_parallel(rk_cpu_tasks(rk_numel(o->x), RK_CPU_GRAIN), gelu_range_bwd, (void *)o);
    return RK_OK;
}
