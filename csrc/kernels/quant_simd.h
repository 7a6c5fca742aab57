/* quant_simd.h - dot products with quantised rows of w (base/quant.h), in integers within a block.
 *
 * x is quantised too, once per call: per block of 32 a scale max |x| / 127 and bytes round(x / scale), so that
 *     y = sum over blocks of scale_w scale_x (sum of w_q x_q)
 * is off by at most sum over blocks of (scale_x / 2) sum |w| from the product with the dequantised weights, beside the roundings of
 * the float32 sum; the inner sums are exact. A NaN or infinity in x makes every output it enters NaN.
 *
 * A lane of a vector holds the sum of four bytes: 8 lanes share a scale of an 8-bit row, 4 one of a 4-bit row, whose bytes hold two
 * elements each. A quantised row of x is K' bytes (4-bit w: first the elements that meet low halves, then those that meet high
 * ones), then a scale and a start per block, then the scales again, once per lane. w enters as an unsigned number, larger by an offset; the starts, -offset scale_x
 * (sum of x_q), undo that. K' is K rounded up, with zeros. */

enum {
    DOT_OUTS = 4,        /* rows of w at a time */
    DOT_PREFETCH = 6144, /* bytes from what is read to what is asked for, rounded up to whole tiles; 2048 to 8192 do equally well */
    QUANT_SPAN = 2048    /* elements of a row of w whose scales are converted at a time */
};

typedef struct DotTile { int outs, rows, group; } DotTile; /* outputs and rows; outputs of a row that are summed together */
typedef struct QuantisedRow { int8_t *q; float *scale, *start, *lane_scale; } QuantisedRow;

SIMD QuantisedRow quantised_row(const void *xq, size_t row, size_t K) {
    size_t columns = rk_quantised_columns(K);
    int8_t *q = (int8_t *)(uintptr_t)xq + row * rk_quantised_row_bytes(K);
    float *scale = (float *)(void *)(q + columns);
    return (QuantisedRow){q, scale, scale + columns / RK_QUANT_BLOCK, scale + columns / RK_QUANT_BLOCK * 2};
}

/* A block of x to 32 bytes; returns its scale. */
SIMD float quantise_block(const float *x, int8_t *q) {
    Vec most = vec_set(0), poison = vec_set(0);
    for (int i = 0; i < RK_QUANT_BLOCK; i += RK_LANES) {
        Vec v = vec_load(x + i);
        most = vec_max(most, vec_abs(v));
        poison = vec_fma(v, vec_set(0), poison);
    }
    float largest = vec_max_lane(most), inverse = largest > 1e-30f ? 127 / largest : 0; /* below, 127 / largest may overflow */
    float shifted[RK_QUANT_BLOCK];
    for (int i = 0; i < RK_QUANT_BLOCK; i += RK_LANES) vec_store(shifted + i, vec_fma(vec_load(x + i), vec_set(inverse), vec_set(RK_ROUND)));
    uint32_t bits[RK_QUANT_BLOCK];
    memcpy(bits, shifted, sizeof bits);
    for (int i = 0; i < RK_QUANT_BLOCK; i++) q[i] = (int8_t)bits[i];
    return largest / 127 + vec_sum(poison);
}

static void k_quantise_rows(const float *x, size_t rows, size_t K, int dtype, void *xq) {
    const int four = dtype == RK_Q4;
    const size_t columns = rk_quantised_columns(K), blocks = K / RK_QUANT_BLOCK, share = four ? 4 : 8;
    const float offset = four ? 8 : RK_Q8_OFFSET;
    for (size_t r = 0; r < rows; r++, x += K) {
        QuantisedRow row = quantised_row(xq, r, K);
        for (size_t b = 0; b < columns / RK_QUANT_BLOCK; b++) {
            int8_t q[RK_QUANT_BLOCK] = {0};
            row.scale[b] = b < blocks ? quantise_block(x + b * RK_QUANT_BLOCK, q) : 0;
            int sum = 0;
            for (int i = 0; i < RK_QUANT_BLOCK; i++) sum += q[i];
            row.start[b] = -offset * row.scale[b] * (float)sum;
            for (size_t l = 0; l < share; l++) row.lane_scale[b * share + l] = row.scale[b];
            memcpy(row.q + b * (four ? 16 : 32), q, 16);
            memcpy(row.q + (four ? columns / 2 + b * 16 : b * 32 + 16), q + 16, 16);
        }
    }
}

/* Scales of blocks [block, block + blocks) of a row of w, for one row of x times its own, into scale; adds to each sum what its dot
 * product starts from. */
SIMD void quantised_scales(const uint16_t *stored, const QuantisedRow *x, size_t block, size_t blocks, float *scale, Vec *sum, const int rows) {
    for (size_t b = 0; b < blocks; b += RK_LANES) {
        Vec of_w = vec_load_f16_part(stored + block + b, blocks - b);
        if (rows == 1) vec_store(scale + b, of_w * vec_load_part(x->scale + block + b, blocks - b));
        else vec_store(scale + b, of_w);
        for (int q = 0; q < rows; q++) sum[q] = vec_fma(of_w, vec_load_part(x[q].start + block + b, blocks - b), sum[q]);
    }
}

/* As dots_tile, for quantised w. */
SIMD void quantised_dots_tile(const RkRowsTimesTransposed *a, size_t m, size_t r, float *sums, const DotTile t, const int dtype) {
    const int outs = t.outs, rows = t.rows;
    const int four = dtype == RK_Q4;
    const size_t K = a->K, bytes = four ? K / 2 : K, row_bytes = bytes + K / RK_QUANT_BLOCK * 2, columns = rk_quantised_columns(K);
    const char *w = (const char *)a->w + m * row_bytes;
    const size_t tile = (size_t)outs * row_bytes, ahead = (DOT_PREFETCH + tile - 1) / tile * tile;
    Vec sum[DOT_OUTS * RK_DOT_ROWS];
    QuantisedRow x[RK_DOT_ROWS];
    for (int i = 0; i < outs * rows; i++) sum[i] = vec_set(0);
    for (int q = 0; q < rows; q++) x[q] = quantised_row(a->xq, r + (size_t)q, K);
    for (size_t k = 0; k < K; k += QUANT_SPAN) {
        float scale[DOT_OUTS][QUANT_SPAN / RK_QUANT_BLOCK + RK_LANES];
        const size_t block = k / RK_QUANT_BLOCK, blocks = (K - k < QUANT_SPAN ? K - k : QUANT_SPAN) / RK_QUANT_BLOCK;
        for (int o = 0; o < outs; o++) {
            const uint16_t *stored = (const uint16_t *)(const void *)(w + (size_t)o * row_bytes + bytes);
            quantised_scales(stored, x, block, blocks, scale[o], &sum[o * rows], rows);
        }
        const size_t lanes = blocks * (four ? 4 : 8);
        for (size_t l = 0; l < lanes; l += RK_LANES)
            for (int o = 0; o < outs; o++) {
                const size_t at = (four ? k / 2 : k) + 4 * l;
                const char *p = w + (size_t)o * row_bytes + at;
                Bytes weights = bytes_load_part(p, 4 * (lanes - l)), low = bytes_low(weights), high = bytes_high(weights);
                Vec of_w = four ? vec_spread4(scale[o], l) : vec_spread8(scale[o], l);
                if (r == 0) __builtin_prefetch(p + ahead, 0, 3);
                for (int q = 0; q < rows; q++) {
                    Bytes xlow = bytes_load(x[q].q + at);
                    Vec dot = four ? vec_dot_q4(low, xlow, high, bytes_load(x[q].q + columns / 2 + at)) : vec_dot_q8(weights, xlow);
                    Vec factor = of_w;
                    if (rows > 1) factor = of_w * vec_load(x[q].lane_scale + at / 4);
                    sum[o * rows + q] = vec_fma(dot, factor, sum[o * rows + q]);
                }
            }
    }
    for (int o = 0; o < outs; o++)
        for (int q = 0; q < rows; q++) vec_store(sums + (q * t.group + o) * RK_LANES, sum[o * rows + q]);
}
