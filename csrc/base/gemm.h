/* gemm.h - matrix products in float32; the only place that knows BLAS.
 *
 * C (M,N) = op(A) op(B) + (accumulate ? C : 0), row-major, op = transpose or not.
 * The output is cut into fixed tiles (a function of the shape alone), one task each, every task a
 * single-threaded product, so the bits of C do not depend on the number of threads. */
#ifndef RK_BASE_GEMM_H
#define RK_BASE_GEMM_H

typedef struct RkGemm {
    int M, N, K;
    const float *A; int lda, trans_a; /* (M,K), or (K,M) when transposed */
    const float *B; int ldb, trans_b; /* (K,N), or (N,K) when transposed */
    float *C; int ldc;
    int accumulate;
} RkGemm;

void rk_gemm(const RkGemm *g);
const char *rk_gemm_library(void); /* what does the work, for `info` */
void rk_gemm_init(void);           /* once, at import */

#endif
