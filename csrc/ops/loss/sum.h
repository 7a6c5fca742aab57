/* sum.h - out[0] += x[0] + ... + x[n-1], in an order that is a function of n alone. Forward only. */
#ifndef RK_OPS_SUM_H
#define RK_OPS_SUM_H

#define RK_SUM_FIELDS(T, T6, I, F, IDS) T(x) /* (n) float64 */ T(out) /* (1) float64, added to */
RK_ARGS_STRUCT(RkSum, RK_SUM_FIELDS)

#endif
