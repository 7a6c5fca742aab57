/* attention_cpu.c - one task per block of queries in the forward. In the backward one per head of keys and sequence: its dk
 * and dv are sums over all queries, in one fixed order. */
#include "ops/backend_cpu.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

typedef struct Attention { const RkAttention *o; size_t B, T, H, G, N, past, blocks; atomic_int no_memory; } Attention;

static Attention attention_sizes(const RkAttention *o) {
    size_t T = (size_t)o->q.d[1];
    return (Attention){.o = o, .B = (size_t)o->q.d[0], .T = T, .H = (size_t)o->q.d[2], .G = (size_t)o->k.d[2], .N = (size_t)o->q.d[3],
                       .past = (size_t)o->past, .blocks = rk_cpu_tasks(T, RK_ATTN_BLOCK)};
}

size_t rk_cpu_attention_scratch_bytes(int head_size) {
    size_t N = (size_t)head_size, fwd = rk_attn_fwd_scratch(N), bwd = rk_attn_bwd_scratch(N);
    return (fwd > bwd ? fwd : bwd) * sizeof(float);
}

/* The first element of sequence b and head g of a cache, NULL where it is absent. */
static float *cache_head(const Attention *a, RkTensor cache, size_t b, size_t g) {
    return cache.p ? rk_f32(cache) + (b * (size_t)cache.d[1] * a->G + g) * a->N : NULL;
}

/* What both directions need of head h of sequence b. */
static int attention_head(Attention *a, size_t b, size_t h, RkAttnHead *head) {
    const RkAttention *o = a->o;
    size_t g = h / (a->H / a->G), q = (b * a->T * a->H + h) * a->N, kv = (b * a->T * a->G + g) * a->N;
    float *scratch = rk_thread_scratch(rk_cpu_attention_scratch_bytes((int)a->N));
    if (!scratch) {
        atomic_store(&a->no_memory, 1);
        return 0;
    }
    *head = (RkAttnHead){
        .q = rk_f32(o->q) + q, .y = rk_f32(o->y) + q, .k = rk_f32(o->k) + kv, .v = rk_f32(o->v) + kv,
        .k_past = cache_head(a, o->k_past, b, g), .v_past = cache_head(a, o->v_past, b, g),
        .lse = o->lse.p ? rk_f32(o->lse) + (b * a->H + h) * a->T : NULL, .scratch = scratch, .T = a->T, .past = a->past, .N = a->N,
        .q_stride = a->H * a->N, .kv_stride = a->G * a->N, .scale = (float)(1 / sqrt((double)a->N))};
    return 1;
}

static void attention_block(void *ctx, size_t task) {
    Attention *a = ctx;
    RkAttnHead head;
    size_t block = task % a->blocks, bh = task / a->blocks;
    if (!attention_head(a, bh / a->H, bh % a->H, &head)) return;
    RkCpuRange queries = rk_cpu_range(block, RK_ATTN_BLOCK, a->T);
    rk_k.attention_fwd(&head, queries.lo, queries.hi);
}

/* The first tokens of `all` of sequence b: `past` of them as before, then this call's. */
static void append(const Attention *a, size_t b, RkTensor past, RkTensor now, RkTensor all) {
    size_t token = a->G * a->N;
    float *to = rk_f32(all) + b * (size_t)all.d[1] * token;
    if (a->past && all.p != past.p)
        memcpy(to, rk_f32(past) + b * (size_t)past.d[1] * token, a->past * token * sizeof *to);
    memcpy(to + a->past * token, rk_f32(now) + b * a->T * token, a->T * token * sizeof *to);
}

static void append_task(void *ctx, size_t task) {
    const Attention *a = ctx;
    const RkAttention *o = a->o;
    if (task % 2) append(a, task / 2, o->v_past, o->v, o->v_all);
    else append(a, task / 2, o->k_past, o->k, o->k_all);
}

/* Where the sums of one head begin: what the next call asks for, or zero. `from` is the first of n tokens, or NULL. */
static void start(const Attention *a, float *d, const float *from, size_t n) {
    for (size_t t = 0; d && t < n; t++, d += a->G * a->N) {
        if (from) memcpy(d, from + t * a->G * a->N, a->N * sizeof *d);
        else memset(d, 0, a->N * sizeof *d);
    }
}

static void attention_task_bwd(void *ctx, size_t task) {
    Attention *a = ctx;
    const RkAttention *o = a->o;
    RkAttnHead head;
    size_t b = task / a->G, g = task % a->G, group = a->H / a->G, kv = (b * a->T * a->G + g) * a->N;
    float *dk = rk_f32(o->dk) + kv, *dv = rk_f32(o->dv) + kv;
    float *dk_past = cache_head(a, o->dk_past, b, g), *dv_past = cache_head(a, o->dv_past, b, g);
    const float *dk_all = cache_head(a, o->dk_all, b, g), *dv_all = cache_head(a, o->dv_all, b, g);
    start(a, dk_past, dk_all, a->past), start(a, dv_past, dv_all, a->past);
    start(a, dk, dk_all ? dk_all + a->past * a->G * a->N : NULL, a->T);
    start(a, dv, dv_all ? dv_all + a->past * a->G * a->N : NULL, a->T);
    for (size_t h = g * group; h < (g + 1) * group; h++) {
        if (!attention_head(a, b, h, &head)) return;
        size_t q = (b * a->T * a->H + h) * a->N;
        head.dy = rk_f32(o->dy) + q, head.dq = rk_f32(o->dq) + q;
        head.dk = dk, head.dv = dv, head.dk_past = dk_past, head.dv_past = dv_past;
        rk_k.attention_bwd(&head);
    }
}

static int attention_done(Attention *a) {
    if (atomic_load(&a->no_memory))
        return rk_fail(RK_ENOMEM, "attention: no memory for the scratch of a head of size %zu (%zu bytes per thread)", a->N,
                       rk_cpu_attention_scratch_bytes((int)a->N));
    return RK_OK;
}

int rk_cpu_attention_fwd(const RkAttention *o) {
    RK_TRY(rk_attention_check(o));
    Attention a = attention_sizes(o);
    rk_parallel(a.B * a.H * a.blocks, attention_block, &a);
    if (o->k_all.p) rk_parallel(2 * a.B, append_task, &a);
    return attention_done(&a);
}

int rk_cpu_attention_bwd(const RkAttention *o) {
    RK_TRY(rk_attention_check(o));
    Attention a = attention_sizes(o);
    rk_parallel(a.B * a.G, attention_task_bwd, &a);
    return attention_done(&a);
}
