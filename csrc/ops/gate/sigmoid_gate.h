/* sigmoid_gate.h - y = sigma(q) v: the receptance of RWKV-5's and RWKV-6's channel mix.
 * Backward:  dv = dy sigma(q),  dq = dy v sigma(q) (1 - sigma(q)). */
#ifndef RK_OPS_SIGMOID_GATE_H
#define RK_OPS_SIGMOID_GATE_H

#define RK_SIGMOID_GATE_FIELDS(T, T6, I, F, IDS)                            \
    T(q) T(v) T(y) /* any shape; y may be q or v */                         \
    T(dy) T(dq) T(dv) /* written; dq or dv may be dy */
RK_ARGS_STRUCT(RkSigmoidGate, RK_SIGMOID_GATE_FIELDS)

#endif
