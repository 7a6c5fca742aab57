/* wkv7_cpu.c - one task per sequence and head. The state is updated where the final state goes, so that a decoding step with
 * the state in place moves no memory but the state itself; without a place to go it lives in the thread's scratch. */
#include "ops/backend_cpu.h"

#include <stdatomic.h>
#include <string.h>

_Static_assert((int)RK_WKV_TOKENS == (int)RK_WKV_CHUNK, "the kernels' chunk is the op's");

typedef struct Wkv7 { const RkWkv7 *o; size_t B, T, H, N; atomic_int no_memory; } Wkv7;

static Wkv7 wkv7_sizes(const RkWkv7 *o) {
    return (Wkv7){.o = o, .B = (size_t)o->r.d[0], .T = (size_t)o->r.d[1], .H = (size_t)o->r.d[2], .N = (size_t)o->r.d[3]};
}

/* A thread's scratch: a state, then what the kernels need. */
static size_t state_floats(size_t N) { return (N * N + RK_LANES_MAX - 1) / RK_LANES_MAX * RK_LANES_MAX; }
static size_t scratch_bytes(size_t N, int backward) {
    return (state_floats(N) + (backward ? rk_wkv7_bwd_scratch(N) : rk_wkv7_fwd_scratch(N))) * sizeof(float);
}
size_t rk_cpu_wkv7_scratch_bytes(int head_size) { return scratch_bytes((size_t)head_size, 1); }

/* What both directions need; `state` of the head is `start` or zeros, kept in `place` where there is one. */
static int wkv7_head(Wkv7 *w, size_t bh, int backward, RkWkv7Head *h) {
    const RkWkv7 *o = w->o;
    size_t N = w->N, at = (bh / w->H * w->T * w->H + bh % w->H) * N, NN = N * N, chunks = (w->T + RK_WKV_CHUNK - 1) / RK_WKV_CHUNK;
    const RkTensor start = backward ? o->dsT : o->s0, place = backward ? o->ds0 : o->sT;
    float *scratch = rk_thread_scratch(scratch_bytes(N, backward));
    if (!scratch) {
        atomic_store(&w->no_memory, 1);
        return 0;
    }
    *h = (RkWkv7Head){
        .r = rk_f32(o->r) + at, .s = rk_f32(o->s) + at, .k = rk_f32(o->k) + at, .v = rk_f32(o->v) + at, .a = rk_f32(o->a) + at,
        .b = rk_f32(o->b) + at, .z = o->z.p ? rk_f32(o->z) + at : NULL, .ckpt = o->ckpt.p ? rk_f32(o->ckpt) + bh * chunks * NN : NULL,
        .state = place.p ? rk_f32(place) + bh * NN : scratch, .scratch = scratch + state_floats(N),
        .T = w->T, .N = N, .stride = w->H * N};
    if (!start.p) memset(h->state, 0, NN * sizeof(float));
    else if (h->state != rk_f32(start) + bh * NN) memcpy(h->state, rk_f32(start) + bh * NN, NN * sizeof(float));
    return 1;
}

static void wkv7_task(void *ctx, size_t bh) {
    Wkv7 *w = ctx;
    RkWkv7Head h;
    if (!wkv7_head(w, bh, 0, &h)) return;
    h.y = rk_f32(w->o->y) + (h.r - rk_f32(w->o->r));
    rk_k.wkv7_fwd(&h);
}

static void wkv7_task_bwd(void *ctx, size_t bh) {
    Wkv7 *w = ctx;
    const RkWkv7 *o = w->o;
    RkWkv7Head h;
    if (!wkv7_head(w, bh, 1, &h)) return;
    ptrdiff_t at = h.r - rk_f32(o->r);
    h.dy = rk_f32(o->dy) + at;
    h.dr = rk_f32(o->dr) + at, h.dk = rk_f32(o->dk) + at, h.dv = rk_f32(o->dv) + at;
    h.ds = rk_f32(o->ds) + at, h.da = rk_f32(o->da) + at, h.db = rk_f32(o->db) + at;
    rk_k.wkv7_bwd(&h);
}

static int wkv7_run(const RkWkv7 *o, RkTaskFn task) {
    Wkv7 w = wkv7_sizes(o);
    rk_parallel(w.B * w.H, task, &w);
    if (atomic_load(&w.no_memory))
        return rk_fail(RK_ENOMEM, "wkv7: no memory for the scratch of a head of size %d (%zu bytes per thread)", (int)w.N,
                       rk_cpu_wkv7_scratch_bytes((int)w.N));
    return RK_OK;
}

int rk_cpu_wkv7_fwd(const RkWkv7 *o) { return wkv7_run(o, wkv7_task); }
int rk_cpu_wkv7_bwd(const RkWkv7 *o) { return wkv7_run(o, wkv7_task_bwd); }
