/* norm_gate.h - the read-out of RWKV-5 and RWKV-6: group norm of the wkv output, gated by silu.
 *
 *   o = (GroupNorm_head(y; eps) w + b) silu(g),   silu(g) = g sigma(g)
 *
 * Backward:  dg = do (norm) sigma(g) (1 + g (1 - sigma(g)));  with do silu(g) in the place of do: dy, dw, db are the layer
 * norm's formulas per head. RWKV-5 divides y by head_size_divisor and takes eps = 1e-5; the norm of y itself with
 * eps = 1e-5 head_size_divisor^2 is the same number. */
#ifndef RK_OPS_NORM_GATE_H
#define RK_OPS_NORM_GATE_H

#define RK_NORM_GATE_FIELDS(T, T6, I, F, IDS)                                            \
    T(y) /* (B,T,H,N) */ T(w) T(b) /* (C) */ T(g) /* (R,C) */ T(o) /* (R,C) written */   \
    T(do_) /* (R,C) */ T(dy) /* (B,T,H,N) written */                                     \
    T(dg) /* (R,C) written; may be do_ */ T(dw) T(db) /* (C) added to */                 \
    F(eps)
RK_ARGS_STRUCT(RkNormGate, RK_NORM_GATE_FIELDS)

#endif
