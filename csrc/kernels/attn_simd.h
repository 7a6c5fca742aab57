/* attn_simd.h - rotary positions and causal attention; formulas in ops/attn/.
 *
 * Scores are computed transposed, S^T = K Q^T, a block of RK_ATTN_BLOCK keys by a block of as many queries, with the queries
 * along the vectors: the maximum and the sum over the keys are then sums of vectors with no horizontal step, and of all
 * operands only the block's queries (in the backward also their dy) have to be turned around, once for all keys. All other
 * products take their operands as they lie: `product` reads one side as scalars in any order and the other as rows.
 *
 * Forward, per block of keys: S^T; new maxima; p = exp(S^T - max); y and the sums rescaled by exp(old max - new max) and
 * added to. Backward: p from the saved lse, dP^T = V dy^T, dS^T = p (dP^T - D) / sqrt(N), and the three sums dV += p^T dy,
 * dK += dS^T q, dq += dS K. 2 products forward and 5 backward, of 2 N operations per pair of query and key each. */

/* ---- c (M,J) = or += a (M,K) b (K,J): a's elements at strides (am, ak), rows of b and c at distances ldb and ldc ---- */

typedef struct Product {
    const float *a, *b;
    float *c;
    size_t am, ak, ldb, ldc, M, K, J;
    int add;
} Product;

enum { PRODUCT_ROWS = 4, PRODUCT_VECTORS = RK_LANES == 8 ? 2 : 4 /* sums kept in registers: 8 of 16, or 16 of 32 */ };

SIMD void product_tile(const Product *p, size_t m, size_t j, size_t n, const int rows, const int vectors) {
    Vec sum[PRODUCT_ROWS][PRODUCT_VECTORS];
    const float *a = p->a + m * p->am, *b = p->b + j;
    const size_t am = p->am, ak = p->ak, ldb = p->ldb;
    float *c = p->c + m * p->ldc + j;
    for (int r = 0; r < rows; r++)
        for (int u = 0; u < vectors; u++)
            sum[r][u] = p->add ? vec_load_part(c + (size_t)r * p->ldc + (size_t)u * RK_LANES, n - (size_t)u * RK_LANES) : vec_set(0);
    for (size_t k = 0; k < p->K; k++, a += ak, b += ldb) {
        Vec row[PRODUCT_VECTORS];
        for (int u = 0; u < vectors; u++) row[u] = vec_load_part(b + (size_t)u * RK_LANES, n - (size_t)u * RK_LANES);
        for (int r = 0; r < rows; r++) {
            Vec x = vec_set(a[(size_t)r * am]);
            for (int u = 0; u < vectors; u++) sum[r][u] = vec_fma(x, row[u], sum[r][u]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int u = 0; u < vectors; u++)
            vec_store_part(c + (size_t)r * p->ldc + (size_t)u * RK_LANES, n - (size_t)u * RK_LANES, sum[r][u]);
}

/* Columns [j, j + n) of all rows. */
SIMD void product_columns(const Product *p, size_t j, size_t n, const int vectors) {
    size_t m = 0;
    for (; m + PRODUCT_ROWS <= p->M; m += PRODUCT_ROWS) product_tile(p, m, j, n, PRODUCT_ROWS, vectors);
    for (; m < p->M; m++) product_tile(p, m, j, n, 1, vectors);
}

static void product(const Product *p) {
    const size_t whole = PRODUCT_VECTORS * RK_LANES;
    size_t j = 0;
    for (; j + whole <= p->J; j += whole) product_columns(p, j, whole, PRODUCT_VECTORS);
    for (; j + RK_LANES <= p->J; j += RK_LANES) product_columns(p, j, RK_LANES, 1);
    if (j < p->J) product_columns(p, j, p->J - j, 1);
}

/* ---- what both directions do with a block of queries and a block of keys ---- */

/* Queries of a block, rounded up to whole vectors; the lanes beyond are zeros and their results are dropped. */
SIMD size_t padded(size_t queries) { return (queries + RK_LANES - 1) / RK_LANES * RK_LANES; }

/* (N, padded(rows)) <- (rows, N), turned around and scaled. */
static void turn_around(const float *from, size_t rows, size_t N, float scale, float *to) {
    size_t ld = padded(rows);
    for (size_t i = 0; i < N; i++) {
        for (size_t r = 0; r < rows; r++) to[i * ld + r] = scale * from[r * N + i];
        for (size_t r = rows; r < ld; r++) to[i * ld + r] = 0;
    }
}

/* Rows of N laid together: rows a multiple of a power of two apart evict each other from L1, which costs up to a third. */
static void pack(const float *from, size_t stride, size_t rows, size_t N, float *to) {
    for (size_t r = 0; r < rows; r++) memcpy(to + r * N, from + r * stride, N * sizeof *to);
}

/* A block of keys: n of them, packed, the first at position `first` of the stream; dk and dv (not packed) may be NULL. */
typedef struct KeyBlock { const float *k, *v; float *dk, *dv; size_t first, n; } KeyBlock;

/* Block `index` of the keys that the last of `seen` positions sees: the past's blocks, then this call's. n = 0: there are no more. */
static KeyBlock key_block(const RkAttnHead *h, size_t seen, size_t index, float *room) {
    size_t past_blocks = (h->past + RK_ATTN_BLOCK - 1) / RK_ATTN_BLOCK, now = index >= past_blocks;
    size_t at = (now ? index - past_blocks : index) * RK_ATTN_BLOCK, end = now ? seen - h->past : h->past;
    size_t n = at >= end ? 0 : end - at < RK_ATTN_BLOCK ? end - at : RK_ATTN_BLOCK, offset = at * h->kv_stride;
    if (!n) return (KeyBlock){.n = 0};
    float *k = room, *v = room + RK_ATTN_BLOCK * h->N, *dk = now ? h->dk : h->dk_past, *dv = now ? h->dv : h->dv_past;
    pack((now ? h->k : h->k_past) + offset, h->kv_stride, n, h->N, k);
    pack((now ? h->v : h->v_past) + offset, h->kv_stride, n, h->N, v);
    return (KeyBlock){k, v, dk ? dk + offset : NULL, dv ? dv + offset : NULL, now ? h->past + at : at, n};
}

/* s (keys, ld) = value where a key comes after the query; position: of the block's first query. */
static void hide_future(const KeyBlock *keys, size_t position, size_t ld, float *s, float value) {
    for (size_t j = keys->first > position ? 0 : position - keys->first; j < keys->n; j++) {
        size_t hidden = keys->first + j - position;
        for (size_t t = 0; t < hidden && t < ld; t++) s[j * ld + t] = value;
    }
}

/* s (keys, ld) = K Q^T, with -infinity where a key comes after the query. */
static void scores(const RkAttnHead *h, const KeyBlock *keys, const float *turned, size_t position, size_t ld, float *s) {
    product(&(Product){.a = keys->k, .am = h->N, .ak = 1, .b = turned, .ldb = ld, .c = s, .ldc = ld, .M = keys->n,
                       .K = h->N, .J = ld});
    hide_future(keys, position, ld, s, -__builtin_inff());
}

/* exp(x) for x <= 0, never below 1.6e-38 (beside a sum of 1 or more): results that are not normal numbers take the processor
 * a hundred times as long, and a block on the diagonal is full of them. The hidden places are set to 0 afterwards. */
SIMD Vec exp_of_negative(Vec x) { return vec_exp(vec_max(vec_set(-87), x)); }

/* ---- forward ---- */

/* p = exp(s - max) in place over n keys, with the maxima and sums of the queries from lane t on brought up to date;
 * shrink = exp(old maximum - new). */
SIMD void softmax_lanes(float *s, size_t n, size_t ld, size_t t, float *top, float *sum, float *shrink) {
    Vec before = vec_load(top + t), most = before, total = vec_set(0);
    for (size_t j = 0; j < n; j++) most = vec_max(most, vec_load(s + j * ld + t));
    for (size_t j = 0; j < n; j++) {
        Vec p = exp_of_negative(vec_load(s + j * ld + t) - most);
        vec_store(s + j * ld + t, p);
        total = total + p;
    }
    Vec by = exp_of_negative(before - most);
    vec_store(top + t, most);
    vec_store(shrink + t, by);
    vec_store(sum + t, vec_fma(vec_load(sum + t), by, total));
}

typedef struct Multiplied { float *x; Vec by; } Multiplied;
SIMD void multiply_at(const Multiplied *s, size_t i, size_t n) { vec_store_part(s->x + i, n, vec_load_part(s->x + i, n) * s->by); }

static void k_attention_fwd(const RkAttnHead *head, size_t lo, size_t hi) {
    const RkAttnHead h = *head;
    size_t n = hi - lo, N = h.N, ld = padded(n), position = h.past + lo;
    float *turned = h.scratch, *room = turned + N * RK_ATTN_BLOCK, *s = room + 2 * N * RK_ATTN_BLOCK, *top = s + RK_ATTN_BLOCK * RK_ATTN_BLOCK;
    float *sum = top + RK_ATTN_BLOCK, *shrink = sum + RK_ATTN_BLOCK, *y = shrink + RK_ATTN_BLOCK;
    pack(h.q + lo * h.q_stride, h.q_stride, n, N, room);
    turn_around(room, n, N, h.scale, turned);
    for (size_t t = 0; t < ld; t++) top[t] = -__builtin_inff(), sum[t] = 0;
    memset(y, 0, n * N * sizeof *y);
    KeyBlock keys;
    for (size_t index = 0; keys = key_block(&h, h.past + hi, index, room), keys.n; index++) {
        scores(&h, &keys, turned, position, ld, s);
        for (size_t t = 0; t < ld; t += RK_LANES) softmax_lanes(s, keys.n, ld, t, top, sum, shrink);
        hide_future(&keys, position, ld, s, 0);
        for (size_t t = 0; index && t < n; t++) SWEEP(multiply_at, (&(Multiplied){y + t * N, vec_set(shrink[t])}), 0, N);
        product(&(Product){.a = s, .am = 1, .ak = ld, .b = keys.v, .ldb = N, .c = y, .ldc = N, .M = n, .K = keys.n,
                           .J = N, .add = 1});
    }
    for (size_t t = 0; t < n; t++) {
        float *out = h.y + (lo + t) * h.q_stride;
        memcpy(out, y + t * N, N * sizeof *y);
        SWEEP(multiply_at, (&(Multiplied){out, vec_set(1 / sum[t])}), 0, N);
        if (h.lse) h.lse[lo + t] = top[t] + (float)__builtin_log((double)sum[t]);
    }
}

/* ---- backward ---- */

/* s becomes p = exp(s - lse), dp becomes p (dp - D) scale, for the queries from lane t on. */
SIMD void slopes_lanes(float *s, float *dp, size_t n, size_t ld, size_t t, const float *lse, const float *D, float scale) {
    Vec norm = vec_load(lse + t), d = vec_load(D + t), by = vec_set(scale);
    for (size_t j = 0; j < n; j++) {
        Vec p = exp_of_negative(vec_load(s + j * ld + t) - norm);
        vec_store(s + j * ld + t, p);
        vec_store(dp + j * ld + t, p * (vec_load(dp + j * ld + t) - d) * by);
    }
}

SIMD float dot_rows(const float *a, const float *b, size_t n) {
    Vec sum = vec_set(0);
    for (size_t i = 0; i < n; i += RK_LANES) sum = vec_fma(vec_load_part(a + i, n - i), vec_load_part(b + i, n - i), sum);
    return vec_sum(sum);
}

/* Queries [lo, hi) against all keys they see. */
static void attention_bwd_block(const RkAttnHead *h, size_t lo, size_t hi) {
    size_t n = hi - lo, N = h->N, ld = padded(n), position = h->past + lo, at = lo * h->q_stride;
    float *q = h->scratch, *dy = q + N * RK_ATTN_BLOCK, *turned = dy + N * RK_ATTN_BLOCK, *turned_dy = turned + N * RK_ATTN_BLOCK;
    float *room = turned_dy + N * RK_ATTN_BLOCK, *s = room + 2 * N * RK_ATTN_BLOCK;
    float *dp = s + RK_ATTN_BLOCK * RK_ATTN_BLOCK, *lse = dp + RK_ATTN_BLOCK * RK_ATTN_BLOCK, *D = lse + RK_ATTN_BLOCK;
    pack(h->q + at, h->q_stride, n, N, q);
    pack(h->dy + at, h->q_stride, n, N, dy);
    turn_around(q, n, N, h->scale, turned);
    turn_around(dy, n, N, 1, turned_dy);
    for (size_t t = 0; t < ld; t++) {
        lse[t] = t < n ? h->lse[lo + t] : 0;
        D[t] = t < n ? dot_rows(dy + t * N, h->y + at + t * h->q_stride, N) : 0;
    }
    KeyBlock keys;
    for (size_t index = 0; keys = key_block(h, h->past + hi, index, room), keys.n; index++) {
        scores(h, &keys, turned, position, ld, s);
        product(&(Product){.a = keys.v, .am = N, .ak = 1, .b = turned_dy, .ldb = ld, .c = dp, .ldc = ld, .M = keys.n,
                           .K = N, .J = ld});
        for (size_t t = 0; t < ld; t += RK_LANES) slopes_lanes(s, dp, keys.n, ld, t, lse, D, h->scale);
        hide_future(&keys, position, ld, s, 0);
        hide_future(&keys, position, ld, dp, 0);
        product(&(Product){.a = dp, .am = 1, .ak = ld, .b = keys.k, .ldb = N, .c = h->dq + at, .ldc = h->q_stride,
                           .M = n, .K = keys.n, .J = N, .add = index > 0});
        if (!keys.dk) continue;
        Product sum = {.a = s, .am = ld, .ak = 1, .b = dy, .ldb = N, .c = keys.dv, .ldc = h->kv_stride, .M = keys.n,
                       .K = n, .J = N, .add = 1};
        product(&sum);
        sum.a = dp, sum.b = q, sum.c = keys.dk;
        product(&sum);
    }
}

static void k_attention_bwd(const RkAttnHead *head) {
    for (size_t lo = 0; lo < head->T; lo += RK_ATTN_BLOCK)
        attention_bwd_block(head, lo, head->T - lo < RK_ATTN_BLOCK ? head->T : lo + RK_ATTN_BLOCK);
}

/* ---- rotary positions ---- */

typedef struct Turn { const float *low, *high, *c, *s; float *to_low, *to_high; } Turn;

SIMD void turn_at(const Turn *r, size_t i, size_t n) {
    Vec low = vec_load_part(r->low + i, n), high = vec_load_part(r->high + i, n);
    Vec c = vec_load_part(r->c + i, n), s = vec_load_part(r->s + i, n);
    vec_store_part(r->to_low + i, n, low * c - high * s);
    vec_store_part(r->to_high + i, n, vec_fma(high, c, low * s));
}

static void k_rope(const float *x, float *y, const float *c, const float *s, size_t H, size_t N) {
    size_t half = N / 2;
    for (size_t h = 0; h < H; h++)
        SWEEP(turn_at, (&(Turn){x + h * N, x + h * N + half, c, s, y + h * N, y + h * N + half}), 0, half);
}
