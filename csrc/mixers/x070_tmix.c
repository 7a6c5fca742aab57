/* x070_tmix - RWKV-7 time mix.
 *
 *     x^z = x + (shift(x) - x) x_z                      for z in r w k v a g
 *     r = x^r R^T    k0 = x^k K^T    v0 = x^v V^T       receptance, key, value
 *     s  = w0 + tanh(x^w w1) w2                         decay logit
 *     a  = a0 + (x^a a1) a2                             in-context learning rate, before its sigmoid
 *     nu = v0' + (x^v v1) v2                            value-residual gate, before its sigmoid (later layers)
 *     g  = sigmoid(x^g g1) g2                           output gate
 *     v  = v0 + (v_first - v0) sigmoid(nu)              the first layer defines v_first = v0
 *     k, alpha, beta = key_prep(k0, a)                  see ops/gate/key_prep.h
 *     y  = wkv7(r, s, k, v, alpha, beta)
 *     out = out_gate(y, r, k, v, g) O^T                 group norm + bonus, gated
 *
 * Saved for the backward: the results of the large products, and the thin products' hidden rows. Everything else is computed
 * again: that is 2 % of a step's time and more than half of its activations, of which y and what wkv7 needs are 6 C numbers
 * per token and s, a, nu and g are 4 C.
 * Source: RWKV-LM, RWKV-v7/train_temp; "RWKV-7 Goose" (2025). */
#include "mixers/ramps.h"

/* ---- initial values; l = layer, i = channel ---- */

static double lerp_ramp(const RkInitAt *at, int i, double power) { return 1 - pow((double)i / at->C, power * depth_left(at)); }

static double ramp_x_rg(const RkInitAt *at, int i) { return lerp_ramp(at, i, 0.2); }
static double ramp_x_wa(const RkInitAt *at, int i) { return lerp_ramp(at, i, 0.9); }
static double ramp_x_kv(const RkInitAt *at, int i) { return lerp_ramp(at, i, 0.7); }

/* From -1 to 1 across each head, bent by z |z|. */
static double zigzag(const RkInitAt *at, int i) {
    double half = (at->N - 1) / 2.0, z = half > 0 ? (i % at->N - half) / half : 0;
    return z * fabs(z);
}
static double ramp_w0(const RkInitAt *at, int i) {
    return -6 + 6 * pow(along(at, i), 1 + pow(depth_done(at), 0.3)) + 0.5 + 2.5 * zigzag(at, i);
}
static double ramp_a0(const RkInitAt *at, int i) { return -0.19 + 0.3 * zigzag(at, i) + 0.4 * (along(at, i) - 0.5); }
static double ramp_v0(const RkInitAt *at, int i) { return 0.73 - 0.4 * (along(at, i) - 0.5); }
static double ramp_k_k(const RkInitAt *at, int i) { return 0.71 - 0.1 * (along(at, i) - 0.5); }

/* clang-format off */
#define VEC  SHAPE(1, 1, D_C)
#define ROWS SHAPE(D_B, D_T, D_C)
#define HEAD SHAPE(D_B, D_T, D_H, D_N)

#define PARAMS(P)                                                                       \
    P(x_r, "att.x_r", VEC, RAMP(ramp_x_rg), 0) P(x_w, "att.x_w", VEC, RAMP(ramp_x_wa), 0) \
    P(x_k, "att.x_k", VEC, RAMP(ramp_x_kv), 0) P(x_v, "att.x_v", VEC, RAMP(ramp_x_kv), 0) \
    P(x_a, "att.x_a", VEC, RAMP(ramp_x_wa), 0) P(x_g, "att.x_g", VEC, RAMP(ramp_x_rg), 0) \
    P(w1, "att.w1", SHAPE(D_C, D_DW), CONST(0),        P_HALF)                          \
    P(w2, "att.w2", SHAPE(D_DW, D_C), ORTHO_TALL(0.1), P_HALF)                          \
    P(w0, "att.w0", VEC,              RAMP(ramp_w0),   P_LR2X)                          \
    P(a1, "att.a1", SHAPE(D_C, D_DA), CONST(0),        P_HALF)                          \
    P(a2, "att.a2", SHAPE(D_DA, D_C), ORTHO_TALL(0.1), P_HALF)                          \
    P(a0, "att.a0", VEC,              RAMP(ramp_a0),   0)                               \
    P(v1, "att.v1", SHAPE(D_C, D_DV), CONST(0),        P_VALUE_GATE | P_HALF)           \
    P(v2, "att.v2", SHAPE(D_DV, D_C), ORTHO_TALL(0.1), P_VALUE_GATE | P_HALF)           \
    P(v0, "att.v0", VEC,              RAMP(ramp_v0),   P_VALUE_GATE)                    \
    P(g1, "att.g1", SHAPE(D_C, D_DG), CONST(0),        P_HALF)                          \
    P(g2, "att.g2", SHAPE(D_DG, D_C), ORTHO_TALL(0.1), P_HALF)                          \
    P(k_k, "att.k_k", VEC, RAMP(ramp_k_k), 0)                                           \
    P(k_a, "att.k_a", VEC, CONST(1.02),    0)                                           \
    P(r_k, "att.r_k", SHAPE(D_H, D_N), CONST(-0.04), 0)                                 \
    P(receptance, "att.receptance.weight", SHAPE(D_C, D_C), ORTHO(1),   P_WEIGHT)       \
    P(key,        "att.key.weight",        SHAPE(D_C, D_C), ORTHO(0.1), P_WEIGHT)       \
    P(value,      "att.value.weight",      SHAPE(D_C, D_C), ORTHO(1),   P_WEIGHT)       \
    P(output,     "att.output.weight",     SHAPE(D_C, D_C), CONST(0),   P_WEIGHT)       \
    P(ln_x_w, "att.ln_x.weight", SHAPE(D_C), RAMP(ramp_ln_x), 0)                        \
    P(ln_x_b, "att.ln_x.bias",   SHAPE(D_C), CONST(0),        0)                        \
    P(time_state, "att.time_state", SHAPE(D_H, D_N, D_N), CONST(0), P_INIT_STATE)

#define SAVED(A)                                                                        \
    A(r, HEAD, 0) A(k0, HEAD, 0) A(v0, HEAD, 0)                                         \
    A(hw, SHAPE(D_B, D_T, D_DW), 0) A(ha, SHAPE(D_B, D_T, D_DA), 0)                     \
    A(hv, SHAPE(D_B, D_T, D_DV), 0) A(hg, SHAPE(D_B, D_T, D_DG), 0)

/* In the backward the gradient of a mixed input replaces it: xr then holds dxr, and so on. Once wkv7's backward has run, alpha,
 * beta and k give their places to da, dnu and the second part of dxv. */
#define SCRATCH(A)                                                                      \
    A(xr, ROWS, 0) A(xw, ROWS, 0) A(xk, ROWS, 0) A(xv, ROWS, 0) A(xa, ROWS, 0)          \
    A(xg, ROWS, 0) A(s, HEAD, 0) A(a, HEAD, 0) A(nu, HEAD, 0) A(g, ROWS, 0)             \
    A(v, HEAD, 0) A(k, HEAD, 0) A(alpha, HEAD, 0) A(beta, HEAD, 0) A(y, HEAD, 0) A(o, ROWS, 0) \
    A(z, HEAD, A_TRAIN | A_TOKENWISE)                                                   \
    A(ckpt, SHAPE(D_BH, D_CHUNKS, D_N, D_N), A_TRAIN | A_SUM | A_TOKENWISE)             \
    A(dr, HEAD, A_TRAIN) A(dk, HEAD, A_TRAIN) A(dv, HEAD, A_TRAIN) A(dy, HEAD, A_TRAIN) \
    A(ds, HEAD, A_TRAIN) A(dalpha, HEAD, A_TRAIN) A(dbeta, HEAD, A_TRAIN)               \
    A(dhw, SHAPE(D_B, D_T, D_DW), A_TRAIN) A(dha, SHAPE(D_B, D_T, D_DA), A_TRAIN)       \
    A(dhv, SHAPE(D_B, D_T, D_DV), A_TRAIN) A(dhg, SHAPE(D_B, D_T, D_DG), A_TRAIN)

#define STATE(A) A(att_shift, SHAPE(D_B, D_C), 0) A(wkv, SHAPE(D_B, D_H, D_N, D_N), P_INIT_STATE)
/* clang-format on */

typedef struct { PARAMS(RK_FIELD) } Params;
typedef struct { SAVED(RK_FIELD) } Saved;
typedef struct { SCRATCH(RK_FIELD) } Scratch;
typedef struct { STATE(RK_FIELD) } State;
typedef struct {
    int first; /* this layer defines v_first */
    RkTensor dv0;
    RkShiftLerp mix;
    RkLinear r, k, v, out;
    RkLowrank w, a, nu, g;
    RkValueResidual residual;
    RkKeyPrep prep;
    RkWkv7 wkv;
    RkOutGate gate;
} Ops;

static const double LN_X_EPS = 64e-5; /* of the per-head group norm, for every head size */

/* The wiring, stated once: the forward runs these ops downwards, the backward upwards. */
static Ops wire(const RkCall *c) {
    const Params *p = (const void *)c->par, *G = (const void *)c->grad;
    const Saved *a = (const void *)c->act;
    const Scratch *t = (const void *)c->tmp;
    const State *before = (const void *)c->state, *after = (const void *)c->state_out;
    const State *dbefore = (const void *)c->dstate, *dafter = (const void *)c->dstate_out;
    int first = c->layer == c->carry->value_layer;
    RkTensor v0 = first ? c->carry->v_first : a->v0, v = first ? v0 : t->v;
    return (Ops){
        .first = first, .dv0 = t->dv,
        .mix = {.n = 6, .x = c->x, .prev = before->att_shift, .last = after->att_shift,
                .mu = {p->x_r, p->x_w, p->x_k, p->x_v, p->x_a, p->x_g}, .y = {t->xr, t->xw, t->xk, t->xv, t->xa, t->xg},
                .dy = {t->xr, t->xw, t->xk, t->xv, t->xa, t->xg}, .dlast = dafter->att_shift, .dx = c->dx,
                .dprev = dbefore->att_shift, .dmu = {G->x_r, G->x_w, G->x_k, G->x_v, G->x_a, G->x_g}},
        .r = {.fresh = c->fresh, .x = t->xr, .w = p->receptance, .y = a->r, .dy = t->dr, .dx = t->xr, .dw = G->receptance},
        .k = {.fresh = c->fresh, .x = t->xk, .w = p->key, .y = a->k0, .dy = t->dk, .dx = t->xk, .dw = G->key},
        .v = {.fresh = c->fresh, .x = t->xv, .w = p->value, .y = v0, .dy = t->dv, .dx = t->xv, .dw = G->value},
        .w = {.act = RK_ACT_TANH, .x = t->xw, .m1 = p->w1, .m2 = p->w2, .bias = p->w0, .h = a->hw, .y = t->s,
              .dy = t->ds, .dh = t->dhw, .dx = t->xw, .dm1 = G->w1, .dm2 = G->w2, .dbias = G->w0},
        .a = {.act = RK_ACT_NONE, .x = t->xa, .m1 = p->a1, .m2 = p->a2, .bias = p->a0, .h = a->ha, .y = t->a,
              .dy = t->alpha, .dh = t->dha, .dx = t->xa, .dm1 = G->a1, .dm2 = G->a2, .dbias = G->a0},
        .nu = {.act = RK_ACT_NONE, .x = t->xv, .m1 = p->v1, .m2 = p->v2, .bias = p->v0, .h = a->hv, .y = t->nu,
               .dy = t->beta, .dh = t->dhv, .dx = t->k, .dm1 = G->v1, .dm2 = G->v2, .dbias = G->v0},
        .g = {.act = RK_ACT_SIGMOID, .x = t->xg, .m1 = p->g1, .m2 = p->g2, .h = a->hg, .y = t->g,
              .dy = t->o, .dh = t->dhg, .dx = t->xg, .dm1 = G->g1, .dm2 = G->g2},
        .residual = {.v0 = v0, .v_first = c->carry->v_first, .nu = t->nu, .v = v, .dv = t->dv, .dv0 = t->dv,
                     .dnu = t->beta, .dv_first = c->carry->dv_first},
        .prep = {.k0 = a->k0, .a = t->a, .k_k = p->k_k, .k_a = p->k_a, .k = t->k, .alpha = t->alpha, .beta = t->beta,
                 .dk = t->dk, .dalpha = t->dalpha, .dbeta = t->dbeta, .dk0 = t->dk, .da = t->alpha, .dk_k = G->k_k,
                 .dk_a = G->k_a},
        .wkv = {.r = a->r, .s = t->s, .k = t->k, .v = v, .a = t->alpha, .b = t->beta, .s0 = before->wkv,
                .sT = after->wkv, .y = t->y, .z = t->z, .ckpt = t->ckpt, .dy = t->dy, .dsT = dafter->wkv,
                .dr = t->dr, .dk = t->dk, .dv = t->dv, .ds = t->ds, .da = t->dalpha, .db = t->dbeta, .ds0 = dbefore->wkv},
        .gate = {.y = t->y, .r = a->r, .k = t->k, .v = v, .r_k = p->r_k, .w = p->ln_x_w, .b = p->ln_x_b, .g = t->g,
                 .o = t->o, .do_ = t->o, .dy = t->dy, .dr = t->dr, .dk = t->dk, .dv = t->dv, .dg = t->o,
                 .dr_k = G->r_k, .dw = G->ln_x_w, .db = G->ln_x_b, .eps = LN_X_EPS},
        .out = {.fresh = c->fresh, .x = t->o, .w = p->output, .y = c->y, .dy = c->dy, .dx = t->o, .dw = G->output},
    };
}

/* v, k, alpha and beta: after the products in the forward, again in the backward. */
static int prepare(const RkBackend *be, const Ops *o) {
    if (!o->first) RK_TRY(be->value_residual_fwd(&o->residual));
    return be->key_prep_fwd(&o->prep);
}

static int fwd(const RkCall *c) {
    const RkBackend *be = c->be;
    Ops o = wire(c);
    RK_TRY(be->shift_lerp_fwd(&o.mix));
    RkProducts products = {.linear = {&o.r, &o.k, &o.v}, .lowrank = {&o.w, &o.a, &o.g, o.first ? NULL : &o.nu}};
    RK_TRY(rk_products_fwd(be, &products));
    RK_TRY(prepare(be, &o));
    RkWkv7 read_out = o.wkv; /* the backward runs it again and saves what it needs then */
    read_out.z.p = read_out.ckpt.p = NULL;
    RK_TRY(be->wkv7_fwd(&read_out));
    RK_TRY(be->out_gate_fwd(&o.gate));
    return be->linear_fwd(&o.out);
}

static int second_product(const RkBackend *be, RkLowrank o) {
    o.x.p = NULL;
    return be->lowrank_fwd(&o);
}

/* What the forward did not save: all of it but the large products and the thin products' hidden rows. */
static int recompute(const RkBackend *be, const Ops *o) {
    RkShiftLerp mix = o->mix;
    RkWkv7 wkv = o->wkv;
    mix.last.p = wkv.sT.p = NULL;
    RK_TRY(be->shift_lerp_fwd(&mix));
    RK_TRY(second_product(be, o->w));
    RK_TRY(second_product(be, o->a));
    RK_TRY(second_product(be, o->g));
    if (!o->first) RK_TRY(second_product(be, o->nu));
    RK_TRY(prepare(be, o));
    RK_TRY(be->wkv7_fwd(&wkv));
    return be->out_gate_fwd(&o->gate);
}

/* The value path: into nu and v_first in later layers, out of v_first in the first. */
static int value_bwd(const RkCall *c, const Ops *o) {
    const RkBackend *be = c->be;
    if (o->first) {
        RkAdd join = {.a = o->dv0, .b = c->carry->dv_first, .y = o->dv0};
        RK_TRY(be->add_fwd(&join));
        return be->linear_bwd(&o->v);
    }
    RK_TRY(be->value_residual_bwd(&o->residual));
    RK_TRY(be->lowrank_bwd(&o->nu)); /* before v's backward replaces xv */
    RK_TRY(be->linear_bwd(&o->v));
    RkAdd both = {.a = o->v.dx, .b = o->nu.dx, .y = o->v.dx};
    return be->add_fwd(&both);
}

static int bwd(const RkCall *c) {
    const RkBackend *be = c->be;
    Ops o = wire(c);
    RK_TRY(recompute(be, &o));
    RK_TRY(be->linear_bwd(&o.out));
    RK_TRY(be->out_gate_bwd(&o.gate));
    RK_TRY(be->wkv7_bwd(&o.wkv));
    RK_TRY(be->key_prep_bwd(&o.prep));
    RK_TRY(value_bwd(c, &o));
    RK_TRY(be->lowrank_bwd(&o.g));
    RK_TRY(be->lowrank_bwd(&o.a));
    RK_TRY(be->lowrank_bwd(&o.w));
    RK_TRY(be->linear_bwd(&o.k));
    RK_TRY(be->linear_bwd(&o.r));
    return be->shift_lerp_bwd(&o.mix);
}

RK_MIXER(x070_tmix, .fwd = fwd, .bwd = bwd);
