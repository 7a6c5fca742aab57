/* rope_cpu.c - one task per token: its cosines and sines are computed once and serve every sequence and head. */
#include "ops/backend_cpu.h"

#include <math.h>
#include <stdatomic.h>

typedef struct Rope { const float *from; float *to; size_t B, T, H, N; double past, direction; atomic_int no_memory; } Rope;

static void rope_token(void *ctx, size_t t) {
    Rope *r = ctx;
    size_t half = r->N / 2;
    float *c = rk_thread_scratch(r->N * sizeof(float)), *s = c + half;
    if (!c) {
        atomic_store(&r->no_memory, 1);
        return;
    }
    for (size_t i = 0; i < half; i++) {
        double angle = r->direction * (r->past + (double)t) * pow(RK_ROPE_BASE, -2.0 * (double)i / (double)r->N);
        c[i] = (float)cos(angle);
        s[i] = (float)sin(angle);
    }
    for (size_t b = 0; b < r->B; b++) {
        size_t at = (b * r->T + t) * r->H * r->N;
        rk_k.rope(r->from + at, r->to + at, c, s, r->H, r->N);
    }
}

static int rope_run(RkTensor from, RkTensor to, int past, double direction) {
    Rope r = {rk_f32(from), rk_f32(to), (size_t)from.d[0], (size_t)from.d[1], (size_t)from.d[2], (size_t)from.d[3], past, direction, 0};
    rk_parallel(r.T, rope_token, &r);
    return atomic_load(&r.no_memory) ? rk_fail(RK_ENOMEM, "rope: no memory for the angles of a head of size %zu", r.N) : RK_OK;
}

int rk_cpu_rope_fwd(const RkRope *o) { return rope_run(o->x, o->y, o->past, 1); }
int rk_cpu_rope_bwd(const RkRope *o) { return rope_run(o->dy, o->dx, o->past, -1); }
