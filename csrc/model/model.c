#include "model/model.h"

#include <stdlib.h>
#include <string.h>

#include "base/parallel.h"
#include "base/quant.h"

int rk_model_create(RkModel *m, const RkConfig *cfg, const RkBackend *be) {
    memset(m, 0, sizeof *m);
    RK_TRY(rk_config_check(cfg));
    m->cfg = *cfg;
    m->be = be;
    RK_TRY(rk_manifest_build(&m->man, &m->cfg, be->dtype));
    RkArena a = {0};
    rk_manifest_place(&m->man, &a, 0);
    m->value_bytes = a.used;
    m->values = rk_pages_alloc(a.used);
    if (!m->values) {
        rk_manifest_free(&m->man);
        return rk_fail(RK_ENOMEM, "no memory for the parameters: %zu MiB", a.used >> 20);
    }
    a = (RkArena){m->values, 0, m->value_bytes};
    rk_manifest_place(&m->man, &a, 0);
    return RK_OK;
}

/* The weight of a parameter, if it has its shape and a format that its ops read. */
static int take_weight(RkParam *p, RkTensor weight) {
    int same = 1;
    for (int i = 0; i < 4; i++) same &= weight.d[i] == p->value.d[i];
    RK_CHECK(same, "%s has another shape than the model's", p->name);
    RK_CHECK(rk_param_takes(p, weight.dtype), "%s cannot be held as %s", p->name, rk_format_name(weight.dtype));
    p->value = weight;
    return RK_OK;
}

int rk_model_create_over(RkModel *m, const RkConfig *cfg, const RkBackend *be, const RkTensor *weights) {
    memset(m, 0, sizeof *m);
    RK_TRY(rk_config_check(cfg));
    RK_CHECK(be->dtype == RK_F32, "weights in formats of their own need a float32 backend, not %s", be->name);
    m->cfg = *cfg;
    m->be = be;
    RK_TRY(rk_manifest_build(&m->man, &m->cfg, be->dtype));
    int rc = RK_OK;
    for (int i = 0; !rc && i < m->man.n; i++) {
        rc = take_weight(&m->man.param[i], weights[i]);
        m->value_bytes += rk_bytes(weights[i]);
    }
    if (rc) rk_manifest_free(&m->man);
    return rc;
}

void rk_model_free(RkModel *m) {
    rk_pages_free(m->values, m->value_bytes);
    rk_pages_free(m->grads, m->grad_bytes);
    free(m->used);
    rk_manifest_free(&m->man);
    rk_work_free(&m->work);
}

size_t rk_embedding_bytes(const RkModel *m) { return (size_t)m->cfg.V * (size_t)m->cfg.C * rk_dtype_size(m->be->dtype); }

int rk_model_need_grads(RkModel *m) {
    if (m->grads) return RK_OK;
    RK_CHECK(m->values, "the weights of this model are held for inference; load it with precision='fp32' to train it");
    m->used = calloc((size_t)m->cfg.V, sizeof *m->used);
    m->grads = m->used ? rk_pages_alloc(m->value_bytes) : NULL;
    if (!m->grads) {
        free(m->used);
        m->used = NULL;
        return rk_fail(RK_ENOMEM, "no memory for the gradients: %zu MiB", m->value_bytes >> 20);
    }
    m->grad_bytes = m->value_bytes;
    RkArena a = {m->grads, 0, m->grad_bytes};
    rk_manifest_place(&m->man, &a, 1);
    rk_pages_sparse(m->man.param[m->man.emb].grad.p, rk_embedding_bytes(m));
    return RK_OK;
}

typedef struct { char *p; size_t bytes; } Zero;
enum { ZERO_BLOCK = 1 << 20 };

static void zero_block(void *ctx, size_t task) {
    Zero *z = ctx;
    size_t at = task * ZERO_BLOCK, n = z->bytes - at < ZERO_BLOCK ? z->bytes - at : ZERO_BLOCK;
    memset(z->p + at, 0, n);
}

static void zero(RkTensor t) {
    Zero z = {t.p, rk_numel(t) * rk_dtype_size(t.dtype)};
    rk_parallel((z.bytes + ZERO_BLOCK - 1) / ZERO_BLOCK, zero_block, &z);
}

enum { ZERO_ROWS = 64 };

static void zero_used_rows(void *ctx, size_t task) {
    RkModel *m = ctx;
    RkTensor grad = m->man.param[m->man.emb].grad;
    size_t V = (size_t)m->cfg.V, first = task * ZERO_ROWS, end = first + ZERO_ROWS < V ? first + ZERO_ROWS : V;
    size_t row = (size_t)rk_cols(grad) * rk_dtype_size(grad.dtype);
    for (size_t id = first; id < end; id++) {
        if (m->used[id]) memset((char *)grad.p + id * row, 0, row);
        m->used[id] = 0;
    }
}

static void zero_grads(RkModel *m, int but_matrices) {
    if (!m->grads) return;
    const RkParam *p = m->man.param;
    for (int i = 0; i < m->man.n; i++)
        if (!(but_matrices && (p[i].flags & P_MATRIX)) && (i != m->man.emb || m->grads_shared)) zero(p[i].grad);
    if (!m->grads_shared) rk_parallel(((size_t)m->cfg.V + ZERO_ROWS - 1) / ZERO_ROWS, zero_used_rows, m);
    m->fresh = but_matrices;
}

void rk_model_zero_grads(RkModel *m) { zero_grads(m, 0); }
void rk_model_restart_grads(RkModel *m) { zero_grads(m, 1); }
void rk_model_share_grads(RkModel *m) { m->grads_shared = 1; }
const int32_t *rk_model_used_tokens(const RkModel *m) { return m->grads_shared ? NULL : m->used; }

int rk_model_prepare(RkModel *m, RkWorkSize size) {
    return rk_work_prepare(&m->work, &m->cfg, &m->man, m->be->dtype, size);
}

size_t rk_model_scratch_bytes(const RkModel *m) {
    size_t most = 0;
    for (int l = 0; l < m->cfg.L; l++) {
        size_t need = m->be->scratch_bytes(m->cfg.block[l].N);
        if (need > most) most = need;
    }
    return most * (size_t)rk_num_threads() + m->be->call_scratch_bytes;
}
