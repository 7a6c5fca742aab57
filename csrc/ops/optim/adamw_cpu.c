#include "ops/backend_cpu.h"

typedef struct AdamW { RkAdamWRange a; size_t n; } AdamW;

static void adamw_task(void *ctx, size_t task) {
    const AdamW *s = ctx;
    RkCpuRange e = rk_cpu_range(task, RK_CPU_GRAIN, s->n);
    rk_k.adamw(&s->a, e.lo, e.hi);
}

int rk_cpu_adamw_fwd(const RkAdamW *o) {
    AdamW s = {{.p = rk_f32(o->p), .g = rk_f32(o->g), .m = rk_f32(o->m), .v = rk_f32(o->v), .gscale = (float)o->gscale,
                .lr = (float)o->lr, .beta1 = (float)o->beta1, .one_minus_beta1 = (float)(1 - o->beta1), .beta2 = (float)o->beta2,
                .one_minus_beta2 = (float)(1 - o->beta2), .eps = (float)o->eps, .wd = (float)o->wd,
                .inverse_bias1 = (float)(1 / o->bias1), .inverse_bias2 = (float)(1 / o->bias2)},
               rk_numel(o->p)};
    rk_parallel(rk_cpu_tasks(s.n, RK_CPU_GRAIN), adamw_task, &s);
    return RK_OK;
}
