/* columns.h - gradients of parameters that all rows share: sums down the columns of (R, C), in two kernels without atomics.
 *
 * Rows are cut into slices by their number alone. A thread of the first kernel owns some columns and walks the rows of one slice,
 * often computing other things on the way; its sums go to partial[slice][parameter][C] in the scratch. The second adds the slices to
 * the gradients in order. */
#ifndef RK_CUDA_COLUMNS_H
#define RK_CUDA_COLUMNS_H

#include "cuda/launch.h"

enum { RK_MAX_SLICES = 128, RK_COLUMN_PARAMS = 6 };

/* How R rows are walked: `count` slices of `rows` rows; the last may have fewer. */
struct RkSlices { int count, rows; };

/* 16 rows at least in a slice: writing its sums then costs a tenth of reading it. */
inline RkSlices rk_slices(size_t R) {
    size_t rows = (R + RK_MAX_SLICES - 1) / RK_MAX_SLICES;
    if (rows < 16) rows = 16;
    return {static_cast<int>((R + rows - 1) / rows), static_cast<int>(rows)};
}

struct RkColumnSums { float *to[RK_COLUMN_PARAMS]; };

static __global__ void rk_add_slices(const float *partial, int slices, int n, int C, RkColumnSums sums) {
    int c = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), k = static_cast<int>(blockIdx.y);
    if (c >= C || !sums.to[k]) return;
    float sum = 0;
    for (int s = 0; s < slices; s++) sum += partial[(static_cast<size_t>(s) * n + k) * C + c];
    sums.to[k][c] += sum;
}

/* Both kernels: launch(partial) is the first, with room for its sums of n parameters. */
template <typename Launch> int rk_sum_columns(RkSlices s, int n, int C, RkColumnSums sums, Launch launch) {
    float *partial;
    RK_TRY(rk_cuda_scratch(static_cast<size_t>(s.count) * n * C * sizeof(float), reinterpret_cast<void **>(&partial)));
    RK_TRY(launch(partial));
    return rk_launch(rk_add_slices, dim3(rk_blocks(C, 128), n), 128, 0, rk_stream(), partial, s.count, n, C, sums);
}

#endif
