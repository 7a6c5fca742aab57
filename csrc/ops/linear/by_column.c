#include "ops/linear/by_column.h"

#include "base/err.h"
#include "base/parallel.h"
#include "base/quant.h"
#include "kernels/kernels.h"

enum { BLOCK = RK_QUANT_BLOCK, TASK_BLOCKS = 8 };

int rk_columns_fit(RkTensor w) { return w.dtype != RK_F64 && rk_rows(w) % BLOCK == 0 && rk_cols(w) % BLOCK == 0; }

/* One block of a panel: n rows of w from `rows`, of K elements each. */
typedef struct Block { const char *rows; char *to; size_t n, K, b; int dtype; } Block;

static const char *row_of(const Block *s, size_t m) { return s->rows + m * rk_row_bytes(s->dtype, s->K); }

static void block_of_floats(const Block *s) {
    const size_t n = s->n;
    if (s->dtype == RK_F32) {
        float *to = (float *)(void *)s->to;
        for (size_t m = 0; m < n; m++)
            for (size_t k = 0; k < BLOCK; k++) to[k * n + m] = ((const float *)(const void *)row_of(s, m))[s->b * BLOCK + k];
        return;
    }
    uint16_t *to = (uint16_t *)(void *)s->to;
    for (size_t m = 0; m < n; m++)
        for (size_t k = 0; k < BLOCK; k++) to[k * n + m] = ((const uint16_t *)(const void *)row_of(s, m))[s->b * BLOCK + k];
}

static void block_of_bytes(const Block *s) {
    const size_t n = s->n;
    uint16_t *scale = (uint16_t *)(void *)s->to;
    char *to = s->to + n * sizeof *scale;
    for (size_t m = 0; m < n; m++) {
        scale[m] = rk_q8_scales(row_of(s, m), s->K)[s->b];
        for (size_t k = 0; k < BLOCK; k++) to[k * n + m] = row_of(s, m)[s->b * BLOCK + k];
    }
}

static unsigned half_byte(const char *block, size_t k) {
    unsigned byte = (unsigned char)block[k % (BLOCK / 2)];
    return k < BLOCK / 2 ? byte & 15 : byte >> 4;
}

static void block_of_half_bytes(const Block *s) {
    const size_t n = s->n, at = s->b * BLOCK / 2;
    uint16_t *scale = (uint16_t *)(void *)s->to;
    char *to = s->to + n * sizeof *scale;
    for (size_t m = 0; m < n; m++) scale[m] = rk_q4_scales(row_of(s, m), s->K)[s->b];
    for (size_t j = 0; j < n / 2; j++) {
        size_t m = j / (BLOCK / 2) * BLOCK + j % (BLOCK / 2);
        const char *low = row_of(s, m) + at, *high = row_of(s, m + BLOCK / 2) + at;
        for (size_t k = 0; k < BLOCK; k++) to[k * (n / 2) + j] = (char)(half_byte(low, k) | half_byte(high, k) << 4);
    }
}

typedef struct Columns { RkTensor w; char *out; size_t M, K, panels; } Columns;

static void columns_task(void *ctx, size_t task) {
    const Columns *c = ctx;
    size_t first = task % c->panels * RK_PANEL, n = c->M - first < RK_PANEL ? c->M - first : RK_PANEL;
    size_t row = rk_row_bytes(c->w.dtype, c->K), b = task / c->panels * TASK_BLOCKS;
    for (size_t end = b + TASK_BLOCKS; b < end && b < c->K / BLOCK; b++) {
        Block block = {(const char *)c->w.p + first * row, c->out + first * row + b * n * rk_row_bytes(c->w.dtype, BLOCK), n, c->K, b, c->w.dtype};
        if (c->w.dtype == RK_Q8) block_of_bytes(&block);
        else if (c->w.dtype == RK_Q4) block_of_half_bytes(&block);
        else block_of_floats(&block);
    }
}

int rk_columns_of(RkTensor w, RkTensor to) {
    Columns c = {w, to.p, rk_rows(w), (size_t)rk_cols(w), (rk_rows(w) + RK_PANEL - 1) / RK_PANEL};
    size_t tasks = (c.K / BLOCK + TASK_BLOCKS - 1) / TASK_BLOCKS * c.panels;
    rk_parallel(tasks, columns_task, &c);
    return RK_OK;
}
