#include "base/gemm.h"

#include <cblas.h>
#include <stddef.h>
#include <string.h>

#include "base/parallel.h"

/* How an output is cut. Measured with OpenBLAS 0.3.34 (AVX-512, one thread, training shapes) against the uncut product:
 * panels of 256 whole rows cost 2-3 %, tiles of 256 x 192 5-8 %, 128 x 128 9 %, 64 x 64 13 %. So rows are halved down
 * to FULL_ROWS, then whichever side is longer: down to MAX_AREA in any case, and further while there are fewer than
 * MIN_TASKS tasks to share out and each keeps SMALL_FLOPS, which is 10 us, several times what a task costs. Halving
 * gives equal tiles in a number that the usual numbers of cores divide. */
enum { FULL_ROWS = 256, MIN_SIDE = 32, MAX_AREA = 512 * 768, MIN_TASKS = 8, GRAIN = 16 };
static const double SMALL_FLOPS = 1e6;

typedef struct Tiling { int rows, cols, n_rows, n_cols; } Tiling;

static int part(int size, int parts) { return ((size + parts - 1) / parts + GRAIN - 1) / GRAIN * GRAIN; }

static Tiling tiling(const RkGemm *g) {
    int row_parts = 1, col_parts = 1;
    double flops = 2.0 * g->M * g->N * g->K;
    for (;;) {
        int rows = part(g->M, row_parts), cols = part(g->N, col_parts), parts = row_parts * col_parts;
        int few = parts < MIN_TASKS && flops / (2 * parts) >= SMALL_FLOPS;
        int large = (size_t)rows * (size_t)cols > MAX_AREA;
        int longer = rows > cols ? rows : cols;
        if ((!few && !large) || longer < 2 * MIN_SIDE)
            return (Tiling){rows, cols, (g->M + rows - 1) / rows, (g->N + cols - 1) / cols};
        if (rows >= 2 * FULL_ROWS || rows > cols) row_parts *= 2;
        else col_parts *= 2;
    }
}

typedef struct Job { const RkGemm *g; Tiling t; } Job;

static void gemm_tile(void *ctx, size_t task) {
    const Job *job = ctx;
    const RkGemm *g = job->g;
    int i = (int)(task / (size_t)job->t.n_cols) * job->t.rows, j = (int)(task % (size_t)job->t.n_cols) * job->t.cols;
    int m = g->M - i < job->t.rows ? g->M - i : job->t.rows, n = g->N - j < job->t.cols ? g->N - j : job->t.cols;
    const float *A = g->A + (g->trans_a ? (size_t)i : (size_t)i * (size_t)g->lda);
    const float *B = g->B + (g->trans_b ? (size_t)j * (size_t)g->ldb : (size_t)j);
    scipy_cblas_sgemm(CblasRowMajor, g->trans_a ? CblasTrans : CblasNoTrans, g->trans_b ? CblasTrans : CblasNoTrans, m,
                      n, g->K, 1.0f, A, g->lda, B, g->ldb, g->accumulate ? 1.0f : 0.0f,
                      g->C + (size_t)i * (size_t)g->ldc + j, g->ldc);
}

void rk_gemm(const RkGemm *g) {
    if (g->M < 1 || g->N < 1) return;
    if (g->K < 1) {
        for (int i = 0; i < g->M && !g->accumulate; i++)
            memset(g->C + (size_t)i * (size_t)g->ldc, 0, (size_t)g->N * sizeof(float));
        return;
    }
    Job job = {g, tiling(g)};
    rk_parallel((size_t)job.t.n_rows * (size_t)job.t.n_cols, gemm_tile, &job);
}

const char *rk_gemm_library(void) { return scipy_openblas_get_config(); }

void rk_gemm_init(void) { scipy_openblas_set_num_threads(1); }
