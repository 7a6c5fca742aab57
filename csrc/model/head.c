/* head.c - ln_out and the output matrix, in pieces of rows: no (B,T,V) tensor exists in training. */
#include <string.h>

#include "model/model.h"

/* Cross-entropy of f->targets; with grad also the gradients of head and ln_out, and w->dx, that of the stream. */
int rk_head_loss(RkModel *m, RkForward *f, double scale, double l2, int grad) {
    const RkBackend *be = m->be;
    RkWork *w = &m->work;
    RkParam *head = &m->man.param[m->man.head];
    size_t R = (size_t)f->B * (size_t)f->T, piece = rk_rows(w->logits);
    RkLayerNorm norm = rk_norm_call(m, m->man.ln_out, w->x_out, w->xn, w->stats_out);
    RK_TRY(be->layernorm_fwd(&norm));
    for (size_t first = 0; first < R; first += piece) {
        size_t n = R - first < piece ? R - first : piece;
        RkTensor logits = rk_slice_rows(w->logits, 0, n), xn = rk_slice_rows(w->xn, first, n);
        RkLinear product = {.x = xn, .w = head->value, .y = logits, .dy = logits, .dw = head->grad,
                            .fresh = m->fresh && !first};
        if (grad) product.dx = rk_slice_rows(w->dxn, first, n);
        RK_TRY(be->linear_fwd(&product));
        RkXent xent = {.logits = logits, .targets = f->targets + first, .grad = grad, .scale = scale, .l2 = l2,
                       .loss = {(double *)w->loss.p + first, RK_F64, {(int32_t)n}}};
        RK_TRY(be->xent_fwd(&xent));
        if (grad) RK_TRY(be->linear_bwd(&product));
    }
    f->loss = 0;
    f->count = 0;
    for (size_t i = 0; i < R; i++) {
        f->loss += ((double *)w->loss.p)[i];
        f->count += f->targets[i] != RK_IGNORE;
    }
    if (!grad) return RK_OK;
    norm.dy = w->dxn;
    norm.dx = w->dx;
    return be->layernorm_bwd(&norm);
}

/* Logits of the piece of tokens [t0, t0 + T of the work) into their places of f->out. */
int rk_head_logits(RkModel *m, RkForward *f, int t0) {
    RkWork *w = &m->work;
    size_t B = (size_t)f->B, n = (size_t)w->size.T, C = (size_t)m->cfg.C, V = (size_t)m->cfg.V;
    size_t element = rk_dtype_size(m->be->dtype);
    RkTensor weight = m->man.param[m->man.head].value;
    RkLayerNorm norm = rk_norm_call(m, m->man.ln_out, w->x_out, w->xn, w->stats_out);
    if (f->logits == RK_LOGITS_LAST) {
        for (size_t b = 0; b < B; b++)
            memcpy((char *)w->last.p + b * C * element, (char *)w->x_out.p + ((b + 1) * n - 1) * C * element, C * element);
        norm.x = norm.y = w->last;
        norm.stats.p = NULL;
        RK_TRY(m->be->layernorm_fwd(&norm));
        RkLinear product = {.x = w->last, .w = weight, .y = {f->out, m->be->dtype, {f->B, m->cfg.V}}};
        return m->be->linear_fwd(&product);
    }
    RK_TRY(m->be->layernorm_fwd(&norm));
    for (size_t b = 0; b < B; b++) {
        char *out = (char *)f->out + (b * (size_t)f->T + (size_t)t0) * V * element;
        RkLinear product = {.x = rk_slice_rows(w->xn, b * n, n), .w = weight, .y = {out, m->be->dtype, {(int32_t)n, m->cfg.V}}};
        RK_TRY(m->be->linear_fwd(&product));
    }
    return RK_OK;
}
