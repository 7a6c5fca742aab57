/* gate_simd.h - RWKV-7's key preparation and output gate, RWKV-5's and 6's output gate, head by head; formulas in ops/gate/. */

/* The backwards add their parameters' gradients up over the rows they are given. */

/* ---- key preparation ---- */

/* One head of one token; `at` is its first element, `head` its first parameter. */
typedef struct KeyPrepHead { RkKeyPrepRows a; size_t at, head; Vec inverse, sum, dot; } KeyPrepHead;

SIMD void key_norm_at(KeyPrepHead *h, size_t i, size_t n) {
    Vec q = vec_load_part(h->a.k0 + h->at + i, n) * vec_load_part(h->a.k_k + h->head + i, n);
    h->sum = vec_fma(q, q, h->sum);
}
/* 1 / max(|q|, 1e-12). Float32 is enough: a square that underflows is below 1e-14 of (1e-12)^2. */
SIMD float key_inverse_norm(KeyPrepHead *h, int *tiny) {
    h->sum = vec_set(0);
    SWEEP(key_norm_at, h, 0, h->a.N);
    float norm = __builtin_sqrtf(vec_sum(h->sum));
    *tiny = norm < 1e-12f;
    return 1 / (*tiny ? 1e-12f : norm);
}

SIMD void key_prep_at(const KeyPrepHead *h, size_t i, size_t n) {
    size_t at = h->at + i, head = h->head + i;
    Vec k0 = vec_load_part(h->a.k0 + at, n), rate = vec_sigmoid(vec_load_part(h->a.a + at, n));
    Vec khat = k0 * vec_load_part(h->a.k_k + head, n) * h->inverse;
    Vec scale = vec_fma(rate - vec_set(1), vec_load_part(h->a.k_a + head, n), vec_set(1));
    vec_store_part(h->a.k + at, n, k0 * scale);
    vec_store_part(h->a.alpha + at, n, vec_set(0) - khat);
    vec_store_part(h->a.beta + at, n, khat * rate);
}

static void k_key_prep_fwd(const RkKeyPrepRows *a, size_t row_lo, size_t row_hi) {
    KeyPrepHead h = {.a = *a};
    for (size_t rh = row_lo * a->H; rh < row_hi * a->H; rh++) {
        int tiny;
        h.at = rh * h.a.N, h.head = rh % h.a.H * h.a.N;
        h.inverse = vec_set(key_inverse_norm(&h, &tiny));
        SWEEP(key_prep_at, &h, 0, h.a.N);
    }
}

SIMD void key_dot_at(KeyPrepHead *h, size_t i, size_t n) {
    size_t at = h->at + i;
    Vec khat = vec_load_part(h->a.k0 + at, n) * vec_load_part(h->a.k_k + h->head + i, n) * h->inverse;
    Vec rate = vec_sigmoid(vec_load_part(h->a.a + at, n));
    vec_store_part(h->a.da + at, n, rate); /* kept for the second walk: a sigmoid costs more than a store */
    h->dot = vec_fma(khat, vec_fma(vec_load_part(h->a.dbeta + at, n), rate, vec_set(0) - vec_load_part(h->a.dalpha + at, n)), h->dot);
}
SIMD void key_prep_bwd_at(const KeyPrepHead *h, size_t i, size_t n) {
    size_t at = h->at + i, head = h->head + i;
    Vec k0 = vec_load_part(h->a.k0 + at, n), k_k = vec_load_part(h->a.k_k + head, n), k_a = vec_load_part(h->a.k_a + head, n);
    Vec rate = vec_load_part(h->a.da + at, n), rest = vec_one_minus_sigmoid(vec_load_part(h->a.a + at, n));
    Vec khat = k0 * k_k * h->inverse, dk = vec_load_part(h->a.dk + at, n), dbeta = vec_load_part(h->a.dbeta + at, n);
    Vec dkhat = vec_fma(dbeta, rate, vec_set(0) - vec_load_part(h->a.dalpha + at, n));
    Vec dq = (dkhat - khat * h->dot) * h->inverse, dkk0 = dk * k0;
    Vec drate = vec_fma(dbeta, khat, dkk0 * k_a);
    vec_store_part(h->a.dk_k + head, n, vec_fma(dq, k0, vec_load_part(h->a.dk_k + head, n)));
    vec_store_part(h->a.dk_a + head, n, vec_load_part(h->a.dk_a + head, n) - dkk0 * rest);
    vec_store_part(h->a.da + at, n, drate * (rate * rest));
    vec_store_part(h->a.dk0 + at, n, vec_fma(dk, vec_set(1) - rest * k_a, dq * k_k));
}

static void k_key_prep_bwd(const RkKeyPrepRows *a, size_t row_lo, size_t row_hi) {
    KeyPrepHead h = {.a = *a};
    for (size_t rh = row_lo * a->H; rh < row_hi * a->H; rh++) {
        int tiny;
        h.at = rh * h.a.N, h.head = rh % h.a.H * h.a.N;
        h.inverse = vec_set(key_inverse_norm(&h, &tiny));
        h.dot = vec_set(0);
        SWEEP(key_dot_at, &h, 0, h.a.N);
        h.dot = vec_set(tiny ? 0 : vec_sum(h.dot));
        SWEEP(key_prep_bwd_at, &h, 0, h.a.N);
    }
}

/* ---- output gate ---- */

/* Mean and 1 / deviation of the N numbers of a head, each in every lane. */
SIMD void head_moments(const float *y, size_t N, float eps, Vec *mean, Vec *inverse) {
    float middle = row_sum(y, N) / (float)N;
    *mean = vec_set(middle);
    *inverse = vec_set(1 / __builtin_sqrtf(row_spread(y, middle, N) / (float)N + eps));
}

typedef struct OutGateHead {
    RkOutGateRows a;
    size_t at, head;
    Vec mean, inverse, bonus;          /* the same number in every lane once summed */
    Vec dbonus, mean_t, mean_tx; /* backward */
} OutGateHead;

SIMD void out_gate_bonus_at(OutGateHead *h, size_t i, size_t n) {
    Vec rk = vec_load_part(h->a.r + h->at + i, n) * vec_load_part(h->a.k + h->at + i, n);
    h->bonus = vec_fma(rk, vec_load_part(h->a.r_k + h->head + i, n), h->bonus);
}
SIMD void out_gate_statistics(OutGateHead *h) {
    head_moments(h->a.y + h->at, h->a.N, h->a.eps, &h->mean, &h->inverse);
    h->bonus = vec_set(0);
    SWEEP(out_gate_bonus_at, h, 0, h->a.N);
    h->bonus = vec_set(vec_sum(h->bonus));
}
/* The value before the gate. */
SIMD Vec out_gate_inner(const OutGateHead *h, Vec xhat, size_t i, size_t n) {
    Vec normed = vec_fma(xhat, vec_load_part(h->a.w + h->head + i, n), vec_load_part(h->a.b + h->head + i, n));
    return vec_fma(h->bonus, vec_load_part(h->a.v + h->at + i, n), normed);
}

SIMD void out_gate_at(const OutGateHead *h, size_t i, size_t n) {
    Vec xhat = (vec_load_part(h->a.y + h->at + i, n) - h->mean) * h->inverse;
    vec_store_part(h->a.o + h->at + i, n, out_gate_inner(h, xhat, i, n) * vec_load_part(h->a.g + h->at + i, n));
}
static void k_out_gate_fwd(const RkOutGateRows *a, size_t row_lo, size_t row_hi) {
    OutGateHead h = {.a = *a};
    for (size_t rh = row_lo * a->H; rh < row_hi * a->H; rh++) {
        h.at = rh * h.a.N, h.head = rh % h.a.H * h.a.N;
        out_gate_statistics(&h);
        SWEEP(out_gate_at, &h, 0, h.a.N);
    }
}

/* First walk: everything that needs no sum over the head; dy holds t = do2 w until the second. */
SIMD void out_gate_sums_at(OutGateHead *h, size_t i, size_t n) {
    size_t at = h->at + i, head = h->head + i;
    Vec xhat = (vec_load_part(h->a.y + at, n) - h->mean) * h->inverse, v = vec_load_part(h->a.v + at, n);
    Vec do_ = vec_load_part(h->a.do_ + at, n), do2 = do_ * vec_load_part(h->a.g + at, n);
    Vec t = do2 * vec_load_part(h->a.w + head, n);
    vec_store_part(h->a.dg + at, n, do_ * out_gate_inner(h, xhat, i, n));
    vec_store_part(h->a.dw + head, n, vec_fma(do2, xhat, vec_load_part(h->a.dw + head, n)));
    vec_store_part(h->a.db + head, n, vec_load_part(h->a.db + head, n) + do2);
    vec_store_part(h->a.dv + at, n, h->bonus * do2);
    vec_store_part(h->a.dy + at, n, t);
    h->dbonus = vec_fma(do2, v, h->dbonus);
    h->mean_t = h->mean_t + t;
    h->mean_tx = vec_fma(t, xhat, h->mean_tx);
}
SIMD void out_gate_bwd_at(const OutGateHead *h, size_t i, size_t n) {
    size_t at = h->at + i, head = h->head + i;
    Vec xhat = (vec_load_part(h->a.y + at, n) - h->mean) * h->inverse, t = vec_load_part(h->a.dy + at, n);
    Vec r = h->dbonus * vec_load_part(h->a.r + at, n), k = vec_load_part(h->a.k + at, n);
    Vec r_k = vec_load_part(h->a.r_k + head, n);
    vec_store_part(h->a.dy + at, n, h->inverse * (t - h->mean_t - xhat * h->mean_tx));
    vec_store_part(h->a.dr + at, n, h->dbonus * k * r_k);
    vec_store_part(h->a.dk + at, n, r * r_k);
    vec_store_part(h->a.dr_k + head, n, vec_fma(r, k, vec_load_part(h->a.dr_k + head, n)));
}
static void k_out_gate_bwd(const RkOutGateRows *a, size_t row_lo, size_t row_hi) {
    OutGateHead h = {.a = *a};
    float N = (float)a->N;
    for (size_t rh = row_lo * a->H; rh < row_hi * a->H; rh++) {
        h.at = rh * h.a.N, h.head = rh % h.a.H * h.a.N;
        out_gate_statistics(&h);
        h.dbonus = h.mean_t = h.mean_tx = vec_set(0);
        SWEEP(out_gate_sums_at, &h, 0, h.a.N);
        h.dbonus = vec_set(vec_sum(h.dbonus));
        h.mean_t = vec_set(vec_sum(h.mean_t) / N);
        h.mean_tx = vec_set(vec_sum(h.mean_tx) / N);
        SWEEP(out_gate_bwd_at, &h, 0, h.a.N);
    }
}

/* ---- output gate of RWKV-5 and 6 ---- */

typedef struct NormGateHead {
    RkNormGateRows a;
    size_t at, head;
    Vec mean, inverse, mean_t, mean_tx; /* the same number in every lane once summed */
} NormGateHead;

SIMD void norm_gate_statistics(NormGateHead *h) {
    head_moments(h->a.y + h->at, h->a.N, h->a.eps, &h->mean, &h->inverse);
}
SIMD Vec norm_gate_normed(const NormGateHead *h, Vec xhat, size_t i, size_t n) {
    return vec_fma(xhat, vec_load_part(h->a.w + h->head + i, n), vec_load_part(h->a.b + h->head + i, n));
}

SIMD void norm_gate_at(const NormGateHead *h, size_t i, size_t n) {
    Vec xhat = (vec_load_part(h->a.y + h->at + i, n) - h->mean) * h->inverse, g = vec_load_part(h->a.g + h->at + i, n);
    vec_store_part(h->a.o + h->at + i, n, norm_gate_normed(h, xhat, i, n) * (g * vec_sigmoid(g)));
}
static void k_norm_gate_fwd(const RkNormGateRows *a, size_t row_lo, size_t row_hi) {
    NormGateHead h = {.a = *a};
    for (size_t rh = row_lo * a->H; rh < row_hi * a->H; rh++) {
        h.at = rh * h.a.N, h.head = rh % h.a.H * h.a.N;
        norm_gate_statistics(&h);
        SWEEP(norm_gate_at, &h, 0, h.a.N);
    }
}

/* First walk: everything that needs no sum over the head; dy holds t = do silu(g) w until the second. */
SIMD void norm_gate_sums_at(NormGateHead *h, size_t i, size_t n) {
    size_t at = h->at + i, head = h->head + i;
    Vec xhat = (vec_load_part(h->a.y + at, n) - h->mean) * h->inverse, g = vec_load_part(h->a.g + at, n);
    Vec sigma = vec_sigmoid(g), do_ = vec_load_part(h->a.do_ + at, n), dnormed = do_ * (g * sigma);
    Vec slope = sigma * vec_fma(g, vec_one_minus_sigmoid(g), vec_set(1)), t = dnormed * vec_load_part(h->a.w + head, n);
    vec_store_part(h->a.dg + at, n, do_ * norm_gate_normed(h, xhat, i, n) * slope);
    vec_store_part(h->a.dw + head, n, vec_fma(dnormed, xhat, vec_load_part(h->a.dw + head, n)));
    vec_store_part(h->a.db + head, n, vec_load_part(h->a.db + head, n) + dnormed);
    vec_store_part(h->a.dy + at, n, t);
    h->mean_t = h->mean_t + t;
    h->mean_tx = vec_fma(t, xhat, h->mean_tx);
}
SIMD void norm_gate_bwd_at(const NormGateHead *h, size_t i, size_t n) {
    Vec xhat = (vec_load_part(h->a.y + h->at + i, n) - h->mean) * h->inverse, t = vec_load_part(h->a.dy + h->at + i, n);
    vec_store_part(h->a.dy + h->at + i, n, h->inverse * (t - h->mean_t - xhat * h->mean_tx));
}
static void k_norm_gate_bwd(const RkNormGateRows *a, size_t row_lo, size_t row_hi) {
    NormGateHead h = {.a = *a};
    float N = (float)a->N;
    for (size_t rh = row_lo * a->H; rh < row_hi * a->H; rh++) {
        h.at = rh * h.a.N, h.head = rh % h.a.H * h.a.N;
        norm_gate_statistics(&h);
        h.mean_t = h.mean_tx = vec_set(0);
        SWEEP(norm_gate_sums_at, &h, 0, h.a.N);
        h.mean_t = vec_set(vec_sum(h.mean_t) / N);
        h.mean_tx = vec_set(vec_sum(h.mean_tx) / N);
        SWEEP(norm_gate_bwd_at, &h, 0, h.a.N);
    }
}
