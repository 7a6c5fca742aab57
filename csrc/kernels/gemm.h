/* gemm.h - matrix products in float32.
 *
 * C (M,N) = op(A) op(B) + (accumulate ? C : 0), row-major, op = transpose or not.
 * How K is cut depends on K alone and every element of C is summed in order within a cut, so its bits depend neither on the
 * number of threads nor on M and N. */
#ifndef RK_KERNELS_GEMM_H
#define RK_KERNELS_GEMM_H

enum {
    RK_GEMM_SLICE = 256, RK_GEMM_CHUNK = 1024, /* steps of K and rows of A that are packed at a time */
    RK_GEMM_CALL_SCRATCH = RK_GEMM_SLICE * RK_GEMM_CHUNK * 4, RK_GEMM_TASK_SCRATCH = RK_GEMM_SLICE * 32 * 4 /* at most */
};

typedef struct RkGemm {
    int M, N, K;
    const float *A; int lda, trans_a; /* (M,K), or (K,M) when transposed */
    const float *B; int ldb, trans_b; /* (K,N), or (N,K) when transposed */
    float *C; int ldc;
    int accumulate;
} RkGemm;

int rk_gemm(const RkGemm *g); /* RK_ENOMEM: no memory for the panels */

#endif
