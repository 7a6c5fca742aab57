typedef struct { size_t B, T, C, n, D; } DdlerpSizes;

static DdlerpSizes ddlerp_sizes(const RkDdlerp *o) {
    return (DdlerpSizes){(size_t)o->x.d[0], (size_t)o->x.d[1], (size_t)o->x.d[2], (size_t)o->m2.d[0], (size_t)o->m2.d[1]};
}

/* Channel c of the token before row r. */
static real ddlerp_before(const RkDdlerp *o, const DdlerpSizes *s, size_t r, size_t c) {
    if (r % s->T) return P(o->x)[(r - 1) * s->C + c];
    return o->prev.p ? P(o->prev)[r / s->T * s->C + c] : 0;
}

/* Channel c of the z-th coefficient of row r. */
static real ddlerp_coefficient(const RkDdlerp *o, const DdlerpSizes *s, size_t r, size_t z, size_t c) {
    real sum = 0;
    for (size_t d = 0; d < s->D; d++) sum += P(o->h)[(r * s->n + z) * s->D + d] * P(o->m2)[(z * s->D + d) * s->C + c];
    return P(o->mu[z])[c] + sum;
}

static void ddlerp_mix(const RkDdlerp *o, const DdlerpSizes *s, size_t r) {
    for (size_t c = 0; c < s->C; c++) {
        real x = P(o->x)[r * s->C + c];
        P(o->mixed)[r * s->C + c] = x + (ddlerp_before(o, s, r, c) - x) * P(o->mu_x)[c];
    }
}

static int ddlerp_fwd(const RkDdlerp *o) {
    DdlerpSizes s = ddlerp_sizes(o);
    size_t W = s.n * s.D;
    for (size_t r = 0; r < s.B * s.T; r++) {
        ddlerp_mix(o, &s, r);
        for (size_t w = 0; w < W; w++) {
            real sum = 0;
            for (size_t c = 0; c < s.C; c++) sum += P(o->mixed)[r * s.C + c] * P(o->m1)[c * W + w];
            P(o->h)[r * W + w] = (real)tanh(sum);
        }
        for (size_t z = 0; z < s.n; z++)
            for (size_t c = 0; c < s.C; c++) {
                real x = P(o->x)[r * s.C + c];
                P(o->y[z])[r * s.C + c] = x + (ddlerp_before(o, &s, r, c) - x) * ddlerp_coefficient(o, &s, r, z, c);
            }
    }
    for (size_t b = 0; o->last.p && b < s.B; b++)
        memcpy(P(o->last) + b * s.C, P(o->x) + (b * s.T + s.T - 1) * s.C, s.C * sizeof(real));
    return RK_OK;
}

/* The n lerps of row r: e and what stays at the token (in dx), dmu, dm2, and dh before the slope of tanh. */
static void ddlerp_lerps_bwd(const RkDdlerp *o, const DdlerpSizes *s, size_t r) {
    size_t C = s->C;
    for (size_t c = 0; c < C; c++) P(o->e)[r * C + c] = P(o->dx)[r * C + c] = 0;
    for (size_t i = 0; i < s->n * s->D; i++) P(o->dh)[r * s->n * s->D + i] = 0;
    for (size_t z = 0; z < s->n; z++)
        for (size_t c = 0; c < C; c++) {
            real dy = P(o->dy[z])[r * C + c], share = dy * ddlerp_coefficient(o, s, r, z, c);
            real change = dy * (ddlerp_before(o, s, r, c) - P(o->x)[r * C + c]);
            P(o->e)[r * C + c] += share;
            P(o->dx)[r * C + c] += dy - share;
            P(o->dmu[z])[c] += change;
            for (size_t d = 0; d < s->D; d++) {
                size_t at = (r * s->n + z) * s->D + d, m = (z * s->D + d) * C + c;
                P(o->dm2)[m] += P(o->h)[at] * change;
                P(o->dh)[at] += change * P(o->m2)[m];
            }
        }
}

/* The input of the low-rank function, once ddlerp_lerps_bwd has run. */
static void ddlerp_input_bwd(const RkDdlerp *o, const DdlerpSizes *s, size_t r) {
    size_t C = s->C, W = s->n * s->D;
    ddlerp_mix(o, s, r);
    for (size_t w = 0; w < W; w++) P(o->dh)[r * W + w] *= 1 - P(o->h)[r * W + w] * P(o->h)[r * W + w];
    for (size_t c = 0; c < C; c++) {
        real f = 0;
        for (size_t w = 0; w < W; w++) {
            f += P(o->dh)[r * W + w] * P(o->m1)[c * W + w];
            P(o->dm1)[c * W + w] += P(o->mixed)[r * C + c] * P(o->dh)[r * W + w];
        }
        P(o->e)[r * C + c] += f * P(o->mu_x)[c];
        P(o->dx)[r * C + c] += f - f * P(o->mu_x)[c];
        P(o->dmu_x)[c] += f * (ddlerp_before(o, s, r, c) - P(o->x)[r * C + c]);
    }
}

static int ddlerp_bwd(const RkDdlerp *o) {
    DdlerpSizes s = ddlerp_sizes(o);
    size_t R = s.B * s.T;
    for (size_t r = 0; r < R; r++) {
        ddlerp_lerps_bwd(o, &s, r);
        ddlerp_input_bwd(o, &s, r);
    }
    for (size_t r = 0; r < R; r++)
        for (size_t c = 0; c < s.C; c++) {
            real last = o->dlast.p ? P(o->dlast)[r / s.T * s.C + c] : 0;
            P(o->dx)[r * s.C + c] += (r + 1) % s.T ? P(o->e)[(r + 1) * s.C + c] : last;
            if (o->dprev.p && r % s.T == 0) P(o->dprev)[r / s.T * s.C + c] = P(o->e)[r * s.C + c];
        }
    return RK_OK;
}
