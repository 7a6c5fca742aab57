/* xent.h - softmax cross-entropy of a block of rows, and its gradient in place of the logits.
 *
 *   loss_r = logsumexp(z_r) - z_r[target_r]           (0 where the target is -100: the row does not count)
 *   backward (fwd with grad = 1): z <- scale (softmax(z) - onehot) + L2Wrap,  L2Wrap: z[argmax] += l2 max(z)
 *
 * factors, when present, holds scale and l2 in the logits' memory, in place of the two numbers: recorded work finds new ones there.
 * scale is 1 / (number of counted rows of the whole batch), l2 is 1e-4 / (B T) or 0; ties of the maximum go to the
 * lowest index. Rows with target -100 get the L2Wrap term only, as in RWKV-LM's masked loss. */
#ifndef RK_OPS_XENT_H
#define RK_OPS_XENT_H

enum { RK_IGNORE = -100 };

#define RK_XENT_FIELDS(T, T6, I, F, IDS)                                              \
    T(logits) /* (R,V); overwritten with the gradient when grad is 1 */               \
    IDS(targets) /* (R): in [0,V) or -100 */                                          \
    T(loss) /* (R) float64, written */                                                \
    T(factors) /* (2) float64, opt */                                                 \
    I(grad) F(scale) F(l2)
RK_ARGS_STRUCT(RkXent, RK_XENT_FIELDS)

#endif
