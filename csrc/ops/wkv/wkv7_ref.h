/* One (sequence, head) is one task. S[j * N + i]: key slot j, value slot i. */
typedef struct { const RkWkv7 *o; size_t T, H, N, chunks; atomic_int no_memory; } Wkv7Ref;

/* Scratch of one task: the states before and after every token of a chunk, the state's gradient, three rows. */
#define RK_WKV7_REF_SCRATCH(N) (((RK_WKV_CHUNK + 2) * (size_t)(N) * (size_t)(N) + 3 * (size_t)(N)) * sizeof(real))

static const double WKV7_KAPPA = 0.60653065971263342360; /* e^{-1/2} */

static Wkv7Ref wkv7_sizes(const RkWkv7 *o) {
    size_t T = (size_t)o->r.d[1];
    return (Wkv7Ref){o, T, (size_t)o->r.d[2], (size_t)o->r.d[3], (T + RK_WKV_CHUNK - 1) / RK_WKV_CHUNK, 0};
}

static real wkv7_decay(real s) { return (real)exp(-WKV7_KAPPA * sigmoid(s)); }

/* One token: next = S diag(d) + z b^T + v k^T with z = S a; next may be S. */
static void wkv7_token(const Wkv7Ref *w, size_t at, const real *S, real *next, real *z) {
    const real *k = P(w->o->k) + at, *v = P(w->o->v) + at, *a = P(w->o->a) + at, *b = P(w->o->b) + at;
    size_t N = w->N;
    for (size_t i = 0; i < N; i++) {
        z[i] = 0;
        for (size_t j = 0; j < N; j++) z[i] += S[j * N + i] * a[j];
    }
    for (size_t j = 0; j < N; j++) {
        real d = wkv7_decay(P(w->o->s)[at + j]);
        for (size_t i = 0; i < N; i++) next[j * N + i] = S[j * N + i] * d + z[i] * b[j] + v[i] * k[j];
    }
}

static void wkv7_fwd_head(void *ctx, size_t bh) {
    Wkv7Ref *w = ctx;
    const RkWkv7 *o = w->o;
    size_t N = w->N, T = w->T;
    real *S = rk_thread_scratch(RK_WKV7_REF_SCRATCH(N)), *z = S + N * N;
    if (!S) {
        atomic_store(&w->no_memory, 1);
        return;
    }
    if (o->s0.p) memcpy(S, P(o->s0) + bh * N * N, N * N * sizeof(real));
    else memset(S, 0, N * N * sizeof(real));
    for (size_t t = 0; t < T; t++) {
        size_t at = ((bh / w->H * T + t) * w->H + bh % w->H) * N;
        if (o->ckpt.p && t % RK_WKV_CHUNK == 0)
            memcpy(P(o->ckpt) + (bh * w->chunks + t / RK_WKV_CHUNK) * N * N, S, N * N * sizeof(real));
        wkv7_token(w, at, S, S, z);
        if (o->z.p) memcpy(P(o->z) + at, z, N * sizeof(real));
        for (size_t i = 0; i < N; i++) {
            real y = 0;
            for (size_t j = 0; j < N; j++) y += S[j * N + i] * P(o->r)[at + j];
            P(o->y)[at + i] = y;
        }
    }
    if (o->sT.p) memcpy(P(o->sT) + bh * N * N, S, N * N * sizeof(real));
}

/* One token backwards: before and after are S_{t-1} and S_t, D the gradient of S_t on entry and of S_{t-1} on return. */
static void wkv7_token_bwd(const Wkv7Ref *w, size_t at, const real *before, const real *after, real *D, real *dz) {
    const RkWkv7 *o = w->o;
    const real *r = P(o->r) + at, *k = P(o->k) + at, *v = P(o->v) + at, *a = P(o->a) + at, *b = P(o->b) + at;
    const real *z = P(o->z) + at, *dy = P(o->dy) + at;
    size_t N = w->N;
    for (size_t i = 0; i < N; i++) {
        real dv = 0;
        dz[i] = 0;
        for (size_t j = 0; j < N; j++) {
            D[j * N + i] += dy[i] * r[j];
            dv += D[j * N + i] * k[j];
            dz[i] += D[j * N + i] * b[j];
        }
        P(o->dv)[at + i] += dv;
    }
    for (size_t j = 0; j < N; j++) {
        real s = P(o->s)[at + j], d = wkv7_decay(s), dr = 0, dk = 0, da = 0, db = 0, dd = 0;
        for (size_t i = 0; i < N; i++) {
            size_t ji = j * N + i;
            dr += after[ji] * dy[i];
            dk += D[ji] * v[i];
            db += D[ji] * z[i];
            da += before[ji] * dz[i];
            dd += before[ji] * D[ji];
            D[ji] = D[ji] * d + dz[i] * a[j];
        }
        P(o->dr)[at + j] += dr;
        P(o->dk)[at + j] += dk;
        P(o->da)[at + j] = da;
        P(o->db)[at + j] = db;
        P(o->ds)[at + j] = (real)-WKV7_KAPPA * sigmoid_slope(s) * d * dd;
    }
}

static void wkv7_bwd_head(void *ctx, size_t bh) {
    Wkv7Ref *w = ctx;
    const RkWkv7 *o = w->o;
    size_t N = w->N, T = w->T, NN = N * N;
    real *states = rk_thread_scratch(RK_WKV7_REF_SCRATCH(N)), *D = states + (RK_WKV_CHUNK + 1) * NN;
    real *z = D + NN, *dz = z + N;
    if (!states) {
        atomic_store(&w->no_memory, 1);
        return;
    }
    if (o->dsT.p) memcpy(D, P(o->dsT) + bh * NN, NN * sizeof(real));
    else memset(D, 0, NN * sizeof(real));
    for (size_t c = w->chunks; c-- > 0;) {
        size_t t0 = c * RK_WKV_CHUNK, n = T - t0 < RK_WKV_CHUNK ? T - t0 : RK_WKV_CHUNK;
        size_t first = ((bh / w->H * T + t0) * w->H + bh % w->H) * N, stride = w->H * N;
        memcpy(states, P(o->ckpt) + (bh * w->chunks + c) * NN, NN * sizeof(real));
        for (size_t t = 0; t < n; t++) wkv7_token(w, first + t * stride, states + t * NN, states + (t + 1) * NN, z);
        for (size_t t = n; t-- > 0;)
            wkv7_token_bwd(w, first + t * stride, states + t * NN, states + (t + 1) * NN, D, dz);
    }
    if (o->ds0.p) memcpy(P(o->ds0) + bh * NN, D, NN * sizeof(real));
}

static int wkv7_run(const RkWkv7 *o, RkTaskFn head) {
    Wkv7Ref w = wkv7_sizes(o);
    rk_parallel((size_t)o->r.d[0] * w.H, head, &w);
    return w.no_memory ? rk_fail(RK_ENOMEM, "no memory for the scratch of wkv7, head size %zu", w.N) : RK_OK;
}

static int wkv7_fwd(const RkWkv7 *o) { return wkv7_run(o, wkv7_fwd_head); }
static int wkv7_bwd(const RkWkv7 *o) { return wkv7_run(o, wkv7_bwd_head); }
