/* heads.h - kernels on (R, H, N) rows: a group of lanes, a power of two, holds one head of one token, 16 bytes a lane.
 *
 * A thread owns the same columns of every row it visits, so parameters of heads are loaded once and their gradients stay in registers:
 * a block owns some heads and walks the rows of a slice (columns.h). N up to 32 vectors: 128 in float32. */
#ifndef RK_CUDA_HEADS_H
#define RK_CUDA_HEADS_H

#include "cuda/columns.h"

enum { RK_HEAD_THREADS = 128 };

struct RkHeads {
    int R, H, N, lanes; /* lanes of a group */
    bool aligned;       /* every tensor begins at, and N is a multiple of, 16 bytes */
    RkSlices slices;
};

/* What one thread works on. */
struct RkHeadLane {
    int column, n; /* the first of its columns in a row of C, and how many they are; 0: none, but it takes part in the sums */
    int first, end; /* rows */
    int lanes;
    bool whole;
};

template <typename T> __device__ inline RkHeadLane rk_head_lane(const RkHeads &a) {
    int group = static_cast<int>(threadIdx.x) / a.lanes, at = static_cast<int>(threadIdx.x) % a.lanes * RK_VEC<T>;
    int head = static_cast<int>(blockIdx.x) * (RK_HEAD_THREADS / a.lanes) + group, n = a.N - at;
    if (n > RK_VEC<T>) n = RK_VEC<T>;
    if (n < 0 || head >= a.H) n = 0;
    int first = static_cast<int>(blockIdx.y) * a.slices.rows, end = first + a.slices.rows;
    return {n ? head * a.N + at : 0, n, first, end < a.R ? end : a.R, a.lanes, a.aligned && n == RK_VEC<T>};
}

/* The sum over the head's group, for all its lanes. */
__device__ inline float rk_head_sum(float x, int lanes) {
    for (int offset = lanes / 2; offset; offset >>= 1) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

/* For a kernel's blocks: how (R,H,N) rows are shared out. `aligned`: every tensor begins at a multiple of 16 bytes. */
template <typename T> int rk_heads(RkTensor rows, bool aligned, RkHeads *a) {
    int N = rows.d[3], lanes = 1;
    while (lanes * RK_VEC<T> < N) lanes *= 2;
    if (lanes > 32) return rk_fail(RK_EUNSUP, "a head of %d channels is larger than the %d that the cuda backend has", N, 32 * RK_VEC<T>);
    size_t R = static_cast<size_t>(rows.d[0]) * rows.d[1];
    a->R = static_cast<int>(R);
    a->H = rows.d[2];
    a->N = N;
    a->lanes = lanes;
    a->aligned = aligned && N % RK_VEC<T> == 0;
    a->slices = rk_slices(R);
    return RK_OK;
}
inline dim3 rk_head_blocks(const RkHeads &a) { return dim3(rk_blocks(a.H, RK_HEAD_THREADS / a.lanes), a.slices.count); }

/* A thread's sums of parameter k of n to partial[slice][n][C]. */
__device__ inline void rk_head_partial(float *partial, const RkHeads &a, const RkHeadLane &l, int k, int n, const float *sum) {
    float *to = partial + (static_cast<size_t>(blockIdx.y) * n + k) * a.H * a.N + l.column;
    for (int i = 0; i < l.n; i++) to[i] = sum[i];
}

/* A backward whose threads end with rk_head_partial of n parameters. */
template <typename Arguments> int rk_head_gradients(void (*kernel)(Arguments, float *), const Arguments &a, int n, RkColumnSums sums) {
    return rk_sum_columns(a.heads.slices, n, a.heads.H * a.heads.N, sums, [&](float *partial) {
        return rk_launch(kernel, rk_head_blocks(a.heads), RK_HEAD_THREADS, 0, rk_stream(), a, partial);
    });
}

#endif
