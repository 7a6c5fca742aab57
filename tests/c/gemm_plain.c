/* gemm_plain.c - base/gemm.h without BLAS, for builds where no BLAS can be linked: another architecture, under an emulator. */
#include "base/gemm.h"

#include <stddef.h>

void rk_gemm_init(void) {}
const char *rk_gemm_library(void) { return "plain loops"; }

static float at(const float *m, int ld, int trans, int i, int j) {
    return trans ? m[(size_t)j * (size_t)ld + (size_t)i] : m[(size_t)i * (size_t)ld + (size_t)j];
}

void rk_gemm(const RkGemm *g) {
    for (int i = 0; i < g->M; i++)
        for (int j = 0; j < g->N; j++) {
            float *c = g->C + (size_t)i * (size_t)g->ldc + (size_t)j;
            double sum = g->accumulate ? (double)*c : 0;
            for (int k = 0; k < g->K; k++)
                sum += (double)at(g->A, g->lda, g->trans_a, i, k) * (double)at(g->B, g->ldb, g->trans_b, k, j);
            *c = (float)sum;
        }
}
