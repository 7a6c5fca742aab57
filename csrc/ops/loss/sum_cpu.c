#include "ops/backend_cpu.h"

int rk_cpu_sum_fwd(const RkSum *o) {
    double sum = 0;
    for (size_t i = 0, n = rk_numel(o->x); i < n; i++) sum += ((const double *)o->x.p)[i];
    *(double *)o->out.p += sum;
    return RK_OK;
}
