/* blas.cpp - csrc/cuda/blas.h in plain loops: what cuBLASLt computes on a device. */
#include "cuda/blas.h"

#include "cuda/launch.h"

template <typename T, typename C> static const char *product(RkCudaGemm g) {
    const T *a = static_cast<const T *>(g.A), *b = static_cast<const T *>(g.B), *bias = static_cast<const T *>(g.bias);
    C *c = static_cast<C *>(g.C);
    for (int m = 0; m < g.M; m++)
        for (int n = 0; n < g.N; n++) {
            double sum = 0; /* so that the differences tests see are those of the kernels */
            for (int k = 0; k < g.K; k++)
                sum += static_cast<double>(rk_float(a[g.trans_a ? static_cast<size_t>(k) * g.lda + m : static_cast<size_t>(m) * g.lda + k])) *
                       rk_float(b[g.trans_b ? static_cast<size_t>(n) * g.ldb + k : static_cast<size_t>(k) * g.ldb + n]);
            C *out = c + static_cast<size_t>(m) * g.ldc + n;
            *out = rk_element<C>(static_cast<float>(sum) + (g.accumulate ? rk_float(*out) : 0) + (bias ? rk_float(bias[n]) : 0));
        }
    return nullptr;
}

int rk_cuda_blas_open(RkCudaBlas **) { return RK_OK; }
void rk_cuda_blas_close(RkCudaBlas *) {}

int rk_cuda_gemm(const RkCudaGemm *g) {
    RkCudaGemm copy = *g;
    cudaError_t rc;
    RK_CUDA_BY_DTYPE(g->dtype, T, if (g->c_dtype == RK_F32) rc = cuda_host::queue_call(rk_stream(), [copy] { return product<T, float>(copy); });
                     else rc = cuda_host::queue_call(rk_stream(), [copy] { return product<T, T>(copy); }))
    return rk_cuda_check(rc, "a matrix product");
}
