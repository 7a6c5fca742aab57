static int sumsq_fwd(const RkSumsq *o) {
    double sum = 0;
    for (size_t i = 0, n = rk_numel(o->x); i < n; i++) sum += (double)P(o->x)[i] * (double)P(o->x)[i];
    *(double *)o->out.p = sum;
    return RK_OK;
}

static int (*const sumsq_bwd)(const RkSumsq *) = NULL;
