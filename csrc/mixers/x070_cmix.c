/* x070_cmix - RWKV-7 channel mix.
 *
 *     xk = x + (shift(x) - x) x_k        k = xk key^T        y = relu(k)^2 value^T
 *
 * Saved for the backward: k. The mixed input and relu(k)^2 are cheap and are computed again.
 * Source: RWKV-LM, RWKV-v7/train_temp; "RWKV-7 Goose" (2025). */
#include <math.h>

#include "mixers/mixer.h"

static double ramp_x_k(const RkInitAt *at, int i) {
    double w = 1 - (double)at->layer / at->n_layer;
    return 1 - pow((double)i / at->C, w * w * w * w);
}

/* clang-format off */
#define PARAMS(P)                                                              \
    P(x_k,   "ffn.x_k",          SHAPE(1, 1, D_C),   RAMP(ramp_x_k), 0)        \
    P(key,   "ffn.key.weight",   SHAPE(D_F, D_C),    ORTHO(1),       P_WEIGHT) \
    P(value, "ffn.value.weight", SHAPE(D_C, D_F),    CONST(0),       P_WEIGHT | P_SPARSE)
#define SAVED(A)   A(k, SHAPE(D_B, D_T, D_F), 0)
#define SCRATCH(A) A(xk, SHAPE(D_B, D_T, D_C), 0) A(h, SHAPE(D_B, D_T, D_F), 0)
#define STATE(A)   A(ffn_shift, SHAPE(D_B, D_C), 0)
/* clang-format on */

typedef struct { PARAMS(RK_FIELD) } Params;
typedef struct { SAVED(RK_FIELD) } Saved;
typedef struct { SCRATCH(RK_FIELD) } Scratch;
typedef struct { STATE(RK_FIELD) } State;
typedef struct { RkShiftLerp mix; RkLinear key, value; RkRelu2 act; } Ops;

/* The wiring, stated once: the forward runs these ops downwards, the backward upwards. Gradients of scratch rows
 * replace the rows themselves. */
static Ops wire(const RkCall *c) {
    const Params *p = (const void *)c->par, *g = (const void *)c->grad;
    const Saved *a = (const void *)c->act;
    const Scratch *t = (const void *)c->tmp;
    const State *before = (const void *)c->state, *after = (const void *)c->state_out;
    const State *dbefore = (const void *)c->dstate, *dafter = (const void *)c->dstate_out;
    return (Ops){
        .mix = {.n = 1, .x = c->x, .prev = before->ffn_shift, .last = after->ffn_shift, .mu = {p->x_k}, .y = {t->xk},
                .dy = {t->xk}, .dlast = dafter->ffn_shift, .dx = c->dx, .dprev = dbefore->ffn_shift, .dmu = {g->x_k}},
        .key = {.fresh = c->fresh, .x = t->xk, .w = p->key, .y = a->k, .dy = t->h, .dx = t->xk, .dw = g->key},
        .act = {.x = a->k, .y = t->h, .dy = t->h, .dx = t->h},
        .value = {.fresh = c->fresh, .x = t->h, .w = p->value, .columns = c->columns, .y = c->y, .dy = c->dy, .dx = t->h, .dw = g->value},
    };
}

static int fwd(const RkCall *c) {
    Ops o = wire(c);
    RK_TRY(c->be->shift_lerp_fwd(&o.mix));
    RK_TRY(c->be->linear_fwd(&o.key));
    RK_TRY(c->be->relu2_fwd(&o.act));
    return c->be->linear_fwd(&o.value);
}

static int bwd(const RkCall *c) {
    Ops o = wire(c);
    RkShiftLerp again = o.mix;
    again.last.p = NULL;
    RK_TRY(c->be->shift_lerp_fwd(&again));
    RK_TRY(c->be->relu2_fwd(&o.act));
    RK_TRY(c->be->linear_bwd(&o.value));
    RK_TRY(c->be->relu2_bwd(&o.act));
    RK_TRY(c->be->linear_bwd(&o.key));
    return c->be->shift_lerp_bwd(&o.mix);
}

RK_MIXER(x070_cmix, .fwd = fwd, .bwd = bwd);
