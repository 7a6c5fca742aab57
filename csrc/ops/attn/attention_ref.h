/* One query is one task of the forward, one head of keys one task of the backward. Scores are computed again wherever they
 * are needed, so there is no scratch. */
typedef struct AttentionRef { const RkAttention *o; size_t B, T, H, G, N, past; } AttentionRef;

static AttentionRef attention_sizes(const RkAttention *o) {
    return (AttentionRef){o, (size_t)o->q.d[0], (size_t)o->q.d[1], (size_t)o->q.d[2], (size_t)o->k.d[2], (size_t)o->q.d[3],
                          (size_t)o->past};
}

/* Row j, counted from the start of the stream, of sequence b and head g in a cache and what follows it. */
static real *attention_row(const AttentionRef *s, RkTensor past, RkTensor now, size_t b, size_t g, size_t j) {
    if (j < s->past) return P(past) + ((b * (size_t)past.d[1] + j) * s->G + g) * s->N;
    return P(now) + ((b * s->T + j - s->past) * s->G + g) * s->N;
}

static real attention_dot(const real *a, const real *b, size_t N) {
    real sum = 0;
    for (size_t i = 0; i < N; i++) sum += a[i] * b[i];
    return sum;
}

static real attention_score(const AttentionRef *s, const real *q, size_t b, size_t g, size_t j) {
    return attention_dot(q, attention_row(s, s->o->k_past, s->o->k, b, g, j), s->N) / (real)sqrt((double)s->N);
}

static void attention_fwd_query(void *ctx, size_t task) {
    const AttentionRef *s = ctx;
    size_t b = task / (s->T * s->H), t = task / s->H % s->T, h = task % s->H, g = h / (s->H / s->G), seen = s->past + t + 1;
    const real *q = P(s->o->q) + task * s->N;
    real *y = P(s->o->y) + task * s->N, top = attention_score(s, q, b, g, 0), sum = 0;
    for (size_t j = 1; j < seen; j++) {
        real score = attention_score(s, q, b, g, j);
        if (!(score <= top)) top = score; /* a NaN is kept */
    }
    for (size_t i = 0; i < s->N; i++) y[i] = 0;
    for (size_t j = 0; j < seen; j++) {
        real p = (real)exp((double)(attention_score(s, q, b, g, j) - top));
        const real *v = attention_row(s, s->o->v_past, s->o->v, b, g, j);
        sum += p;
        for (size_t i = 0; i < s->N; i++) y[i] += p * v[i];
    }
    for (size_t i = 0; i < s->N; i++) y[i] /= sum;
    if (s->o->lse.p) P(s->o->lse)[(b * s->H + h) * s->T + t] = top + (real)log((double)sum);
}

/* The first tokens of `all`: `past` of them as before, then this call's. */
static void attention_append(const AttentionRef *s, RkTensor past, RkTensor now, RkTensor all) {
    size_t token = s->G * s->N;
    for (size_t b = 0; all.p && b < s->B; b++) {
        real *to = P(all) + b * (size_t)all.d[1] * token;
        if (s->past && all.p != past.p) memcpy(to, P(past) + b * (size_t)past.d[1] * token, s->past * token * sizeof(real));
        memcpy(to + s->past * token, P(now) + b * s->T * token, s->T * token * sizeof(real));
    }
}

static int attention_fwd(const RkAttention *o) {
    RK_TRY(rk_attention_check(o));
    AttentionRef s = attention_sizes(o);
    rk_parallel(s.B * s.T * s.H, attention_fwd_query, &s);
    attention_append(&s, o->k_past, o->k, o->k_all);
    attention_append(&s, o->v_past, o->v, o->v_all);
    return RK_OK;
}

/* One query's part of dq, and of dK and dV of the keys it saw; d_past is absent where nobody wants the past's. */
static void attention_bwd_query(const AttentionRef *s, size_t b, size_t t, size_t h) {
    const RkAttention *o = s->o;
    size_t g = h / (s->H / s->G), at = ((b * s->T + t) * s->H + h) * s->N;
    const real *q = P(o->q) + at, *dy = P(o->dy) + at;
    real *dq = P(o->dq) + at, D = attention_dot(dy, P(o->y) + at, s->N), scale = 1 / (real)sqrt((double)s->N);
    for (size_t i = 0; i < s->N; i++) dq[i] = 0;
    for (size_t j = 0; j < s->past + t + 1; j++) {
        const real *k = attention_row(s, o->k_past, o->k, b, g, j), *v = attention_row(s, o->v_past, o->v, b, g, j);
        real p = (real)exp((double)(attention_score(s, q, b, g, j) - P(o->lse)[(b * s->H + h) * s->T + t]));
        real ds = p * (attention_dot(dy, v, s->N) - D) * scale;
        for (size_t i = 0; i < s->N; i++) dq[i] += ds * k[i];
        if (j < s->past && !o->dk_past.p) continue;
        real *dk = attention_row(s, o->dk_past, o->dk, b, g, j), *dv = attention_row(s, o->dv_past, o->dv, b, g, j);
        for (size_t i = 0; i < s->N; i++) dk[i] += ds * q[i], dv[i] += p * dy[i];
    }
}

/* Where the sums of dK (or dV) of one head begin: what the next call asks for, or zero. */
static void attention_start(const AttentionRef *s, RkTensor all, RkTensor past, RkTensor now, size_t b, size_t g) {
    for (size_t j = past.p ? 0 : s->past; j < s->past + s->T; j++) {
        real *d = attention_row(s, past, now, b, g, j);
        const real *from = all.p ? P(all) + ((b * (size_t)all.d[1] + j) * s->G + g) * s->N : NULL;
        for (size_t i = 0; i < s->N; i++) d[i] = from ? from[i] : 0;
    }
}

static void attention_bwd_head(void *ctx, size_t task) {
    const AttentionRef *s = ctx;
    size_t b = task / s->G, g = task % s->G, group = s->H / s->G;
    attention_start(s, s->o->dk_all, s->o->dk_past, s->o->dk, b, g);
    attention_start(s, s->o->dv_all, s->o->dv_past, s->o->dv, b, g);
    for (size_t h = g * group; h < (g + 1) * group; h++)
        for (size_t t = 0; t < s->T; t++) attention_bwd_query(s, b, t, h);
}

static int attention_bwd(const RkAttention *o) {
    RK_TRY(rk_attention_check(o));
    AttentionRef s = attention_sizes(o);
    rk_parallel(s.B * s.G, attention_bwd_head, &s);
    return RK_OK;
}
