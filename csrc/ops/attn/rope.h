/* rope.h - rotary positions: pairs of a head's channels turn by an angle that grows with the position.
 *
 *   angle(t, i) = (past + t) 10000^{-2i/N}         i in [0, N/2); slot i is paired with slot i + N/2
 *   y_i         = x_i cos - x_{i+N/2} sin          y_{i+N/2} = x_{i+N/2} cos + x_i sin
 *
 * Positions count from the start of the stream, `past` tokens before this call; angles are taken in float64, in which a
 * position of a million still has ten digits of its angle. The backward turns back: dx = the same with -angle.
 * The head size is even. Source: Su et al., "RoFormer" (2021); the pairing is that of GPT-NeoX. */
#ifndef RK_OPS_ROPE_H
#define RK_OPS_ROPE_H

#define RK_ROPE_BASE 10000.0

#define RK_ROPE_FIELDS(T, T6, I, F, IDS)                              \
    T(x) T(y) /* (B,T,H,N); y written, may be x */                    \
    T(dy) T(dx) /* (B,T,H,N); dx written, may be dy */                \
    I(past) /* position of the first token */
RK_ARGS_STRUCT(RkRope, RK_ROPE_FIELDS)

#endif
