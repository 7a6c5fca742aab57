#include "model/model.h"

#include <stdlib.h>
#include <string.h>

#include "base/parallel.h"
#include "base/quant.h"

/* Everything of a model but the memory of its weights. */
static int begin(RkModel *m, const RkConfig *cfg, const RkBackend *be, int device) {
    memset(m, 0, sizeof *m);
    RK_TRY(rk_config_check(cfg));
    m->cfg = *cfg;
    m->be = be;
    RK_TRY(rk_store_open(be, device, &m->store));
    return rk_manifest_build(&m->man, &m->cfg, m->store);
}

static int allocate_values(RkModel *m) {
    m->value_bytes = rk_manifest_bytes(&m->man, 0);
    m->values = m->store.memory->alloc(m->store.memory, m->value_bytes);
    if (!m->values) return rk_fail(RK_ENOMEM, "no memory for the parameters: %zu MiB", m->value_bytes >> 20);
    RkArena a = {m->values, 0, m->value_bytes};
    rk_manifest_place(&m->man, &a, 0);
    return RK_OK;
}

int rk_model_create(RkModel *m, const RkConfig *cfg, const RkBackend *be, int device) {
    int rc = begin(m, cfg, be, device);
    if (!rc) rc = allocate_values(m);
    if (rc) rk_model_free(m);
    return rc;
}

/* Whether a parameter may have this weight: its shape, in a format that its ops read. */
static int check_weight(const RkParam *p, RkTensor weight) {
    int same = 1;
    for (int i = 0; i < 4; i++) same &= weight.d[i] == p->value.d[i];
    RK_CHECK(same, "%s has another shape than the model's", p->name);
    RK_CHECK(rk_param_takes(p, weight.dtype), "%s cannot be held as %s", p->name, rk_format_name(weight.dtype));
    return RK_OK;
}

/* A weight into the memory that its parameter has, by way of the host's where its type changes. */
static int copy_weight(RkMemory *memory, RkParam *p, RkTensor weight) {
    RkTensor there = p->value;
    if (there.dtype == weight.dtype) return memory->write(memory, there.p, weight.p, rk_bytes(weight));
    RkTensor converted = {malloc(rk_bytes(there)), there.dtype, {there.d[0], there.d[1], there.d[2], there.d[3]}};
    if (!converted.p) return rk_fail(RK_ENOMEM, "no memory to convert %s", p->name);
    int rc = rk_convert(weight, converted);
    if (rc == RK_EINVAL) rc = rk_fail(rc, "%s holds numbers that are not finite, or too large for %s", p->name, rk_format_name(there.dtype));
    if (!rc) rc = memory->write(memory, there.p, converted.p, rk_bytes(there));
    free(converted.p);
    return rc;
}

int rk_model_create_held(RkModel *m, const RkConfig *cfg, const RkBackend *be, int device, const RkTensor *weights) {
    RK_CHECK(be->dtype == RK_F32 || be->open, "weights in formats of their own need a float32 backend, not %s", be->name);
    int rc = begin(m, cfg, be, device), elsewhere = !rc && rk_on_host(m->store.memory);
    m->held = 1;
    for (int i = 0; !rc && i < m->man.n; i++) {
        RkParam *p = &m->man.param[i];
        rc = check_weight(p, weights[i]);
        if (elsewhere) p->value = weights[i];
        else if (rk_quantised(weights[i].dtype)) p->value.dtype = weights[i].dtype;
        m->value_bytes += rk_bytes(weights[i]);
    }
    if (!rc && !elsewhere) rc = allocate_values(m);
    for (int i = 0; !rc && !elsewhere && i < m->man.n; i++) rc = copy_weight(m->store.memory, &m->man.param[i], weights[i]);
    if (rc) rk_model_free(m);
    return rc;
}

void rk_model_free(RkModel *m) {
    rk_model_forget_columns(m);
    RkMemory *memory = m->store.memory;
    if (m->values) memory->release(memory, m->values, m->value_bytes);
    if (m->grads) memory->release(memory, m->grads, m->grad_bytes);
    m->values = m->grads = NULL; /* a model whose making failed is freed again by its owner */
    free(m->used);
    m->used = NULL;
    rk_manifest_free(&m->man);
    rk_work_free(&m->work);
    rk_store_close(&m->store);
}

size_t rk_embedding_bytes(const RkModel *m) { return (size_t)m->cfg.V * (size_t)m->cfg.C * rk_dtype_size(m->be->dtype); }

int rk_model_need_grads(RkModel *m) {
    if (m->grads) return RK_OK;
    RK_CHECK(!m->held, "the weights of this model are held for inference; load it with precision='fp32' to train it");
    rk_model_forget_columns(m); /* the weights change with every step from now on */
    RkMemory *memory = m->store.memory;
    size_t bytes = rk_manifest_bytes(&m->man, 1);
    m->used = calloc((size_t)m->cfg.V, sizeof *m->used);
    m->grads = m->used ? memory->alloc(memory, bytes) : NULL;
    if (!m->grads) {
        free(m->used);
        m->used = NULL;
        return rk_fail(RK_ENOMEM, "no memory for the gradients: %zu MiB", bytes >> 20);
    }
    m->grad_bytes = bytes;
    m->grads_shared = !rk_on_host(memory); /* on a device reading zeros costs less than finding them */
    RkArena a = {m->grads, 0, m->grad_bytes};
    rk_manifest_place(&m->man, &a, 1);
    if (rk_on_host(memory)) rk_pages_sparse(m->man.param[m->man.emb].grad.p, rk_embedding_bytes(m));
    return RK_OK;
}

static int zero(RkModel *m, RkTensor t) { return m->store.memory->zero(m->store.memory, t.p, rk_numel(t) * rk_dtype_size(t.dtype)); }

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

static int zero_grads(RkModel *m, int but_matrices) {
    if (!m->grads) return RK_OK;
    m->fresh = 0;
    if (!rk_on_host(m->store.memory)) return m->store.memory->zero(m->store.memory, m->grads, m->grad_bytes); /* at once */
    const RkParam *p = m->man.param;
    for (int i = 0; i < m->man.n; i++)
        if (!(but_matrices && (p[i].flags & P_MATRIX)) && (i != m->man.emb || m->grads_shared)) RK_TRY(zero(m, p[i].grad));
    if (!m->grads_shared) rk_parallel(((size_t)m->cfg.V + ZERO_ROWS - 1) / ZERO_ROWS, zero_used_rows, m);
    m->fresh = but_matrices;
    return RK_OK;
}

int rk_model_zero_grads(RkModel *m) { return zero_grads(m, 0); }
int rk_model_restart_grads(RkModel *m) { return zero_grads(m, 1); }
void rk_model_share_grads(RkModel *m) { m->grads_shared = 1; }
const int32_t *rk_model_used_tokens(const RkModel *m) { return m->grads_shared ? NULL : m->used; }

int rk_model_prepare(RkModel *m, RkWorkSize size) {
    return rk_work_prepare(&m->work, &m->cfg, &m->man, m->store, size);
}

size_t rk_model_scratch_bytes(const RkModel *m) {
    size_t most = 0;
    for (int l = 0; l < m->cfg.L; l++) {
        size_t need = m->be->scratch_bytes(m->cfg.block[l].N);
        if (need > most) most = need;
    }
    return most * (size_t)rk_num_threads() + m->be->call_scratch_bytes + m->store.memory->own;
}
