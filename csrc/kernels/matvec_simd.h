/* matvec_simd.h - products of rows with a large matrix where the matrix is read once and used as it is stored, as in decoding.
 * How an output is summed does not depend on what is computed beside it, so its bits do not depend on the other rows or on the
 * tiling. */

/* ---- weights of two or four bytes ---- */

SIMD Vec weights_load(int dtype, const void *p) {
    return dtype == RK_BF16 ? vec_load_bf16(p) : dtype == RK_F16 ? vec_load_f16(p) : vec_load(p);
}
SIMD Vec weights_load_part(int dtype, const void *p, size_t n) {
    return dtype == RK_BF16 ? vec_load_bf16_part(p, n) : dtype == RK_F16 ? vec_load_f16_part(p, n) : vec_load_part(p, n);
}

/* ---- y = x w^T: dot products with the rows of w ---- */

/* Dot products of rows m .. m + outs - 1 of w with rows r .. r + rows - 1 of x: RK_LANES partial sums of each into
 * sums[(row * group + out) * RK_LANES]. Each is one chain of multiply-adds; the chains beside it hide its latency. */
SIMD void dots_tile(const RkRowsTimesTransposed *a, size_t m, size_t r, float *sums, const DotTile t, const int dtype) {
    const int outs = t.outs, rows = t.rows;
    Vec sum[DOT_OUTS * RK_DOT_ROWS];
    for (int i = 0; i < outs * rows; i++) sum[i] = vec_set(0);
    const size_t K = a->K, bytes = dtype == RK_F32 ? 4 : 2, row = K * bytes;
    const char *w = (const char *)a->w + m * row;
    const float *x = a->x + r * K;
    const size_t tile = (size_t)outs * row, ahead = (DOT_PREFETCH + tile - 1) / tile * tile;
    size_t k = 0;
    for (; k + RK_LANES <= K; k += RK_LANES)
        for (int o = 0; o < outs; o++) {
            const char *at = w + (size_t)o * row + k * bytes;
            Vec weight = weights_load(dtype, at);
            if (r == 0 && k * bytes % (LINE * sizeof *x) == 0) __builtin_prefetch(at + ahead, 0, 3);
            for (int q = 0; q < rows; q++) sum[o * rows + q] = vec_fma(weight, vec_load(x + (size_t)q * K + k), sum[o * rows + q]);
        }
    if (k < K)
        for (int o = 0; o < outs; o++) {
            Vec weight = weights_load_part(dtype, w + (size_t)o * row + k * bytes, K - k);
            for (int q = 0; q < rows; q++)
                sum[o * rows + q] = vec_fma(weight, vec_load_part(x + (size_t)q * K + k, K - k), sum[o * rows + q]);
        }
    for (int o = 0; o < outs; o++)
        for (int q = 0; q < rows; q++) vec_store(sums + (q * t.group + o) * RK_LANES, sum[o * rows + q]);
}

SIMD void dots_any_tile(const RkRowsTimesTransposed *a, size_t m, size_t r, float *sums, const DotTile t, const int dtype) {
    if (rk_quantised(dtype)) quantised_dots_tile(a, m, r, sums, t, dtype);
    else dots_tile(a, m, r, sums, t, dtype);
}

/* `outs` outputs of `rows` rows, in tiles of at most DOT_OUTS; their sums over lanes RK_LANES at a time. */
SIMD void dots_outputs(const RkRowsTimesTransposed *a, size_t m, size_t r, const int outs, const int rows, const int dtype) {
    enum { MOST = DOT_OUTS * RK_DOT_ROWS > RK_LANES ? DOT_OUTS * RK_DOT_ROWS : RK_LANES };
    float sums[MOST * RK_LANES], y[MOST];
    const DotTile tile = {outs < DOT_OUTS ? outs : DOT_OUTS, rows, outs};
    for (int o = 0; o < outs; o += DOT_OUTS) dots_any_tile(a, m + (size_t)o, r, sums + o * RK_LANES, tile, dtype);
    if (outs * rows % RK_LANES) memset(sums + outs * rows * RK_LANES, 0, sizeof sums - (size_t)(outs * rows * RK_LANES) * sizeof *sums);
    for (int i = 0; i < outs * rows; i += RK_LANES) vec_store(y + i, vec_sum_rows(sums + i * RK_LANES));
    for (int q = 0; q < rows; q++) memcpy(a->y + (r + (size_t)q) * a->M + m, y + q * outs, (size_t)outs * sizeof *y);
}

/* `outs` outputs for all rows of x: the rows of w are in the cache after their first use. */
SIMD void dots_of_rows(const RkRowsTimesTransposed *a, size_t m, const int outs, const int dtype) {
    size_t r = 0;
    for (; r + RK_DOT_ROWS <= a->R; r += RK_DOT_ROWS) dots_outputs(a, m, r, outs, RK_DOT_ROWS, dtype);
    if (RK_DOT_ROWS > 2 && r + 2 <= a->R) dots_outputs(a, m, r, outs, 2, dtype), r += 2;
    if (r < a->R) dots_outputs(a, m, r, outs, 1, dtype);
}

SIMD void dots_range(const RkRowsTimesTransposed *a, size_t lo, size_t hi, const int dtype) {
    size_t m = lo;
    if (a->R == 1 && RK_LANES > DOT_OUTS)
        for (; m + RK_LANES <= hi; m += RK_LANES) dots_outputs(a, m, 0, RK_LANES > DOT_OUTS ? RK_LANES : DOT_OUTS, 1, dtype);
    for (; m + DOT_OUTS <= hi; m += DOT_OUTS) dots_of_rows(a, m, DOT_OUTS, dtype);
    for (; m < hi; m++) dots_of_rows(a, m, 1, dtype);
}

static void k_rows_times_transposed(const RkRowsTimesTransposed *a, size_t lo, size_t hi) {
    switch (a->dtype) {
    case RK_BF16: dots_range(a, lo, hi, RK_BF16); break;
    case RK_F16: dots_range(a, lo, hi, RK_F16); break;
    case RK_Q8: dots_range(a, lo, hi, RK_Q8); break;
    case RK_Q4: dots_range(a, lo, hi, RK_Q4); break;
    default: dots_range(a, lo, hi, RK_F32); break;
    }
}

/* ---- y = bias + x m: sums of the rows of m ---- */

enum { SUM_RUN = 256 /* rows of m at a time: sums of sums round less */ };

/* One run of k for rows r .. r + rows - 1 and `vectors` vectors of columns from j; n columns are left there. */
SIMD void sums_tile(const RkRowsTimesMatrix *a, size_t k0, size_t j, size_t n, size_t r0, const int rows, const int vectors, const int dtype) {
    Vec sum[8];
    for (int u = 0; u < rows * vectors; u++) sum[u] = vec_set(0);
    size_t K = a->K, M = a->M, end = k0 + SUM_RUN < K ? k0 + SUM_RUN : K, bytes = dtype == RK_F32 ? 4 : 2;
    for (size_t k = k0; k < end; k++) {
        const char *m = (const char *)a->m + (k * M + j) * bytes;
        for (int u = 0; u < vectors; u++) {
            Vec weight = weights_load_part(dtype, m + (size_t)u * RK_LANES * bytes, n - (size_t)u * RK_LANES);
            for (int r = 0; r < rows; r++)
                sum[u * rows + r] = vec_fma(weight, vec_set(a->x[(r0 + (size_t)r) * a->ldx + k]), sum[u * rows + r]);
        }
    }
    for (int u = 0; u < vectors; u++)
        for (int r = 0; r < rows; r++) {
            size_t at = j + (size_t)u * RK_LANES, left = n - (size_t)u * RK_LANES;
            float *y = a->y + (r0 + (size_t)r) * M + at;
            Vec before = k0 ? vec_load_part(y, left) : a->bias ? vec_load_part(a->bias + at, left) : vec_set(0);
            vec_store_part(y, left, before + sum[u * rows + r]);
        }
}

SIMD void sums_range(const RkRowsTimesMatrix *a, size_t lo, size_t hi, size_t r, const int rows, const int vectors, const int dtype) {
    const size_t tile = (size_t)vectors * RK_LANES;
    for (size_t k = 0; k < a->K; k += SUM_RUN) {
        size_t j = lo;
        for (; j + tile <= hi; j += tile) sums_tile(a, k, j, tile, r, rows, vectors, dtype);
        const size_t half = tile / 2; /* one vector at a time would wait for its chain: four cycles for each row of m */
        for (; vectors > 4 && j + half <= hi; j += half) sums_tile(a, k, j, half, r, rows, vectors / 2, dtype);
        for (; j + RK_LANES <= hi; j += RK_LANES) sums_tile(a, k, j, RK_LANES, r, rows, 1, dtype);
        if (j < hi) sums_tile(a, k, j, hi - j, r, rows, 1, dtype);
    }
}

SIMD void sums_of_rows(const RkRowsTimesMatrix *a, size_t lo, size_t hi, const int dtype) {
    size_t r = 0;
    for (; r + 4 <= a->R; r += 4) sums_range(a, lo, hi, r, 4, 2, dtype);
    if (r + 2 <= a->R) sums_range(a, lo, hi, r, 2, 4, dtype), r += 2;
    if (r < a->R) sums_range(a, lo, hi, r, 1, 8, dtype);
}

static void k_rows_times_matrix(const RkRowsTimesMatrix *a, size_t lo, size_t hi) {
    switch (a->dtype) {
    case RK_BF16: sums_of_rows(a, lo, hi, RK_BF16); break;
    case RK_F16: sums_of_rows(a, lo, hi, RK_F16); break;
    default: sums_of_rows(a, lo, hi, RK_F32); break;
    }
}
