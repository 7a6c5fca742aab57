#include "ops/backend_cpu.h"

static void add_range(void *ctx, size_t task) {
    const RkAdd *o = ctx;
    RkCpuRange e = rk_cpu_range(task, RK_CPU_GRAIN, rk_numel(o->y));
    rk_k.add(rk_f32(o->a) + e.lo, rk_f32(o->b) + e.lo, rk_f32(o->y) + e.lo, e.hi - e.lo);
}

int rk_cpu_add_fwd(const RkAdd *o) {
    rk_parallel(rk_cpu_tasks(rk_numel(o->y), RK_CPU_GRAIN), add_range, (void *)o);
    return RK_OK;
}
