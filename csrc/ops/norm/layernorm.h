/* layernorm.h - y = (x - m) s w + b over the last axis, m = mean(x), s = 1/sqrt(mean((x-m)^2) + eps).
 *
 * Backward, with xhat = (x-m) s and t = dy w:  dx = s (t - mean(t) - xhat mean(t xhat)) + dres,
 * dw += sum_rows dy xhat,  db += sum_rows dy.
 * stats holds (m, s) per row, written by the forward when present and needed by the backward. */
#ifndef RK_OPS_LAYERNORM_H
#define RK_OPS_LAYERNORM_H

#define RK_LAYERNORM_FIELDS(T, T6, I, F, IDS)                                        \
    T(x) /* (R,C) */ T(w) T(b) /* (C) */ T(y) /* (R,C) */ T(stats) /* (R,2) opt */   \
    T(dy) /* (R,C) */ T(dres) /* (R,C) opt: the residual path's gradient */          \
    T(dx) /* (R,C) written; may be dres */ T(dw) T(db) /* (C) added to */            \
    F(eps)
RK_ARGS_STRUCT(RkLayerNorm, RK_LAYERNORM_FIELDS)

#endif
