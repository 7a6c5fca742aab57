/* value_residual.h - RWKV-7's value residual: v = v0 + (v_first - v0) sigma(nu).
 * Backward, with n = sigma(nu):  dv0 = dv (1-n),  dnu = dv (v_first - v0) n (1-n),  dv_first += dv n. */
#ifndef RK_OPS_VALUE_RESIDUAL_H
#define RK_OPS_VALUE_RESIDUAL_H

#define RK_VALUE_RESIDUAL_FIELDS(T, T6, I, F, IDS)                                   \
    T(v0) T(v_first) T(nu) /* (R,C) */ T(v) /* (R,C) written */                      \
    T(dv) /* (R,C) */ T(dv0) /* written; may be dv */ T(dnu) /* written */           \
    T(dv_first) /* (R,C) added to */
RK_ARGS_STRUCT(RkValueResidual, RK_VALUE_RESIDUAL_FIELDS)

#endif
