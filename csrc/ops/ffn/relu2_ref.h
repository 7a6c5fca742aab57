/* Written so that NaN stays NaN: a bad value must not hide behind the clamp. */
static inline real relu(real x) { return x < 0 ? 0 : x; }

static int relu2_fwd(const RkRelu2 *o) {
    for (size_t i = 0, n = rk_numel(o->x); i < n; i++) P(o->y)[i] = relu(P(o->x)[i]) * relu(P(o->x)[i]);
    return RK_OK;
}

static int relu2_bwd(const RkRelu2 *o) {
    for (size_t i = 0, n = rk_numel(o->x); i < n; i++) P(o->dx)[i] = 2 * relu(P(o->x)[i]) * P(o->dy)[i];
    return RK_OK;
}
