/* relu2.h - y = max(x, 0)^2; backward dx = 2 max(x, 0) dy. dx may be dy, y may be x. */
#ifndef RK_OPS_RELU2_H
#define RK_OPS_RELU2_H

#define RK_RELU2_FIELDS(T, T6, I, F, IDS) T(x) T(y) T(dy) T(dx)
RK_ARGS_STRUCT(RkRelu2, RK_RELU2_FIELDS)

#endif
