/* wkv6_cpu.c - wkv5 and wkv6: one task per sequence and head, the state kept where the final one goes (see wkv7_cpu.c). */
#include "ops/backend_cpu.h"

#include <stdatomic.h>
#include <string.h>

_Static_assert((int)RK_WKV_TOKENS == (int)RK_WKV_CHUNK, "the kernels' chunk is the op's");

typedef struct Wkv6 { const RkWkv6 *o; size_t B, T, H, N; int constant; atomic_int no_memory; } Wkv6;

static Wkv6 wkv6_sizes(const RkWkv6 *o, int constant) {
    return (Wkv6){.o = o, .B = (size_t)o->r.d[0], .T = (size_t)o->r.d[1], .H = (size_t)o->r.d[2], .N = (size_t)o->r.d[3],
                  .constant = constant};
}

/* A thread's scratch: a state, then what the kernels need. */
static size_t state_floats(size_t N) { return (N * N + RK_LANES_MAX - 1) / RK_LANES_MAX * RK_LANES_MAX; }
static size_t scratch_bytes(size_t N, int backward) {
    return (state_floats(N) + (backward ? rk_wkv6_bwd_scratch(N) : rk_wkv6_fwd_scratch(N))) * sizeof(float);
}
size_t rk_cpu_wkv6_scratch_bytes(int head_size) { return scratch_bytes((size_t)head_size, 1); }

/* What both directions need; `state` of the head is `start` or zeros, kept in `place` where there is one. */
static int wkv6_head(Wkv6 *w, size_t bh, int backward, RkWkv6Head *h) {
    const RkWkv6 *o = w->o;
    size_t N = w->N, head = bh % w->H * N, at = bh / w->H * w->T * w->H * N + head, NN = N * N;
    size_t chunks = (w->T + RK_WKV_CHUNK - 1) / RK_WKV_CHUNK;
    const RkTensor start = backward ? o->dsT : o->s0, place = backward ? o->ds0 : o->sT;
    float *scratch = rk_thread_scratch(scratch_bytes(N, backward));
    if (!scratch) {
        atomic_store(&w->no_memory, 1);
        return 0;
    }
    *h = (RkWkv6Head){
        .r = rk_f32(o->r) + at, .k = rk_f32(o->k) + at, .v = rk_f32(o->v) + at, .w = rk_f32(o->w) + (w->constant ? head : at),
        .u = rk_f32(o->u) + head, .ckpt = o->ckpt.p ? rk_f32(o->ckpt) + bh * chunks * NN : NULL,
        .state = place.p ? rk_f32(place) + bh * NN : scratch, .scratch = scratch + state_floats(N),
        .T = w->T, .N = N, .stride = w->H * N, .w_stride = w->constant ? 0 : w->H * N};
    if (!start.p) memset(h->state, 0, NN * sizeof(float));
    else if (h->state != rk_f32(start) + bh * NN) memcpy(h->state, rk_f32(start) + bh * NN, NN * sizeof(float));
    return 1;
}

static void wkv6_task(void *ctx, size_t bh) {
    Wkv6 *w = ctx;
    RkWkv6Head h;
    if (!wkv6_head(w, bh, 0, &h)) return;
    h.y = rk_f32(w->o->y) + (h.r - rk_f32(w->o->r));
    rk_k.wkv6_fwd(&h);
}

static void wkv6_task_bwd(void *ctx, size_t bh) {
    Wkv6 *w = ctx;
    const RkWkv6 *o = w->o;
    RkWkv6Head h;
    if (!wkv6_head(w, bh, 1, &h)) return;
    ptrdiff_t at = h.r - rk_f32(o->r);
    float *sums = rk_f32(o->sums) + bh * 2 * w->N;
    memset(sums, 0, 2 * w->N * sizeof *sums);
    h.dy = rk_f32(o->dy) + at;
    h.dr = rk_f32(o->dr) + at, h.dk = rk_f32(o->dk) + at, h.dv = rk_f32(o->dv) + at;
    h.du = sums, h.dw = w->constant ? sums + w->N : rk_f32(o->dw) + at;
    rk_k.wkv6_bwd(&h);
}

static int wkv6_run(const RkWkv6 *o, int constant, RkTaskFn task) {
    Wkv6 w = wkv6_sizes(o, constant);
    rk_parallel(w.B * w.H, task, &w);
    if (atomic_load(&w.no_memory))
        return rk_fail(RK_ENOMEM, "wkv6: no memory for the scratch of a head of size %d (%zu bytes per thread)", (int)w.N,
                       rk_cpu_wkv6_scratch_bytes((int)w.N));
    return RK_OK;
}

static int wkv6_run_bwd(const RkWkv6 *o, int constant) {
    RK_TRY(wkv6_run(o, constant, wkv6_task_bwd));
    size_t N = (size_t)o->r.d[3], H = (size_t)o->r.d[2];
    for (size_t bh = 0; bh < (size_t)o->r.d[0] * H; bh++) {
        const float *sums = rk_f32(o->sums) + bh * 2 * N;
        float *du = rk_f32(o->du) + bh % H * N;
        rk_k.add(du, sums, du, N);
        if (!constant) continue;
        float *dw = rk_f32(o->dw) + bh % H * N;
        rk_k.add(dw, sums + N, dw, N);
    }
    return RK_OK;
}

int rk_cpu_wkv5_fwd(const RkWkv6 *o) { return wkv6_run(o, 1, wkv6_task); }
int rk_cpu_wkv5_bwd(const RkWkv6 *o) { return wkv6_run_bwd(o, 1); }
int rk_cpu_wkv6_fwd(const RkWkv6 *o) { return wkv6_run(o, 0, wkv6_task); }
int rk_cpu_wkv6_bwd(const RkWkv6 *o) { return wkv6_run_bwd(o, 0); }
