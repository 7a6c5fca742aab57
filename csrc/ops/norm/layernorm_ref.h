static int layernorm_fwd(const RkLayerNorm *o) {
    size_t R = rk_rows(o->x), C = (size_t)rk_cols(o->x);
    for (size_t r = 0; r < R; r++) {
        const real *x = P(o->x) + r * C;
        real m = 0, var = 0;
        for (size_t c = 0; c < C; c++) m += x[c];
        m /= (real)C;
        for (size_t c = 0; c < C; c++) var += (x[c] - m) * (x[c] - m);
        real s = 1 / (real)sqrt(var / (real)C + o->eps);
        for (size_t c = 0; c < C; c++) P(o->y)[r * C + c] = (x[c] - m) * s * P(o->w)[c] + P(o->b)[c];
        if (o->stats.p) P(o->stats)[2 * r] = m, P(o->stats)[2 * r + 1] = s;
    }
    return RK_OK;
}

static int layernorm_bwd(const RkLayerNorm *o) {
    size_t R = rk_rows(o->x), C = (size_t)rk_cols(o->x);
    for (size_t r = 0; r < R; r++) {
        const real *x = P(o->x) + r * C, *dy = P(o->dy) + r * C;
        real m = P(o->stats)[2 * r], s = P(o->stats)[2 * r + 1], mean_t = 0, mean_tx = 0;
        for (size_t c = 0; c < C; c++) {
            real xhat = (x[c] - m) * s, t = dy[c] * P(o->w)[c];
            mean_t += t / (real)C;
            mean_tx += t * xhat / (real)C;
            P(o->dw)[c] += dy[c] * xhat;
            P(o->db)[c] += dy[c];
        }
        for (size_t c = 0; c < C; c++) {
            real xhat = (x[c] - m) * s, t = dy[c] * P(o->w)[c];
            P(o->dx)[r * C + c] = s * (t - mean_t - xhat * mean_tx) + (o->dres.p ? P(o->dres)[r * C + c] : 0);
        }
    }
    return RK_OK;
}
