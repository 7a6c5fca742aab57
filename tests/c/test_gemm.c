/* test_gemm.c - matrix products on every instruction set this machine has, against sums in float64.
 *
 * Operands end where their memory ends and lie off their natural alignment; what lies between their rows, and C before the call
 * unless it is added to, is NaN. Then:
 *   - every element is within the bound of a float32 sum of K products in any order: (K + 2) 2^-24 sum |a b|;
 *   - weights of other formats give the bits of the same weights in float32;
 *   - C's padding is untouched; 1, 2 and 3 threads give the same bits; so does any part of the rows and columns alone. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/parallel.h"
#include "base/quant.h"
#include "base/rng.h"
#include "base/tensor.h"
#include "kernels/gemm.h"
#include "kernels/kernels.h"
#include "tests/c/test.h"

enum { PAD = 3, OFFSET = 1 };

/* rows x cols numbers at distance cols + PAD; the last row has no padding behind it. free(p - OFFSET) */
static float *matrix(int rows, int cols, const char *name) {
    size_t n = (size_t)rows * (size_t)(cols + PAD) - (rows ? PAD : 0);
    float *p = (float *)malloc((n + OFFSET) * sizeof *p) + OFFSET;
    for (size_t i = 0; i < n; i++)
        p[i] = (int)(i % (size_t)(cols + PAD)) < cols ? (float)rk_rng_normal(rk_rng(3, name), i) : NAN;
    return p;
}

static int product_is_right(const RkGemm *g, const float *before) {
    int right = 1;
    const float *B = g->B;
    for (int i = 0; i < g->M; i++)
        for (int j = 0; j < g->N; j++) {
            float got = g->C[i * g->ldc + j], old = before[i * g->ldc + j];
            double sum = g->accumulate ? old : 0, size = fabs(sum);
            for (int k = 0; k < g->K; k++) {
                double a = g->trans_a ? g->A[k * g->lda + i] : g->A[i * g->lda + k];
                double b = g->trans_b ? B[j * g->ldb + k] : B[k * g->ldb + j];
                sum += a * b;
                size += fabs(a * b);
            }
            right &= fabs(got - sum) <= (g->K + 2) * 0x1p-24 * size;
        }
    return right;
}

static int padding_is_whole(const RkGemm *g) {
    int whole = 1;
    for (int i = 0; i + 1 < g->M; i++)
        for (int j = g->N; j < g->ldc; j++) whole &= isnan(g->C[i * g->ldc + j]) != 0;
    return whole;
}

/* The last rows and columns computed by themselves. */
static int part_is_the_same(RkGemm g, const float *before, size_t bytes) {
    int i = g.M / 3, j = g.N / 2;
    float *whole = g.C, *C = malloc(bytes);
    memcpy(C, before, bytes);
    g.A += g.trans_a ? i : i * g.lda, g.B = (const float *)g.B + (g.trans_b ? j * g.ldb : j), g.C = C + i * g.ldc + j;
    g.M -= i, g.N -= j;
    CHECK(rk_gemm(&g) == RK_OK);
    int same = 1;
    for (int r = 0; r < g.M; r++) same &= !memcmp(g.C + r * g.ldc, whole + (i + r) * g.ldc + j, (size_t)g.N * sizeof(float));
    free(C);
    return same;
}

static void test_case(int M, int N, int K, int variant) {
    int trans_a = variant & 1, trans_b = variant >> 1 & 1, accumulate = variant >> 2 & 1;
    float *A = trans_a ? matrix(K, M, "a") : matrix(M, K, "a"), *B = trans_b ? matrix(N, K, "b") : matrix(K, N, "b");
    float *before = matrix(M, N, "c"), *C = (float *)malloc(((size_t)M * (size_t)(N + PAD) - PAD + OFFSET) * sizeof *C) + OFFSET;
    size_t bytes = ((size_t)M * (size_t)(N + PAD) - PAD) * sizeof *C;
    float *first = malloc(bytes);
    for (size_t i = 0; i < bytes / sizeof *C && !accumulate; i++) before[i] = NAN;
    RkGemm g = {.M = M, .N = N, .K = K, .A = A, .lda = (trans_a ? M : K) + PAD, .trans_a = trans_a, .B = B, .ldb = (trans_b ? K : N) + PAD,
                .trans_b = trans_b, .C = C, .ldc = N + PAD, .accumulate = accumulate};
    int ok = 1;
    for (int threads = 1; threads <= 3; threads++) {
        rk_set_num_threads(threads);
        memcpy(C, before, bytes);
        ok &= CHECK(rk_gemm(&g) == RK_OK);
        if (threads == 1) {
            ok &= CHECK(product_is_right(&g, before)) & CHECK(padding_is_whole(&g)) & CHECK(part_is_the_same(g, before, bytes));
            memcpy(first, C, bytes);
        } else {
            ok &= CHECK(!memcmp(first, C, bytes));
        }
    }
    if (!ok) printf("    %s: M %d N %d K %d trans_a %d trans_b %d accumulate %d\n", rk_k.isa, M, N, K, trans_a, trans_b, accumulate);
    free(A - OFFSET), free(B - OFFSET), free(C - OFFSET), free(before - OFFSET), free(first);
}

static void test_shapes(void) {
    const int R = rk_k.gemm_rows, W = rk_k.gemm_columns, V = rk_k.lanes, slice = RK_GEMM_SLICE;
    const int rows[] = {1, R - 1, R, R + 1, 2 * R + 3}, cols[] = {1, V, V + 1, W - 1, W, W + 1, 2 * W + 5};
    const int steps[] = {0, 1, V - 1, V, 2 * V + 1, slice + 1};
    int variant = 0; /* each shape in two of the eight ways, all of them in turn */
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t j = 0; j < sizeof cols / sizeof *cols; j++)
            for (size_t k = 0; k < sizeof steps / sizeof *steps; k++)
                for (int way = 0; way < 2; way++, variant += 3)
                    if (rows[i] && cols[j]) test_case(rows[i], cols[j], steps[k], variant % 8);
    /* several parts and slices, tasks of panels, chunks of rows and of K */
    const int large[][3] = {{1030, W + 3, 40}, {2049, 5, 17}, {600, 3 * W, 2 * slice + 5}, {40, 31 * W + 2, 33}, {3, 5, 3 * slice + 1},
                            {4200, 3, slice + 1}, {511, 2, 9 * slice - 4}};
    for (size_t i = 0; i < sizeof large / sizeof *large; i++)
        for (int way = 0; way < 8; way++) test_case(large[i][0], large[i][1], large[i][2], way);
}

/* rows x cols weights of a format, from random bytes: values of all sizes and signs, scales that are finite. */
static char *weights(int dtype, size_t rows, size_t cols) {
    size_t bytes = rk_row_bytes(dtype, cols), scales = rk_quantised(dtype) ? cols / RK_QUANT_BLOCK : 0;
    char *p = malloc(rows * bytes);
    RkRng rng = rk_rng(5, "w");
    for (size_t i = 0; i < rows * bytes; i++) p[i] = (char)(256 * rk_rng_uniform(rng, i));
    for (size_t r = 0; r < rows; r++) {
        size_t n = scales ? scales : cols;
        uint16_t *half = (uint16_t *)(void *)(p + (r + 1) * bytes) - n;
        for (size_t i = 0; i < n; i++) {
            float x = (float)rk_rng_normal(rng, r * n + i);
            half[i] = dtype == RK_BF16 ? rk_f32_to_bf16(x) : rk_f32_to_f16(x);
        }
    }
    return p;
}

static void test_format(int dtype, int M, int N, int K, int trans_b) {
    int rows = trans_b ? N : K, cols = trans_b ? K : N;
    char *stored = weights(dtype, (size_t)rows, (size_t)cols);
    size_t bytes = (size_t)M * (size_t)N * sizeof(float), row_bytes = rk_row_bytes(dtype, (size_t)cols);
    float *A = matrix(M, K, "a"), *B = malloc((size_t)rows * (size_t)cols * sizeof *B), *C[2] = {malloc(bytes), malloc(bytes)};
    for (int r = 0; r < rows; r++) rk_row_to_f32(dtype, stored + (size_t)r * row_bytes, B + (size_t)r * (size_t)cols, (size_t)cols);
    for (int with = 0; with < 2; with++) {
        memset(C[with], with ? 0xff : 0x7f, bytes);
        RkGemm g = {.M = M, .N = N, .K = K, .A = A, .lda = K + PAD, .B = with ? (void *)stored : B, .B_dtype = with ? dtype : RK_F32,
                    .ldb = cols, .trans_b = trans_b, .C = C[with], .ldc = N};
        CHECK(rk_gemm(&g) == RK_OK);
    }
    if (!CHECK(!memcmp(C[0], C[1], bytes))) printf("    %s: dtype %d M %d N %d K %d trans_b %d\n", rk_k.isa, dtype, M, N, K, trans_b);
    free(stored), free(A - OFFSET), free(B), free(C[0]), free(C[1]);
}

static void test_formats(void) {
    static const int dtypes[] = {RK_BF16, RK_F16, RK_Q8, RK_Q4}, blocks[] = {1, 2, 9, 17};
    const int W = rk_k.gemm_columns, cols[] = {1, W - 1, W + 3, 5 * W};
    for (size_t d = 0; d < 4; d++)
        for (size_t j = 0; j < 4; j++) {
            for (size_t k = 0; k < 4; k++) test_format(dtypes[d], 7, cols[j], blocks[k] * RK_QUANT_BLOCK, 1);
            for (int k = 3; !rk_quantised(dtypes[d]) && k < 300; k += 290) test_format(dtypes[d], 5, cols[j], k, 0), test_format(dtypes[d], 5, cols[j], k, 1);
        }
}

/* A panel of any width is written whole and nothing behind it: another task's panel may be there already. */
static void test_panels(void) {
    enum { STEPS = 40, LINES = 70, BEHIND = 80 };
    static float src[LINES * LINES], out[STEPS * LINES + BEHIND];
    for (int i = 0; i < LINES * LINES; i++) src[i] = (float)(i + 1);
    for (int width = 1; width <= rk_k.gemm_columns; width++)
        for (int K = 1; K <= STEPS; K++)
            for (int along_k = 0; along_k < 2; along_k++) {
                RkGemmPack p = {.src = src, .stride = LINES, .lines = LINES, .K = (size_t)K, .width = (size_t)width, .along_k = along_k};
                memset(out, 0xff, sizeof out);
                rk_k.gemm_pack(&p, 1, (size_t)width, out);
                int right = 1, untouched = 1;
                for (int k = 0; k < K; k++)
                    for (int i = 0; i < width; i++) right &= out[k * width + i] == (along_k ? src[(i + 1) * LINES + k] : src[k * LINES + i + 1]);
                for (int i = 0; i < BEHIND; i++) untouched &= isnan(out[K * width + i]) != 0;
                if (!CHECK(right && untouched)) printf("    %s: panel of %d lines, %d steps, along k: %d\n", rk_k.isa, width, K, along_k);
            }
}

int main(void) {
    static const char *const tiers[] = {"scalar", "avx2", "avx512", "avx512vnni", "neon"};
    for (size_t i = 0; i < sizeof tiers / sizeof *tiers; i++)
        if (rk_kernels_select(tiers[i]) == RK_OK) test_shapes(), test_formats(), test_panels();
    return test_summary();
}
