/* matvec_simd.h - products of a few rows with a large matrix, as in decoding: every weight is read from memory once for all
 * rows. How an output is summed does not depend on what is computed beside it, so its bits do not depend on the other rows or
 * on the tiling. */

enum {
    CHAINS = 2,     /* of multiply-adds per dot product: hides some of their latency */
    X_IN_L1 = 4096, /* floats of x that stay in L1 beside a row of w; when there are more, two rows of w share each load of x */
    SUM_RUN = 256   /* rows of m at a time: sums of sums round less */
};

/* ---- y = x w^T: dot products with the rows of w ---- */

/* Outputs m .. m + outs - 1 for rows r .. r + rows - 1 of x. One row of w at a time is a single stream, which the processor
 * fetches ahead by itself (34 GB/s); of two at a time it does not, so the next pair is asked for here (13 -> 24 GB/s). */
SIMD void dots_tile(const RkRowsTimesTransposed *a, size_t m, size_t r, const int outs, const int rows) {
    Vec sum[2][2][CHAINS];
    for (int o = 0; o < outs; o++)
        for (int q = 0; q < rows; q++)
            for (int c = 0; c < CHAINS; c++) sum[o][q][c] = vec_set(0);
    size_t K = a->K, k = 0;
    const float *w = a->w + m * K, *x = a->x + r * K;
    for (; k + CHAINS * RK_LANES <= K; k += CHAINS * RK_LANES)
        for (int c = 0; c < CHAINS; c++)
            for (int o = 0; o < outs; o++) {
                Vec weight = vec_load(w + (size_t)o * K + k + c * RK_LANES);
                if (outs > 1 && r == 0 && c * RK_LANES % LINE == 0)
                    __builtin_prefetch(w + (size_t)(o + outs) * K + k + c * RK_LANES, 0, 2);
                for (int q = 0; q < rows; q++)
                    sum[o][q][c] = vec_fma(weight, vec_load(x + (size_t)q * K + k + c * RK_LANES), sum[o][q][c]);
            }
    for (; k < K; k += RK_LANES)
        for (int o = 0; o < outs; o++) {
            Vec weight = vec_load_part(w + (size_t)o * K + k, K - k);
            for (int q = 0; q < rows; q++)
                sum[o][q][0] = vec_fma(weight, vec_load_part(x + (size_t)q * K + k, K - k), sum[o][q][0]);
        }
    for (int o = 0; o < outs; o++)
        for (int q = 0; q < rows; q++) a->y[(r + (size_t)q) * a->M + m + (size_t)o] = vec_sum(sum[o][q][0] + sum[o][q][1]);
}

/* `outs` outputs for all rows of x: the rows of w are in the cache after their first use. */
SIMD void dots_outputs(const RkRowsTimesTransposed *a, size_t m, const int outs) {
    size_t r = 0;
    for (; r + 2 <= a->R; r += 2) dots_tile(a, m, r, outs, 2);
    if (r < a->R) dots_tile(a, m, r, outs, 1);
}

static void k_rows_times_transposed(const RkRowsTimesTransposed *a, size_t lo, size_t hi) {
    size_t m = lo;
    if (a->R > 1 && a->R * a->K > X_IN_L1)
        for (; m + 2 <= hi; m += 2) dots_outputs(a, m, 2);
    for (; m < hi; m++) dots_outputs(a, m, 1);
}

/* ---- y = bias + x m: sums of the rows of m ---- */

/* One run of k for `vectors` vectors of columns from j; n columns are left there. */
SIMD void sums_tile(const RkRowsTimesMatrix *a, size_t k0, size_t j, size_t n, const int rows, const int vectors) {
    Vec sum[8];
    for (int u = 0; u < rows * vectors; u++) sum[u] = vec_set(0);
    size_t K = a->K, M = a->M, end = k0 + SUM_RUN < K ? k0 + SUM_RUN : K;
    for (size_t k = k0; k < end; k++) {
        const float *m = a->m + k * M + j;
        for (int u = 0; u < vectors; u++) {
            Vec weight = vec_load_part(m + u * RK_LANES, n - (size_t)u * RK_LANES);
            for (int r = 0; r < rows; r++)
                sum[u * rows + r] = vec_fma(weight, vec_set(a->x[(size_t)r * K + k]), sum[u * rows + r]);
        }
    }
    for (int u = 0; u < vectors; u++)
        for (int r = 0; r < rows; r++) {
            size_t at = j + (size_t)u * RK_LANES, left = n - (size_t)u * RK_LANES;
            float *y = a->y + (size_t)r * M + at;
            Vec before = k0 ? vec_load_part(y, left) : a->bias ? vec_load_part(a->bias + at, left) : vec_set(0);
            vec_store_part(y, left, before + sum[u * rows + r]);
        }
}

SIMD void sums_range(const RkRowsTimesMatrix *a, size_t lo, size_t hi, const int rows, const int vectors) {
    const size_t tile = (size_t)vectors * RK_LANES;
    for (size_t k = 0; k < a->K; k += SUM_RUN) {
        size_t j = lo;
        for (; j + tile <= hi; j += tile) sums_tile(a, k, j, tile, rows, vectors);
        for (; j + RK_LANES <= hi; j += RK_LANES) sums_tile(a, k, j, RK_LANES, rows, 1);
        if (j < hi) sums_tile(a, k, j, hi - j, rows, 1);
    }
}

static void k_rows_times_matrix(const RkRowsTimesMatrix *a, size_t lo, size_t hi) {
    switch (a->R) {
    case 1: sums_range(a, lo, hi, 1, 8); break;
    case 2: sums_range(a, lo, hi, 2, 4); break;
    case 3: sums_range(a, lo, hi, 3, 2); break;
    default: sums_range(a, lo, hi, 4, 2); break;
    }
}
