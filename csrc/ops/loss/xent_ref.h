static int xent_fwd(const RkXent *o) {
    size_t R = rk_rows(o->logits), V = (size_t)rk_cols(o->logits);
    const double *factors = o->factors.p, scale = factors ? factors[0] : o->scale, l2 = factors ? factors[1] : o->l2;
    for (size_t r = 0; r < R; r++) {
        real *z = P(o->logits) + r * V;
        size_t argmax = 0;
        for (size_t i = 1; i < V; i++)
            if (z[i] > z[argmax]) argmax = i;
        double sum = 0;
        real top = z[argmax];
        for (size_t i = 0; i < V; i++) sum += exp((double)z[i] - (double)top);
        int32_t target = o->targets[r];
        int counts = target != RK_IGNORE;
        ((double *)o->loss.p)[r] = counts ? log(sum) + (double)top - (double)z[target] : 0;
        if (!o->grad) continue;
        for (size_t i = 0; i < V; i++) z[i] = counts ? (real)(scale * exp((double)z[i] - (double)top) / sum) : 0;
        if (counts) z[target] -= (real)scale;
        z[argmax] += (real)(l2 * (double)top);
    }
    return RK_OK;
}

static int (*const xent_bwd)(const RkXent *) = NULL;
