/* Products of many rows are cuBLASLt's. Quantised weights become elements of the activations' type for it, some outputs at a time, so that
 * what is written is still in the L2 cache (50 MB) when it is multiplied. Few rows: few_rows_cuda.cu. */
#include "cuda/blas.h"
#include "cuda/quantised.h"
#include "ops/backend_cuda.h"
#include "ops/linear/few_rows_cuda.h"
#include "ops/linear/sparse_row_cuda.h"

enum { THREADS = 256, PANEL_BYTES = 32 << 20, ALIGNED_OUTPUTS = 64 };

/* Sixteen bytes of elements a thread. Grid: tiles of K, outputs. */
template <typename T> __global__ void linear_dequantise(const unsigned char *w, int dtype, size_t row_bytes, int K, T *to) {
    int k = static_cast<int>(blockIdx.x * THREADS + threadIdx.x) * RK_VEC<T>;
    if (k >= K) return;
    const unsigned char *row = w + blockIdx.y * row_bytes;
    float v[RK_VEC<T>];
#pragma unroll
    for (int i = 0; i < RK_VEC<T>; i++) v[i] = rk_quantised_weight(row, dtype, K, k + i);
    rk_store(to + static_cast<size_t>(blockIdx.y) * static_cast<size_t>(K) + k, RK_VEC<T>, true, v);
}

template <typename T> static int quantised(const RkLinear *o, int R, int K, int M) {
    int outputs = PANEL_BYTES / (K * static_cast<int>(sizeof(T))) / ALIGNED_OUTPUTS * ALIGNED_OUTPUTS;
    if (outputs < ALIGNED_OUTPUTS) outputs = ALIGNED_OUTPUTS;
    T *panel;
    RK_TRY(rk_cuda_scratch(static_cast<size_t>(outputs < M ? outputs : M) * static_cast<size_t>(K) * sizeof(T), reinterpret_cast<void **>(&panel)));
    size_t row_bytes = rk_row_bytes(o->w.dtype, static_cast<size_t>(K)), y_bytes = rk_dtype_size(o->y.dtype);
    for (int m = 0; m < M; m += outputs) {
        int n = M - m < outputs ? M - m : outputs;
        dim3 grid(rk_blocks(static_cast<size_t>(K), THREADS * RK_VEC<T>), static_cast<unsigned>(n));
        RK_TRY(rk_launch(linear_dequantise<T>, grid, THREADS, 0, rk_stream(), rk_ptr<unsigned char>(o->w) + static_cast<size_t>(m) * row_bytes, o->w.dtype,
                         row_bytes, K, panel));
        RkCudaGemm g = {R, n, K, o->x.dtype, o->y.dtype, o->x.p, panel, nullptr, rk_ptr<char>(o->y) + static_cast<size_t>(m) * y_bytes, K, K, M, 0, 1, 0};
        RK_TRY(rk_cuda_gemm(&g));
    }
    return RK_OK;
}

int rk_cuda_linear_fwd(const RkLinear *o) {
    if (rk_cuda_sparse_row_takes(o)) return rk_cuda_sparse_row(o);
    if (rk_cuda_few_rows_linear(o)) {
        RkProducts one = {{o}, {}};
        return rk_cuda_few_rows(&one);
    }
    int K = rk_cols(o->w), M = static_cast<int>(rk_rows(o->w)), R = static_cast<int>(rk_numel(o->x) / static_cast<size_t>(K));
    if (rk_quantised(o->w.dtype)) RK_CUDA_BY_DTYPE(o->x.dtype, T, return quantised<T>(o, R, K, M))
    RK_TRY(rk_same_type("linear", o->w, o->x));
    RkCudaGemm g = {R, M, K, o->x.dtype, o->y.dtype, o->x.p, o->w.p, nullptr, o->y.p, K, K, M, 0, 1, 0};
    return rk_cuda_gemm(&g);
}

int rk_cuda_linear_bwd(const RkLinear *o) {
    int K = rk_cols(o->w), M = static_cast<int>(rk_rows(o->w)), R = static_cast<int>(rk_numel(o->dy) / M);
    RkCudaGemm dw = {M, K, R, o->dy.dtype, o->dw.dtype, o->dy.p, o->x.p, nullptr, o->dw.p, M, K, K, 1, 0, !o->fresh};
    RkCudaGemm dx = {R, K, M, o->dy.dtype, o->dx.dtype, o->dy.p, o->w.p, nullptr, o->dx.p, M, K, K, 0, 0, 0};
    if (o->dw.p) RK_TRY(rk_cuda_gemm(&dw));
    return o->dx.p ? rk_cuda_gemm(&dx) : RK_OK;
}
