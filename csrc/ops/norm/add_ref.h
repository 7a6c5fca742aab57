static int add_fwd(const RkAdd *o) {
    for (size_t i = 0, n = rk_numel(o->y); i < n; i++) P(o->y)[i] = P(o->a)[i] + P(o->b)[i];
    return RK_OK;
}

static int (*const add_bwd)(const RkAdd *) = NULL;
