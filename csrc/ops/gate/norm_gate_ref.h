/* Mean and inverse deviation of one head of one token. */
static void norm_gate_head(const RkNormGate *o, size_t at, size_t N, real *mean, real *inverse) {
    real var = 0;
    *mean = 0;
    for (size_t j = 0; j < N; j++) *mean += P(o->y)[at + j] / (real)N;
    for (size_t j = 0; j < N; j++) var += (P(o->y)[at + j] - *mean) * (P(o->y)[at + j] - *mean);
    *inverse = 1 / (real)sqrt(var / (real)N + o->eps);
}

static int norm_gate_fwd(const RkNormGate *o) {
    size_t R = (size_t)o->y.d[0] * (size_t)o->y.d[1], H = (size_t)o->y.d[2], N = (size_t)o->y.d[3];
    for (size_t r = 0; r < R * H; r++) {
        size_t at = r * N, head = r % H * N;
        real mean, inverse;
        norm_gate_head(o, at, N, &mean, &inverse);
        for (size_t j = 0; j < N; j++) {
            real g = P(o->g)[at + j], xhat = (P(o->y)[at + j] - mean) * inverse;
            P(o->o)[at + j] = (xhat * P(o->w)[head + j] + P(o->b)[head + j]) * g * sigmoid(g);
        }
    }
    return RK_OK;
}

static int norm_gate_bwd(const RkNormGate *o) {
    size_t R = (size_t)o->y.d[0] * (size_t)o->y.d[1], H = (size_t)o->y.d[2], N = (size_t)o->y.d[3];
    for (size_t r = 0; r < R * H; r++) {
        size_t at = r * N, head = r % H * N;
        real mean, inverse, mean_t = 0, mean_tx = 0;
        norm_gate_head(o, at, N, &mean, &inverse);
        for (size_t j = 0; j < N; j++) {
            real g = P(o->g)[at + j], xhat = (P(o->y)[at + j] - mean) * inverse, w = P(o->w)[head + j];
            real do_ = P(o->do_)[at + j], dnormed = do_ * g * sigmoid(g);
            P(o->dg)[at + j] = do_ * (xhat * w + P(o->b)[head + j]) * sigmoid(g) * (1 + g * sigmoid(-g));
            P(o->dw)[head + j] += dnormed * xhat;
            P(o->db)[head + j] += dnormed;
            P(o->dy)[at + j] = dnormed * w; /* finished below */
            mean_t += dnormed * w / (real)N;
            mean_tx += dnormed * w * xhat / (real)N;
        }
        for (size_t j = 0; j < N; j++) {
            real xhat = (P(o->y)[at + j] - mean) * inverse;
            P(o->dy)[at + j] = inverse * (P(o->dy)[at + j] - mean_t - xhat * mean_tx);
        }
    }
    return RK_OK;
}
