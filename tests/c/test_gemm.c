/* test_gemm.c - matrix products on every instruction set this machine has, and in tiles on any machine, against sums in float64.
 *
 * Operands end where their memory ends and lie off their natural alignment; what lies between their rows, and C before the call
 * unless it is added to, is NaN. Then:
 *   - every element is within the bound of a float32 sum of K products in any order: (K + 2) 2^-24 sum |a b|, in tiles with
 *     2 x 2^-24 more for the products of small parts, left out or rounded (gemm_tiles_simd.h);
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

#define RK_ISA_SCALAR
#define RK_TILES_IN_C
#include "kernels/isa_all.h"

static RK_KERNELS_TABLE(tiles_in_c);

enum { PAD = 3, OFFSET = 1 };

static int in_tiles(void) { return rk_k.gemm.step_unit > 1; }

static double bound(int K, double size) { return (K + (in_tiles() ? 4 : 2)) * 0x1p-24 * size; }

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
            right &= fabs(got - sum) <= bound(g->K, size);
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
    const int R = (int)rk_k.gemm.rows, W = (int)rk_k.gemm.columns, V = (int)rk_k.gemm.column_unit, slice = (int)rk_k.gemm.slice;
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
    const int slow = rk_k.gemm_block == rk_kernels_tiles_in_c.gemm_block; /* two ways of eight then */
    for (size_t i = 0; i < sizeof large / sizeof *large; i++)
        for (int way = 0; way < 8; way += slow ? 5 : 1) test_case(large[i][0], large[i][1], large[i][2], way);
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
    const int W = (int)rk_k.gemm.columns, cols[] = {1, W - 1, W + 3, 5 * W};
    for (size_t d = 0; d < 4; d++)
        for (size_t j = 0; j < 4; j++) {
            for (size_t k = 0; k < 4; k++) test_format(dtypes[d], 7, cols[j], blocks[k] * RK_QUANT_BLOCK, 1);
            for (int k = 3; !rk_quantised(dtypes[d]) && k < 300; k += 290) test_format(dtypes[d], 5, cols[j], k, 0), test_format(dtypes[d], 5, cols[j], k, 1);
        }
}

/* ---- panels ---- */

static float bf16_of(const float *pairs, size_t pair, int second) {
    uint32_t bits = rk_bits_of(pairs[pair]);
    return rk_float_of(second ? bits & 0xffff0000u : bits << 16);
}

/* Element k of line i. */
static float packed(const RkGemmPack *p, const float *panel, size_t i, size_t k) {
    if (!in_tiles()) return panel[k * p->width + i];
    size_t pair = k % TILE, line = i % TILE, at = p->left ? line * TILE + pair : pair * TILE + line;
    const float *tile = panel + k / TILE_STEPS * (size_t)p->parts * p->width * TILE + i / TILE * TILE_FLOATS;
    float sum = 0;
    for (int part = p->parts; part-- > 0;) sum += bf16_of(tile + (size_t)part * p->width * TILE, at, k % TILE_STEPS >= TILE);
    return sum;
}

/* Every element exactly, zeros to the end of the last unit, and nothing behind it: another task's panel may be there already. */
static void test_panel(RkGemmPack p, size_t lines) {
    enum { BEHIND = 80, MOST = (2 * TILE_STEPS) * 64 * 2 };
    static float out[MOST + BEHIND];
    size_t K = in_tiles() ? (p.K + TILE_STEPS - 1) / TILE_STEPS * TILE_STEPS : p.K, size = K * p.width * rk_k.gemm.element_bytes / sizeof *out;
    memset(out, 0xff, sizeof out);
    rk_k.gemm_pack(&p, 1, lines, out);
    int right = 1, untouched = 1;
    for (size_t k = 0; k < K; k++)
        for (size_t i = 0; i < p.width; i++) {
            float want = i >= lines || k >= p.K ? 0 : p.along_k ? p.src[(i + 1) * p.stride + k] : p.src[k * p.stride + i + 1];
            right &= packed(&p, out, i, k) == want;
        }
    for (size_t i = 0; i < BEHIND; i++) untouched &= isnan(out[size + i]) != 0;
    if (!CHECK(right && untouched))
        printf("    %s: panel of %zu lines, %zu of them, %zu steps, along k: %d, left: %d\n", rk_k.isa, p.width, lines, p.K, p.along_k, p.left);
}

static void test_panels(void) {
    enum { STEPS = 40, LINES = 70 };
    static float src[LINES * LINES];
    for (int i = 0; i < LINES * LINES; i++) src[i] = (float)rk_rng_normal(rk_rng(3, "src"), (uint64_t)i);
    for (size_t lines = 1; lines <= rk_k.gemm.columns; lines++)
        for (size_t K = 1; K <= STEPS; K++)
            for (int way = 0; way < 4; way++) {
                size_t width = in_tiles() ? (lines + TILE - 1) / TILE * TILE : lines;
                test_panel((RkGemmPack){.src = src, .stride = LINES, .lines = LINES, .K = K, .width = width, .along_k = way & 1, .left = way >> 1,
                                        .parts = RK_GEMM_PARTS}, lines);
            }
}

/* ---- numbers at the ends of the range ---- */

enum { ROWS = 20, COLS = 36, STEPS = 50 };

static void multiply(const float *A, const float *B, float *C) {
    rk_set_num_threads(1);
    CHECK(rk_gemm(&(RkGemm){.M = ROWS, .N = COLS, .K = STEPS, .A = A, .lda = STEPS, .B = B, .ldb = COLS, .C = C, .ldc = COLS}) == RK_OK);
}

/* One number of A, or of B, that is not finite: so are its row, or column, of C and nothing else. */
static void test_not_finite(void) {
    static float A[ROWS * STEPS], B[STEPS * COLS], C[ROWS * COLS];
    const float bad[] = {INFINITY, -INFINITY, NAN, rk_float_of(0x7fffffff), rk_float_of(0x7f800001)};
    for (size_t i = 0; i < ROWS * STEPS; i++) A[i] = (float)rk_rng_normal(rk_rng(3, "a"), i);
    for (size_t i = 0; i < STEPS * COLS; i++) B[i] = (float)rk_rng_normal(rk_rng(3, "b"), i);
    for (size_t n = 0; n < sizeof bad / sizeof *bad; n++)
        for (int in_b = 0; in_b < 2; in_b++) {
            float *at = in_b ? &B[37 * COLS + 19] : &A[11 * STEPS + 37], before = *at;
            *at = bad[n];
            multiply(A, B, C);
            *at = before;
            int right = 1;
            for (int i = 0; i < ROWS; i++)
                for (int j = 0; j < COLS; j++) right &= isfinite(C[i * COLS + j]) == !(in_b ? j == 19 : i == 11);
            if (!CHECK(right)) printf("    %s: %g in %s\n", rk_k.isa, bad[n], in_b ? "B" : "A");
        }
}

/* The largest numbers stay finite; of small ones what lies below 2^-126 may be lost: of each element, in two parts and times the other
 * factor; of each of six products; of each sum of a step. */
static void test_range(void) {
    static float A[ROWS * STEPS], B[STEPS * COLS], C[ROWS * COLS];
    const struct { float size; double lost; } ranges[] = {{0x1.fffffep127f, 0}, {0x1.fep127f, 0}, {0x1.0p-120f, 0x1p-126}, {0x1.0p-126f, 0x1p-126}};
    for (size_t n = 0; n < sizeof ranges / sizeof *ranges; n++) {
        const int small = ranges[n].lost > 0; /* else few enough that no sum is infinite */
        for (size_t i = 0; i < ROWS * STEPS; i++) A[i] = ranges[n].size * (small ? (float)rk_rng_normal(rk_rng(3, "a"), i) : i % 7 ? 0 : i % 2 ? 1 : -1);
        for (size_t i = 0; i < STEPS * COLS; i++) B[i] = (float)rk_rng_normal(rk_rng(3, "b"), i) / (small ? 1 : 100);
        multiply(A, B, C);
        int right = 1;
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < COLS; j++) {
                double sum = 0, size = 0, lost = 0;
                for (int k = 0; k < STEPS; k++) {
                    double b = B[k * COLS + j], ab = A[i * STEPS + k] * b;
                    sum += ab, size += fabs(ab), lost += ranges[n].lost * (2 * fabs(b) + 7);
                }
                right &= fabs(C[i * COLS + j] - sum) <= bound(STEPS, size) + lost;
            }
        if (!CHECK(right)) printf("    %s: numbers of %g\n", rk_k.isa, ranges[n].size);
    }
}

/* The instructions sum in the order written down in plain C. */
static void test_tiles_in_c(void) {
    enum { M = 37, N = 50, K = 100 };
    static float C[2][M * N];
    float *A = matrix(M, K, "a"), *B = matrix(N, K, "b");
    RkGemm g = {.M = M, .N = N, .K = K, .A = A, .lda = K + PAD, .B = B, .ldb = K + PAD, .trans_b = 1, .ldc = N};
    for (int in_c = 0; in_c < 2; in_c++) {
        if (in_c) rk_k = rk_kernels_tiles_in_c;
        else if (rk_kernels_select("amx") != RK_OK) break;
        g.C = C[in_c];
        CHECK(rk_gemm(&g) == RK_OK);
    }
    CHECK(!memcmp(C[0], C[1], sizeof *C) || rk_kernels_select("amx") != RK_OK);
    free(A - OFFSET), free(B - OFFSET);
}

static void test_tier(void) {
    test_shapes();
    test_formats();
    test_panels();
    test_not_finite();
    test_range();
}

int main(void) {
    static const char *const tiers[] = {"scalar", "avx2", "avx512", "avx512vnni", "amx", "neon"};
    for (size_t i = 0; i < sizeof tiers / sizeof *tiers; i++)
        if (rk_kernels_select(tiers[i]) == RK_OK) test_tier();
    rk_k = rk_kernels_tiles_in_c;
    test_tier();
    test_tiles_in_c();
    return test_summary();
}
