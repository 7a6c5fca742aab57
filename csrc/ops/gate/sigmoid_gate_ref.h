static int sigmoid_gate_fwd(const RkSigmoidGate *o) {
    for (size_t i = 0, n = rk_numel(o->q); i < n; i++) P(o->y)[i] = sigmoid(P(o->q)[i]) * P(o->v)[i];
    return RK_OK;
}

static int sigmoid_gate_bwd(const RkSigmoidGate *o) {
    for (size_t i = 0, n = rk_numel(o->q); i < n; i++) {
        real q = P(o->q)[i], dy = P(o->dy)[i];
        P(o->dq)[i] = dy * P(o->v)[i] * sigmoid_slope(q);
        P(o->dv)[i] = dy * sigmoid(q);
    }
    return RK_OK;
}
