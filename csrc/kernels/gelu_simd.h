/* gelu_simd.h - x Phi(x) and its derivative; formulas in ops/ffn/gelu.h.
 *
 * Phi(-a) = e^{-a^2/2} g(a) for a >= 0, with g = 1/2 - u q(u), u = p a / (1 + p a): g falls smoothly from 1/2 at a = 0 to
 * 1 / (a sqrt(2 pi)), and u maps that to [0, 1). q has degree 8, minimax in the relative error of g up to a = 14 (3e-8), fitted
 * with p = 0.31. Phi is then within 1.5 2^-24, and its left tail within 2e-6 of itself at -2.5, 3e-6 at -3. */

typedef struct NormalCdf { Vec phi, bell; } NormalCdf; /* Phi(x) and e^{-x^2/2} */

SIMD NormalCdf vec_normal_cdf(Vec x) {
    static const float q[] = {-1.42045543e-2f, 2.13328395e-2f, 4.84207571e-2f, -7.82740712e-2f, -9.95514169e-2f,
                              1.01385129e-1f,  5.48571944e-1f, -1.31460714f,    1.28691280f};
    Vec a = vec_abs(x), pa = vec_set(0.31f) * a, u = pa / (vec_set(1) + pa), sum = vec_set(q[0]);
    for (size_t i = 1; i < sizeof q / sizeof *q; i++) sum = vec_fma(sum, u, vec_set(q[i]));
    Vec bell = vec_exp(vec_set(-0.5f) * a * a), tail = bell * (vec_set(0.5f) - u * sum);
    /* 1/2 + (1/2 - tail) with the sign of x: one formula for both sides would lose the tail's digits on the left */
    Vec negative = vec_set(0.5f) - vec_copy_sign(vec_set(0.5f), x); /* 1 left of 0, 0 right of it */
    Vec phi = vec_fma(negative, tail, (vec_set(1) - negative) * (vec_set(1) - tail));
    return (NormalCdf){phi, bell};
}

SIMD void gelu_fwd_at(const Elementwise *e, size_t i, size_t n) {
    Vec x = vec_load_part(e->a + i, n);
    vec_store_part(e->y + i, n, x * vec_normal_cdf(x).phi);
}
SIMD void gelu_bwd_at(const Elementwise *e, size_t i, size_t n) {
    Vec x = vec_load_part(e->a + i, n);
    NormalCdf c = vec_normal_cdf(x);
    vec_store_part(e->y + i, n, vec_fma(vec_set(0.398942280f) * x, c.bell, c.phi) * vec_load_part(e->b + i, n));
}

static void k_gelu_fwd(const float *x, float *y, size_t n) { SWEEP(gelu_fwd_at, (&(Elementwise){x, NULL, y}), 0, n); }
static void k_gelu_bwd(const float *x, const float *dy, float *dx, size_t n) {
    SWEEP(gelu_bwd_at, (&(Elementwise){x, dy, dx}), 0, n);
}
