static int shift_lerp_fwd(const RkShiftLerp *o) {
    size_t B = (size_t)o->x.d[0], T = (size_t)o->x.d[1], C = (size_t)o->x.d[2];
    for (size_t b = 0; b < B; b++)
        for (size_t c = 0; c < C; c++) {
            real before = o->prev.p ? P(o->prev)[b * C + c] : 0;
            for (size_t t = 0; t < T; t++) {
                size_t i = (b * T + t) * C + c;
                real x = P(o->x)[i];
                for (int z = 0; z < o->n; z++)
                    P(o->y[z])[i] = o->keep ? before + (x - before) * P(o->mu[z])[c] : x + (before - x) * P(o->mu[z])[c];
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
                    e += dy * P(o->mu[z])[c];
                    P(o->dmu[z])[c] += dy * (o->keep ? x - before : before - x);
                }
                P(o->dx)[i] = (o->keep ? e : sum - e) + e_next;
                e_next = o->keep ? sum - e : e;
            }
            if (o->dprev.p) P(o->dprev)[b * C + c] = e_next;
        }
    return RK_OK;
}
