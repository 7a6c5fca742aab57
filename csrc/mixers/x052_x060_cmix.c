/* x052_x060_cmix - the channel mix of RWKV-5.2 and of RWKV-6: two mixers that differ in names, initial values and in the
 * sense of the mixing coefficients.
 *
 *     x^z = x + (shift(x) - x) time_maa_z    or    shift(x) + (x - shift(x)) time_mix_z, for z in k r
 *     k = x^k K^T        y = sigmoid(x^r R^T) (relu(k)^2 V^T)
 *
 * Saved for the backward: the results of matrix products. The mixed inputs and relu(k)^2 are computed again.
 * Source: RWKV-LM, RWKV-v5; "Eagle and Finch" (2024). */
#include "mixers/ramps.h"

static double ramp_mix(const RkInitAt *at, int i) { return share(at, i, depth_left(at)); }
static double ramp_maa(const RkInitAt *at, int i) { return 1 - share(at, i, pow(depth_left(at), 3)); }

/* clang-format off */
#define PARAMS(P, prefix, ramp)                                                             \
    P(mix_k, "ffn." prefix "_k", SHAPE(1, 1, D_C), RAMP(ramp), 0)                           \
    P(mix_r, "ffn." prefix "_r", SHAPE(1, 1, D_C), RAMP(ramp), 0)                           \
    P(key,        "ffn.key.weight",        SHAPE(D_F, D_C), ORTHO(1), P_WEIGHT)             \
    P(receptance, "ffn.receptance.weight", SHAPE(D_C, D_C), CONST(0), P_WEIGHT)             \
    P(value,      "ffn.value.weight",      SHAPE(D_C, D_F), CONST(0), P_WEIGHT | P_SPARSE)
#define SAVED(A) A(k, SHAPE(D_B, D_T, D_F), 0) A(r, SHAPE(D_B, D_T, D_C), 0) A(v, SHAPE(D_B, D_T, D_C), 0)
#define SCRATCH(A)                                                                          \
    A(xk, SHAPE(D_B, D_T, D_C), 0) A(xr, SHAPE(D_B, D_T, D_C), 0) A(h, SHAPE(D_B, D_T, D_F), 0) \
    A(dr, SHAPE(D_B, D_T, D_C), A_TRAIN) A(dv, SHAPE(D_B, D_T, D_C), A_TRAIN)
#define STATE(A) A(ffn_shift, SHAPE(D_B, D_C), 0)
/* clang-format on */

typedef struct { PARAMS(RK_FIELD, "", NULL) } Params;
typedef struct { SAVED(RK_FIELD) } Saved;
typedef struct { SCRATCH(RK_FIELD) } Scratch;
typedef struct { STATE(RK_FIELD) } State;
typedef struct { RkShiftLerp mix; RkLinear key, receptance, value; RkRelu2 act; RkSigmoidGate gate; } Ops;

/* The wiring, stated once: the forward runs these ops downwards, the backward upwards. Gradients of scratch rows
 * replace the rows themselves. */
static Ops wire(const RkCall *c, int keep) {
    const Params *p = (const void *)c->par, *g = (const void *)c->grad;
    const Saved *a = (const void *)c->act;
    const Scratch *t = (const void *)c->tmp;
    const State *before = (const void *)c->state, *after = (const void *)c->state_out;
    const State *dbefore = (const void *)c->dstate, *dafter = (const void *)c->dstate_out;
    return (Ops){
        .mix = {.n = 2, .keep = keep, .x = c->x, .prev = before->ffn_shift, .last = after->ffn_shift, .mu = {p->mix_k, p->mix_r},
                .y = {t->xk, t->xr}, .dy = {t->xk, t->xr}, .dlast = dafter->ffn_shift, .dx = c->dx, .dprev = dbefore->ffn_shift,
                .dmu = {g->mix_k, g->mix_r}},
        .key = {.fresh = c->fresh, .x = t->xk, .w = p->key, .y = a->k, .dy = t->h, .dx = t->xk, .dw = g->key},
        .act = {.x = a->k, .y = t->h, .dy = t->h, .dx = t->h},
        .value = {.fresh = c->fresh, .x = t->h, .w = p->value, .columns = c->columns, .y = a->v, .dy = t->dv, .dx = t->h, .dw = g->value},
        .receptance = {.fresh = c->fresh, .x = t->xr, .w = p->receptance, .y = a->r, .dy = t->dr, .dx = t->xr, .dw = g->receptance},
        .gate = {.q = a->r, .v = a->v, .y = c->y, .dy = c->dy, .dq = t->dr, .dv = t->dv},
    };
}

static int fwd(const RkCall *c, int keep) {
    Ops o = wire(c, keep);
    RK_TRY(c->be->shift_lerp_fwd(&o.mix));
    RkProducts products = {.linear = {&o.receptance, &o.key}};
    RK_TRY(rk_products_fwd(c->be, &products));
    RK_TRY(c->be->relu2_fwd(&o.act));
    RK_TRY(c->be->linear_fwd(&o.value));
    return c->be->sigmoid_gate_fwd(&o.gate);
}

static int bwd(const RkCall *c, int keep) {
    Ops o = wire(c, keep);
    RkShiftLerp again = o.mix;
    again.last.p = NULL;
    RK_TRY(c->be->shift_lerp_fwd(&again));
    RK_TRY(c->be->relu2_fwd(&o.act));
    RK_TRY(c->be->sigmoid_gate_bwd(&o.gate));
    RK_TRY(c->be->linear_bwd(&o.value));
    RK_TRY(c->be->relu2_bwd(&o.act));
    RK_TRY(c->be->linear_bwd(&o.key));
    RK_TRY(c->be->linear_bwd(&o.receptance));
    return c->be->shift_lerp_bwd(&o.mix);
}

static int x052_fwd(const RkCall *c) { return fwd(c, 1); }
static int x052_bwd(const RkCall *c) { return bwd(c, 1); }
static int x060_fwd(const RkCall *c) { return fwd(c, 0); }
static int x060_bwd(const RkCall *c) { return bwd(c, 0); }

static const RkParamSpec x052_params[] = {PARAMS(RK_PARAM_ROW, "time_mix", ramp_mix)};
static const RkParamSpec x060_params[] = {PARAMS(RK_PARAM_ROW, "time_maa", ramp_maa)};
static const RkRowSpec saved[] = {SAVED(RK_ROW)}, scratch[] = {SCRATCH(RK_ROW)}, state[] = {STATE(RK_ROW)};
#define MIXER(version)                                                                       \
    extern const RkMixer rk_##version##_cmix;                                                \
    const RkMixer rk_##version##_cmix = {                                                    \
        .name = #version "_cmix", .fwd = version##_fwd, .bwd = version##_bwd,                \
        .par = version##_params, .n_par = RK_ROWS(Params), .act = saved, .n_act = RK_ROWS(Saved), \
        .tmp = scratch, .n_tmp = RK_ROWS(Scratch), .state = state, .n_state = RK_ROWS(State), \
    };
MIXER(x052)
MIXER(x060)
