/* embed.h - token embedding: y_r = w[id_r]; backward: dw[id_r] += dy_r (ids may repeat).
 * In the forward w may be bf16 or f16.
 * Every id is in [0, V); the model checks that before any op runs. R = B*T. */
#ifndef RK_OPS_EMBED_H
#define RK_OPS_EMBED_H

#define RK_EMBED_FIELDS(T, T6, I, F, IDS)           \
    IDS(ids) /* (R) */                              \
    T(w) /* (V,C) */ T(y) /* (R,C) written */       \
    T(dy) /* (R,C) */ T(dw) /* (V,C) added to */
RK_ARGS_STRUCT(RkEmbed, RK_EMBED_FIELDS)

#endif
