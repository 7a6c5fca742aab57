/* mlp - the transformer's channel mix: k = x fc^T, y = gelu(k) proj^T; no biases, no token shift, so no state.
 *
 * Saved for the backward: k. gelu(k) is cheap and is computed again. */
#include "mixers/mixer.h"

/* clang-format off */
#define PARAMS(P)                                                               \
    P(fc,   "ffn.fc.weight",   SHAPE(D_F, D_C), NORMAL(0.02),      P_WEIGHT)    \
    P(proj, "ffn.proj.weight", SHAPE(D_C, D_F), NORMAL_DEEP(0.02), P_WEIGHT)
#define SAVED(A)   A(k, SHAPE(D_B, D_T, D_F), 0)
#define SCRATCH(A) A(h, SHAPE(D_B, D_T, D_F), 0)
/* clang-format on */

typedef struct { PARAMS(RK_FIELD) } Params;
typedef struct { SAVED(RK_FIELD) } Saved;
typedef struct { SCRATCH(RK_FIELD) } Scratch;
typedef struct { RkLinear fc, proj; RkGelu act; } Ops;

/* The wiring, stated once. In the backward the gradient of h replaces it. */
static Ops wire(const RkCall *c) {
    const Params *p = (const void *)c->par, *g = (const void *)c->grad;
    const Saved *a = (const void *)c->act;
    const Scratch *t = (const void *)c->tmp;
    return (Ops){
        .fc = {.fresh = c->fresh, .x = c->x, .w = p->fc, .y = a->k, .dy = t->h, .dx = c->dx, .dw = g->fc},
        .act = {.x = a->k, .y = t->h, .dy = t->h, .dx = t->h},
        .proj = {.fresh = c->fresh, .x = t->h, .w = p->proj, .y = c->y, .dy = c->dy, .dx = t->h, .dw = g->proj},
    };
}

static int fwd(const RkCall *c) {
    Ops o = wire(c);
    RK_TRY(c->be->linear_fwd(&o.fc));
    RK_TRY(c->be->gelu_fwd(&o.act));
    return c->be->linear_fwd(&o.proj);
}

static int bwd(const RkCall *c) {
    Ops o = wire(c);
    RK_TRY(c->be->gelu_fwd(&o.act));
    RK_TRY(c->be->linear_bwd(&o.proj));
    RK_TRY(c->be->gelu_bwd(&o.act));
    return c->be->linear_bwd(&o.fc);
}

static const RkParamSpec params[] = {PARAMS(RK_PARAM_ROW)};
static const RkRowSpec saved[] = {SAVED(RK_ROW)}, scratch[] = {SCRATCH(RK_ROW)};
extern const RkMixer rk_mlp_cmix;
const RkMixer rk_mlp_cmix = {
    .name = "mlp_cmix", .fwd = fwd, .bwd = bwd,
    .par = params, .n_par = RK_ROWS(Params), .act = saved, .n_act = RK_ROWS(Saved), .tmp = scratch, .n_tmp = RK_ROWS(Scratch),
};
