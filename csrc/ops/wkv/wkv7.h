/* wkv7.h - the RWKV-7 state recurrence (generalised delta rule), per sequence and head.
 *
 *   d_t = exp(-e^{-1/2} sigma(s_t))          decay per key slot, from its logit s
 *   z_t = S_{t-1} a_t                        S is (value, key) in the formulas
 *   S_t = S_{t-1} diag(d_t) + z_t b_t^T + v_t k_t^T
 *   y_t = S_t r_t
 *
 * In memory a state is (H, key, value): the recurrence then runs along contiguous values with no horizontal sums.
 * The forward for training saves z and the state before every RK_WKV_CHUNK-th token; the backward runs each
 * chunk forward again and keeps its states. Inverting the recurrence instead would save that work but amplifies
 * rounding by up to e^{0.6065 (chunk-1)}.
 *
 * Backward, t = T..1, with D the gradient of S_t:
 *   D += dy r^T;  dr = S_t^T dy;  dv = D k;  dk = D^T v;  dz = D b;  db = D^T z;  da = S_{t-1}^T dz;
 *   ds = -e^{-1/2} sigma(s)(1-sigma(s)) d colsum(S_{t-1} * D);   D = D diag(d) + dz a^T;   ds0 = D at the end.
 * Formulas: RWKV-7 "Goose" (2025), section on the WKV operator; any T, any head size. */
#ifndef RK_OPS_WKV7_H
#define RK_OPS_WKV7_H

enum { RK_WKV_CHUNK = 16 };

/* Whether a call that saves goes by chunks instead: on activations of 16 bits, with heads of these sizes. A checkpoint then has
 * elements of their type, in an order of its own, and z is not saved. */
static inline int rk_wkv7_by_chunks(int dtype, int N) {
    return (dtype == RK_BF16 || dtype == RK_F16) && (N == 32 || N == 64 || N == 128);
}

#define RK_WKV7_FIELDS(T, T6, I, F, IDS)                                                     \
    T(r) T(s) T(k) T(v) T(a) T(b) /* (B,T,H,N) */                                            \
    T(s0) /* (B,H,N,N) initial state, opt: zeros */                                          \
    T(sT) /* (B,H,N,N) final state, opt, written; may be s0 in inference */                  \
    T(y) /* (B,T,H,N) written */                                                             \
    T(z) /* (B,T,H,N) saved, opt */ T(ckpt) /* (B*H, ceil(T/16), N, N) saved, opt */         \
    T(dy) /* (B,T,H,N) */ T(dsT) /* (B,H,N,N) opt */                                         \
    T(dr) T(dk) T(dv) /* (B,T,H,N) ADDED TO: they already hold the bonus path's part */      \
    T(ds) T(da) T(db) /* (B,T,H,N) written */ T(ds0) /* (B,H,N,N) opt, written */
RK_ARGS_STRUCT(RkWkv7, RK_WKV7_FIELDS)

#endif
