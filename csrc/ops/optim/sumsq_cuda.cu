#include "ops/backend_cuda.h"

#include "cuda/double_sum.h"

enum { THREADS = RK_DOUBLE_SUM_THREADS };

template <typename T> __global__ void sumsq_blocks(const T *x, double *partial, size_t n) {
    size_t first = static_cast<size_t>(blockIdx.x) * RK_SUMSQ_BLOCK, end = first + RK_SUMSQ_BLOCK < n ? first + RK_SUMSQ_BLOCK : n;
    double sum = 0;
    for (size_t i = first + threadIdx.x; i < end; i += THREADS) sum += static_cast<double>(rk_float(x[i])) * static_cast<double>(rk_float(x[i]));
    sum = rk_block_double_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

static __global__ void sumsq_total(const double *partial, double *out, int blocks) {
    double sum = rk_double_sum(partial, blocks);
    if (threadIdx.x == 0) *out = sum;
}

int rk_cuda_sumsq_fwd(const RkSumsq *o) {
    size_t n = rk_numel(o->x);
    unsigned blocks = rk_blocks(n, RK_SUMSQ_BLOCK);
    RK_CUDA_BY_DTYPE(o->x.dtype, T, RK_TRY(rk_launch(sumsq_blocks<T>, blocks, THREADS, 0, rk_stream(), rk_ptr<T>(o->x), rk_ptr<double>(o->partial), n)))
    return rk_launch(sumsq_total, 1, THREADS, 0, rk_stream(), rk_ptr<double>(o->partial), rk_ptr<double>(o->out), static_cast<int>(blocks));
}
