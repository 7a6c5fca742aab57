/* norm_simd.h - layer norm (formulas in ops/norm/layernorm.h) and sums over rows.
 * Sums over rows are taken SUM_ROWS at a time in registers and then added to the destination: one load and store of the
 * sum per four rows, and less rounding than adding row after row. */

enum { SUM_ROWS = 8 };

typedef struct LayerNormRow { const RkLayerNormRows *a; size_t at; Vec mean, inverse, mean_t, mean_tx; } LayerNormRow;

SIMD void layernorm_fwd_at(const LayerNormRow *r, size_t i, size_t n) {
    Vec xhat = (vec_load_part(r->a->x + r->at + i, n) - r->mean) * r->inverse;
    vec_store_part(r->a->y + r->at + i, n, vec_fma(xhat, vec_load_part(r->a->w + i, n), vec_load_part(r->a->b + i, n)));
}

static void k_layernorm_fwd(const RkLayerNormRows *a, size_t row_lo, size_t row_hi) {
    for (size_t row = row_lo; row < row_hi; row++) {
        const float *x = a->x + row * a->C;
        float mean = row_sum(x, a->C) / (float)a->C;
        float inverse = 1 / __builtin_sqrtf(row_spread(x, mean, a->C) / (float)a->C + a->eps);
        LayerNormRow r = {.a = a, .at = row * a->C, .mean = vec_set(mean), .inverse = vec_set(inverse)};
        SWEEP(layernorm_fwd_at, &r, 0, a->C);
        if (a->stats) a->stats[2 * row] = mean, a->stats[2 * row + 1] = inverse;
    }
}

/* Adds t and t xhat over the row to mean_t and mean_tx. */
SIMD void layernorm_means_at(LayerNormRow *r, size_t i, size_t n) {
    Vec xhat = (vec_load_part(r->a->x + r->at + i, n) - r->mean) * r->inverse;
    Vec t = vec_load_part(r->a->dy + r->at + i, n) * vec_load_part(r->a->w + i, n);
    r->mean_t = r->mean_t + t;
    r->mean_tx = vec_fma(t, xhat, r->mean_tx);
}
SIMD void layernorm_dx_at(const LayerNormRow *r, size_t i, size_t n) {
    Vec xhat = (vec_load_part(r->a->x + r->at + i, n) - r->mean) * r->inverse;
    Vec dy = vec_load_part(r->a->dy + r->at + i, n), t = dy * vec_load_part(r->a->w + i, n);
    Vec rest = r->a->dres ? vec_load_part(r->a->dres + r->at + i, n) : vec_set(0);
    vec_store_part(r->a->dw + i, n, vec_fma(dy, xhat, vec_load_part(r->a->dw + i, n)));
    vec_store_part(r->a->db + i, n, vec_load_part(r->a->db + i, n) + dy);
    vec_store_part(r->a->dx + r->at + i, n, vec_fma(r->inverse, t - r->mean_t - xhat * r->mean_tx, rest));
}

/* Adds dw and db up over the rows it is given. */
static void k_layernorm_bwd(const RkLayerNormRows *a, size_t row_lo, size_t row_hi) {
    for (size_t row = row_lo; row < row_hi; row++) {
        LayerNormRow r = {a, row * a->C, vec_set(a->stats[2 * row]), vec_set(a->stats[2 * row + 1]), vec_set(0), vec_set(0)};
        SWEEP(layernorm_means_at, &r, 0, a->C);
        r.mean_t = vec_set(vec_sum(r.mean_t) / (float)a->C);
        r.mean_tx = vec_set(vec_sum(r.mean_tx) / (float)a->C);
        SWEEP(layernorm_dx_at, &r, 0, a->C);
    }
}

typedef struct ColumnBlock { const float *src; float *dst; size_t rows, C; } ColumnBlock;

SIMD void column_sums_at(const ColumnBlock *b, size_t i, size_t n) {
    Vec sum = vec_set(0);
    for (size_t row = 0; row < b->rows; row++) sum = sum + vec_load_part(b->src + row * b->C + i, n);
    vec_store_part(b->dst + i, n, vec_load_part(b->dst + i, n) + sum);
}

static void k_column_sums(const float *src, float *dst, size_t R, size_t C, size_t lo, size_t hi) {
    for (size_t row = 0; row < R; row += SUM_ROWS) {
        ColumnBlock b = {src + row * C, dst, R - row < SUM_ROWS ? R - row : SUM_ROWS, C};
        SWEEP(column_sums_at, &b, lo, hi);
    }
}
