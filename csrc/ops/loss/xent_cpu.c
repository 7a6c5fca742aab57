#include "ops/backend_cpu.h"

static void xent_task(void *ctx, size_t task) {
    const RkXent *o = ctx;
    size_t V = (size_t)rk_cols(o->logits);
    const double *factors = o->factors.p;
    RkCpuRange rows = rk_cpu_range(task, rk_cpu_rows_per_task(V), rk_rows(o->logits));
    for (size_t r = rows.lo; r < rows.hi; r++) {
        RkXentRow a = {o->targets[r], o->grad, factors ? factors[0] : o->scale, factors ? factors[1] : o->l2};
        ((double *)o->loss.p)[r] = rk_k.xent_row(rk_f32(o->logits) + r * V, V, &a);
    }
}

int rk_cpu_xent_fwd(const RkXent *o) {
    size_t V = (size_t)rk_cols(o->logits);
    rk_parallel(rk_cpu_tasks(rk_rows(o->logits), rk_cpu_rows_per_task(V)), xent_task, (void *)o);
    return RK_OK;
}
