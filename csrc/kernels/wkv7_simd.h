/* wkv7_simd.h - the RWKV-7 recurrence of one head; formulas in ops/wkv/wkv7.h, S stored as [key j][value i].
 *
 * Forward: one walk over the state per token. A tile of values stays in registers while the keys are walked with their
 * scalars broadcast: S is updated, y_t = S_t r_t summed, and z_{t+1} = S_t a_{t+1} for the next token in the same pass.
 *
 * Backward, per chunk of tokens and from the last chunk: the chunk runs forward again row by row (a row of S stays in
 * registers over its tokens; z is known, so rows are independent), storing the states and summing dr = S_t^T dy_t. Then the
 * tokens are walked back: one pass that adds dy r^T to the gradient D and sums dv and dz over the keys, and one that sums
 * dk, db, da and the decay's gradient along the rows and takes D to the token before.
 * Per element of the state 5 multiply-adds forward and 13 backward, which is also what bounds the time.
 *
 * Each function is compiled for N = 32, 64, 128 with N a constant, and once for any N. */

#define WKV_KAPPA 0.60653066f /* e^{-1/2} */

SIMD Vec wkv7_decay(Vec sigma) { return vec_exp(vec_set(-WKV_KAPPA) * sigma); }

/* ---- forward ---- */

typedef struct WkvToken { const float *r, *d, *k, *v, *b, *z, *a_next; float *S, *y, *z_next; } WkvToken;

/* Values [i, i + n) of one token: updates S, writes y and, where there is a next token, its z. */
SIMD void wkv7_token_tile(const WkvToken *w, const size_t N, size_t i, size_t n, const int tile, const int has_next) {
    Vec z[RK_WKV_FWD_TILE], v[RK_WKV_FWD_TILE], y[RK_WKV_FWD_TILE], next[RK_WKV_FWD_TILE];
    for (int u = 0; u < tile; u++) {
        z[u] = vec_load_part(w->z + i + u * RK_LANES, LEFT(n, u));
        v[u] = vec_load_part(w->v + i + u * RK_LANES, LEFT(n, u));
        y[u] = next[u] = vec_set(0);
    }
    for (size_t j = 0; j < N; j++) {
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

/* d and, for the backward, its derivative by the logit. */
SIMD void wkv7_decay_at(const WkvDecays *w, size_t i, size_t n) {
    Vec s = vec_load_part(w->s + i, n), sigma = vec_sigmoid(s), d = wkv7_decay(sigma);
    vec_store_part(w->d + i, n, d);
    if (w->slope) vec_store_part(w->slope + i, n, vec_set(-WKV_KAPPA) * sigma * vec_one_minus_sigmoid(s) * d);
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
        WkvToken w = {h.r + at, d + in_chunk * N, h.k + at, h.v + at, h.b + at, z, h.a + at + h.stride, h.state, h.y + at, z_next};
        if (t + 1 < h.T) WKV_TILES(i, n, N, tile) wkv7_token_tile(&w, N, i, n, tile, 1);
        else WKV_TILES(i, n, N, tile) wkv7_token_tile(&w, N, i, n, tile, 0);
        z_next = z, z = w.z_next;
    }
}

/* ---- backward ---- */

/* Distance of the states of a chunk. One row more than a state: the rerun writes the same row of all of them in turn, and rows
 * a power of two apart would share one set of the L1 cache. */
#define STATE(N) ((N) * (N) + (N))

/* One chunk: `tokens` of them, the first at offset `at`; rows of z, v, dy, k, b, d, slope packed at distance N, since rows
 * that are a power of two apart in the tensors would evict each other from L1. */
typedef struct WkvChunk {
    const RkWkv7Head *h;
    size_t at, tokens;
    float *z, *v, *dy, *k, *b, *d, *slope, *dz, *sums;
    const float *first; /* the state before the chunk */
    float *states;      /* after its tokens but the last */
} WkvChunk;

SIMD void wkv7_pack(WkvChunk *c, const size_t N) {
    const RkWkv7Head *h = c->h;
    size_t bytes = N * sizeof(float);
    for (size_t t = 0; t < c->tokens; t++) {
        size_t from = c->at + t * h->stride, to = t * N;
        memcpy(c->z + to, h->z + from, bytes);
        memcpy(c->v + to, h->v + from, bytes);
        memcpy(c->dy + to, h->dy + from, bytes);
        memcpy(c->k + to, h->k + from, bytes);
        memcpy(c->b + to, h->b + from, bytes);
        SWEEP(wkv7_decay_at, (&(WkvDecays){h->s + from, c->d + to, c->slope + to}), 0, N);
    }
}

/* Row j from value i on through all tokens: stores the states and adds S_t^T dy_t to sums[t][row]. */
SIMD void wkv7_rerun_row(const WkvChunk *c, size_t j, size_t row, const size_t N, size_t i, size_t n, const int tile) {
    Vec x[RK_WKV_ROW_TILE];
    for (int u = 0; u < tile; u++) x[u] = vec_load_part(c->first + j * N + i + u * RK_LANES, LEFT(n, u));
    for (size_t t = 0; t < c->tokens; t++) {
        const float *z = c->z + t * N + i, *v = c->v + t * N + i, *dy = c->dy + t * N + i;
        float *state = c->states + t * STATE(N) + j * N + i, *sum = c->sums + (t * RK_LANES + row) * RK_LANES;
        Vec d = vec_set(c->d[t * N + j]), k = vec_set(c->k[t * N + j]), b = vec_set(c->b[t * N + j]);
        Vec dr[2] = {i ? vec_load(sum) : vec_set(0), vec_set(0)};
        for (int u = 0; u < tile; u++) {
            Vec zb = vec_load_part(z + u * RK_LANES, LEFT(n, u)) * b;
            x[u] = vec_fma(x[u], d, vec_fma(vec_load_part(v + u * RK_LANES, LEFT(n, u)), k, zb));
            if (t + 1 < c->tokens) vec_store_part(state + u * RK_LANES, LEFT(n, u), x[u]);
            dr[u & 1] = vec_fma(x[u], vec_load_part(dy + u * RK_LANES, LEFT(n, u)), dr[u & 1]);
        }
        vec_store(sum, dr[0] + dr[1]);
    }
}

SIMD void wkv7_rerun(const WkvChunk *c, const size_t N, const int tile) {
    for (size_t j = 0; j < N; j += RK_LANES) {
        for (size_t row = 0; row < RK_LANES && j + row < N; row++)
            WKV_TILES(i, n, N, tile) wkv7_rerun_row(c, j + row, row, N, i, n, tile);
        for (size_t t = 0; t < c->tokens; t++) {
            float *dr = c->h->dr + c->at + t * c->h->stride + j;
            vec_store_part(dr, N - j, vec_load_part(dr, N - j) + vec_sum_rows(c->sums + t * RK_LANES * RK_LANES));
        }
    }
}

/* D += dy r^T, dv += D k, dz = D b for values [i, i + n) of token t. */
SIMD void wkv7_values_bwd(const WkvChunk *c, size_t t, const size_t N, size_t i, size_t n, const int tile) {
    const float *r = c->h->r + c->at + t * c->h->stride, *k = c->k + t * N, *b = c->b + t * N;
    float *dv_out = c->h->dv + c->at + t * c->h->stride + i;
    Vec dy[RK_WKV_BWD_TILE], dv[RK_WKV_BWD_TILE], dz[RK_WKV_BWD_TILE];
    for (int u = 0; u < tile; u++) {
        dy[u] = vec_load_part(c->dy + t * N + i + u * RK_LANES, LEFT(n, u));
        dv[u] = dz[u] = vec_set(0);
    }
    for (size_t j = 0; j < N; j++) {
        float *D = c->h->state + j * N + i;
        Vec rj = vec_set(r[j]), kj = vec_set(k[j]), bj = vec_set(b[j]);
        for (int u = 0; u < tile; u++) {
            Vec x = vec_fma(dy[u], rj, vec_load_part(D + u * RK_LANES, LEFT(n, u)));
            vec_store_part(D + u * RK_LANES, LEFT(n, u), x);
            dv[u] = vec_fma(x, kj, dv[u]);
            dz[u] = vec_fma(x, bj, dz[u]);
        }
    }
    for (int u = 0; u < tile; u++) {
        float *out = dv_out + u * RK_LANES;
        vec_store_part(out, LEFT(n, u), vec_load_part(out, LEFT(n, u)) + dv[u]);
        vec_store_part(c->dz + i + u * RK_LANES, LEFT(n, u), dz[u]);
    }
}

enum { SUM_DK, SUM_DB, SUM_DA, SUM_DD, SUMS = RK_LANES * RK_LANES };

/* Keys [j, j + rows) of token t, from value i on: adds the four sums along each row to `sums`, and takes D a token back. */
SIMD void wkv7_keys_tile(const WkvChunk *c, size_t t, size_t j, size_t rows, const size_t N, size_t i, size_t n, const int tile) {
    const float *before = t ? c->states + (t - 1) * STATE(N) : c->first, *a = c->h->a + c->at + t * c->h->stride;
    Vec v[RK_WKV_ROW_TILE], z[RK_WKV_ROW_TILE], dz[RK_WKV_ROW_TILE];
    for (int u = 0; u < tile; u++) {
        v[u] = vec_load_part(c->v + t * N + i + u * RK_LANES, LEFT(n, u));
        z[u] = vec_load_part(c->z + t * N + i + u * RK_LANES, LEFT(n, u));
        dz[u] = vec_load_part(c->dz + i + u * RK_LANES, LEFT(n, u));
    }
    for (size_t row = 0; row < rows; row++) {
        const float *S = before + (j + row) * N + i;
        float *D = c->h->state + (j + row) * N + i, *sums = c->sums + row * RK_LANES;
        Vec d = vec_set(c->d[t * N + j + row]), aj = vec_set(a[j + row]), sum[4];
        for (int q = 0; q < 4; q++) sum[q] = i ? vec_load(sums + q * SUMS) : vec_set(0);
        for (int u = 0; u < tile; u++) {
            Vec x = vec_load_part(D + u * RK_LANES, LEFT(n, u)), s = vec_load_part(S + u * RK_LANES, LEFT(n, u));
            sum[SUM_DK] = vec_fma(x, v[u], sum[SUM_DK]);
            sum[SUM_DB] = vec_fma(x, z[u], sum[SUM_DB]);
            sum[SUM_DA] = vec_fma(s, dz[u], sum[SUM_DA]);
            sum[SUM_DD] = vec_fma(s, x, sum[SUM_DD]);
            vec_store_part(D + u * RK_LANES, LEFT(n, u), vec_fma(x, d, dz[u] * aj));
        }
        for (int q = 0; q < 4; q++) vec_store(sums + q * SUMS, sum[q]);
    }
}

SIMD void wkv7_keys_bwd(const WkvChunk *c, size_t t, const size_t N, const int tile) {
    const RkWkv7Head *h = c->h;
    for (size_t j = 0; j < N; j += RK_LANES) {
        size_t left = N - j, at = c->at + t * h->stride + j;
        WKV_TILES(i, n, N, tile) wkv7_keys_tile(c, t, j, left < RK_LANES ? left : RK_LANES, N, i, n, tile);
        vec_store_part(h->dk + at, left, vec_load_part(h->dk + at, left) + vec_sum_rows(c->sums + SUM_DK * SUMS));
        vec_store_part(h->db + at, left, vec_sum_rows(c->sums + SUM_DB * SUMS));
        vec_store_part(h->da + at, left, vec_sum_rows(c->sums + SUM_DA * SUMS));
        Vec slope = vec_load_part(c->slope + t * N + j, left);
        vec_store_part(h->ds + at, left, slope * vec_sum_rows(c->sums + SUM_DD * SUMS));
    }
}

/* Asks for what token t of the chunk before will need: its rows are short and far apart, so the processor does not foresee
 * them; without this a fifth of the time is spent waiting. */
SIMD void wkv7_prefetch(const WkvChunk *c, size_t t, const size_t N) {
    const RkWkv7Head *h = c->h;
    const float *const tensors[] = {h->r, h->s, h->k, h->v, h->a, h->b, h->z, h->dy, h->dr, h->dk, h->dv, h->ds, h->da, h->db};
    size_t at = c->at - (RK_WKV_TOKENS - t) * h->stride, share = N * N / RK_WKV_TOKENS;
    for (size_t i = 0; i < N; i += LINE)
        for (size_t k = 0; k < sizeof tensors / sizeof *tensors; k++) __builtin_prefetch(tensors[k] + at + i, 0, 2);
    for (size_t i = 0; i < share; i += LINE) __builtin_prefetch(c->first - N * N + t * share + i, 0, 2);
}

SIMD void wkv7_bwd_any(const RkWkv7Head *head, const size_t N, const int value_tile, const int row_tile) {
    const RkWkv7Head h = *head;
    const size_t packed = RK_WKV_TOKENS * N;
    float *rows = h.scratch + (RK_WKV_TOKENS - 1) * STATE(N);
    WkvChunk c = {.h = &h, .states = h.scratch, .z = rows, .v = rows + packed, .dy = rows + 2 * packed, .k = rows + 3 * packed,
                  .b = rows + 4 * packed, .d = rows + 5 * packed, .slope = rows + 6 * packed, .dz = rows + 7 * packed};
    c.sums = c.dz + N;
    memset(c.sums, 0, RK_WKV_TOKENS * SUMS * sizeof *c.sums); /* rows past the last key are summed too, and dropped */
    for (size_t chunk = (h.T + RK_WKV_TOKENS - 1) / RK_WKV_TOKENS; chunk-- > 0;) {
        size_t t0 = chunk * RK_WKV_TOKENS;
        c.at = t0 * h.stride;
        c.tokens = h.T - t0 < RK_WKV_TOKENS ? h.T - t0 : RK_WKV_TOKENS;
        c.first = h.ckpt + chunk * N * N;
        wkv7_pack(&c, N);
        wkv7_rerun(&c, N, row_tile);
        for (size_t t = c.tokens; t-- > 0;) {
            WKV_TILES(i, n, N, value_tile) wkv7_values_bwd(&c, t, N, i, n, value_tile);
            wkv7_keys_bwd(&c, t, N, row_tile);
            if (chunk) wkv7_prefetch(&c, t, N);
        }
    }
}

/* ---- one copy per head size ---- */

#define WKV_SIZED(N)                                                                                       \
    static void wkv7_fwd_##N(const RkWkv7Head *h) { wkv7_fwd_any(h, N, WKV_TILE(N, RK_WKV_FWD_TILE)); }    \
    static void wkv7_bwd_##N(const RkWkv7Head *h) {                                                        \
        wkv7_bwd_any(h, N, WKV_TILE(N, RK_WKV_BWD_TILE), WKV_TILE(N, RK_WKV_ROW_TILE));                    \
    }
WKV_SIZED(32)
WKV_SIZED(64)
WKV_SIZED(128)

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
    case 32: wkv7_bwd_32(h); break;
    case 64: wkv7_bwd_64(h); break;
    case 128: wkv7_bwd_128(h); break;
    default: wkv7_bwd_any(h, h->N, 1, 1);
    }
}
