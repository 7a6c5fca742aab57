static int embed_fwd(const RkEmbed *o) {
    size_t R = rk_rows(o->y), C = (size_t)rk_cols(o->y);
    for (size_t r = 0; r < R; r++)
        for (size_t c = 0; c < C; c++) P(o->y)[r * C + c] = weight(o->w, (size_t)o->ids[r], c);
    return RK_OK;
}

static int embed_bwd(const RkEmbed *o) {
    size_t R = rk_rows(o->dy), C = (size_t)rk_cols(o->dy);
    for (size_t r = 0; r < R; r++)
        for (size_t c = 0; c < C; c++) P(o->dw)[(size_t)o->ids[r] * C + c] += P(o->dy)[r * C + c];
    return RK_OK;
}
