/* 1 / max(|q|, 1e-12) for one head, q = k0 k_k; *tiny tells that the floor was used. */
static real key_prep_inverse_norm(const real *k0, const real *k_k, size_t N, int *tiny) {
    double sum = 0; /* squares of float32 values below 1e-19 underflow in float32 */
    for (size_t j = 0; j < N; j++) sum += (double)(k0[j] * k_k[j]) * (double)(k0[j] * k_k[j]);
    double norm = sqrt(sum);
    *tiny = norm < 1e-12;
    return (real)(1 / (*tiny ? 1e-12 : norm));
}

static int key_prep_fwd(const RkKeyPrep *o) {
    size_t R = (size_t)o->k0.d[0] * (size_t)o->k0.d[1], H = (size_t)o->k0.d[2], N = (size_t)o->k0.d[3];
    for (size_t r = 0; r < R * H; r++) {
        const real *k0 = P(o->k0) + r * N, *k_k = P(o->k_k) + r % H * N, *k_a = P(o->k_a) + r % H * N;
        int tiny;
        real inverse = key_prep_inverse_norm(k0, k_k, N, &tiny);
        for (size_t j = 0; j < N; j++) {
            real rate = sigmoid(P(o->a)[r * N + j]), khat = k0[j] * k_k[j] * inverse;
            P(o->k)[r * N + j] = k0[j] * (1 + (rate - 1) * k_a[j]);
            P(o->alpha)[r * N + j] = -khat;
            P(o->beta)[r * N + j] = khat * rate;
        }
    }
    return RK_OK;
}

static int key_prep_bwd(const RkKeyPrep *o) {
    size_t R = (size_t)o->k0.d[0] * (size_t)o->k0.d[1], H = (size_t)o->k0.d[2], N = (size_t)o->k0.d[3];
    for (size_t r = 0; r < R * H; r++) {
        size_t at = r * N, head = r % H * N;
        const real *k0 = P(o->k0) + at, *k_k = P(o->k_k) + head, *k_a = P(o->k_a) + head;
        int tiny;
        real inverse = key_prep_inverse_norm(k0, k_k, N, &tiny), dot = 0;
        for (size_t j = 0; j < N; j++) {
            real rate = sigmoid(P(o->a)[at + j]);
            dot += k0[j] * k_k[j] * inverse * (P(o->dbeta)[at + j] * rate - P(o->dalpha)[at + j]);
        }
        if (tiny) dot = 0;
        for (size_t j = 0; j < N; j++) {
            real rate = sigmoid(P(o->a)[at + j]), khat = k0[j] * k_k[j] * inverse, dk = P(o->dk)[at + j];
            real dkhat = P(o->dbeta)[at + j] * rate - P(o->dalpha)[at + j];
            real dq = (dkhat - khat * dot) * inverse;
            real drate = P(o->dbeta)[at + j] * khat + dk * k0[j] * k_a[j];
            P(o->dk_k)[head + j] += dq * k0[j];
            P(o->dk_a)[head + j] += dk * k0[j] * (rate - 1);
            P(o->da)[at + j] = drate * sigmoid_slope(P(o->a)[at + j]);
            P(o->dk0)[at + j] = dk * (1 + (rate - 1) * k_a[j]) + dq * k_k[j];
        }
    }
    return RK_OK;
}
