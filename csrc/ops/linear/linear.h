/* linear.h - y = x w^T, w stored (out, in) as in checkpoints.
 * In the forward w may be of any format of weights: bf16, f16, 8 or 4 bits (base/quant.h).
 * With columns, the same matrix by its columns in the order of the backend, a forward of few rows does not read what meets zeros of x.
 * Backward, in this order: dw += dy^T x, then dx = dy w (written; may be x). Either is skipped when absent. With fresh, dw is
 * written instead of added to: a gradient's first part then needs no zeros to be stored and read again. */
#ifndef RK_OPS_LINEAR_H
#define RK_OPS_LINEAR_H

#define RK_LINEAR_FIELDS(T, T6, I, F, IDS)                       \
    I(fresh)                                                     \
    T(x) /* (R,K) */ T(w) /* (M,K) */ T(y) /* (R,M) */           \
    T(columns) /* of w; opt */                    \
    T(dy) /* (R,M) */ T(dx) /* (R,K) opt */ T(dw) /* (M,K) opt */
RK_ARGS_STRUCT(RkLinear, RK_LINEAR_FIELDS)

#endif
