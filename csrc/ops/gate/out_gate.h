/* out_gate.h - RWKV-7's read-out: group norm of the wkv output, the bonus of the current token, the gate.
 *
 *   o = (GroupNorm_head(y; eps) w + b + (sum_j r_j k_j r_k[h,j]) v) g
 *
 * Backward, with o2 = o / g before gating:  dg = do o2,  do2 = do g;  bonus s = sum_j r k r_k:  ds = sum_j do2 v,
 *   dv = s do2,  dr = ds k r_k,  dk = ds r r_k,  dr_k += sum ds r k;  dy, dw, db: the layer norm's formulas per head. */
#ifndef RK_OPS_OUT_GATE_H
#define RK_OPS_OUT_GATE_H

#define RK_OUT_GATE_FIELDS(T, T6, I, F, IDS)                                             \
    T(y) T(r) T(k) T(v) /* (B,T,H,N) */ T(r_k) /* (H,N) */ T(w) T(b) /* (C) */             \
    T(g) /* (R,C) */ T(o) /* (R,C) written */                                            \
    T(do_) /* (R,C) */ T(dy) T(dr) T(dk) T(dv) /* (B,T,H,N) written */                     \
    T(dg) /* (R,C) written; may be do_ */ T(dr_k) T(dw) T(db) /* added to */             \
    F(eps)
RK_ARGS_STRUCT(RkOutGate, RK_OUT_GATE_FIELDS)

#endif
