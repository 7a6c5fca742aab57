/* adamw.h - AdamW over a flat range, decoupled decay, epsilon after the root (DeepSpeed FusedAdam's form).
 *
 *   g' = gscale g;  m = beta1 m + (1-beta1) g';  v = beta2 v + (1-beta2) g'^2
 *   p -= lr ( (m / bias1) / (sqrt(v / bias2) + eps) + wd p ),   bias_i = 1 - beta_i^t
 * clip, when present, is a number in the tensors' memory: gscale is multiplied by it, and where it is 0 nothing changes.
 * rates, when present, are in the tensors' memory too: lr, wd and 1 / bias1, 1 / bias2 of the step. The numbers then are: lr, what the
 * step's is multiplied by; wd, in place of the step's where it is not negative; bias1 and bias2, unused.
 * rows, when present, tells what the caller knows of each row of p (R,C); it saves reading zeros and changes nothing.
 * Where p is narrower than float32, master holds it in full: master is what is updated, and p becomes it, rounded. Forward only. */
#ifndef RK_OPS_ADAMW_H
#define RK_OPS_ADAMW_H

enum {
    RK_ROW_ASLEEP, /* g, m and v are zero */
    RK_ROW_IDLE,   /* g is zero */
    RK_ROW_LIVE
};

#define RK_ADAMW_FIELDS(T, T6, I, F, IDS)                                    \
    T(p) T(g) T(m) T(v) T(master) /* (n); master opt */ IDS(rows) /* RK_ROW_*, opt: all live */ \
    T(clip) /* (1) float64, opt */ T(rates) /* (4) float64, opt */ F(gscale) F(lr) F(beta1) F(beta2) F(eps) F(wd) F(bias1) F(bias2)
RK_ARGS_STRUCT(RkAdamW, RK_ADAMW_FIELDS)

enum { RK_RATE_LR, RK_RATE_WD, RK_RATE_INVERSE_BIAS1, RK_RATE_INVERSE_BIAS2, RK_RATES };

#endif
