/* sigmoid.h - the logistic function and its slope, without cancellation. */
#ifndef RK_CUDA_SIGMOID_H
#define RK_CUDA_SIGMOID_H

#include "cuda/launch.h"

__device__ inline float rk_sigmoid(float x) { return 1 / (1 + expf(-x)); }

/* sigma(x) (1 - sigma(x)) */
__device__ inline float rk_sigmoid_slope(float x) {
    float e = expf(-fabsf(x));
    return e / ((1 + e) * (1 + e));
}

#endif
