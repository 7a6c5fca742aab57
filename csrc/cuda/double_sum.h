/* double_sum.h - sums in float64 over a block. */
#ifndef RK_CUDA_DOUBLE_SUM_H
#define RK_CUDA_DOUBLE_SUM_H

#include "cuda/launch.h"

enum { RK_DOUBLE_SUM_THREADS = 256 };

/* The sum over a block of so many threads, for thread 0. */
__device__ static inline double rk_block_double_sum(double x) {
    RK_SHARED(double, shared, [RK_DOUBLE_SUM_THREADS]);
    shared[threadIdx.x] = x;
    for (int half = RK_DOUBLE_SUM_THREADS / 2; half; half /= 2) {
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    return shared[0];
}

/* The sum of n numbers by one block, for thread 0. */
__device__ static inline double rk_double_sum(const double *x, int n) {
    double sum = 0;
    for (int i = static_cast<int>(threadIdx.x); i < n; i += RK_DOUBLE_SUM_THREADS) sum += x[i];
    return rk_block_double_sum(sum);
}

#endif
