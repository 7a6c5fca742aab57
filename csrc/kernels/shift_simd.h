/* shift_simd.h - token shift and lerps; formulas in ops/shift/shift_lerp.h. The number of lerps is a constant of each copy,
 * so that a column's coefficients and sums stay in registers. */

enum { SHIFT_TOKENS = 8 }; /* walked for one vector of columns before the next: their cache lines stay in L1 */

typedef struct ShiftRow { RkShiftLerpRow a; const int n; } ShiftRow;

SIMD void shift_row_at(const ShiftRow *s, size_t i, size_t len) {
    const RkShiftLerpRow *a = &s->a;
    Vec x = vec_load_part(a->x + i, len), delta = (a->before ? vec_load_part(a->before + i, len) : vec_set(0)) - x;
    for (int z = 0; z < s->n; z++) vec_store_part(a->y[z] + i, len, vec_fma(delta, vec_load_part(a->mu[z] + i, len), x));
}
SIMD void shift_fwd(const RkShiftLerpRow *a, const int n) {
    ShiftRow s = {*a, n};
    SWEEP(shift_row_at, &s, 0, s.a.C);
}

static void k_shift_lerp_fwd(const RkShiftLerpRow *a) {
    switch (a->n) {
    case 1: shift_fwd(a, 1); break;
    case 2: shift_fwd(a, 2); break;
    case 3: shift_fwd(a, 3); break;
    case 4: shift_fwd(a, 4); break;
    case 5: shift_fwd(a, 5); break;
    default: shift_fwd(a, 6); break;
    }
}

/* Tokens [t0, t1) of sequence b, for columns from lo; carry[c - lo] holds e of token t1, on return of token t0. */
typedef struct ShiftTokens {
    RkShiftLerpGrad a;
    const int n;
    size_t b, t0, t1, lo;
    float *carry;
} ShiftTokens;

SIMD void shift_tokens_at(const ShiftTokens *s, size_t i, size_t len) {
    const RkShiftLerpGrad *a = &s->a;
    Vec mu[6], dmu[6], e_next = vec_load_part(s->carry + (i - s->lo), len);
    for (int z = 0; z < s->n; z++) mu[z] = vec_load_part(a->mu[z] + i, len), dmu[z] = vec_set(0);
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
    vec_store_part(s->carry + (i - s->lo), len, e_next);
    for (int z = 0; z < s->n; z++) vec_store_part(a->dmu[z] + i, len, vec_load_part(a->dmu[z] + i, len) + dmu[z]);
}

SIMD void shift_bwd(const RkShiftLerpGrad *a, size_t lo, size_t hi, const int n) {
    float carry[RK_COLUMNS_MAX];
    size_t bytes = (hi - lo) * sizeof *carry;
    for (size_t b = 0; b < a->B; b++) {
        if (a->dlast) memcpy(carry, a->dlast + b * a->C + lo, bytes);
        else memset(carry, 0, bytes);
        for (size_t t1 = a->T; t1 > 0;) {
            ShiftTokens s = {*a, n, b, t1 < SHIFT_TOKENS ? 0 : t1 - SHIFT_TOKENS, t1, lo, carry};
            SWEEP(shift_tokens_at, &s, lo, hi);
            t1 = s.t0;
        }
        if (a->dprev) memcpy(a->dprev + b * a->C + lo, carry, bytes);
    }
}

static void k_shift_lerp_bwd(const RkShiftLerpGrad *a, size_t lo, size_t hi) {
    switch (a->n) {
    case 1: shift_bwd(a, lo, hi, 1); break;
    case 2: shift_bwd(a, lo, hi, 2); break;
    case 3: shift_bwd(a, lo, hi, 3); break;
    case 4: shift_bwd(a, lo, hi, 4); break;
    case 5: shift_bwd(a, lo, hi, 5); break;
    default: shift_bwd(a, lo, hi, 6); break;
    }
}
