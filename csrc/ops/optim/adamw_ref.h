static int adamw_fwd(const RkAdamW *o) {
    const double clip = o->clip.p ? *(const double *)o->clip.p : 1;
    if (clip == 0) return RK_OK;
    const double numbers[] = {1, o->wd, 1 / o->bias1, 1 / o->bias2}, *rates = o->rates.p ? o->rates.p : numbers;
    const real lr = (real)(o->lr * rates[RK_RATE_LR]), wd = (real)(o->wd < 0 ? rates[RK_RATE_WD] : o->wd);
    const real inverse1 = (real)rates[RK_RATE_INVERSE_BIAS1], inverse2 = (real)rates[RK_RATE_INVERSE_BIAS2];
    const real beta1 = (real)o->beta1, beta2 = (real)o->beta2;
    for (size_t i = 0, n = rk_numel(o->p); i < n; i++) {
        real g = P(o->g)[i] * (real)(o->gscale * clip);
        real m = P(o->m)[i] = beta1 * P(o->m)[i] + (1 - beta1) * g;
        real v = P(o->v)[i] = beta2 * P(o->v)[i] + (1 - beta2) * g * g;
        real step = m * inverse1 / ((real)sqrt(v * inverse2) + (real)o->eps);
        P(o->p)[i] -= lr * (step + wd * P(o->p)[i]);
    }
    return RK_OK;
}

static int (*const adamw_bwd)(const RkAdamW *) = NULL;
