/* matvec_simd.h - products of a few rows with a large matrix, as in decoding: every weight is read from memory once for all
 * rows, in the order in which it lies there, which is what streams fastest. How an output is summed does not depend on what is
 * computed beside it, so its bits do not depend on the other rows or on the tiling. */

enum { PF=256, SUM_RUN = 256, CHAINS = 4 /* of multiply-adds per dot product: hides their latency */ };

/* ---- y = x w^T: dot products with the rows of w ---- */

/* Output m for `rows` rows of x from row r on. */
SIMD void dot_row(const RkRowsTimesTransposed *a, size_t m, size_t r, const int rows) {
    Vec sum[2 * CHAINS];
    for (int u = 0; u < rows * CHAINS; u++) sum[u] = vec_set(0);
    size_t K = a->K, k = 0;
    const float *w = a->w + m * K, *x = a->x + r * K;
    for (; k + CHAINS * RK_LANES <= K; k += CHAINS * RK_LANES)
        for (int c = 0; c < CHAINS; c++) {
            Vec weight = vec_load(w + k + c * RK_LANES);
            if (c * RK_LANES % LINE == 0) __builtin_prefetch(w + k + c * RK_LANES + PF);
            for (int q = 0; q < rows; q++)
                sum[q * CHAINS + c] = vec_fma(weight, vec_load(x + (size_t)q * K + k + c * RK_LANES), sum[q * CHAINS + c]);
        }
    for (; k < K; k += RK_LANES) {
        Vec weight = vec_load_part(w + k, K - k);
        for (int q = 0; q < rows; q++) sum[q * CHAINS] = vec_fma(weight, vec_load_part(x + (size_t)q * K + k, K - k), sum[q * CHAINS]);
    }
    for (int q = 0; q < rows; q++) {
        const Vec *s = sum + q * CHAINS;
        a->y[(r + (size_t)q) * a->M + m] = vec_sum((s[0] + s[1]) + (s[2] + s[3]));
    }
}

static void k_rows_times_transposed(const RkRowsTimesTransposed *a, size_t lo, size_t hi) {
    for (size_t m = lo; m < hi; m++) {
        size_t r = 0;
        for (; r + 2 <= a->R; r += 2) dot_row(a, m, r, 2); /* a row of w is in L1 after its first use */
        if (r < a->R) dot_row(a, m, r, 1);
    }
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
