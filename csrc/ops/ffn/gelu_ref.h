/* Phi(x) = erfc(-x / sqrt 2) / 2, which keeps its digits where it is small. */
static inline double gelu_phi(double x) { return 0.5 * erfc(-x * 0.70710678118654752440); }

static int gelu_fwd(const RkGelu *o) {
    for (size_t i = 0, n = rk_numel(o->x); i < n; i++) P(o->y)[i] = P(o->x)[i] * (real)gelu_phi((double)P(o->x)[i]);
    return RK_OK;
}

static int gelu_bwd(const RkGelu *o) {
    for (size_t i = 0, n = rk_numel(o->x); i < n; i++) {
        double x = (double)P(o->x)[i], density = 0.39894228040143267794 * exp(-0.5 * x * x);
        P(o->dx)[i] = (real)(gelu_phi(x) + x * density) * P(o->dy)[i];
    }
    return RK_OK;
}
