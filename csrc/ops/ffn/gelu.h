/* gelu.h - y = x Phi(x), Phi the normal distribution function (exact, not the tanh formula); backward
 * dx = (Phi(x) + x e^{-x^2/2} / sqrt(2 pi)) dy. y may be x in inference; dx may be dy.
 * Source: Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016). */
#ifndef RK_OPS_GELU_H
#define RK_OPS_GELU_H

#define RK_GELU_FIELDS(T, T6, I, F, IDS) T(x) T(y) T(dy) T(dx)
RK_ARGS_STRUCT(RkGelu, RK_GELU_FIELDS)

#endif
