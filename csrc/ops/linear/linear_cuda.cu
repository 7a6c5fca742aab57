/* Products of many rows are cuBLASLt's. Of up to FEW rows a warp makes one output of all rows: the weights are read once, 16 bytes a
 * lane, which is all the time such a product takes. */
#include "ops/backend_cuda.h"

#include "cuda/blas.h"
#include "cuda/launch.h"

enum { FEW = 4, WARPS = 4 };

template <typename T, typename Y> struct Few { const T *x, *w; Y *y; int R, K, M; bool aligned; };

template <typename T, typename Y> __global__ void linear_few(Few<T, Y> a) {
    constexpr int VEC = RK_VEC<T>;
    int lane = static_cast<int>(threadIdx.x) % 32, m = static_cast<int>(blockIdx.x) * WARPS + static_cast<int>(threadIdx.x) / 32;
    if (m >= a.M) return;
    const T *w = a.w + static_cast<size_t>(m) * a.K;
    float sum[FEW] = {}, v[VEC], x[VEC];
#pragma unroll 4
    for (int k = lane * VEC; k < a.K; k += 32 * VEC) {
        int n = a.K - k < VEC ? a.K - k : VEC;
        bool whole = a.aligned && n == VEC;
        rk_load(w + k, n, whole, v);
#pragma unroll
        for (int r = 0; r < FEW; r++) {
            if (r >= a.R) break;
            rk_load(a.x + static_cast<size_t>(r) * a.K + k, n, whole, x);
#pragma unroll
            for (int i = 0; i < VEC; i++) sum[r] += v[i] * x[i];
        }
    }
#pragma unroll
    for (int r = 0; r < FEW; r++) {
        if (r >= a.R) break;
        float total = rk_warp_sum(sum[r]);
        if (lane == 0) a.y[static_cast<size_t>(r) * a.M + m] = rk_element<Y>(total);
    }
}

template <typename T, typename Y> static int few(const RkLinear *o, int R, int K, int M) {
    Few<T, Y> a = {rk_ptr<T>(o->x), rk_ptr<T>(o->w), rk_ptr<Y>(o->y), R, K, M, rk_all_aligned({o->x.p, o->w.p}) && K % RK_VEC<T> == 0};
    return rk_launch(linear_few<T, Y>, rk_blocks(M, WARPS), WARPS * 32, 0, rk_stream(), a);
}

int rk_cuda_linear_fwd(const RkLinear *o) {
    RK_TRY(rk_same_type("linear", o->w, o->x));
    int K = rk_cols(o->w), M = static_cast<int>(rk_rows(o->w)), R = static_cast<int>(rk_numel(o->x) / K);
    if (R > FEW) {
        RkCudaGemm g = {R, M, K, o->x.dtype, o->y.dtype, o->x.p, o->w.p, nullptr, o->y.p, K, K, M, 0, 1, 0};
        return rk_cuda_gemm(&g);
    }
    RK_CUDA_BY_DTYPE(o->x.dtype, T, return o->y.dtype == RK_F32 ? few<T, float>(o, R, K, M) : few<T, T>(o, R, K, M))
}

int rk_cuda_linear_bwd(const RkLinear *o) {
    int K = rk_cols(o->w), M = static_cast<int>(rk_rows(o->w)), R = static_cast<int>(rk_numel(o->dy) / M);
    RkCudaGemm dw = {M, K, R, o->dy.dtype, o->dw.dtype, o->dy.p, o->x.p, nullptr, o->dw.p, M, K, K, 1, 0, !o->fresh};
    RkCudaGemm dx = {R, K, M, o->dy.dtype, o->dx.dtype, o->dy.p, o->w.p, nullptr, o->dx.p, M, K, K, 0, 0, 0};
    if (o->dw.p) RK_TRY(rk_cuda_gemm(&dw));
    return o->dx.p ? rk_cuda_gemm(&dx) : RK_OK;
}
