typedef struct { real mean, inverse, bonus; } OutGateHead;

/* The statistics of one head of one token: its group norm and its bonus scalar. */
static OutGateHead out_gate_head(const RkOutGate *o, size_t at, size_t head, size_t N) {
    OutGateHead s = {0, 0, 0};
    real var = 0;
    for (size_t j = 0; j < N; j++) {
        s.mean += P(o->y)[at + j] / (real)N;
        s.bonus += P(o->r)[at + j] * P(o->k)[at + j] * P(o->r_k)[head + j];
    }
    for (size_t j = 0; j < N; j++) var += (P(o->y)[at + j] - s.mean) * (P(o->y)[at + j] - s.mean);
    s.inverse = 1 / (real)sqrt(var / (real)N + o->eps);
    return s;
}

static int out_gate_fwd(const RkOutGate *o) {
    size_t R = (size_t)o->y.d[0] * (size_t)o->y.d[1], H = (size_t)o->y.d[2], N = (size_t)o->y.d[3];
    for (size_t r = 0; r < R * H; r++) {
        size_t at = r * N, head = r % H * N;
        OutGateHead s = out_gate_head(o, at, head, N);
        for (size_t j = 0; j < N; j++) {
            real normed = (P(o->y)[at + j] - s.mean) * s.inverse * P(o->w)[head + j] + P(o->b)[head + j];
            P(o->o)[at + j] = (normed + s.bonus * P(o->v)[at + j]) * P(o->g)[at + j];
        }
    }
    return RK_OK;
}

static int out_gate_bwd(const RkOutGate *o) {
    size_t R = (size_t)o->y.d[0] * (size_t)o->y.d[1], H = (size_t)o->y.d[2], N = (size_t)o->y.d[3];
    for (size_t r = 0; r < R * H; r++) {
        size_t at = r * N, head = r % H * N;
        OutGateHead s = out_gate_head(o, at, head, N);
        real dbonus = 0, mean_t = 0, mean_tx = 0;
        for (size_t j = 0; j < N; j++) {
            real xhat = (P(o->y)[at + j] - s.mean) * s.inverse, v = P(o->v)[at + j];
            real do_ = P(o->do_)[at + j], do2 = do_ * P(o->g)[at + j], t = do2 * P(o->w)[head + j];
            P(o->dg)[at + j] = do_ * (xhat * P(o->w)[head + j] + P(o->b)[head + j] + s.bonus * v);
            P(o->dw)[head + j] += do2 * xhat;
            P(o->db)[head + j] += do2;
            P(o->dv)[at + j] = s.bonus * do2;
            P(o->dy)[at + j] = t; /* finished below */
            dbonus += do2 * v;
            mean_t += t / (real)N;
            mean_tx += t * xhat / (real)N;
        }
        for (size_t j = 0; j < N; j++) {
            real xhat = (P(o->y)[at + j] - s.mean) * s.inverse;
            real r_ = P(o->r)[at + j], k = P(o->k)[at + j], r_k = P(o->r_k)[head + j];
            P(o->dy)[at + j] = s.inverse * (P(o->dy)[at + j] - mean_t - xhat * mean_tx);
            P(o->dr)[at + j] = dbonus * k * r_k;
            P(o->dk)[at + j] = dbonus * r_ * r_k;
            P(o->dr_k)[head + j] += dbonus * r_ * k;
        }
    }
    return RK_OK;
}
