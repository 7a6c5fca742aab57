/* initial_state.h - a trained initial state into every sequence's state: s[b,h,j,i] = p[h,i,j], since checkpoints hold (H, value, key)
 * and states (H, key, value). Backward: dp[h,i,j] += sum_b ds[b,h,j,i]. */
#ifndef RK_OPS_INITIAL_STATE_H
#define RK_OPS_INITIAL_STATE_H

#define RK_INITIAL_STATE_FIELDS(T, T6, I, F, IDS)      \
    T(p) /* (H,N,N) */ T(s) /* (B,H,N,N) written */    \
    T(ds) /* (B,H,N,N) */ T(dp) /* (H,N,N) added to */
RK_ARGS_STRUCT(RkInitialState, RK_INITIAL_STATE_FIELDS)

#endif
