/* ddlerp.h - RWKV-6's data-dependent token shift: up to six lerps whose coefficients are low-rank functions of the input.
 *
 *   delta = p - x, p_t = x_{t-1}, p_0 = prev       h = tanh((x + delta mu_x) m1), seen as n groups of D
 *   y_z = x + delta (mu_z + h_z m2_z)              z = 0..n-1; the small matrices are stored (in, out) as in checkpoints
 *
 * last = x_{T-1}, the state handed to the next call; it may be the same memory as prev.
 * Backward, with l_z = mu_z + h_z m2_z:  c_z = dy_z delta is the gradient of l_z:  dmu_z += sum c_z,  dm2_z += h_z^T c_z,
 * dh_z = (c_z m2_z^T)(1 - h_z^2),  dm1 += (x + delta mu_x)^T dh,  f = dh m1^T,  dmu_x += sum f delta;
 * e_t = sum_z dy_z l_z + f mu_x:  dx_t = sum_z dy_z + f - e_t + e_{t+1} (e_T = 0, plus dlast at T-1),  dprev = e_0.
 * prev is still the one the forward read. Source: "Eagle and Finch" (2024), RWKV-LM RWKV-v5. */
#ifndef RK_OPS_DDLERP_H
#define RK_OPS_DDLERP_H

#define RK_DDLERP_FIELDS(T, T6, I, F, IDS)                                                   \
    T(x) /* (B,T,C) */ T(prev) /* (B,C) opt: zeros */ T(last) /* (B,C) opt, written */       \
    T(mu_x) /* (C) */ T6(mu) /* n x (C) */ T(m1) /* (C,n D) */ T(m2) /* (n,D,C) */           \
    T(h) /* (B,T,n D) saved */ T6(y) /* n x (B,T,C) written */ T(mixed) /* (B,T,C) scratch */ \
    T6(dy) /* n x (B,T,C) */ T(dlast) /* (B,C) opt */                                        \
    T(dh) /* (B,T,n D) scratch */ T(e) /* (B,T,C) scratch */                                 \
    T(dx) /* (B,T,C) written */ T(dprev) /* (B,C) opt, written */                            \
    T(dmu_x) T6(dmu) T(dm1) T(dm2) /* as mu_x, mu, m1, m2; added to */
RK_ARGS_STRUCT(RkDdlerp, RK_DDLERP_FIELDS)

#endif
