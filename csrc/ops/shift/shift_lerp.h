/* shift_lerp.h - token shift and up to six lerps at once: y_z = x + (p - x) mu_z, p_t = x_{t-1}, p_0 = prev.
 *
 * With keep, mu_z is the share of the token itself as in RWKV-5: read 1 - mu_z for mu_z here and below, and -dmu_z for dmu_z.
 * last = x_{T-1}, the state handed to the next call; it may be the same memory as prev.
 * Backward, with e_t = sum_z dy_z mu_z:  dx_t = sum_z dy_z - e_t + e_{t+1} (e_T = 0, plus dlast at T-1),
 * dprev = e_0,  dmu_z += sum_{b,t} dy_z (p - x).  prev is still the one the forward read. */
#ifndef RK_OPS_SHIFT_LERP_H
#define RK_OPS_SHIFT_LERP_H

#define RK_SHIFT_LERP_FIELDS(T, T6, I, F, IDS)                                               \
    I(n) /* how many lerps, 1..6 */ I(keep) /* 0 or 1 */                                     \
    T(x) /* (B,T,C) */ T(prev) /* (B,C) opt: zeros */ T(last) /* (B,C) opt, written */       \
    T6(mu) /* n x (C) */ T6(y) /* n x (B,T,C) written */                                     \
    T6(dy) /* n x (B,T,C) */ T(dlast) /* (B,C) opt */                                        \
    T(dx) /* (B,T,C) written */ T(dprev) /* (B,C) opt, written */ T6(dmu) /* n x (C) added to */
RK_ARGS_STRUCT(RkShiftLerp, RK_SHIFT_LERP_FIELDS)

#endif
