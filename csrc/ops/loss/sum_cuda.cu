#include "ops/backend_cuda.h"

#include "cuda/double_sum.h"

static __global__ void sum_all(const double *x, double *out, int n) {
    double sum = rk_double_sum(x, n);
    if (threadIdx.x == 0) *out += sum;
}

int rk_cuda_sum_fwd(const RkSum *o) {
    return rk_launch(sum_all, 1, RK_DOUBLE_SUM_THREADS, 0, rk_stream(), rk_ptr<double>(o->x), rk_ptr<double>(o->out), static_cast<int>(rk_numel(o->x)));
}
