/* attention - causal softmax attention with H heads of queries and G <= H heads of keys and values.
 *
 *     q = x Q^T    k = x K^T    v = x V^T            with rotary positions, q and k turned by ops/attn/rope.h
 *     y = attention(q, k, v) over the keys of the past and of this call       see ops/attn/attention.h
 *     out = y O^T
 *
 * The state is the keys (already turned) and values of all tokens read so far; it grows with every call.
 * Saved for the backward: q, k, v, y and the log of the softmax's sums.
 * Names of the weights: att.q_proj, k_proj, v_proj, o_proj, without biases. */
#include "mixers/mixer.h"

/* clang-format off */
#define HEAD SHAPE(D_B, D_T, D_H, D_N)
#define KEYS SHAPE(D_B, D_T, D_G, D_N)

#define PARAMS(P)                                                                 \
    P(q_proj, "att.q_proj.weight", SHAPE(D_C, D_C),  NORMAL(0.02),      P_WEIGHT) \
    P(k_proj, "att.k_proj.weight", SHAPE(D_GN, D_C), NORMAL(0.02),      P_WEIGHT) \
    P(v_proj, "att.v_proj.weight", SHAPE(D_GN, D_C), NORMAL(0.02),      P_WEIGHT) \
    P(o_proj, "att.o_proj.weight", SHAPE(D_C, D_C),  NORMAL_DEEP(0.02), P_WEIGHT)
#define SAVED(A) A(q, HEAD, 0) A(k, KEYS, 0) A(v, KEYS, 0) A(y, HEAD, 0) A(lse, SHAPE(D_B, D_H, D_T), A_TRAIN | A_SUM)
#define SCRATCH(A)                                                                \
    A(dy, HEAD, A_TRAIN) A(dq, HEAD, A_TRAIN) A(dk, KEYS, A_TRAIN)                \
    A(dv, KEYS, A_TRAIN) A(dx, SHAPE(D_B, D_T, D_C), A_TRAIN)
#define STATE(A) A(key_cache, SHAPE(D_B, D_P, D_G, D_N), 0) A(value_cache, SHAPE(D_B, D_P, D_G, D_N), 0)
/* clang-format on */

typedef struct { PARAMS(RK_FIELD) } Params;
typedef struct { SAVED(RK_FIELD) } Saved;
typedef struct { SCRATCH(RK_FIELD) } Scratch;
typedef struct { STATE(RK_FIELD) } State;
typedef struct { RkLinear q, k, v, out; RkRope turn_q, turn_k; RkAttention att; RkAdd join; } Ops;

/* The wiring, stated once: the forward runs these ops downwards, the backward upwards. */
static Ops wire(const RkCall *c) {
    const Params *p = (const void *)c->par, *g = (const void *)c->grad;
    const Saved *a = (const void *)c->act;
    const Scratch *t = (const void *)c->tmp;
    const State *before = (const void *)c->state, *after = (const void *)c->state_out;
    const State *dbefore = (const void *)c->dstate, *dafter = (const void *)c->dstate_out;
    int past = c->dims.P;
    return (Ops){
        .q = {.fresh = c->fresh, .x = c->x, .w = p->q_proj, .y = a->q, .dy = t->dq, .dx = c->dx, .dw = g->q_proj},
        .k = {.fresh = c->fresh, .x = c->x, .w = p->k_proj, .y = a->k, .dy = t->dk, .dx = t->dx, .dw = g->k_proj},
        .v = {.fresh = c->fresh, .x = c->x, .w = p->v_proj, .y = a->v, .dy = t->dv, .dx = t->dx, .dw = g->v_proj},
        .turn_q = {.past = past, .x = a->q, .y = a->q, .dy = t->dq, .dx = t->dq},
        .turn_k = {.past = past, .x = a->k, .y = a->k, .dy = t->dk, .dx = t->dk},
        .att = {.past = past, .q = a->q, .k = a->k, .v = a->v, .k_past = before->key_cache, .v_past = before->value_cache,
                .k_all = after->key_cache, .v_all = after->value_cache, .y = a->y, .lse = a->lse, .dy = t->dy,
                .dk_all = dafter->key_cache, .dv_all = dafter->value_cache, .dq = t->dq, .dk = t->dk, .dv = t->dv,
                .dk_past = dbefore->key_cache, .dv_past = dbefore->value_cache},
        .out = {.fresh = c->fresh, .x = a->y, .w = p->o_proj, .y = c->y, .dy = c->dy, .dx = t->dy, .dw = g->o_proj},
        .join = {.a = c->dx, .b = t->dx, .y = c->dx},
    };
}

static int fwd(const RkCall *c) {
    const RkBackend *be = c->be;
    Ops o = wire(c);
    RkProducts products = {.linear = {&o.q, &o.k, &o.v}};
    RK_TRY(rk_products_fwd(be, &products));
    if (c->dims.rope) {
        RK_TRY(be->rope_fwd(&o.turn_q));
        RK_TRY(be->rope_fwd(&o.turn_k));
    }
    RK_TRY(be->attention_fwd(&o.att));
    return be->linear_fwd(&o.out);
}

static int bwd(const RkCall *c) {
    const RkBackend *be = c->be;
    Ops o = wire(c);
    RK_TRY(be->linear_bwd(&o.out));
    RK_TRY(be->attention_bwd(&o.att));
    if (c->dims.rope) {
        RK_TRY(be->rope_bwd(&o.turn_q));
        RK_TRY(be->rope_bwd(&o.turn_k));
    }
    RK_TRY(be->linear_bwd(&o.q));
    RK_TRY(be->linear_bwd(&o.k));
    RK_TRY(be->add_fwd(&o.join));
    RK_TRY(be->linear_bwd(&o.v));
    return be->add_fwd(&o.join);
}

static int check(const RkDims *d) {
    RK_CHECK(d->G >= 1 && d->H % d->G == 0, "%d heads of keys and values cannot be shared by %d heads; n_kv_head must divide them",
             d->G, d->H);
    RK_CHECK(!d->rope || d->N % 2 == 0, "rotary positions need an even head size, not %d; set rope off or another head_size_a", d->N);
    return RK_OK;
}

RK_MIXER(attention_tmix, .fwd = fwd, .bwd = bwd, .check = check);
