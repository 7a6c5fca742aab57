/* The share of the token before. */
static real shift_share(const RkShiftLerp *o, int z, size_t c) { return o->keep ? 1 - P(o->mu[z])[c] : P(o->mu[z])[c]; }

static int shift_lerp_fwd(const RkShiftLerp *o) {
    size_t B = (size_t)o->x.d[0], T = (size_t)o->x.d[1], C = (size_t)o->x.d[2];
    for (size_t b = 0; b < B; b++)
        for (size_t c = 0; c < C; c++) {
            real before = o->prev.p ? P(o->prev)[b * C + c] : 0;
            for (size_t t = 0; t < T; t++) {
                size_t i = (b * T + t) * C + c;
                real x = P(o->x)[i];
                for (int z = 0; z < o->n; z++) P(o->y[z])[i] = x + (before - x) * shift_share(o, z, c);
                before = x;
            }
            if (o->last.p) P(o->last)[b * C + c] = before;
        }
    return RK_OK;
}

static int shift_lerp_bwd(const RkShiftLerp *o) {
    size_t B = (size_t)o->x.d[0], T = (size_t)o->x.d[1], C = (size_t)o->x.d[2];
    for (size_t b = 0; b < B; b++)
        for (size_t c = 0; c < C; c++) {
            real e_next = o->dlast.p ? P(o->dlast)[b * C + c] : 0; /* what later tokens took from x_t */
            for (size_t t = T; t-- > 0;) {
                size_t i = (b * T + t) * C + c;
                real x = P(o->x)[i], before = t ? P(o->x)[i - C] : o->prev.p ? P(o->prev)[b * C + c] : 0, sum = 0, e = 0;
                for (int z = 0; z < o->n; z++) {
                    real dy = P(o->dy[z])[i];
                    sum += dy;
                    e += dy * shift_share(o, z, c);
                    P(o->dmu[z])[c] += (o->keep ? -dy : dy) * (before - x);
                }
                P(o->dx)[i] = sum - e + e_next;
                e_next = e;
            }
            if (o->dprev.p) P(o->dprev)[b * C + c] = e_next;
        }
    return RK_OK;
}
