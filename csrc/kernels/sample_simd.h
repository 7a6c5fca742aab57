/* sample_simd.h - the passes over a whole row of logits that drawing a token needs; the selection is in model/sample.c.
 * Both run at the speed of the second-level cache: a row of 65536 logits is 256 kB. */

/* The lowest index of the largest logit; n where one is not a number (a sum is then not a number, either). */
static size_t k_sample_top(const float *z, size_t n) {
    float sum = row_sum(z, n);
    return sum == sum ? xent_argmax(z, n) : n;
}

/* p = exp((z - top) * scale), and the sum and the largest of every block; returns the sum of all. */
static double k_sample_exp(const RkSampleRow *a) {
    Vec top = vec_set(a->top), scale = vec_set(a->scale);
    double total = 0;
    for (size_t lo = 0, block = 0; lo < a->n; lo += RK_SAMPLE_BLOCK, block++) {
        size_t hi = lo + RK_SAMPLE_BLOCK < a->n ? lo + RK_SAMPLE_BLOCK : a->n;
        Vec sum = vec_set(0), max = vec_set(0);
        for (size_t i = lo; i < hi; i += RK_LANES) {
            Vec p = vec_keep_part(vec_exp((vec_load_part(a->z + i, hi - i) - top) * scale), hi - i);
            vec_store_part(a->p + i, hi - i, p);
            sum = sum + p;
            max = vec_max(max, p);
        }
        a->sum[block] = vec_sum(sum);
        a->max[block] = vec_max_lane(max);
        total += (double)a->sum[block];
    }
    return total;
}
