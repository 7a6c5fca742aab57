/* clip.h - what AdamW multiplies a step's gradient by, from the sums of squares of its parts.
 *
 *   norm = sqrt(squares[0] + ... + squares[n-1]) / scale
 *   factor = min(1, max_norm / (norm + 1e-6)) / scale          (without the minimum where max_norm is not positive)
 *   factor = 0 where norm or loss is not finite: such a step changes nothing
 * scale is what the gradient has been multiplied by so far. Forward only. */
#ifndef RK_OPS_CLIP_H
#define RK_OPS_CLIP_H

#define RK_CLIP_FIELDS(T, T6, I, F, IDS)                                                        \
    T(squares) /* (n) float64 */ T(loss) /* (1) float64 */ T(factor) T(norm) /* (1) float64 */ \
    F(max_norm) F(scale)
RK_ARGS_STRUCT(RkClip, RK_CLIP_FIELDS)

#endif
