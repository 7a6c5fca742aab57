/* gemm.h - matrix products in float32.
 *
 * C (M,N) = op(A) op(B) + (accumulate ? C : 0), row-major, op = transpose or not. B may hold weights of another format: the
 * result is that of B turned into float32 first, bit by bit, at little more cost.
 * How K is cut depends on K alone and every element of C is summed in order within a cut, so its bits depend neither on the
 * number of threads nor on M and N.
 * Where the processor multiplies tiles of bf16, float32 products are made of those, at the same accuracy (gemm_tiles_simd.h); what an
 * element has below 2^-126 may then be lost. */
#ifndef RK_KERNELS_GEMM_H
#define RK_KERNELS_GEMM_H

#include "kernels/kernels.h"

enum {
    RK_GEMM_PACKED = 1 << 20, /* elements of A packed at a time, at most */
    RK_GEMM_CALL_SCRATCH = RK_GEMM_PACKED * 6, RK_GEMM_TASK_SCRATCH = RK_GEMM_SLICE * 32 * (6 + 4) /* bytes, at most */
};

typedef struct RkGemm {
    int M, N, K;
    const float *A; int lda, trans_a; /* (M,K), or (K,M) when transposed */
    const void *B; int ldb, trans_b;  /* (K,N), or (N,K) when transposed */
    float *C; int ldc;
    int accumulate;
    int B_dtype; /* RK_F32, RK_BF16, RK_F16; transposed and with ldb = K also RK_Q8, RK_Q4 */
} RkGemm;

int rk_gemm(const RkGemm *g); /* RK_ENOMEM: no memory for the panels */

#endif
