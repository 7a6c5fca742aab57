/* head.c - ln_out and the output matrix, in pieces of rows: no (B,T,V) tensor exists in training. */
#include <stdlib.h>

#include "model/model.h"

/* The sum of the loss's rows, in their order. Waits. */
int rk_head_loss_sum(RkModel *m, double *loss) {
    RkMemory *memory = m->store.memory;
    size_t R = rk_numel(m->work.loss);
    double *row = rk_on_host(memory) ? m->work.loss.p : malloc(R * sizeof *row);
    if (!row) return rk_fail(RK_ENOMEM, "no memory for the loss of %zu tokens", R);
    int rc = rk_on_host(memory) ? RK_OK : memory->read(memory, row, m->work.loss.p, R * sizeof *row);
    *loss = 0;
    for (size_t i = 0; !rc && i < R; i++) *loss += row[i];
    if (!rk_on_host(memory)) free(row);
    return rc;
}

/* Cross-entropy of f->targets, row by row into w->loss; with b also the gradients of head and ln_out, and w->dx, that of the stream. */
int rk_head_loss(RkModel *m, const RkForward *f, const RkBackward *b) {
    const RkBackend *be = m->be;
    RkWork *w = &m->work;
    RkParam *head = &m->man.param[m->man.head];
    size_t R = (size_t)f->B * (size_t)f->T, piece = rk_rows(w->logits);
    RkXent xent = {.grad = b != NULL};
    if (b) xent.scale = b->scale, xent.l2 = b->l2, xent.factors = b->factors;
    RkLayerNorm norm = rk_norm_call(m, m->man.ln_out, w->x_out, w->xn, w->stats_out);
    RK_TRY(be->layernorm_fwd(&norm));
    for (size_t first = 0; first < R; first += piece) {
        size_t n = R - first < piece ? R - first : piece;
        RkTensor logits = rk_slice_rows(w->logits, 0, n), xn = rk_slice_rows(w->xn, first, n);
        RkLinear product = {.x = xn, .w = head->value, .y = logits, .dy = logits, .dw = head->grad,
                            .fresh = m->fresh && !first};
        if (b) product.dx = rk_slice_rows(w->dxn, first, n);
        RK_TRY(be->linear_fwd(&product));
        xent.logits = logits;
        xent.targets = f->op_targets + first;
        xent.loss = (RkTensor){(double *)w->loss.p + first, RK_F64, {(int32_t)n}};
        RK_TRY(be->xent_fwd(&xent));
        if (b) RK_TRY(be->linear_bwd(&product));
    }
    if (!b) return RK_OK;
    norm.dy = w->dxn;
    norm.dx = w->dx;
    return be->layernorm_bwd(&norm);
}

/* The product of normed rows and the output matrix into `out`, in the host's memory. */
static int logits_of(RkModel *m, RkTensor xn, char *out) {
    RkMemory *memory = m->store.memory;
    int dtype = m->store.sum_dtype, V = m->cfg.V;
    size_t n = rk_rows(xn), piece = rk_on_host(memory) ? n : rk_rows(m->work.logits), row = (size_t)V * rk_dtype_size(dtype);
    for (size_t first = 0; first < n; first += piece) {
        size_t rows = n - first < piece ? n - first : piece;
        char *to = out + first * row;
        RkLinear product = {.x = rk_slice_rows(xn, first, rows), .w = m->man.param[m->man.head].value,
                            .y = {rk_on_host(memory) ? to : m->work.logits.p, dtype, {(int32_t)rows, V}}};
        RK_TRY(m->be->linear_fwd(&product));
        if (!rk_on_host(memory)) RK_TRY(memory->read(memory, to, product.y.p, rows * row));
    }
    return RK_OK;
}

/* The last token of every sequence, after ln_out, into w->last. */
static int norm_last(RkModel *m) {
    RkWork *w = &m->work;
    RkMemory *memory = m->store.memory;
    size_t B = (size_t)w->size.B, n = (size_t)w->size.T, row = (size_t)m->cfg.C * rk_dtype_size(m->store.dtype);
    for (size_t b = 0; n > 1 && b < B; b++)
        RK_TRY(memory->copy(memory, (char *)w->last.p + b * row, (char *)w->x_out.p + ((b + 1) * n - 1) * row, row));
    RkLayerNorm norm = rk_norm_call(m, m->man.ln_out, n > 1 ? w->last : rk_slice_rows(w->x_out, 0, B), w->last, (RkTensor){0});
    return m->be->layernorm_fwd(&norm);
}

/* Logits of every sequence's last token, into a tensor in the model's memory. */
int rk_head_keep_logits(RkModel *m, RkTensor logits) {
    RK_TRY(norm_last(m));
    RkLinear product = {.x = m->work.last, .w = m->man.param[m->man.head].value, .y = logits};
    return m->be->linear_fwd(&product);
}

/* Logits of the piece of tokens [t0, t0 + T of the work) into their places of f->out. */
int rk_head_logits(RkModel *m, RkForward *f, int t0) {
    RkWork *w = &m->work;
    size_t B = (size_t)f->B, n = (size_t)w->size.T, V = (size_t)m->cfg.V;
    if (f->logits == RK_LOGITS_LAST) {
        RK_TRY(norm_last(m));
        return logits_of(m, w->last, f->out);
    }
    RkLayerNorm norm = rk_norm_call(m, m->man.ln_out, w->x_out, w->xn, w->stats_out);
    RK_TRY(m->be->layernorm_fwd(&norm));
    for (size_t b = 0; b < B; b++)
        RK_TRY(logits_of(m, rk_slice_rows(w->xn, b * n, n),
                         (char *)f->out + (b * (size_t)f->T + (size_t)t0) * V * rk_dtype_size(m->store.sum_dtype)));
    return RK_OK;
}
