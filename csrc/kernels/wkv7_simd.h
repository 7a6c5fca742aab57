/* wkv7_simd.h - the RWKV-7 recurrence of one head; formulas in ops/wkv/wkv7.h, S stored as [key j][value i].
 *
 * Forward: one walk over the state per token. A tile of values stays in registers while the keys are walked with their
 * scalars broadcast: S is updated, y_t = S_t r_t summed, and z_{t+1} = S_t a_{t+1} for the next token in the same pass.
 *
 * Backward, per chunk of tokens and from the last chunk, D being the gradient of a state: the tokens are walked back once for dv and
 * dz, sums over the keys. With dz known, as z is, the rows of S and D are independent, and each is walked by itself, in registers: S
 * forward, which sums dr and keeps the row's states, D back again, which sums dk, db, da and the decay's gradient. So all a chunk touches
 * stays in L1, where the states of all rows (250 KB) would not, for 16 operations per element of the state instead of 13.
 *
 * Each function is compiled for N = 32, 64, 128 with N a constant, and once for any N. */

#define WKV_KAPPA 0.60653066f /* e^{-1/2} */

SIMD Vec wkv7_decay(Vec sigma) { return vec_exp(vec_set(-WKV_KAPPA) * sigma); }

/* ---- forward ---- */

/* What the walk over the keys asks for on its way: rows of a token of the next chunk, and a token's share of room for the next checkpoint.
 * A few lines at a time: all at once would wait for the processor's dozen of places for lines under way. */
enum { WKV_AHEAD = 8 };

typedef struct WkvToken {
    const float *r, *d, *k, *v, *b, *z, *a_next, *ahead[WKV_AHEAD], *room;
    float *S, *y, *z_next;
} WkvToken;

SIMD void wkv7_ask_for(const WkvToken *w, size_t part, const size_t N, size_t i, const int tile) {
    for (size_t at = 0; at < (size_t)tile * RK_LANES; at += LINE) __builtin_prefetch(w->ahead[part] + i + at, 0, 2);
    const size_t share = N * N / RK_WKV_TOKENS;
    if (!w->room || i) return;
    for (size_t at = share * part / WKV_AHEAD; at < share * (part + 1) / WKV_AHEAD; at += LINE) __builtin_prefetch(w->room + at, 1, 2);
}

/* Values [i, i + n) of one token: updates S, writes y and, where there is a next token, its z. */
SIMD void wkv7_token_tile(const WkvToken *w, const size_t N, size_t i, size_t n, const int tile, const int has_next) {
    Vec z[RK_WKV_FWD_TILE], v[RK_WKV_FWD_TILE], y[RK_WKV_FWD_TILE], next[RK_WKV_FWD_TILE];
    for (int u = 0; u < tile; u++) {
        z[u] = vec_load_part(w->z + i + u * RK_LANES, LEFT(n, u));
        v[u] = vec_load_part(w->v + i + u * RK_LANES, LEFT(n, u));
        y[u] = next[u] = vec_set(0);
    }
    for (size_t part = 0; part < WKV_AHEAD; part++) {
        wkv7_ask_for(w, part, N, i, tile);
        for (size_t j = N * part / WKV_AHEAD; j < N * (part + 1) / WKV_AHEAD; j++) {
            float *S = w->S + j * N + i;
            Vec d = vec_set(w->d[j]), k = vec_set(w->k[j]), b = vec_set(w->b[j]), r = vec_set(w->r[j]);
            Vec a = vec_set(has_next ? w->a_next[j] : 0);
            for (int u = 0; u < tile; u++) {
                Vec x = vec_fma(vec_load_part(S + u * RK_LANES, LEFT(n, u)), d, vec_fma(v[u], k, z[u] * b));
                vec_store_part(S + u * RK_LANES, LEFT(n, u), x);
                y[u] = vec_fma(x, r, y[u]);
                if (has_next) next[u] = vec_fma(x, a, next[u]);
            }
        }
    }
    for (int u = 0; u < tile; u++) {
        vec_store_part(w->y + i + u * RK_LANES, LEFT(n, u), y[u]);
        if (has_next) vec_store_part(w->z_next + i + u * RK_LANES, LEFT(n, u), next[u]);
    }
}

/* z = S a, for the first token. */
SIMD void wkv7_first_z(const RkWkv7Head *h, float *z, const size_t N, const int tile) {
    WKV_TILES(i, n, N, tile) {
        Vec sum[RK_WKV_FWD_TILE];
        for (int u = 0; u < tile; u++) sum[u] = vec_set(0);
        for (size_t j = 0; j < N; j++)
            for (int u = 0; u < tile; u++)
                sum[u] = vec_fma(vec_load_part(h->state + j * N + i + u * RK_LANES, LEFT(n, u)), vec_set(h->a[j]), sum[u]);
        for (int u = 0; u < tile; u++) vec_store_part(z + i + u * RK_LANES, LEFT(n, u), sum[u]);
    }
}

typedef struct WkvDecays { const float *s; float *d, *slope; } WkvDecays;

/* d and, for the backward, its derivative by the logit. The smallest logits are raised so that e stays finite; sigma is 0 to float32 there. */
SIMD void wkv7_decay_at(const WkvDecays *w, size_t i, size_t n) {
    Vec e = vec_exp(vec_set(0) - vec_max(vec_set(-80), vec_load_part(w->s + i, n)));
    Vec sigma = vec_set(1) / (vec_set(1) + e), d = wkv7_decay(sigma);
    vec_store_part(w->d + i, n, d);
    if (w->slope) vec_store_part(w->slope + i, n, vec_set(-WKV_KAPPA) * sigma * (e * sigma) * d);
}

SIMD void wkv7_fwd_any(const RkWkv7Head *head, const size_t N, const int tile) {
    const RkWkv7Head h = *head;
    float *z = h.scratch, *z_next = z + N, *d = z_next + N;
    wkv7_first_z(&h, z, N, tile);
    for (size_t t = 0; t < h.T; t++) {
        size_t at = t * h.stride, in_chunk = t % RK_WKV_TOKENS;
        if (!in_chunk) {
            size_t tokens = h.T - t < RK_WKV_TOKENS ? h.T - t : RK_WKV_TOKENS;
            if (h.ckpt) memcpy(h.ckpt + t / RK_WKV_TOKENS * N * N, h.state, N * N * sizeof *z);
            for (size_t c = 0; c < tokens; c++) SWEEP(wkv7_decay_at, (&(WkvDecays){h.s + at + c * h.stride, d + c * N, NULL}), 0, N);
        }
        if (h.z) memcpy(h.z + at, z, N * sizeof *z);
        int more = t + RK_WKV_TOKENS < h.T;
        size_t later = more ? at + RK_WKV_TOKENS * h.stride : at;
        const float *room = h.ckpt && more ? h.ckpt + (t / RK_WKV_TOKENS + 1) * N * N + in_chunk * (N * N / RK_WKV_TOKENS) : NULL;
        WkvToken w = {h.r + at, d + in_chunk * N, h.k + at, h.v + at, h.b + at, z, h.a + at + h.stride,
                      {h.s + later, h.k + later, h.b + later, h.r + later, h.a + later, h.v + later, h.y + later, (h.z ? h.z : h.y) + later},
                      room, h.state, h.y + at, z_next};
        if (t + 1 < h.T) WKV_TILES(i, n, N, tile) wkv7_token_tile(&w, N, i, n, tile, 1);
        else WKV_TILES(i, n, N, tile) wkv7_token_tile(&w, N, i, n, tile, 0);
        z_next = z, z = w.z_next;
    }
}

/* ---- backward ---- */

enum { SUM_DK, SUM_DB, SUM_DA, SUM_DD, SUMS_OF_TOKEN = RK_LANES * RK_FOLDED };

/* One chunk. Its rows are packed at distance N, since rows that are a power of two apart in the tensors would evict each other from
 * L1. A chunk cut short is filled up with tokens that change nothing: d = 1, all else 0. */
typedef struct WkvChunk {
    const RkWkv7Head *h;
    size_t at, tokens;            /* offset of the first token; tokens that are there */
    float *z, *v, *dy, *r, *k, *b, *slope; /* rows of RK_WKV_TOKENS tokens */
    float *d, *a, *dz;            /* and one more: of the token after the chunk, where D comes from */
    const float *first;           /* the state before the chunk */
    const float *after;           /* D of the token after the chunk */
    float *D;                     /* D of a token, of the first one in the end */
    float *states;                /* part of a row of the state before each token */
    float *dr, *sums;             /* along a group of rows, of four tokens and of four kinds at a time: vec_fold_store */
    const float *ahead[LINE];          /* rows of the chunk before; N rows ask for a line each, that is for LINE rows of N */
} WkvChunk;

/* The place of everything in the scratch; returns room for one more D. The parts of states are half a page away from the rows read beside
 * them: a load waits for a store that differs from it by pages. */
SIMD float *wkv7_place(WkvChunk *c, float *scratch, const size_t N) {
    float **const rows[] = {&c->z, &c->v, &c->dy, &c->r, &c->k, &c->b, &c->slope}, **const longer[] = {&c->d, &c->a, &c->dz};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++, scratch += RK_WKV_TOKENS * N) *rows[i] = scratch;
    for (size_t i = 0; i < sizeof longer / sizeof *longer; i++, scratch += (RK_WKV_TOKENS + 1) * N) *longer[i] = scratch;
    c->states = scratch + 5 * N;
    c->sums = c->states + RK_WKV_TOKENS * (N + RK_LANES_MAX);
    c->dr = c->sums + RK_WKV_TOKENS * SUMS_OF_TOKEN;
    float *end = c->dr + RK_WKV_TOKENS / 4 * SUMS_OF_TOKEN;
    memset(c->sums, 0, (size_t)(end - c->sums) * sizeof *end); /* rows past the last key are summed too, and dropped */
    return end;
}

/* The token after the last one of all: D there is the gradient of the final state. */
SIMD void wkv7_pack_end(WkvChunk *c, const size_t N) {
    for (size_t i = 0; i < N; i++) c->d[i] = 1, c->a[i] = c->dz[i] = 0;
}

static void wkv7_pack(const WkvChunk *c, size_t N) {
    const RkWkv7Head *h = c->h;
    const float *const from[] = {h->z, h->v, h->dy, h->r, h->k, h->b, h->a};
    float *const to[] = {c->z, c->v, c->dy, c->r, c->k, c->b, c->a}, *const later[] = {c->d, c->a, c->dz};
    for (size_t i = 0; i < sizeof later / sizeof *later; i++) memcpy(later[i] + RK_WKV_TOKENS * N, later[i], N * sizeof(float));
    for (size_t t = 0; t < c->tokens; t++) {
        for (size_t i = 0; i < sizeof to / sizeof *to; i++) memcpy(to[i] + t * N, from[i] + c->at + t * h->stride, N * sizeof(float));
        SWEEP(wkv7_decay_at, (&(WkvDecays){h->s + c->at + t * h->stride, c->d + t * N, c->slope + t * N}), 0, N);
    }
    for (size_t t = c->tokens; t < RK_WKV_TOKENS; t++) {
        for (size_t i = 0; i < sizeof to / sizeof *to; i++) memset(to[i] + t * N, 0, N * sizeof(float));
        for (size_t i = 0; i < N; i++) c->d[t * N + i] = 1;
    }
}

/* Values [i, i + n) of token t: D of the token after, in `from`, to D of this one, and dv = D k, dz = D b. */
SIMD void wkv7_values_bwd(const WkvChunk *c, size_t t, const float *from, const size_t N, size_t i, size_t n, const int tile) {
    const float *r = c->r + t * N, *k = c->k + t * N, *b = c->b + t * N, *d = c->d + (t + 1) * N, *a = c->a + (t + 1) * N;
    Vec dy[RK_WKV_BWD_TILE], later[RK_WKV_BWD_TILE], dv[RK_WKV_BWD_TILE], dz[RK_WKV_BWD_TILE];
    for (int u = 0; u < tile; u++) {
        dy[u] = vec_load_part(c->dy + t * N + i + u * RK_LANES, LEFT(n, u));
        later[u] = vec_load_part(c->dz + (t + 1) * N + i + u * RK_LANES, LEFT(n, u));
        dv[u] = dz[u] = vec_set(0);
    }
    for (size_t j = 0; j < N; j++) {
        Vec rj = vec_set(r[j]), dj = vec_set(d[j]), aj = vec_set(a[j]), kj = vec_set(k[j]), bj = vec_set(b[j]);
        for (int u = 0; u < tile; u++) {
            size_t at = j * N + i + (size_t)u * RK_LANES;
            Vec x = vec_fma(vec_load_part(from + at, LEFT(n, u)), dj, vec_fma(later[u], aj, dy[u] * rj));
            vec_store_part(c->D + at, LEFT(n, u), x);
            dv[u] = vec_fma(x, kj, dv[u]);
            dz[u] = vec_fma(x, bj, dz[u]);
        }
    }
    float *out = c->h->dv + c->at + t * c->h->stride + i;
    for (int u = 0; u < tile; u++, out += RK_LANES) {
        if (t < c->tokens) vec_store_part(out, LEFT(n, u), vec_load_part(out, LEFT(n, u)) + dv[u]);
        vec_store_part(c->dz + t * N + i + u * RK_LANES, LEFT(n, u), dz[u]);
    }
}

/* Row j of the state from value i on, through all tokens: keeps what it was before each and adds S_t^T dy_t to dr. */
SIMD void wkv7_row_fwd(const WkvChunk *c, size_t j, const size_t N, size_t i, size_t n, const int tile) {
    Vec x[RK_WKV_ROW_TILE];
    float *state = c->states;
    for (int u = 0; u < tile; u++) x[u] = vec_load_part(c->first + j * N + i + u * RK_LANES, LEFT(n, u));
    for (size_t t = 0; t < RK_WKV_TOKENS; t += 4) {
        Vec dr[4];
        for (size_t q = 0; q < 4; q++) {
            size_t row = (t + q) * N;
            Vec d = vec_set(c->d[row + j]), k = vec_set(c->k[row + j]), b = vec_set(c->b[row + j]);
            dr[q] = vec_set(0);
            for (int u = 0; u < tile; u++, state += RK_LANES) {
                size_t at = row + i + (size_t)u * RK_LANES;
                vec_store(state, x[u]);
                Vec zb = vec_load_part(c->z + at, LEFT(n, u)) * b;
                x[u] = vec_fma(x[u], d, vec_fma(vec_load_part(c->v + at, LEFT(n, u)), k, zb));
                dr[q] = vec_fma(x[u], vec_load_part(c->dy + at, LEFT(n, u)), dr[q]);
            }
        }
        vec_fold_store(c->dr + t / 4 * SUMS_OF_TOKEN + j % RK_LANES * RK_FOLDED, dr, i != 0);
    }
}

/* The same row of D back through all tokens, as in wkv7_values_bwd, now that dz is known; adds up the four sums along it. */
SIMD void wkv7_row_bwd(const WkvChunk *c, size_t j, const size_t N, size_t i, size_t n, const int tile) {
    const size_t lines = (N + LINE - 1) / LINE;
    const float *ahead = c->ahead[j / lines] + j % lines * LINE;
    Vec x[RK_WKV_ROW_TILE];
    for (int u = 0; u < tile; u++) x[u] = vec_load_part(c->after + j * N + i + u * RK_LANES, LEFT(n, u));
    for (size_t t = RK_WKV_TOKENS; t-- > 0;) {
        size_t row = t * N;
        Vec d = vec_set(c->d[row + N + j]), a = vec_set(c->a[row + N + j]), r = vec_set(c->r[row + j]);
        Vec sum[4] = {vec_set(0), vec_set(0), vec_set(0), vec_set(0)};
        if (!i) __builtin_prefetch(ahead + t * c->h->stride, 0, 2);
        for (int u = 0; u < tile; u++) {
            size_t at = row + i + (size_t)u * RK_LANES;
            Vec dz = vec_load_part(c->dz + at, LEFT(n, u)), s = vec_load(c->states + (t * (size_t)tile + (size_t)u) * RK_LANES);
            Vec from_dy = vec_load_part(c->dy + at, LEFT(n, u)) * r;
            x[u] = vec_fma(x[u], d, vec_fma(vec_load_part(c->dz + at + N, LEFT(n, u)), a, from_dy));
            sum[SUM_DK] = vec_fma(x[u], vec_load_part(c->v + at, LEFT(n, u)), sum[SUM_DK]);
            sum[SUM_DB] = vec_fma(x[u], vec_load_part(c->z + at, LEFT(n, u)), sum[SUM_DB]);
            sum[SUM_DA] = vec_fma(s, dz, sum[SUM_DA]);
            sum[SUM_DD] = vec_fma(s, x[u], sum[SUM_DD]);
        }
        vec_fold_store(c->sums + t * SUMS_OF_TOKEN + j % RK_LANES * RK_FOLDED, sum, i != 0);
    }
}

/* What a group of rows from j on has summed. */
SIMD void wkv7_store_sums(const WkvChunk *c, size_t j, const size_t N) {
    const RkWkv7Head *h = c->h;
    Vec dr[4], sum[4];
    for (size_t t = 0; t < c->tokens; t++) {
        size_t left = N - j, at = c->at + t * h->stride + j;
        if (t % 4 == 0) vec_unfold(c->dr + t / 4 * SUMS_OF_TOKEN, dr);
        vec_unfold(c->sums + t * SUMS_OF_TOKEN, sum);
        vec_store_part(h->dr + at, left, vec_load_part(h->dr + at, left) + dr[t % 4]);
        vec_store_part(h->dk + at, left, vec_load_part(h->dk + at, left) + sum[SUM_DK]);
        vec_store_part(h->db + at, left, sum[SUM_DB]);
        vec_store_part(h->da + at, left, sum[SUM_DA]);
        vec_store_part(h->ds + at, left, vec_load_part(c->slope + t * N + j, left) * sum[SUM_DD]);
    }
}

/* What wkv7_row_bwd asks for on its way, the rows of the chunk before: short and far apart, they are not foreseen by the processor. */
SIMD void wkv7_look_ahead(WkvChunk *c, int has_before) {
    const RkWkv7Head *h = c->h;
    const float *const tensors[LINE] = {h->s, h->z, h->v, h->dy, h->r, h->k, h->b, h->a, h->dv, h->dr, h->dk, h->db, h->da, h->ds, h->s, h->s};
    for (size_t i = 0; i < LINE; i++) c->ahead[i] = tensors[i] + c->at - (has_before ? RK_WKV_TOKENS * h->stride : 0);
}

/* The two walks of a chunk, each a function of its own for the sake of its registers: inlined into one loop over chunks, the constants of
 * the exponentials and the pointers of the other walk take some, and sums go to the stack. On copies of the structs, as stores of vectors
 * might change these for all the compiler knows. */
SIMD void wkv7_values_walk(const WkvChunk *chunk, const size_t N, const int tile) {
    const RkWkv7Head h = *chunk->h;
    WkvChunk c = *chunk;
    c.h = &h;
    for (size_t t = RK_WKV_TOKENS; t-- > 0;)
        WKV_TILES(i, n, N, tile) wkv7_values_bwd(&c, t, t + 1 < RK_WKV_TOKENS ? c.D : c.after, N, i, n, tile);
}

SIMD void wkv7_rows_walk(const WkvChunk *chunk, const size_t N, const int tile) {
    const RkWkv7Head h = *chunk->h;
    WkvChunk c = *chunk;
    c.h = &h;
    for (size_t j = 0; j < N; j++) {
        WKV_TILES(i, n, N, tile) {
            wkv7_row_fwd(&c, j, N, i, n, tile);
            wkv7_row_bwd(&c, j, N, i, n, tile);
        }
        if (j % RK_LANES == RK_LANES - 1 || j + 1 == N) wkv7_store_sums(&c, j - j % RK_LANES, N);
    }
}

typedef void (*WkvWalk)(const WkvChunk *c);

static void wkv7_bwd(const RkWkv7Head *head, WkvWalk values, WkvWalk rows) {
    const RkWkv7Head h = *head;
    const size_t N = h.N;
    WkvChunk c = {.h = &h, .after = h.state};
    float *spare = wkv7_place(&c, h.scratch, N), *D = h.state;
    wkv7_pack_end(&c, N);
    for (size_t chunk = (h.T + RK_WKV_TOKENS - 1) / RK_WKV_TOKENS; chunk-- > 0; c.after = D) {
        size_t t0 = chunk * RK_WKV_TOKENS;
        c.at = t0 * h.stride;
        c.tokens = h.T - t0 < RK_WKV_TOKENS ? h.T - t0 : RK_WKV_TOKENS;
        c.first = h.ckpt + chunk * N * N;
        c.D = spare, spare = D, D = c.D;
        wkv7_pack(&c, N);
        wkv7_look_ahead(&c, chunk > 0);
        values(&c);
        rows(&c);
    }
    for (size_t j = 0; j < N; j++) /* from the first token to the state before it */
        for (size_t i = 0; i < N; i++) h.state[j * N + i] = D[j * N + i] * c.d[j] + c.dz[i] * c.a[j];
}

/* ---- one copy per head size ---- */

#define WKV_SIZED(N)                                                                                                                    \
    static void wkv7_fwd_##N(const RkWkv7Head *h) { wkv7_fwd_any(h, N, WKV_TILE(N, RK_WKV_FWD_TILE)); }                                 \
    static NOINLINE void wkv7_values_##N(const WkvChunk *c) { wkv7_values_walk(c, N, WKV_TILE(N, RK_WKV_BWD_TILE)); }                   \
    static NOINLINE void wkv7_rows_##N(const WkvChunk *c) { wkv7_rows_walk(c, N, WKV_TILE(N, RK_WKV_ROW_TILE)); }
WKV_SIZED(32)
WKV_SIZED(64)
WKV_SIZED(128)

static NOINLINE void wkv7_values_any(const WkvChunk *c) { wkv7_values_walk(c, c->h->N, 1); }
static NOINLINE void wkv7_rows_any(const WkvChunk *c) { wkv7_rows_walk(c, c->h->N, 1); }

static void k_wkv7_fwd(const RkWkv7Head *h) {
    switch (h->N) {
    case 32: wkv7_fwd_32(h); break;
    case 64: wkv7_fwd_64(h); break;
    case 128: wkv7_fwd_128(h); break;
    default: wkv7_fwd_any(h, h->N, 1);
    }
}

static void k_wkv7_bwd(const RkWkv7Head *h) {
    switch (h->N) {
    case 32: wkv7_bwd(h, wkv7_values_32, wkv7_rows_32); break;
    case 64: wkv7_bwd(h, wkv7_values_64, wkv7_rows_64); break;
    case 128: wkv7_bwd(h, wkv7_values_128, wkv7_rows_128); break;
    default: wkv7_bwd(h, wkv7_values_any, wkv7_rows_any);
    }
}
