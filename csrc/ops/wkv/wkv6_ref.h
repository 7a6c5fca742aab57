/* One (sequence, head) is one task. S[j * N + i]: key slot j, value slot i. */
typedef struct { const RkWkv6 *o; size_t T, H, N, chunks; int constant; atomic_int no_memory; } Wkv6Ref;

/* Scratch of one task: the states before every token of a chunk and after the last, and the state's gradient. */
#define RK_WKV6_REF_SCRATCH(N) ((RK_WKV_CHUNK + 2) * (size_t)(N) * (size_t)(N) * sizeof(real))

static Wkv6Ref wkv6_sizes(const RkWkv6 *o, int constant) {
    size_t T = (size_t)o->r.d[1];
    return (Wkv6Ref){o, T, (size_t)o->r.d[2], (size_t)o->r.d[3], (T + RK_WKV_CHUNK - 1) / RK_WKV_CHUNK, constant, 0};
}

/* The first element of token t. */
static size_t wkv6_at(const Wkv6Ref *w, size_t bh, size_t t) { return ((bh / w->H * w->T + t) * w->H + bh % w->H) * w->N; }

/* The decay logits of the token at `at`. */
static const real *wkv6_logits(const Wkv6Ref *w, size_t bh, size_t at) {
    return P(w->o->w) + (w->constant ? bh % w->H * w->N : at);
}

static real wkv6_decay(real w) { return (real)exp(-exp(w)); }

/* next = S diag(d) + v k^T; next may be S. */
static void wkv6_token(const Wkv6Ref *w, size_t bh, size_t at, const real *S, real *next) {
    const real *k = P(w->o->k) + at, *v = P(w->o->v) + at, *logit = wkv6_logits(w, bh, at);
    for (size_t j = 0; j < w->N; j++) {
        real d = wkv6_decay(logit[j]);
        for (size_t i = 0; i < w->N; i++) next[j * w->N + i] = S[j * w->N + i] * d + v[i] * k[j];
    }
}

/* sum_j r u k of the token at `at`. */
static real wkv6_bonus(const Wkv6Ref *w, size_t bh, size_t at) {
    real sum = 0;
    for (size_t j = 0; j < w->N; j++) sum += P(w->o->r)[at + j] * P(w->o->k)[at + j] * P(w->o->u)[bh % w->H * w->N + j];
    return sum;
}

static void wkv6_fwd_head(void *ctx, size_t bh) {
    Wkv6Ref *w = ctx;
    const RkWkv6 *o = w->o;
    size_t N = w->N, NN = N * N;
    real *S = rk_thread_scratch(RK_WKV6_REF_SCRATCH(N));
    if (!S) {
        atomic_store(&w->no_memory, 1);
        return;
    }
    if (o->s0.p) memcpy(S, P(o->s0) + bh * NN, NN * sizeof(real));
    else memset(S, 0, NN * sizeof(real));
    for (size_t t = 0; t < w->T; t++) {
        size_t at = wkv6_at(w, bh, t);
        real bonus = wkv6_bonus(w, bh, at);
        if (o->ckpt.p && t % RK_WKV_CHUNK == 0)
            memcpy(P(o->ckpt) + (bh * w->chunks + t / RK_WKV_CHUNK) * NN, S, NN * sizeof(real));
        for (size_t i = 0; i < N; i++) {
            real y = P(o->v)[at + i] * bonus;
            for (size_t j = 0; j < N; j++) y += S[j * N + i] * P(o->r)[at + j];
            P(o->y)[at + i] = y;
        }
        wkv6_token(w, bh, at, S, S);
    }
    if (o->sT.p) memcpy(P(o->sT) + bh * NN, S, NN * sizeof(real));
}

/* One token backwards: S is the state before it, D the gradient of the state after it on entry and of S on return. */
static void wkv6_token_bwd(const Wkv6Ref *w, size_t bh, size_t at, const real *S, real *D) {
    const RkWkv6 *o = w->o;
    const real *r = P(o->r) + at, *k = P(o->k) + at, *v = P(o->v) + at, *dy = P(o->dy) + at;
    const real *u = P(o->u) + bh % w->H * w->N, *logit = wkv6_logits(w, bh, at);
    size_t N = w->N;
    real bonus = wkv6_bonus(w, bh, at), eta = 0, *du = P(o->sums) + bh * 2 * N, *dw = w->constant ? du + N : P(o->dw) + at;
    for (size_t i = 0; i < N; i++) {
        real dv = dy[i] * bonus;
        for (size_t j = 0; j < N; j++) dv += D[j * N + i] * k[j];
        P(o->dv)[at + i] = dv;
        eta += v[i] * dy[i];
    }
    for (size_t j = 0; j < N; j++) {
        real d = wkv6_decay(logit[j]), dr = u[j] * k[j] * eta, dk = u[j] * r[j] * eta, dd = 0;
        for (size_t i = 0; i < N; i++) {
            size_t ji = j * N + i;
            dr += S[ji] * dy[i];
            dk += D[ji] * v[i];
            dd += S[ji] * D[ji];
            D[ji] = D[ji] * d + dy[i] * r[j];
        }
        P(o->dr)[at + j] = dr;
        P(o->dk)[at + j] = dk;
        du[j] += r[j] * k[j] * eta;
        real slope = (real)-exp(logit[j] - exp(logit[j]));
        dw[j] = (w->constant ? dw[j] : 0) + slope * dd;
    }
}

static void wkv6_bwd_head(void *ctx, size_t bh) {
    Wkv6Ref *w = ctx;
    const RkWkv6 *o = w->o;
    size_t N = w->N, NN = N * N;
    real *states = rk_thread_scratch(RK_WKV6_REF_SCRATCH(N)), *D = states + (RK_WKV_CHUNK + 1) * NN;
    if (!states) {
        atomic_store(&w->no_memory, 1);
        return;
    }
    if (o->dsT.p) memcpy(D, P(o->dsT) + bh * NN, NN * sizeof(real));
    else memset(D, 0, NN * sizeof(real));
    memset(P(o->sums) + bh * 2 * N, 0, 2 * N * sizeof(real));
    for (size_t c = w->chunks; c-- > 0;) {
        size_t t0 = c * RK_WKV_CHUNK, n = w->T - t0 < RK_WKV_CHUNK ? w->T - t0 : RK_WKV_CHUNK;
        memcpy(states, P(o->ckpt) + (bh * w->chunks + c) * NN, NN * sizeof(real));
        for (size_t t = 0; t < n; t++) wkv6_token(w, bh, wkv6_at(w, bh, t0 + t), states + t * NN, states + (t + 1) * NN);
        for (size_t t = n; t-- > 0;) wkv6_token_bwd(w, bh, wkv6_at(w, bh, t0 + t), states + t * NN, D);
    }
    if (o->ds0.p) memcpy(P(o->ds0) + bh * NN, D, NN * sizeof(real));
}

static int wkv6_run(const RkWkv6 *o, int constant, RkTaskFn head) {
    Wkv6Ref w = wkv6_sizes(o, constant);
    rk_parallel((size_t)o->r.d[0] * w.H, head, &w);
    return w.no_memory ? rk_fail(RK_ENOMEM, "no memory for the scratch of wkv6, head size %zu", w.N) : RK_OK;
}

static int wkv6_run_bwd(const RkWkv6 *o, int constant) {
    RK_TRY(wkv6_run(o, constant, wkv6_bwd_head));
    size_t C = rk_numel(o->u), N = (size_t)o->r.d[3];
    for (size_t b = 0; b < (size_t)o->r.d[0]; b++)
        for (size_t c = 0; c < C; c++) {
            const real *share = P(o->sums) + (b * C / N + c / N) * 2 * N + c % N;
            P(o->du)[c] += share[0];
            if (constant) P(o->dw)[c] += share[N];
        }
    return RK_OK;
}

static int wkv5_fwd(const RkWkv6 *o) { return wkv6_run(o, 1, wkv6_fwd_head); }
static int wkv5_bwd(const RkWkv6 *o) { return wkv6_run_bwd(o, 1); }
static int wkv6_fwd(const RkWkv6 *o) { return wkv6_run(o, 0, wkv6_fwd_head); }
static int wkv6_bwd(const RkWkv6 *o) { return wkv6_run_bwd(o, 0); }
