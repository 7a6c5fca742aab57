/* wkv6_simd.h - the recurrence of RWKV-5 and RWKV-6 for one head; formulas in ops/wkv/wkv6.h, S stored as [key j][value i].
 *
 * Forward: one walk over the state per token, a tile of values in registers while the keys are walked.
 *
 * Backward, per chunk of tokens and from the last chunk: a row of S and the same row of its gradient D depend on no other row,
 * so each row goes through the whole chunk by itself: up, storing what it was before every token, and back, with D in
 * registers. Only dv collects from all rows. The sums along a row are kept per token and folded for many tokens at once.
 * Per element of the state 3 multiply-adds forward and 8 backward.
 *
 * Each function is compiled for N = 32, 64, 128 with N a constant, and once for any N. */

typedef struct Wkv6Decays { const float *w; float *d, *slope; } Wkv6Decays;

/* d = exp(-e^w) and, for the backward, its derivative by w; the bound keeps infinity times zero out of the product. */
SIMD void wkv6_decay_at(const Wkv6Decays *c, size_t i, size_t n) {
    Vec rate = vec_exp(vec_load_part(c->w + i, n)), d = vec_exp(vec_set(0) - rate);
    vec_store_part(c->d + i, n, d);
    if (c->slope) vec_store_part(c->slope + i, n, vec_set(0) - vec_min(vec_set(3e38f), rate) * d);
}

/* Decays of a chunk's tokens, of which the first stands at `at`: one row each, or one row for all. */
SIMD void wkv6_decays(const RkWkv6Head *h, size_t at, size_t tokens, float *d, float *slope, const size_t N) {
    size_t rows = h->w_stride ? tokens : 1;
    for (size_t t = 0; t < rows; t++) {
        Wkv6Decays c = {h->w + (h->w_stride ? at + t * h->w_stride : 0), d + t * N, slope ? slope + t * N : NULL};
        SWEEP(wkv6_decay_at, &c, 0, N);
    }
}

/* The sum over the head of a b c, or of a b. */
typedef struct Wkv6Dot { const float *a, *b, *c; Vec sum; } Wkv6Dot;
SIMD void wkv6_dot3_at(Wkv6Dot *s, size_t i, size_t n) {
    s->sum = vec_fma(vec_load_part(s->a + i, n) * vec_load_part(s->b + i, n), vec_load_part(s->c + i, n), s->sum);
}
SIMD void wkv6_dot2_at(Wkv6Dot *s, size_t i, size_t n) {
    s->sum = vec_fma(vec_load_part(s->a + i, n), vec_load_part(s->b + i, n), s->sum);
}
SIMD float wkv6_dot3(const float *a, const float *b, const float *c, const size_t N) {
    Wkv6Dot s = {a, b, c, vec_set(0)};
    SWEEP(wkv6_dot3_at, &s, 0, N);
    return vec_sum(s.sum);
}
SIMD float wkv6_dot2(const float *a, const float *b, const size_t N) {
    Wkv6Dot s = {a, b, NULL, vec_set(0)};
    SWEEP(wkv6_dot2_at, &s, 0, N);
    return vec_sum(s.sum);
}

/* ---- forward ---- */

typedef struct Wkv6Token { const float *r, *d, *k, *v; float *S, *y; float bonus; } Wkv6Token;

/* Values [i, i + n) of one token: reads S, then updates it. */
SIMD void wkv6_token_tile(const Wkv6Token *w, const size_t N, size_t i, size_t n, const int tile) {
    Vec v[RK_WKV_BWD_TILE], y[RK_WKV_BWD_TILE];
    for (int u = 0; u < tile; u++) {
        v[u] = vec_load_part(w->v + i + u * RK_LANES, LEFT(n, u));
        y[u] = v[u] * vec_set(w->bonus);
    }
    for (size_t j = 0; j < N; j++) {
        float *S = w->S + j * N + i;
        Vec d = vec_set(w->d[j]), k = vec_set(w->k[j]), r = vec_set(w->r[j]);
        for (int u = 0; u < tile; u++) {
            Vec x = vec_load_part(S + u * RK_LANES, LEFT(n, u));
            y[u] = vec_fma(x, r, y[u]);
            vec_store_part(S + u * RK_LANES, LEFT(n, u), vec_fma(x, d, v[u] * k));
        }
    }
    for (int u = 0; u < tile; u++) vec_store_part(w->y + i + u * RK_LANES, LEFT(n, u), y[u]);
}

SIMD void wkv6_fwd_any(const RkWkv6Head *head, const size_t N, const int tile) {
    const RkWkv6Head h = *head;
    float *d = h.scratch;
    for (size_t t = 0; t < h.T; t++) {
        size_t at = t * h.stride, in_chunk = t % RK_WKV_TOKENS;
        if (!in_chunk) {
            size_t tokens = h.T - t < RK_WKV_TOKENS ? h.T - t : RK_WKV_TOKENS;
            if (h.ckpt) memcpy(h.ckpt + t / RK_WKV_TOKENS * N * N, h.state, N * N * sizeof *d);
            if (h.w_stride || !t) wkv6_decays(&h, at, tokens, d, NULL, N);
        }
        Wkv6Token w = {h.r + at, h.w_stride ? d + in_chunk * N : d, h.k + at, h.v + at, h.state, h.y + at,
                       wkv6_dot3(h.r + at, h.k + at, h.u, N)};
        WKV_TILES(i, n, N, tile) wkv6_token_tile(&w, N, i, n, tile);
    }
}

/* ---- backward ---- */

enum { WKV6_DR, WKV6_DK, WKV6_DD, WKV6_SUMS, WKV6_SUM = RK_WKV_TOKENS * RK_LANES };

/* One chunk: `tokens` of them, the first at offset `at`. Rows are packed at distance N, since rows that are a power of two
 * apart in the tensors would evict each other from L1. */
typedef struct Wkv6Chunk {
    const RkWkv6Head *h;
    size_t at, tokens;
    float *r, *k, *v, *dy, *d, *slope, *dv;
    float *along[WKV6_SUMS]; /* dr, dk, dd as (key, token), then as (token, key) where these rows have done their work: */
    float *out[WKV6_SUMS];
    float *before;           /* a tile of one row of S before every token */
    float *sums;             /* WKV6_SUMS x (token, lane) */
    const float *first;      /* the state before the chunk */
    float eta[RK_WKV_TOKENS];
} Wkv6Chunk;

typedef struct Wkv6Scaled { const float *dy; float *dv; float bonus; } Wkv6Scaled;
SIMD void wkv6_scaled_at(const Wkv6Scaled *c, size_t i, size_t n) {
    vec_store_part(c->dv + i, n, vec_load_part(c->dy + i, n) * vec_set(c->bonus));
}

SIMD void wkv6_pack(Wkv6Chunk *c, const size_t N) {
    const RkWkv6Head *h = c->h;
    size_t bytes = N * sizeof(float);
    for (size_t t = 0; t < c->tokens; t++) {
        size_t from = c->at + t * h->stride, to = t * N;
        memcpy(c->r + to, h->r + from, bytes);
        memcpy(c->k + to, h->k + from, bytes);
        memcpy(c->v + to, h->v + from, bytes);
        memcpy(c->dy + to, h->dy + from, bytes);
        Wkv6Scaled own = {c->dy + to, c->dv + to, wkv6_dot3(c->r + to, c->k + to, h->u, N)};
        SWEEP(wkv6_scaled_at, &own, 0, N);
        c->eta[t] = wkv6_dot2(c->v + to, c->dy + to, N);
    }
    wkv6_decays(h, c->at, c->tokens, c->d, c->slope, N);
}

/* Row j of S and D from value i on, through the chunk and back. */
SIMD void wkv6_row_tile(const Wkv6Chunk *c, size_t j, const size_t N, size_t i, size_t n, const int tile) {
    const size_t d_step = c->h->w_stride ? N : 0;
    float *D = c->h->state + j * N + i;
    Vec x[RK_WKV_BWD_TILE];
    for (int u = 0; u < tile; u++) x[u] = vec_load_part(c->first + j * N + i + u * RK_LANES, LEFT(n, u));
    for (size_t t = 0; t < c->tokens; t++) {
        const float *v = c->v + t * N + i;
        Vec d = vec_set(c->d[t * d_step + j]), k = vec_set(c->k[t * N + j]);
        for (int u = 0; u < tile; u++) {
            vec_store(c->before + (t * (size_t)tile + (size_t)u) * RK_LANES, x[u]);
            x[u] = vec_fma(x[u], d, vec_load_part(v + u * RK_LANES, LEFT(n, u)) * k);
        }
    }
    for (int u = 0; u < tile; u++) x[u] = vec_load_part(D + u * RK_LANES, LEFT(n, u));
    for (size_t t = c->tokens; t-- > 0;) {
        const float *v = c->v + t * N + i, *dy = c->dy + t * N + i, *before = c->before + t * (size_t)tile * RK_LANES;
        float *dv = c->dv + t * N + i, *sums = c->sums + t * RK_LANES;
        Vec d = vec_set(c->d[t * d_step + j]), k = vec_set(c->k[t * N + j]), r = vec_set(c->r[t * N + j]), sum[WKV6_SUMS];
        for (int q = 0; q < WKV6_SUMS; q++) sum[q] = i ? vec_load(sums + q * WKV6_SUM) : vec_set(0);
        for (int u = 0; u < tile; u++) {
            size_t left = LEFT(n, u);
            Vec s = vec_load(before + u * RK_LANES), g = vec_load_part(dy + u * RK_LANES, left);
            sum[WKV6_DR] = vec_fma(s, g, sum[WKV6_DR]);
            sum[WKV6_DK] = vec_fma(x[u], vec_load_part(v + u * RK_LANES, left), sum[WKV6_DK]);
            sum[WKV6_DD] = vec_fma(s, x[u], sum[WKV6_DD]);
            vec_store_part(dv + u * RK_LANES, left, vec_fma(x[u], k, vec_load_part(dv + u * RK_LANES, left)));
            x[u] = vec_fma(x[u], d, g * r);
        }
        for (int q = 0; q < WKV6_SUMS; q++) vec_store(sums + q * WKV6_SUM, sum[q]);
    }
    for (int u = 0; u < tile; u++) vec_store_part(D + u * RK_LANES, LEFT(n, u), x[u]);
}

SIMD void wkv6_rows(const Wkv6Chunk *c, const size_t N, const int tile) {
    for (size_t j = 0; j < N; j++) {
        WKV_TILES(i, n, N, tile) wkv6_row_tile(c, j, N, i, n, tile);
        for (int q = 0; q < WKV6_SUMS; q++)
            for (size_t t = 0; t < c->tokens; t += RK_LANES)
                vec_store(c->along[q] + j * RK_WKV_TOKENS + t, vec_sum_rows(c->sums + q * WKV6_SUM + t * RK_LANES));
    }
}

/* Token t of a chunk: the sums along the rows become gradients. */
typedef struct Wkv6Out {
    const float *r, *k, *u, *dr, *dk, *dd, *slope;
    float *dr_out, *dk_out, *dw_out, *du_out;
    float eta;
    int add_dw;
} Wkv6Out;

SIMD void wkv6_out_at(const Wkv6Out *o, size_t i, size_t n) {
    Vec r = vec_load_part(o->r + i, n), k = vec_load_part(o->k + i, n), u = vec_load_part(o->u + i, n), eta = vec_set(o->eta);
    Vec dw = vec_load_part(o->slope + i, n) * vec_load_part(o->dd + i, n);
    vec_store_part(o->dr_out + i, n, vec_fma(u * k, eta, vec_load_part(o->dr + i, n)));
    vec_store_part(o->dk_out + i, n, vec_fma(u * r, eta, vec_load_part(o->dk + i, n)));
    vec_store_part(o->du_out + i, n, vec_fma(r * k, eta, vec_load_part(o->du_out + i, n)));
    if (o->add_dw) dw = vec_load_part(o->dw_out + i, n) + dw;
    vec_store_part(o->dw_out + i, n, dw);
}

/* (key, token) to (token, key) */
SIMD void wkv6_turn(const Wkv6Chunk *c, const float *along, float *out, const size_t N) {
    for (size_t j = 0; j < N; j += RK_LANES)
        for (size_t t = 0; t < c->tokens; t += RK_LANES) {
            Vec columns[RK_LANES];
            vec_transpose(along + j * RK_WKV_TOKENS + t, RK_WKV_TOKENS, columns);
            for (size_t k = 0; k < RK_LANES; k++) vec_store_part(out + (t + k) * N + j, N - j, columns[k]);
        }
}

SIMD void wkv6_write(Wkv6Chunk *c, const size_t N) {
    const RkWkv6Head *h = c->h;
    for (size_t t = 0; t < c->tokens; t++) memcpy(h->dv + c->at + t * h->stride, c->dv + t * N, N * sizeof(float));
    for (int q = 0; q < WKV6_SUMS; q++) wkv6_turn(c, c->along[q], c->out[q], N);
    for (size_t t = 0; t < c->tokens; t++) {
        size_t at = c->at + t * h->stride, row = t * N;
        Wkv6Out o = {.r = c->r + row, .k = c->k + row, .u = h->u, .slope = c->slope + (h->w_stride ? row : 0),
                     .dr = c->out[WKV6_DR] + row, .dk = c->out[WKV6_DK] + row, .dd = c->out[WKV6_DD] + row,
                     .dr_out = h->dr + at, .dk_out = h->dk + at, .dw_out = h->dw + (h->w_stride ? at : 0), .du_out = h->du,
                     .eta = c->eta[t], .add_dw = !h->w_stride};
        SWEEP(wkv6_out_at, &o, 0, N);
    }
}

SIMD void wkv6_bwd_any(const RkWkv6Head *head, const size_t N, const int tile) {
    const RkWkv6Head h = *head;
    const size_t packed = RK_WKV_TOKENS * N, padded = RK_WKV_TOKENS * (N + RK_LANES_MAX);
    Wkv6Chunk c = {.h = &h, .r = h.scratch, .k = h.scratch + packed, .v = h.scratch + 2 * packed, .dy = h.scratch + 3 * packed,
                   .d = h.scratch + 4 * packed, .slope = h.scratch + 5 * packed, .dv = h.scratch + 6 * packed};
    c.out[WKV6_DR] = c.dy, c.out[WKV6_DK] = c.v, c.out[WKV6_DD] = c.dv;
    for (size_t q = 0; q < WKV6_SUMS; q++) c.along[q] = h.scratch + 7 * packed + q * padded;
    c.before = h.scratch + 7 * packed + WKV6_SUMS * padded;
    c.sums = c.before + RK_WKV_TOKENS * RK_WKV6_ROW_MAX;
    memset(c.sums, 0, WKV6_SUMS * WKV6_SUM * sizeof *c.sums); /* tokens past the last are summed too, and dropped */
    for (size_t chunk = (h.T + RK_WKV_TOKENS - 1) / RK_WKV_TOKENS; chunk-- > 0;) {
        size_t t0 = chunk * RK_WKV_TOKENS;
        c.at = t0 * h.stride;
        c.tokens = h.T - t0 < RK_WKV_TOKENS ? h.T - t0 : RK_WKV_TOKENS;
        c.first = h.ckpt + chunk * N * N;
        wkv6_pack(&c, N);
        wkv6_rows(&c, N, tile);
        wkv6_write(&c, N);
    }
}

/* ---- one copy per head size ---- */

#define WKV6_SIZED(N)                                                                                                \
    static void wkv6_fwd_##N(const RkWkv6Head *h) { wkv6_fwd_any(h, N, WKV_TILE(N, RK_WKV_BWD_TILE)); }              \
    static void wkv6_bwd_##N(const RkWkv6Head *h) { wkv6_bwd_any(h, N, WKV_TILE(N, RK_WKV_BWD_TILE)); }
WKV6_SIZED(32)
WKV6_SIZED(64)
WKV6_SIZED(128)

_Static_assert(RK_WKV_BWD_TILE * RK_LANES <= RK_WKV6_ROW_MAX, "a tile of a row fits its place");

static void k_wkv6_fwd(const RkWkv6Head *h) {
    switch (h->N) {
    case 32: wkv6_fwd_32(h); break;
    case 64: wkv6_fwd_64(h); break;
    case 128: wkv6_fwd_128(h); break;
    default: wkv6_fwd_any(h, h->N, 1);
    }
}

static void k_wkv6_bwd(const RkWkv6Head *h) {
    switch (h->N) {
    case 32: wkv6_bwd_32(h); break;
    case 64: wkv6_bwd_64(h); break;
    case 128: wkv6_bwd_128(h); break;
    default: wkv6_bwd_any(h, h->N, 1);
    }
}
