/* add.h - y = a + b, elementwise; y may be a or b. Forward only: its gradient is the identity. */
#ifndef RK_OPS_ADD_H
#define RK_OPS_ADD_H

#define RK_ADD_FIELDS(T, T6, I, F, IDS) T(a) T(b) T(y)
RK_ARGS_STRUCT(RkAdd, RK_ADD_FIELDS)

#endif
