/* blas.h - matrix products on the device, by cuBLASLt, which is opened when the first model asks for a device: the package runs
 * without it, and there is one in CUDA's toolkit and one in NVIDIA's wheels (nvidia-cublas-cu12, nvidia-cublas). No CUDA types. */
#ifndef RK_CUDA_BLAS_H
#define RK_CUDA_BLAS_H

#ifdef __cplusplus
extern "C" {
#endif

/* C = op(A) op(B), plus C with accumulate, plus bias in every row; rows one after another as in base/gemm.h. A and B have elements of
 * `dtype`, C those of c_dtype, which is dtype or RK_F32; bias (N), where it is given, is of dtype. Sums are float32; the same
 * arguments give the same bits. */
typedef struct RkCudaGemm {
    int M, N, K, dtype, c_dtype;
    const void *A, *B, *bias;
    void *C;
    int lda, ldb, ldc, trans_a, trans_b, accumulate;
} RkCudaGemm;

/* A stream's own: its workspace and what it remembers of shapes. RK_EDEVICE where there is no library; *blas is closed in any case. */
enum { RK_CUDA_BLAS_WORKSPACE = 32 << 20 };
typedef struct RkCudaBlas RkCudaBlas;
int rk_cuda_blas_open(RkCudaBlas **blas);
void rk_cuda_blas_close(RkCudaBlas *blas);

RkCudaBlas *rk_cuda_blas(void); /* of the stream bound to this thread */
int rk_cuda_gemm(const RkCudaGemm *g);

#ifdef __cplusplus
}
#endif

#endif
