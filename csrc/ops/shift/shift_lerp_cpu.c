#include "ops/backend_cpu.h"

#include <string.h>

typedef struct ShiftLerp { const RkShiftLerp *o; size_t B, T, C; } ShiftLerp;

static ShiftLerp shift_lerp_sizes(const RkShiftLerp *o) {
    return (ShiftLerp){o, (size_t)o->x.d[0], (size_t)o->x.d[1], (size_t)o->x.d[2]};
}
static size_t shift_lerp_rows_per_task(const ShiftLerp *s) { return rk_cpu_rows_per_task(s->C * (size_t)(s->o->n + 1)); }

static void shift_lerp_task(void *ctx, size_t task) {
    const ShiftLerp *s = ctx;
    const RkShiftLerp *o = s->o;
    RkCpuRange rows = rk_cpu_range(task, shift_lerp_rows_per_task(s), s->B * s->T);
    RkShiftLerpRow a = {.C = s->C, .n = o->n, .keep = o->keep};
    for (int z = 0; z < o->n; z++) a.mu[z] = rk_f32(o->mu[z]);
    for (size_t r = rows.lo; r < rows.hi; r++) {
        a.x = rk_f32(o->x) + r * s->C;
        if (r % s->T) a.before = a.x - s->C;
        else a.before = o->prev.p ? rk_f32(o->prev) + r / s->T * s->C : NULL;
        for (int z = 0; z < o->n; z++) a.y[z] = rk_f32(o->y[z]) + r * s->C;
        rk_k.shift_lerp_fwd(&a);
    }
}

int rk_cpu_shift_lerp_fwd(const RkShiftLerp *o) {
    ShiftLerp s = shift_lerp_sizes(o);
    rk_parallel(rk_cpu_tasks(s.B * s.T, shift_lerp_rows_per_task(&s)), shift_lerp_task, &s);
    for (size_t b = 0; o->last.p && b < s.B; b++) /* after the tasks: it may be the memory of prev */
        memcpy(rk_f32(o->last) + b * s.C, rk_f32(o->x) + (b * s.T + s.T - 1) * s.C, s.C * sizeof(float));
    return RK_OK;
}

static void shift_lerp_block(const void *ctx, RkCpuRange rows, float *const *sums) {
    RkShiftLerpGrad a = *(const RkShiftLerpGrad *)ctx;
    for (int z = 0; z < a.n; z++) a.dmu[z] = sums[z];
    a.carry = sums[a.n];
    rk_k.shift_lerp_bwd(&a, rows.lo, rows.hi);
}

int rk_cpu_shift_lerp_bwd(const RkShiftLerp *o) {
    ShiftLerp s = shift_lerp_sizes(o);
    RkShiftLerpGrad a = {.x = rk_f32(o->x), .prev = rk_f32(o->prev), .dlast = rk_f32(o->dlast), .dx = rk_f32(o->dx),
                         .dprev = rk_f32(o->dprev), .B = s.B, .T = s.T, .C = s.C, .n = o->n, .keep = o->keep};
    RkCpuRowSums sums = {shift_lerp_block, &a, s.B * s.T, s.C, (size_t)o->n + 1, {NULL}};
    for (int z = 0; z < o->n; z++) a.mu[z] = rk_f32(o->mu[z]), a.dy[z] = rk_f32(o->dy[z]), sums.to[z] = rk_f32(o->dmu[z]);
    return rk_cpu_row_sums(&sums);
}
