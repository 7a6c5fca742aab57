/* shift_simd.h - token shift and lerps; formulas in ops/shift/shift_lerp.h. The number of lerps is a constant of each copy,
 * so that a column's coefficients and sums stay in registers. */

enum { SHIFT_TOKENS = 8 }; /* walked for one vector of columns before the next: their cache lines stay in L1 */

/* The share of the token before. */
SIMD Vec shift_share(const float *mu, size_t len, const int keep) {
    Vec share = vec_load_part(mu, len);
    if (keep) share = vec_set(1) - share;
    return share;
}

typedef struct ShiftRow { RkShiftLerpRow a; const int n, keep; } ShiftRow;

SIMD void shift_row_at(const ShiftRow *s, size_t i, size_t len) {
    const RkShiftLerpRow *a = &s->a;
    Vec x = vec_load_part(a->x + i, len), delta = (a->before ? vec_load_part(a->before + i, len) : vec_set(0)) - x;
    for (int z = 0; z < s->n; z++) vec_store_part(a->y[z] + i, len, vec_fma(delta, shift_share(a->mu[z] + i, len, s->keep), x));
}
SIMD void shift_fwd(const RkShiftLerpRow *a, const int n, const int keep) {
    ShiftRow s = {*a, n, keep};
    SWEEP(shift_row_at, &s, 0, s.a.C);
}

/* CALL(n, keep) for the number of lerps and the sense of their coefficients as constants. */
#define SHIFT_SIZED(a, CALL)                        \
    switch ((a)->n + ((a)->keep ? 6 : 0)) {         \
    case 1: CALL(1, 0); break;                      \
    case 2: CALL(2, 0); break;                      \
    case 3: CALL(3, 0); break;                      \
    case 4: CALL(4, 0); break;                      \
    case 5: CALL(5, 0); break;                      \
    case 6: CALL(6, 0); break;                      \
    case 7: CALL(1, 1); break;                      \
    case 8: CALL(2, 1); break;                      \
    case 9: CALL(3, 1); break;                      \
    case 10: CALL(4, 1); break;                     \
    case 11: CALL(5, 1); break;                     \
    default: CALL(6, 1); break;                     \
    }

static void k_shift_lerp_fwd(const RkShiftLerpRow *a) {
#define CALL(n, keep) shift_fwd(a, n, keep)
    SHIFT_SIZED(a, CALL)
#undef CALL
}

/* Tokens [t0, t1) of sequence b; carry (C) holds e of token t1, on return of token t0. */
typedef struct ShiftTokens {
    RkShiftLerpGrad a;
    const int n, keep;
    size_t b, t0, t1;
    float *carry;
} ShiftTokens;

SIMD void shift_tokens_at(const ShiftTokens *s, size_t i, size_t len) {
    const RkShiftLerpGrad *a = &s->a;
    Vec mu[6], dmu[6], e_next = vec_load_part(s->carry + i, len);
    for (int z = 0; z < s->n; z++) mu[z] = shift_share(a->mu[z] + i, len, s->keep), dmu[z] = vec_set(0);
    size_t at = (s->b * a->T + s->t1 - 1) * a->C + i;
    Vec x = vec_load_part(a->x + at, len);
    for (size_t t = s->t1; t-- > s->t0; at -= a->C) {
        Vec before = vec_set(0), sum = vec_set(0), e = vec_set(0);
        if (t) before = vec_load_part(a->x + at - a->C, len);
        else if (a->prev) before = vec_load_part(a->prev + s->b * a->C + i, len);
        Vec delta = before - x;
        for (int z = 0; z < s->n; z++) {
            Vec dy = vec_load_part(a->dy[z] + at, len);
            sum = sum + dy;
            e = vec_fma(dy, mu[z], e);
            dmu[z] = vec_fma(dy, delta, dmu[z]);
        }
        vec_store_part(a->dx + at, len, sum - e + e_next);
        e_next = e;
        x = before;
    }
    vec_store_part(s->carry + i, len, e_next);
    for (int z = 0; z < s->n; z++) {
        Vec sum = vec_load_part(a->dmu[z] + i, len);
        sum = s->keep ? sum - dmu[z] : sum + dmu[z];
        vec_store_part(a->dmu[z] + i, len, sum);
    }
}

/* e of token t1. */
SIMD void shift_carry_at(const ShiftTokens *s, size_t i, size_t len) {
    size_t at = (s->b * s->a.T + s->t1) * s->a.C + i;
    Vec e = vec_set(0);
    for (int z = 0; z < s->n; z++) e = vec_fma(vec_load_part(s->a.dy[z] + at, len), shift_share(s->a.mu[z] + i, len, s->keep), e);
    vec_store_part(s->carry + i, len, e);
}

/* Rows [lo, hi) of one sequence or several, from the last. */
SIMD void shift_bwd(const RkShiftLerpGrad *a, size_t lo, size_t hi, const int n, const int keep) {
    size_t bytes = a->C * sizeof *a->carry;
    while (hi > lo) {
        size_t b = (hi - 1) / a->T, first = lo > b * a->T ? lo - b * a->T : 0;
        ShiftTokens s = {*a, n, keep, b, 0, hi - b * a->T, a->carry};
        if (s.t1 < a->T) SWEEP(shift_carry_at, &s, 0, a->C);
        else if (a->dlast) memcpy(a->carry, a->dlast + b * a->C, bytes);
        else memset(a->carry, 0, bytes);
        for (; s.t1 > first; s.t1 = s.t0) {
            s.t0 = s.t1 - first < SHIFT_TOKENS ? first : s.t1 - SHIFT_TOKENS;
            SWEEP(shift_tokens_at, &s, 0, a->C);
        }
        if (!first && a->dprev) memcpy(a->dprev + b * a->C, a->carry, bytes);
        hi = b * a->T + first;
    }
}

/* Adds dmu up over the rows it is given. */
static void k_shift_lerp_bwd(const RkShiftLerpGrad *a, size_t row_lo, size_t row_hi) {
#define CALL(n, keep) shift_bwd(a, row_lo, row_hi, n, keep)
    SHIFT_SIZED(a, CALL)
#undef CALL
}

/* ---- RWKV-6: coefficients that depend on the data; formulas in ops/shift/ddlerp.h ---- */

SIMD void ddlerp_at(const RkShiftLerpRow *a, size_t i, size_t len) {
    Vec x = vec_load_part(a->x + i, len), delta = (a->before ? vec_load_part(a->before + i, len) : vec_set(0)) - x;
    for (int z = 0; z < a->n; z++) {
        Vec mu = vec_load_part(a->mu[z] + i, len) + vec_load_part(a->y[z] + i, len);
        vec_store_part(a->y[z] + i, len, vec_fma(delta, mu, x));
    }
}
static void k_ddlerp_fwd(const RkShiftLerpRow *a) {
    RkShiftLerpRow r = *a;
    SWEEP(ddlerp_at, &r, 0, r.C);
}

SIMD void ddlerp_bwd_at(const RkDdlerpGrad *a, size_t i, size_t len) {
    Vec x = vec_load_part(a->x + i, len), delta = (a->before ? vec_load_part(a->before + i, len) : vec_set(0)) - x;
    Vec mu = vec_load_part(a->mu + i, len), dy = vec_load_part(a->dy + i, len);
    if (!a->no_m) mu = mu + vec_load_part(a->m + i, len);
    Vec to_before = dy * mu;
    vec_store_part(a->e + i, len, vec_load_part(a->e + i, len) + to_before);
    vec_store_part(a->dx + i, len, vec_load_part(a->dx + i, len) + (dy - to_before));
    vec_store_part(a->m + i, len, dy * delta);
}
static void k_ddlerp_bwd(const RkDdlerpGrad *a) {
    RkDdlerpGrad r = *a;
    SWEEP(ddlerp_bwd_at, &r, 0, r.C);
}
