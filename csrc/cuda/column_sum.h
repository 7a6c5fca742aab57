/* column_sum.h - to[c] += the sum of column c of (R, C). */
#ifndef RK_CUDA_COLUMN_SUM_H
#define RK_CUDA_COLUMN_SUM_H

#include "cuda/columns.h"

template <typename T> __global__ void rk_column_sum_slices(const T *x, int R, int C, RkSlices s, bool aligned, float *partial) {
    int c = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * RK_VEC<T>, n = C - c < RK_VEC<T> ? C - c : RK_VEC<T>;
    if (n <= 0) return;
    int first = static_cast<int>(blockIdx.y) * s.rows, end = first + s.rows < R ? first + s.rows : R;
    float v[RK_VEC<T>], sum[RK_VEC<T>] = {};
    for (int r = first; r < end; r++) {
        rk_load(x + static_cast<size_t>(r) * C + c, n, aligned && n == RK_VEC<T>, v);
        for (int i = 0; i < RK_VEC<T>; i++) sum[i] += v[i];
    }
    for (int i = 0; i < n; i++) partial[static_cast<size_t>(blockIdx.y) * C + c + i] = sum[i];
}

template <typename T> int rk_column_sum(const T *x, int R, int C, float *to) {
    RkSlices s = rk_slices(R);
    bool aligned = rk_aligned(x) && C % RK_VEC<T> == 0;
    return rk_sum_columns(s, 1, C, {{to}}, [&](float *partial) {
        return rk_launch(rk_column_sum_slices<T>, dim3(rk_blocks(C, 128 * RK_VEC<T>), s.count), 128, 0, rk_stream(), x, R, C, s, aligned, partial);
    });
}

#endif
