/* elementwise_simd.h - sums, activations and gates: every output element depends on the inputs at the same place. */

typedef struct Elementwise { const float *a, *b; float *y; } Elementwise;

SIMD void exp_at(const Elementwise *e, size_t i, size_t n) { vec_store_part(e->y + i, n, vec_exp(vec_load_part(e->a + i, n))); }
SIMD void tanh_at(const Elementwise *e, size_t i, size_t n) { vec_store_part(e->y + i, n, vec_tanh(vec_load_part(e->a + i, n))); }
SIMD void sigmoid_at(const Elementwise *e, size_t i, size_t n) {
    vec_store_part(e->y + i, n, vec_sigmoid(vec_load_part(e->a + i, n)));
}

static void k_exp(float *x, size_t n) { SWEEP(exp_at, (&(Elementwise){x, NULL, x}), 0, n); }
static void k_tanh(float *x, size_t n) { SWEEP(tanh_at, (&(Elementwise){x, NULL, x}), 0, n); }
static void k_sigmoid(float *x, size_t n) { SWEEP(sigmoid_at, (&(Elementwise){x, NULL, x}), 0, n); }

SIMD void tanh_slope_at(const Elementwise *e, size_t i, size_t n) {
    Vec h = vec_load_part(e->a + i, n);
    vec_store_part(e->y + i, n, vec_load_part(e->y + i, n) * ((vec_set(1) - h) * (vec_set(1) + h)));
}
SIMD void sigmoid_slope_at(const Elementwise *e, size_t i, size_t n) {
    Vec h = vec_load_part(e->a + i, n);
    vec_store_part(e->y + i, n, vec_load_part(e->y + i, n) * (h * (vec_set(1) - h)));
}

static void k_tanh_slope(const float *h, float *dh, size_t n) { SWEEP(tanh_slope_at, (&(Elementwise){h, NULL, dh}), 0, n); }
static void k_sigmoid_slope(const float *h, float *dh, size_t n) { SWEEP(sigmoid_slope_at, (&(Elementwise){h, NULL, dh}), 0, n); }

SIMD void add_at(const Elementwise *e, size_t i, size_t n) {
    vec_store_part(e->y + i, n, vec_load_part(e->a + i, n) + vec_load_part(e->b + i, n));
}
static void k_add(const float *a, const float *b, float *y, size_t n) { SWEEP(add_at, (&(Elementwise){a, b, y}), 0, n); }

/* max(x, 0) that lets NaN through: a bad value must not hide behind the clamp. */
SIMD Vec relu(Vec x) { return vec_max(vec_set(0), x); }

SIMD void relu2_fwd_at(const Elementwise *e, size_t i, size_t n) {
    Vec h = relu(vec_load_part(e->a + i, n));
    vec_store_part(e->y + i, n, h * h);
}
SIMD void relu2_bwd_at(const Elementwise *e, size_t i, size_t n) {
    Vec h = relu(vec_load_part(e->a + i, n));
    vec_store_part(e->y + i, n, vec_set(2) * h * vec_load_part(e->b + i, n));
}
static void k_relu2_fwd(const float *x, float *y, size_t n) { SWEEP(relu2_fwd_at, (&(Elementwise){x, NULL, y}), 0, n); }
static void k_relu2_bwd(const float *x, const float *dy, float *dx, size_t n) {
    SWEEP(relu2_bwd_at, (&(Elementwise){x, dy, dx}), 0, n);
}

SIMD void value_residual_fwd_at(const RkValueResidualRows *a, size_t i, size_t n) {
    Vec v0 = vec_load_part(a->v0 + i, n), gate = vec_sigmoid(vec_load_part(a->nu + i, n));
    vec_store_part(a->v + i, n, vec_fma(vec_load_part(a->v_first + i, n) - v0, gate, v0));
}
SIMD void value_residual_bwd_at(const RkValueResidualRows *a, size_t i, size_t n) {
    Vec nu = vec_load_part(a->nu + i, n), gate = vec_sigmoid(nu), rest = vec_one_minus_sigmoid(nu), dv = vec_load_part(a->dv + i, n);
    Vec step = vec_load_part(a->v_first + i, n) - vec_load_part(a->v0 + i, n);
    vec_store_part(a->dnu + i, n, dv * step * (gate * rest));
    vec_store_part(a->dv_first + i, n, vec_fma(dv, gate, vec_load_part(a->dv_first + i, n)));
    vec_store_part(a->dv0 + i, n, dv * rest);
}
static void k_value_residual_fwd(const RkValueResidualRows *a, size_t lo, size_t hi) {
    RkValueResidualRows r = *a; /* a copy: stores of vectors may alias anything the caller can see */
    SWEEP(value_residual_fwd_at, &r, lo, hi);
}
static void k_value_residual_bwd(const RkValueResidualRows *a, size_t lo, size_t hi) {
    RkValueResidualRows r = *a;
    SWEEP(value_residual_bwd_at, &r, lo, hi);
}

SIMD void sigmoid_gate_fwd_at(const RkSigmoidGateRows *a, size_t i, size_t n) {
    vec_store_part(a->y + i, n, vec_sigmoid(vec_load_part(a->q + i, n)) * vec_load_part(a->v + i, n));
}
SIMD void sigmoid_gate_bwd_at(const RkSigmoidGateRows *a, size_t i, size_t n) {
    Vec q = vec_load_part(a->q + i, n), gate = vec_sigmoid(q), dy = vec_load_part(a->dy + i, n);
    Vec dgate = dy * vec_load_part(a->v + i, n);
    vec_store_part(a->dq + i, n, dgate * (gate * vec_one_minus_sigmoid(q)));
    vec_store_part(a->dv + i, n, dy * gate);
}
static void k_sigmoid_gate_fwd(const RkSigmoidGateRows *a, size_t lo, size_t hi) {
    RkSigmoidGateRows r = *a;
    SWEEP(sigmoid_gate_fwd_at, &r, lo, hi);
}
static void k_sigmoid_gate_bwd(const RkSigmoidGateRows *a, size_t lo, size_t hi) {
    RkSigmoidGateRows r = *a;
    SWEEP(sigmoid_gate_bwd_at, &r, lo, hi);
}
