/* linear.h - y = x w^T, w stored (out, in) as in checkpoints.
 * In the forward w may be of any format of weights: bf16, f16, 8 or 4 bits (base/quant.h).
 * Backward, in this order: dw += dy^T x, then dx = dy w (written; may be x). Either is skipped when absent. With fresh, dw is
 * written instead of added to: a gradient's first part then needs no zeros to be stored and read again.
 * wt is w transposed: a backend may read it in the forward of a row that is mostly zeros. */
#ifndef RK_OPS_LINEAR_H
#define RK_OPS_LINEAR_H

#define RK_LINEAR_FIELDS(T, T6, I, F, IDS)                       \
    I(fresh)                                                     \
    T(x) /* (R,K) */ T(w) /* (M,K) */ T(wt) /* (K,M) opt */ T(y) /* (R,M) */ \
    T(dy) /* (R,M) */ T(dx) /* (R,K) opt */ T(dw) /* (M,K) opt */
RK_ARGS_STRUCT(RkLinear, RK_LINEAR_FIELDS)

#endif
