#include "model/model.h"

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
    rk_manifest_free(&m->man);
    rk_work_free(&m->work);
}

int rk_model_need_grads(RkModel *m) {
    if (m->grads) return RK_OK;
    RK_CHECK(m->values, "the weights of this model are held for inference; load it with precision='fp32' to train it");
    m->grads = rk_pages_alloc(m->value_bytes);
    if (!m->grads) return rk_fail(RK_ENOMEM, "no memory for the gradients: %zu MiB", m->value_bytes >> 20);
    m->grad_bytes = m->value_bytes;
    RkArena a = {m->grads, 0, m->grad_bytes};
    rk_manifest_place(&m->man, &a, 1);
    return RK_OK;
}

typedef struct { char *p; size_t bytes; } Zero;
enum { ZERO_BLOCK = 1 << 20 };

static void zero_block(void *ctx, size_t task) {
    Zero *z = ctx;
    size_t at = task * ZERO_BLOCK, n = z->bytes - at < ZERO_BLOCK ? z->bytes - at : ZERO_BLOCK;
    memset(z->p + at, 0, n);
}

void rk_model_zero_grads(RkModel *m) {
    Zero z = {m->grads, m->grad_bytes};
    if (m->grads) rk_parallel((z.bytes + ZERO_BLOCK - 1) / ZERO_BLOCK, zero_block, &z);
}

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
