static int value_residual_fwd(const RkValueResidual *o) {
    for (size_t i = 0, n = rk_numel(o->v0); i < n; i++)
        P(o->v)[i] = P(o->v0)[i] + (P(o->v_first)[i] - P(o->v0)[i]) * sigmoid(P(o->nu)[i]);
    return RK_OK;
}

static int value_residual_bwd(const RkValueResidual *o) {
    for (size_t i = 0, n = rk_numel(o->v0); i < n; i++) {
        real gate = sigmoid(P(o->nu)[i]), dv = P(o->dv)[i];
        P(o->dnu)[i] = dv * (P(o->v_first)[i] - P(o->v0)[i]) * sigmoid_slope(P(o->nu)[i]);
        P(o->dv_first)[i] += dv * gate;
        P(o->dv0)[i] = dv * (1 - gate);
    }
    return RK_OK;
}
