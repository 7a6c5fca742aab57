/* test_by_column.c - products of few rows with a matrix by its columns, on every instruction set this machine has, in every format
 * of weights, against sums in float64 of the numbers the formats stand for. Memory ends where its tensor ends. Then:
 *   - an output of K terms is within (32 + K / 32 + 2) 2^-24 sum |x w|: a block's terms are summed first, then the blocks;
 *   - weights that meet zeros in every row are not read: they are NaN;
 *   - a NaN of x makes its row NaN and no other; a row gives its bits also alone, and on 1, 2 and 3 threads. */
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/parallel.h"
#include "base/quant.h"
#include "base/rng.h"
#include "ops/linear/by_column.h"
#include "kernels/kernels.h"
#include "ops/ops.h"
#include "tests/c/test.h"

enum { BLOCK = RK_QUANT_BLOCK };
static const int FORMATS[] = {RK_F32, RK_BF16, RK_F16, RK_Q8, RK_Q4};

typedef struct Case { int M, K, R, dtype; double used; } Case;
typedef struct Data { Case c; float *x, *w, *y, *again; void *stored, *columns; unsigned char *any; } Data;

static float number(const char *name, size_t i) { return (float)rk_rng_uniform(rk_rng(5, name), i) - 0.5f; }

/* NaN where no row needs the column: of a quantised row a whole block, by its scale. */
static void poison(Data *d, char *row) {
    const Case *c = &d->c;
    size_t K = (size_t)c->K;
    uint16_t *half = (uint16_t *)(void *)row, *scale = (uint16_t *)(void *)(row + (c->dtype == RK_Q8 ? K : K / 2));
    for (size_t k = 0; k < K; k++) {
        if (d->any[k]) continue;
        if (c->dtype == RK_F32) ((float *)(void *)row)[k] = NAN;
        else if (!rk_quantised(c->dtype)) half[k] = 0x7fff;
    }
    for (size_t b = 0; b < K / BLOCK && rk_quantised(c->dtype); b++) {
        int any = 0;
        for (size_t k = b * BLOCK; k < (b + 1) * BLOCK; k++) any |= d->any[k];
        if (!any) scale[b] = 0x7fff;
    }
}

static Data make(Case c) {
    size_t M = (size_t)c.M, K = (size_t)c.K, R = (size_t)c.R, row = rk_row_bytes(c.dtype, K);
    Data d = {c, malloc(R * K * 4), malloc(M * K * 4), malloc(R * M * 4), malloc(R * M * 4), malloc(M * row), malloc(M * row), calloc(K, 1)};
    for (size_t i = 0; i < R * K; i++) {
        d.x[i] = rk_rng_uniform(rk_rng(6, "used"), i) < c.used ? number("x", i) : 0;
        d.any[i % K] |= d.x[i] != 0;
    }
    for (size_t m = 0; m < M; m++) {
        for (size_t k = 0; k < K; k++) d.w[m * K + k] = number("w", m * K + k);
        CHECK(!rk_row_from_f32(c.dtype, d.w + m * K, (char *)d.stored + m * row, K));
        rk_row_to_f32(c.dtype, (char *)d.stored + m * row, d.w + m * K, K);
        poison(&d, (char *)d.stored + m * row);
    }
    RkTensor w = {d.stored, c.dtype, {c.M, c.K}}, columns = {d.columns, c.dtype, {c.M, c.K}};
    CHECK(rk_columns_of(w, columns) == RK_OK);
    return d;
}

static void drop(Data *d) { free(d->x), free(d->w), free(d->y), free(d->again), free(d->stored), free(d->columns), free(d->any); }

static void run(const Data *d, int row, int rows, float *y) {
    RkLinear o = {.x = {d->x + (size_t)row * (size_t)d->c.K, RK_F32, {rows, d->c.K}}, .w = {d->stored, d->c.dtype, {d->c.M, d->c.K}},
                  .columns = {d->columns, d->c.dtype, {d->c.M, d->c.K}}, .y = {y, RK_F32, {rows, d->c.M}}};
    CHECK(rk_backend_cpu.linear_fwd(&o) == RK_OK);
}

static int is_right(const Data *d) {
    size_t M = (size_t)d->c.M, K = (size_t)d->c.K;
    int right = 1;
    for (size_t i = 0; i < (size_t)d->c.R * M; i++) {
        double sum = 0, size = 0;
        for (size_t k = 0; k < K; k++) {
            double term = (double)d->x[i / M * K + k] * (double)d->w[i % M * K + k];
            sum += term, size += fabs(term);
        }
        right &= fabs(d->y[i] - sum) <= (BLOCK + (double)K / BLOCK + 2) * 0x1p-24 * size;
    }
    return right;
}

static void test_case(Case c) {
    Data d = make(c);
    size_t M = (size_t)c.M, bytes = M * (size_t)c.R * sizeof(float);
    rk_set_num_threads(2);
    run(&d, 0, c.R, d.y);
    if (!CHECK(is_right(&d))) printf("    %s, %s, %d x %d, %d rows, %.2f of x used\n", rk_k.isa, rk_format_name(c.dtype), c.M, c.K, c.R, c.used);
    for (int threads = 1; threads <= 3; threads += 2) {
        rk_set_num_threads(threads);
        run(&d, 0, c.R, d.again);
        CHECK(!memcmp(d.y, d.again, bytes));
    }
    for (int r = 0; r < c.R; r++) {
        run(&d, r, 1, d.again);
        CHECK(!memcmp(d.y + (size_t)r * M, d.again, M * sizeof(float)));
    }
    if (d.any[0]) { /* then its column may be read */
        d.x[0] = NAN;
        run(&d, 0, c.R, d.y);
        int right = 1;
        for (size_t i = 0; i < M * (size_t)c.R; i++) right &= (isnan(d.y[i]) != 0) == (i < M);
        CHECK(right);
    }
    drop(&d);
}

static void test_every_format(void) {
    static const int sizes[][2] = {{32, 32}, {96, 64}, {160, 96}, {288, 352}};
    static const struct { double used; int R; } inputs[] = {{0, 2}, {0.03, 1}, {0.1, 3}, {0.5, 1}, {0.5, 7}, {1, 4}, {0.2, RK_FEW_ROWS}};
    for (int f = 0; f < 5; f++)
        for (int s = 0; s < 4; s++)
            for (int i = 0; i < 7; i++) test_case((Case){sizes[s][0], sizes[s][1], inputs[i].R, FORMATS[f], inputs[i].used});
}

static void test_what_fits(void) {
    CHECK(rk_columns_fit((RkTensor){NULL, RK_Q4, {64, 96}}));
    CHECK(!rk_columns_fit((RkTensor){NULL, RK_F32, {64, 48}}));
    CHECK(!rk_columns_fit((RkTensor){NULL, RK_F32, {48, 64}}));
    CHECK(!rk_columns_fit((RkTensor){NULL, RK_F64, {64, 64}}));
}

int main(void) {
    static const char *const tiers[] = {"scalar", "avx2", "avx512", "avx512vnni", "neon"};
    test_what_fits();
    for (int i = 0; i < 5; i++)
        if (rk_kernels_select(tiers[i]) == RK_OK) test_every_format();
    return test_summary();
}
