/* head_norm.h - the mean and the inverse deviation of one head, held by a group of lanes. */
#ifndef RK_CUDA_HEAD_NORM_H
#define RK_CUDA_HEAD_NORM_H

#include "cuda/heads.h"

struct RkMoments { float mean, inverse; };

template <typename T> __device__ inline RkMoments rk_head_moments(const float *y, const RkHeadLane &l, int N, float eps) {
    float sum = 0, var = 0;
    for (int i = 0; i < RK_VEC<T>; i++) sum += y[i];
    float mean = rk_head_sum(sum, l.lanes) / N;
    for (int i = 0; i < RK_VEC<T>; i++) var += i < l.n ? (y[i] - mean) * (y[i] - mean) : 0;
    return {mean, 1 / sqrtf(rk_head_sum(var, l.lanes) / N + eps)};
}

/* The gradient of y, given that of xhat w + b times w in t. */
template <typename T> __device__ inline void rk_head_norm_bwd(const float *y, const float *t, const RkHeadLane &l, int N, RkMoments m, float *dy) {
    float sum = 0, sum_x = 0;
    for (int i = 0; i < RK_VEC<T>; i++)
        if (i < l.n) sum += t[i], sum_x += t[i] * ((y[i] - m.mean) * m.inverse);
    sum = rk_head_sum(sum, l.lanes) / N;
    sum_x = rk_head_sum(sum_x, l.lanes) / N;
    for (int i = 0; i < RK_VEC<T>; i++) dy[i] = m.inverse * (t[i] - sum - (y[i] - m.mean) * m.inverse * sum_x);
}

#endif
