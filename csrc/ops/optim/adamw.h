/* adamw.h - AdamW over a flat range, decoupled decay, epsilon after the root (DeepSpeed FusedAdam's form).
 *
 *   g' = gscale g;  m = beta1 m + (1-beta1) g';  v = beta2 v + (1-beta2) g'^2
 *   p -= lr ( (m / bias1) / (sqrt(v / bias2) + eps) + wd p ),   bias_i = 1 - beta_i^t
 * Forward only. */
#ifndef RK_OPS_ADAMW_H
#define RK_OPS_ADAMW_H

#define RK_ADAMW_FIELDS(T, T6, I, F, IDS) \
    T(p) T(g) T(m) T(v) /* (n) */         \
    F(gscale) F(lr) F(beta1) F(beta2) F(eps) F(wd) F(bias1) F(bias2)
RK_ARGS_STRUCT(RkAdamW, RK_ADAMW_FIELDS)

#endif
