/* columns_simd.h - y = x w^T from the columns of w (ops/linear/by_column.h), of which those that meet only zeros are left out.
 * A block's 32 terms are summed, of quantised w as its bare numbers, and the blocks' sums, times their scales, one after the other.
 * A term that is zero changes no sum of finite numbers, so a row's bits depend neither on the rows beside it nor on the columns they need. */

enum {
    COLUMNS_SUMS = 8,        /* sums kept in registers: of vectors of outputs times rows; of eight rows twice as many */
    COLUMNS_PREFETCH = 4096, /* bytes of columns from what is read to what is asked for */
    LINE_BYTES = 64
};

/* A panel on its way into y: where it lies, its outputs, bytes of the scales and of a column's part of a block. */
typedef struct Panel { const RkRowsTimesColumns *a; const char *at; float *y; size_t n, scales, column, block; } Panel;

/* RK_LANES numbers from output c of a column. */
SIMD Vec column_load(const char *column, size_t c, const int dtype) {
    if (dtype == RK_Q8) return vec_load_i8((const int8_t *)column + c);
    if (dtype == RK_Q4) return vec_load_u4((const uint8_t *)column + c / 32 * 16 + c % 16, c % 32 >= 16) - vec_set(8);
    return weights_load(dtype, column + c * (dtype == RK_F32 ? 4 : 2));
}

SIMD void columns_prefetch(const Panel *p, size_t i) {
    size_t ahead = i + COLUMNS_PREFETCH / p->column;
    if (ahead >= p->a->n_used) return;
    size_t k = p->a->used[ahead];
    const char *block = p->at + k / RK_QUANT_BLOCK * p->block;
    for (size_t b = 0; b < p->column; b += LINE_BYTES) __builtin_prefetch(block + p->scales + k % RK_QUANT_BLOCK * p->column + b, 0, 3);
    if (k / RK_QUANT_BLOCK == p->a->used[ahead - 1] / RK_QUANT_BLOCK) return;
    for (size_t b = 0; b < p->scales; b += LINE_BYTES) __builtin_prefetch(block + b, 0, 3);
}

/* The used columns [lo, hi), all of one block, into `vectors` vectors of outputs from c of rows r .. r + rows - 1. */
SIMD void columns_tile(const Panel *p, size_t lo, size_t hi, size_t r, size_t c, const int rows, const int vectors, const int dtype) {
    const RkRowsTimesColumns *a = p->a;
    const char *block = p->at + a->used[lo] / RK_QUANT_BLOCK * p->block;
    Vec sum[2 * COLUMNS_SUMS];
    for (int i = 0; i < rows * vectors; i++) sum[i] = vec_set(0);
    for (size_t i = lo; i < hi; i++) {
        size_t k = a->used[i];
        const char *column = block + p->scales + k % RK_QUANT_BLOCK * p->column;
        if (r == 0 && c == 0) columns_prefetch(p, i);
        for (int v = 0; v < vectors; v++) {
            Vec w = column_load(column, c + (size_t)v * RK_LANES, dtype);
            for (int q = 0; q < rows; q++) sum[v * rows + q] = vec_fma(w, vec_set(a->x[(r + (size_t)q) * a->K + k]), sum[v * rows + q]);
        }
    }
    for (int v = 0; v < vectors; v++)
        for (int q = 0; q < rows; q++) {
            size_t at = c + (size_t)v * RK_LANES;
            float *y = p->y + (r + (size_t)q) * a->M + at;
            if (p->scales) vec_store(y, vec_fma(vec_load_f16((const uint16_t *)(const void *)block + at), sum[v * rows + q], vec_load(y)));
            else vec_store(y, vec_load(y) + sum[v * rows + q]);
        }
}

SIMD void columns_of_rows(const Panel *p, size_t lo, size_t hi, size_t r, const int rows, const int dtype) {
    const int vectors = (rows > 4 ? 2 : 1) * COLUMNS_SUMS / rows;
    size_t c = 0, tile = (size_t)vectors * RK_LANES;
    for (; c + tile <= p->n; c += tile) columns_tile(p, lo, hi, r, c, rows, vectors, dtype);
    for (; c < p->n; c += RK_LANES) columns_tile(p, lo, hi, r, c, rows, 1, dtype);
}

SIMD void columns_panel(const Panel *p, const int dtype) {
    const RkRowsTimesColumns *a = p->a;
    for (size_t lo = 0, hi; lo < a->n_used; lo = hi) {
        for (hi = lo + 1; hi < a->n_used && a->used[hi] / RK_QUANT_BLOCK == a->used[lo] / RK_QUANT_BLOCK;) hi++;
        size_t r = 0;
        for (; RK_LANES >= 16 && r + 8 <= a->R; r += 8) columns_of_rows(p, lo, hi, r, 8, dtype);
        for (; r + 4 <= a->R; r += 4) columns_of_rows(p, lo, hi, r, 4, dtype);
        if (r + 2 <= a->R) columns_of_rows(p, lo, hi, r, 2, dtype), r += 2;
        if (r < a->R) columns_of_rows(p, lo, hi, r, 1, dtype);
    }
}

static void k_rows_times_columns(const RkRowsTimesColumns *a, size_t panel) {
    const size_t first = panel * RK_PANEL, n = a->M - first < RK_PANEL ? a->M - first : RK_PANEL, block = rk_row_bytes(a->dtype, RK_QUANT_BLOCK);
    const size_t scales = rk_quantised(a->dtype) ? 2 : 0;
    Panel p = {a, (const char *)a->columns + first * rk_row_bytes(a->dtype, a->K), a->y + first, n, n * scales,
               n * (block - scales) / RK_QUANT_BLOCK, n * block};
    for (size_t r = 0; r < a->R; r++) memset(p.y + r * a->M, 0, n * sizeof *p.y);
    switch (a->dtype) {
    case RK_BF16: columns_panel(&p, RK_BF16); break;
    case RK_F16: columns_panel(&p, RK_F16); break;
    case RK_Q8: columns_panel(&p, RK_Q8); break;
    case RK_Q4: columns_panel(&p, RK_Q4); break;
    default: columns_panel(&p, RK_F32); break;
    }
}
