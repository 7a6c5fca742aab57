static int adamw_fwd(const RkAdamW *o) {
    const double clip = o->clip.p ? *(const double *)o->clip.p : 1;
    if (clip == 0) return RK_OK;
    const real beta1 = (real)o->beta1, beta2 = (real)o->beta2;
    for (size_t i = 0, n = rk_numel(o->p); i < n; i++) {
        real g = P(o->g)[i] * (real)(o->gscale * clip);
        real m = P(o->m)[i] = beta1 * P(o->m)[i] + (1 - beta1) * g;
        real v = P(o->v)[i] = beta2 * P(o->v)[i] + (1 - beta2) * g * g;
        real step = m / (real)o->bias1 / ((real)sqrt(v / (real)o->bias2) + (real)o->eps);
        P(o->p)[i] -= (real)o->lr * (step + (real)o->wd * P(o->p)[i]);
    }
    return RK_OK;
}

static int (*const adamw_bwd)(const RkAdamW *) = NULL;
