/* x052_tmix - RWKV-5.2 time mix.
 *
 *     x^z = shift(x) + (x - shift(x)) time_mix_z       for z in k v r g
 *     r = x^r R^T    k = x^k K^T    v = x^v V^T    g = x^g G^T
 *     y = wkv5(r, k, v, w = time_decay, u = time_faaaa)
 *     out = (group norm(y) silu(g)) O^T
 *
 * Saved for the backward: the results of matrix products. The mixed inputs, y and the chunks that wkv5 needs, 5 C numbers per
 * token, are computed again.
 * Source: RWKV-LM, RWKV-v5; "Eagle and Finch" (2024). */
#include "mixers/ramps.h"

static double ramp_mix_k(const RkInitAt *at, int i) { return share(at, i, depth_left(at)); }
static double ramp_mix_v(const RkInitAt *at, int i) { return share(at, i, depth_left(at)) + 0.3 * depth_done(at); }
static double ramp_mix_rg(const RkInitAt *at, int i) { return share(at, i, 0.5 * depth_left(at)); }

/* clang-format off */
#define VEC  SHAPE(1, 1, D_C)
#define ROWS SHAPE(D_B, D_T, D_C)
#define HEAD SHAPE(D_B, D_T, D_H, D_N)

#define PARAMS(P)                                                                             \
    P(mix_k, "att.time_mix_k", VEC, RAMP(ramp_mix_k),  0)                                     \
    P(mix_v, "att.time_mix_v", VEC, RAMP(ramp_mix_v),  0)                                     \
    P(mix_r, "att.time_mix_r", VEC, RAMP(ramp_mix_rg), 0)                                     \
    P(mix_g, "att.time_mix_g", VEC, RAMP(ramp_mix_rg), 0)                                     \
    P(decay, "att.time_decay", SHAPE(D_H, D_N), RAMP(ramp_time_decay), P_LR2X)                \
    P(faaaa, "att.time_faaaa", SHAPE(D_H, D_N), RAMP(ramp_time_faaaa), 0)                     \
    P(receptance, "att.receptance.weight", SHAPE(D_C, D_C), ORTHO(1),   P_WEIGHT)             \
    P(key,        "att.key.weight",        SHAPE(D_C, D_C), ORTHO(0.1), P_WEIGHT)             \
    P(value,      "att.value.weight",      SHAPE(D_C, D_C), ORTHO(1),   P_WEIGHT)             \
    P(output,     "att.output.weight",     SHAPE(D_C, D_C), CONST(0),   P_WEIGHT)             \
    P(gate,       "att.gate.weight",       SHAPE(D_C, D_C), ORTHO(0.1), P_WEIGHT)             \
    P(ln_x_w, "att.ln_x.weight", SHAPE(D_C), RAMP(ramp_ln_x), 0)                              \
    P(ln_x_b, "att.ln_x.bias",   SHAPE(D_C), CONST(0),        0)                              \
    P(time_state, "att.time_state", SHAPE(D_H, D_N, D_N), CONST(0), P_INIT_STATE | P_DECAY)

#define SAVED(A)                                                                              \
    A(r, HEAD, 0) A(k, HEAD, 0) A(v, HEAD, 0) A(g, ROWS, 0)

/* In the backward the gradient of a mixed input replaces it: xr then holds dxr, and so on. */
#define SCRATCH(A)                                                                            \
    A(xk, ROWS, 0) A(xv, ROWS, 0) A(xr, ROWS, 0) A(xg, ROWS, 0) A(o, ROWS, 0)                 \
    A(y, HEAD, 0) A(ckpt, SHAPE(D_BH, D_CHUNKS, D_N, D_N), A_TRAIN | A_SUM)                           \
    A(dr, HEAD, A_TRAIN) A(dk, HEAD, A_TRAIN) A(dv, HEAD, A_TRAIN) A(dy, HEAD, A_TRAIN)       \
    A(sums, SHAPE(D_BH, 2, D_N), A_TRAIN | A_SUM)

#define STATE(A) A(att_shift, SHAPE(D_B, D_C), 0) A(wkv, SHAPE(D_B, D_H, D_N, D_N), P_INIT_STATE)
/* clang-format on */

typedef struct { PARAMS(RK_FIELD) } Params;
typedef struct { SAVED(RK_FIELD) } Saved;
typedef struct { SCRATCH(RK_FIELD) } Scratch;
typedef struct { STATE(RK_FIELD) } State;
typedef struct {
    RkShiftLerp mix;
    RkLinear r, k, v, g, out;
    RkWkv6 wkv;
    RkNormGate gate;
} Ops;

/* The wiring, stated once: the forward runs these ops downwards, the backward upwards. */
static Ops wire(const RkCall *c) {
    const Params *p = (const void *)c->par, *G = (const void *)c->grad;
    const Saved *a = (const void *)c->act;
    const Scratch *t = (const void *)c->tmp;
    const State *before = (const void *)c->state, *after = (const void *)c->state_out;
    const State *dbefore = (const void *)c->dstate, *dafter = (const void *)c->dstate_out;
    return (Ops){
        .mix = {.n = 4, .keep = 1, .x = c->x, .prev = before->att_shift, .last = after->att_shift,
                .mu = {p->mix_k, p->mix_v, p->mix_r, p->mix_g}, .y = {t->xk, t->xv, t->xr, t->xg},
                .dy = {t->xk, t->xv, t->xr, t->xg}, .dlast = dafter->att_shift, .dx = c->dx, .dprev = dbefore->att_shift,
                .dmu = {G->mix_k, G->mix_v, G->mix_r, G->mix_g}},
        .r = {.fresh = c->fresh, .x = t->xr, .w = p->receptance, .y = a->r, .dy = t->dr, .dx = t->xr, .dw = G->receptance},
        .k = {.fresh = c->fresh, .x = t->xk, .w = p->key, .y = a->k, .dy = t->dk, .dx = t->xk, .dw = G->key},
        .v = {.fresh = c->fresh, .x = t->xv, .w = p->value, .y = a->v, .dy = t->dv, .dx = t->xv, .dw = G->value},
        .g = {.fresh = c->fresh, .x = t->xg, .w = p->gate, .y = a->g, .dy = t->o, .dx = t->xg, .dw = G->gate},
        .wkv = {.r = a->r, .k = a->k, .v = a->v, .w = p->decay, .u = p->faaaa, .s0 = before->wkv, .sT = after->wkv, .y = t->y,
                .ckpt = t->ckpt, .dy = t->dy, .dsT = dafter->wkv, .dr = t->dr, .dk = t->dk, .dv = t->dv, .dw = G->decay,
                .du = G->faaaa, .sums = t->sums, .ds0 = dbefore->wkv},
        .gate = {.y = t->y, .w = p->ln_x_w, .b = p->ln_x_b, .g = a->g, .o = t->o, .do_ = t->o, .dy = t->dy, .dg = t->o,
                 .dw = G->ln_x_w, .db = G->ln_x_b, .eps = 1e-5 * c->dims.divisor * c->dims.divisor},
        .out = {.fresh = c->fresh, .x = t->o, .w = p->output, .y = c->y, .dy = c->dy, .dx = t->o, .dw = G->output},
    };
}

static int fwd(const RkCall *c) {
    const RkBackend *be = c->be;
    Ops o = wire(c);
    RK_TRY(be->shift_lerp_fwd(&o.mix));
    RkProducts products = {.linear = {&o.r, &o.k, &o.v, &o.g}};
    RK_TRY(rk_products_fwd(be, &products));
    RkWkv6 read_out = o.wkv; /* the backward runs it again and saves what it needs then */
    read_out.ckpt.p = NULL;
    RK_TRY(be->wkv5_fwd(&read_out));
    RK_TRY(be->norm_gate_fwd(&o.gate));
    return be->linear_fwd(&o.out);
}

static int bwd(const RkCall *c) {
    const RkBackend *be = c->be;
    Ops o = wire(c);
    RkShiftLerp again = o.mix;
    RkWkv6 wkv = o.wkv;
    again.last.p = wkv.sT.p = NULL;
    RK_TRY(be->shift_lerp_fwd(&again));
    RK_TRY(be->wkv5_fwd(&wkv));
    RK_TRY(be->norm_gate_fwd(&o.gate));
    RK_TRY(be->linear_bwd(&o.out));
    RK_TRY(be->norm_gate_bwd(&o.gate));
    RK_TRY(be->wkv5_bwd(&o.wkv));
    RK_TRY(be->linear_bwd(&o.g));
    RK_TRY(be->linear_bwd(&o.v));
    RK_TRY(be->linear_bwd(&o.k));
    RK_TRY(be->linear_bwd(&o.r));
    return be->shift_lerp_bwd(&o.mix);
}

RK_MIXER(x052_tmix, .fwd = fwd, .bwd = bwd);
