static real lowrank_act(int act, real x) {
    return act == RK_ACT_TANH ? (real)tanh(x) : act == RK_ACT_SIGMOID ? sigmoid(x) : x;
}

/* The derivative of the activation, from its value. */
static real lowrank_slope(int act, real h) {
    return act == RK_ACT_TANH ? 1 - h * h : act == RK_ACT_SIGMOID ? h * (1 - h) : 1;
}

static int lowrank_fwd(const RkLowrank *o) {
    size_t C = rk_rows(o->m1), D = rk_rows(o->m2), O = (size_t)rk_cols(o->m2), R = rk_numel(o->h) / D;
    for (size_t r = 0; r < R; r++) {
        real *h = P(o->h) + r * D, *y = P(o->y) + r * O;
        for (size_t d = 0; d < D && o->x.p; d++) {
            real sum = 0;
            for (size_t c = 0; c < C; c++) sum += P(o->x)[r * C + c] * weight(o->m1, c, d);
            h[d] = lowrank_act(o->act, sum);
        }
        for (size_t i = 0; i < O; i++) {
            real sum = 0;
            for (size_t d = 0; d < D; d++) sum += h[d] * weight(o->m2, d, i);
            y[i] = sum + (o->bias.p ? P(o->bias)[i] : 0);
        }
    }
    return RK_OK;
}

static int lowrank_bwd(const RkLowrank *o) {
    size_t C = rk_rows(o->m1), D = rk_rows(o->m2), O = (size_t)rk_cols(o->m2), R = rk_numel(o->x) / C;
    for (size_t r = 0; r < R; r++) {
        const real *h = P(o->h) + r * D, *dy = P(o->dy) + r * O, *x = P(o->x) + r * C;
        real *dh = P(o->dh) + r * D, *dx = P(o->dx) + r * C;
        for (size_t i = 0; i < O && o->dbias.p; i++) P(o->dbias)[i] += dy[i];
        for (size_t d = 0; d < D; d++) {
            real sum = 0;
            for (size_t i = 0; i < O; i++) {
                sum += dy[i] * P(o->m2)[d * O + i];
                P(o->dm2)[d * O + i] += h[d] * dy[i];
            }
            dh[d] = sum * lowrank_slope(o->act, h[d]);
        }
        for (size_t c = 0; c < C; c++)
            for (size_t d = 0; d < D; d++) P(o->dm1)[c * D + d] += x[c] * dh[d];
        for (size_t c = 0; c < C; c++) {
            real sum = 0;
            for (size_t d = 0; d < D; d++) sum += dh[d] * P(o->m1)[c * D + d];
            dx[c] = sum;
        }
    }
    return RK_OK;
}
