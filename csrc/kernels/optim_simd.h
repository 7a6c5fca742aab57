/* optim_simd.h - the optimizer's passes over flat ranges; formulas in ops/optim/. Both wait for memory, not for arithmetic. */

SIMD void adamw_at(const RkAdamWRange *a, size_t i, size_t n) {
    Vec g = vec_load_part(a->g + i, n) * vec_set(a->gscale), p = vec_load_part(a->p + i, n);
    Vec m = vec_fma(vec_set(a->beta1), vec_load_part(a->m + i, n), vec_set(a->one_minus_beta1) * g);
    Vec v = vec_fma(vec_set(a->beta2), vec_load_part(a->v + i, n), vec_set(a->one_minus_beta2) * g * g);
    Vec step = m * vec_set(a->inverse_bias1) / (vec_sqrt(v * vec_set(a->inverse_bias2)) + vec_set(a->eps));
    vec_store_part(a->m + i, n, m);
    vec_store_part(a->v + i, n, v);
    vec_store_part(a->p + i, n, p - vec_set(a->lr) * vec_fma(vec_set(a->wd), p, step));
}
static void k_adamw(const RkAdamWRange *a, size_t lo, size_t hi) {
    RkAdamWRange r = *a; /* a copy: stores of vectors may alias anything the caller can see */
    SWEEP(adamw_at, &r, lo, hi);
}

/* Where g, m and v are zero: only the decay is left. */
SIMD void adamw_asleep_at(const RkAdamWRange *a, size_t i, size_t n) {
    Vec p = vec_load_part(a->p + i, n);
    vec_store_part(a->p + i, n, p - vec_set(a->lr) * vec_fma(vec_set(a->wd), p, vec_set(0)));
}
static void k_adamw_asleep(const RkAdamWRange *a, size_t lo, size_t hi) {
    RkAdamWRange r = *a;
    SWEEP(adamw_asleep_at, &r, lo, hi);
}

static double k_sumsq(const float *x, size_t n) {
    VecSum64 s[2] = {vec_sum64_zero(), vec_sum64_zero()};
    size_t i = 0;
    for (; i + 2 * RK_LANES <= n; i += 2 * RK_LANES) {
        s[0] = vec_sum64_square(s[0], vec_load(x + i));
        s[1] = vec_sum64_square(s[1], vec_load(x + i + RK_LANES));
    }
    for (; i < n; i += RK_LANES) s[0] = vec_sum64_square(s[0], vec_load_part(x + i, n - i));
    return vec_sum64(s[0]) + vec_sum64(s[1]);
}
