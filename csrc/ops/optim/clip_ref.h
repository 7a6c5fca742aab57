static int clip_fwd(const RkClip *o) {
    double sum = 0;
    for (size_t i = 0, n = rk_numel(o->squares); i < n; i++) sum += ((const double *)o->squares.p)[i];
    double norm = sqrt(sum) / o->scale, loss = *(const double *)o->loss.p;
    double ratio = o->max_norm > 0 ? (norm + 1e-6) / o->max_norm : 0;
    *(double *)o->norm.p = norm;
    *(double *)o->factor.p = isfinite(norm) && isfinite(loss) ? (ratio > 1 ? 1 / ratio : 1) / o->scale : 0;
    return RK_OK;
}

static int (*const clip_bwd)(const RkClip *) = NULL;
