/* sumsq.h - the sum of squares of a flat range, in float64, in an order that does not depend on threads.
 * out[0] is written; partial is scratch of ceil(n / RK_SUMSQ_BLOCK). Not finite when an element is not. rows, when present, is 0
 * for each row of x (R,C) that the caller knows to be zero; it saves reading and changes nothing. Forward only. */
#ifndef RK_OPS_SUMSQ_H
#define RK_OPS_SUMSQ_H

enum { RK_SUMSQ_BLOCK = 1 << 16 };

#define RK_SUMSQ_FIELDS(T, T6, I, F, IDS) \
    T(x) /* (n) */ IDS(rows) /* opt */ T(partial) /* float64 */ T(out) /* (1) float64 */
RK_ARGS_STRUCT(RkSumsq, RK_SUMSQ_FIELDS)

#endif
