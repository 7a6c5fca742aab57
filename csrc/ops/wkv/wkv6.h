/* wkv6.h - the state recurrences of RWKV-5.2 (wkv5) and RWKV-6 (wkv6), per sequence and head.
 *
 *   d_t = exp(-exp(w_t))                     decay per key slot; wkv5: one w for all tokens, a parameter
 *   y_t = S_{t-1} r_t + v_t sum_j r_t u k_t  S is (value, key) in the formulas; u weighs the current token
 *   S_t = S_{t-1} diag(d_t) + v_t k_t^T
 *
 * In memory a state is (H, key, value), as in wkv7.h, and so are the chunks: the forward for training saves the state before
 * every RK_WKV_CHUNK-th token and the backward runs each chunk forward again. Going back by division is out of the question
 * here: d has no lower bound.
 *
 * Backward, t = T..1, with D the gradient of S_t and eta = sum_i v_t dy_t:
 *   dr = S_{t-1}^T dy + u k eta;  dk = D^T v + u r eta;  dv = D k + dy sum_j r u k;  du += r k eta;
 *   dw = -exp(w) d colsum(S_{t-1} * D);  D = D diag(d) + dy r^T;  ds0 = D at the end.
 * `sums` holds each sequence's share of du and, in wkv5, of dw until they are added up in order.
 * Formulas: "Eagle and Finch" (2024), RWKV-LM RWKV-v5; any T, any head size. */
#ifndef RK_OPS_WKV6_H
#define RK_OPS_WKV6_H

#define RK_WKV6_FIELDS(T, T6, I, F, IDS)                                                     \
    T(r) T(k) T(v) /* (B,T,H,N) */                                                           \
    T(w) /* wkv6 (B,T,H,N), wkv5 (H,N) */ T(u) /* (H,N) */                                   \
    T(s0) /* (B,H,N,N) initial state, opt: zeros */                                          \
    T(sT) /* (B,H,N,N) final state, opt, written; may be s0 in inference */                  \
    T(y) /* (B,T,H,N) written */                                                             \
    T(ckpt) /* (B*H, ceil(T/16), N, N) saved, opt */                                         \
    T(dy) /* (B,T,H,N) */ T(dsT) /* (B,H,N,N) opt */                                         \
    T(dr) T(dk) T(dv) /* (B,T,H,N) written */                                                \
    T(dw) /* as w; wkv6 written, wkv5 added to */ T(du) /* (H,N) added to */                 \
    T(sums) /* (B*H,2,N) scratch of the backward */ T(ds0) /* (B,H,N,N) opt, written */
RK_ARGS_STRUCT(RkWkv6, RK_WKV6_FIELDS)

#endif
