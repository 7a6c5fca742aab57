/* x060_tmix - RWKV-6 time mix.
 *
 *     x^z = x + (shift(x) - x) (time_maa_z + low-rank part)   for z in w k v r g, see ops/shift/ddlerp.h
 *     r = x^r R^T    k = x^k K^T    v = x^v V^T    g = x^g G^T
 *     w = time_decay + tanh(x^w time_decay_w1) time_decay_w2   decay logit
 *     y = wkv6(r, k, v, w, u = time_faaaa)
 *     out = (group norm(y) silu(g)) O^T
 *
 * Saved for the backward: the results of the large matrix products and the hidden rows of the thin ones. The mixed inputs, w, y
 * and the chunks that wkv6 needs, 5 C numbers per token, are computed again.
 * Source: RWKV-LM, RWKV-v5; "Eagle and Finch" (2024). */
#include "mixers/ramps.h"

static double ramp_maa_xwk(const RkInitAt *at, int i) { return 1 - share(at, i, depth_left(at)); }
static double ramp_maa_v(const RkInitAt *at, int i) { return 1 - (share(at, i, depth_left(at)) + 0.3 * depth_done(at)); }
static double ramp_maa_rg(const RkInitAt *at, int i) { return 1 - share(at, i, 0.5 * depth_left(at)); }

/* clang-format off */
#define VEC  SHAPE(1, 1, D_C)
#define ROWS SHAPE(D_B, D_T, D_C)
#define HEAD SHAPE(D_B, D_T, D_H, D_N)

#define PARAMS(P)                                                                             \
    P(maa_x, "att.time_maa_x", VEC, RAMP(ramp_maa_xwk), 0)                                    \
    P(maa_w, "att.time_maa_w", VEC, RAMP(ramp_maa_xwk), 0)                                    \
    P(maa_k, "att.time_maa_k", VEC, RAMP(ramp_maa_xwk), 0)                                    \
    P(maa_v, "att.time_maa_v", VEC, RAMP(ramp_maa_v),   0)                                    \
    P(maa_r, "att.time_maa_r", VEC, RAMP(ramp_maa_rg),  0)                                    \
    P(maa_g, "att.time_maa_g", VEC, RAMP(ramp_maa_rg),  0)                                    \
    P(maa_w1, "att.time_maa_w1", SHAPE(D_C, D_5DM),    CONST(0),      0)                      \
    P(maa_w2, "att.time_maa_w2", SHAPE(5, D_DM, D_C),  UNIFORM(0.01), 0)                      \
    P(decay,    "att.time_decay",    VEC,              RAMP(ramp_time_decay), P_LR2X)         \
    P(decay_w1, "att.time_decay_w1", SHAPE(D_C, D_DW), CONST(0),      P_HALF)                 \
    P(decay_w2, "att.time_decay_w2", SHAPE(D_DW, D_C), UNIFORM(0.01), P_HALF)                 \
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
    A(r, HEAD, 0) A(k, HEAD, 0) A(v, HEAD, 0) A(g, ROWS, 0)                                   \
    A(hm, SHAPE(D_B, D_T, D_5DM), 0) A(hw, SHAPE(D_B, D_T, D_DW), 0)

/* In the backward the gradient of a mixed input replaces it: xr then holds dxr, and so on. o is room for ddlerp before the
 * read-out is there, and again when it has been used up; so is dy in the backward. */
#define SCRATCH(A)                                                                            \
    A(xw, ROWS, 0) A(xk, ROWS, 0) A(xv, ROWS, 0) A(xr, ROWS, 0) A(xg, ROWS, 0) A(o, ROWS, 0)  \
    A(w, HEAD, 0) A(y, HEAD, 0) A(ckpt, SHAPE(D_BH, D_CHUNKS, D_N, D_N), A_TRAIN | A_SUM)             \
    A(dr, HEAD, A_TRAIN) A(dk, HEAD, A_TRAIN) A(dv, HEAD, A_TRAIN) A(dw, HEAD, A_TRAIN)       \
    A(dy, HEAD, A_TRAIN) A(sums, SHAPE(D_BH, 2, D_N), A_TRAIN | A_SUM)                                \
    A(dhm, SHAPE(D_B, D_T, D_5DM), A_TRAIN) A(dhw, SHAPE(D_B, D_T, D_DW), A_TRAIN)

#define STATE(A) A(att_shift, SHAPE(D_B, D_C), 0) A(wkv, SHAPE(D_B, D_H, D_N, D_N), P_INIT_STATE)
/* clang-format on */

typedef struct { PARAMS(RK_FIELD) } Params;
typedef struct { SAVED(RK_FIELD) } Saved;
typedef struct { SCRATCH(RK_FIELD) } Scratch;
typedef struct { STATE(RK_FIELD) } State;
typedef struct {
    RkDdlerp mix;
    RkLinear r, k, v, g, out;
    RkLowrank w;
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
        .mix = {.x = c->x, .prev = before->att_shift, .last = after->att_shift, .mu_x = p->maa_x,
                .mu = {p->maa_w, p->maa_k, p->maa_v, p->maa_r, p->maa_g}, .m1 = p->maa_w1, .m2 = p->maa_w2, .h = a->hm,
                .y = {t->xw, t->xk, t->xv, t->xr, t->xg}, .mixed = t->o, .dy = {t->xw, t->xk, t->xv, t->xr, t->xg},
                .dlast = dafter->att_shift, .dh = t->dhm, .e = t->dy, .dx = c->dx, .dprev = dbefore->att_shift,
                .dmu_x = G->maa_x, .dmu = {G->maa_w, G->maa_k, G->maa_v, G->maa_r, G->maa_g}, .dm1 = G->maa_w1, .dm2 = G->maa_w2},
        .r = {.fresh = c->fresh, .x = t->xr, .w = p->receptance, .y = a->r, .dy = t->dr, .dx = t->xr, .dw = G->receptance},
        .k = {.fresh = c->fresh, .x = t->xk, .w = p->key, .y = a->k, .dy = t->dk, .dx = t->xk, .dw = G->key},
        .v = {.fresh = c->fresh, .x = t->xv, .w = p->value, .y = a->v, .dy = t->dv, .dx = t->xv, .dw = G->value},
        .g = {.fresh = c->fresh, .x = t->xg, .w = p->gate, .y = a->g, .dy = t->o, .dx = t->xg, .dw = G->gate},
        .w = {.act = RK_ACT_TANH, .x = t->xw, .m1 = p->decay_w1, .m2 = p->decay_w2, .bias = p->decay, .h = a->hw, .y = t->w,
              .dy = t->dw, .dh = t->dhw, .dx = t->xw, .dm1 = G->decay_w1, .dm2 = G->decay_w2, .dbias = G->decay},
        .wkv = {.r = a->r, .k = a->k, .v = a->v, .w = t->w, .u = p->faaaa, .s0 = before->wkv, .sT = after->wkv, .y = t->y,
                .ckpt = t->ckpt, .dy = t->dy, .dsT = dafter->wkv, .dr = t->dr, .dk = t->dk, .dv = t->dv, .dw = t->dw,
                .du = G->faaaa, .sums = t->sums, .ds0 = dbefore->wkv},
        .gate = {.y = t->y, .w = p->ln_x_w, .b = p->ln_x_b, .g = a->g, .o = t->o, .do_ = t->o, .dy = t->dy, .dg = t->o,
                 .dw = G->ln_x_w, .db = G->ln_x_b, .eps = 1e-5 * c->dims.divisor * c->dims.divisor},
        .out = {.fresh = c->fresh, .x = t->o, .w = p->output, .y = c->y, .dy = c->dy, .dx = t->o, .dw = G->output},
    };
}

static int fwd(const RkCall *c) {
    const RkBackend *be = c->be;
    Ops o = wire(c);
    RK_TRY(be->ddlerp_fwd(&o.mix));
    RkProducts products = {.linear = {&o.r, &o.k, &o.v, &o.g}, .lowrank = {&o.w}};
    RK_TRY(rk_products_fwd(be, &products));
    RkWkv6 read_out = o.wkv; /* the backward runs it again and saves what it needs then */
    read_out.ckpt.p = NULL;
    RK_TRY(be->wkv6_fwd(&read_out));
    RK_TRY(be->norm_gate_fwd(&o.gate));
    return be->linear_fwd(&o.out);
}

static int bwd(const RkCall *c) {
    const RkBackend *be = c->be;
    Ops o = wire(c);
    RkDdlerp again = o.mix;
    RkLowrank second = o.w; /* its second product */
    RkWkv6 wkv = o.wkv;
    again.last.p = second.x.p = wkv.sT.p = NULL;
    RK_TRY(be->ddlerp_fwd(&again));
    RK_TRY(be->lowrank_fwd(&second));
    RK_TRY(be->wkv6_fwd(&wkv));
    RK_TRY(be->norm_gate_fwd(&o.gate));
    RK_TRY(be->linear_bwd(&o.out));
    RK_TRY(be->norm_gate_bwd(&o.gate));
    RK_TRY(be->wkv6_bwd(&o.wkv));
    RK_TRY(be->linear_bwd(&o.g));
    RK_TRY(be->linear_bwd(&o.v));
    RK_TRY(be->linear_bwd(&o.k));
    RK_TRY(be->linear_bwd(&o.r));
    RK_TRY(be->lowrank_bwd(&o.w));
    return be->ddlerp_bwd(&o.mix);
}

RK_MIXER(x060_tmix, .fwd = fwd, .bwd = bwd);
