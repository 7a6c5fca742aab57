typedef struct { const RkLinear *o; size_t R, K, M; } LinearRef;

static LinearRef linear_sizes(const RkLinear *o) {
    size_t K = (size_t)rk_cols(o->w), M = rk_rows(o->w);
    return (LinearRef){o, rk_numel(o->x) / K, K, M};
}

static void linear_fwd_row(void *ctx, size_t r) {
    const LinearRef *s = ctx;
    for (size_t m = 0; m < s->M; m++) {
        real sum = 0;
        for (size_t k = 0; k < s->K; k++) sum += P(s->o->x)[r * s->K + k] * weight(s->o->w, m, k);
        P(s->o->y)[r * s->M + m] = sum;
    }
}

static void linear_dw_row(void *ctx, size_t m) {
    const LinearRef *s = ctx;
    real *dw = P(s->o->dw) + m * s->K;
    for (size_t k = 0; k < s->K && s->o->fresh; k++) dw[k] = 0;
    for (size_t r = 0; r < s->R; r++)
        for (size_t k = 0; k < s->K; k++) dw[k] += P(s->o->dy)[r * s->M + m] * P(s->o->x)[r * s->K + k];
}

static void linear_dx_row(void *ctx, size_t r) {
    const LinearRef *s = ctx;
    real *dx = P(s->o->dx) + r * s->K;
    for (size_t k = 0; k < s->K; k++) dx[k] = 0;
    for (size_t m = 0; m < s->M; m++)
        for (size_t k = 0; k < s->K; k++) dx[k] += P(s->o->dy)[r * s->M + m] * P(s->o->w)[m * s->K + k];
}

static int linear_fwd(const RkLinear *o) {
    LinearRef s = linear_sizes(o);
    rk_parallel(s.R, linear_fwd_row, &s);
    return RK_OK;
}

static int linear_bwd(const RkLinear *o) {
    LinearRef s = linear_sizes(o);
    if (o->dw.p) rk_parallel(s.M, linear_dw_row, &s);
    if (o->dx.p) rk_parallel(s.R, linear_dx_row, &s);
    return RK_OK;
}
