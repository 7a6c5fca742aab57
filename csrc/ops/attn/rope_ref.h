/* Turns every pair of `from` forwards (direction 1) or back (-1). */
static void rope_turn(RkTensor from, RkTensor to, int past, double direction) {
    size_t T = (size_t)from.d[1], H = (size_t)from.d[2], N = (size_t)from.d[3], half = N / 2;
    for (size_t row = 0; row < rk_numel(from) / N; row++)
        for (size_t i = 0; i < half; i++) {
            double position = (double)past + (double)(row / H % T);
            double angle = direction * position * pow(RK_ROPE_BASE, -2.0 * (double)i / (double)N);
            real c = (real)cos(angle), s = (real)sin(angle), *x = P(from) + row * N, *y = P(to) + row * N;
            real low = x[i], high = x[i + half];
            y[i] = low * c - high * s;
            y[i + half] = high * c + low * s;
        }
}

static int rope_fwd(const RkRope *o) {
    rope_turn(o->x, o->y, o->past, 1);
    return RK_OK;
}

static int rope_bwd(const RkRope *o) {
    rope_turn(o->dy, o->dx, o->past, -1);
    return RK_OK;
}
