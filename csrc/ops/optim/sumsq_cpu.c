#include "ops/backend_cpu.h"

static int known_zero(const RkSumsq *o, RkCpuRange e) {
    size_t C = (size_t)rk_cols(o->x);
    for (size_t r = e.lo / C; r * C < e.hi; r++)
        if (o->rows[r]) return 0;
    return 1;
}

static void sumsq_task(void *ctx, size_t task) {
    const RkSumsq *o = ctx;
    RkCpuRange e = rk_cpu_range(task, RK_SUMSQ_BLOCK, rk_numel(o->x));
    double *sum = (double *)o->partial.p + task;
    if (o->rows && known_zero(o, e)) *sum = 0;
    else *sum = rk_k.sumsq(rk_f32(o->x) + e.lo, e.hi - e.lo);
}

int rk_cpu_sumsq_fwd(const RkSumsq *o) {
    size_t blocks = rk_cpu_tasks(rk_numel(o->x), RK_SUMSQ_BLOCK);
    rk_parallel(blocks, sumsq_task, (void *)o);
    double sum = 0;
    for (size_t i = 0; i < blocks; i++) sum += ((const double *)o->partial.p)[i];
    *(double *)o->out.p = sum;
    return RK_OK;
}
