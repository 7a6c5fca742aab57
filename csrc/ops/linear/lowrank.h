/* lowrank.h - y = bias + f(x m1) m2, the small matrices stored (in, out) as in checkpoints.
 * In the forward m1 and m2 may be bf16 or f16.
 * f: 0 identity, 1 tanh, 2 sigmoid. h = f(x m1) is saved for the backward; dh is scratch. A forward without x takes h as it
 * is: y again, for the price of the second product.
 * Backward: dh = (dy m2^T) f'(h);  dm2 += h^T dy;  dbias += sum_rows dy;  dm1 += x^T dh;  and last dx = dh m1^T (may be x). */
#ifndef RK_OPS_LOWRANK_H
#define RK_OPS_LOWRANK_H

enum { RK_ACT_NONE, RK_ACT_TANH, RK_ACT_SIGMOID };

#define RK_LOWRANK_FIELDS(T, T6, I, F, IDS)                                          \
    T(x) /* (R,C) opt */ T(m1) /* (C,D) */ T(m2) /* (D,O) */ T(bias) /* (O) opt */       \
    T(h) /* (R,D) written; read without x */ T(y) /* (R,O) written */                                \
    T(dy) /* (R,O) */ T(dh) /* (R,D) scratch */ T(dx) /* (R,C) written */            \
    T(dm1) T(dm2) T(dbias) /* as m1, m2, bias; added to */                           \
    I(act)
RK_ARGS_STRUCT(RkLowrank, RK_LOWRANK_FIELDS)

#endif
