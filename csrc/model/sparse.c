#include "model/sparse.h"

#include <stdlib.h>

#include "model/model.h"

/* The P_SPARSE parameter of a layer that columns can be made of; NULL: it has none. */
static const RkParam *sparse_param(const RkModel *m, int layer) {
    if (!m->be->columns || m->grads || (rk_on_host(m->store.memory) && !m->held)) return NULL;
    const RkParam *p = &m->man.param[m->man.layer[layer].channel_mix];
    for (int i = 0; i < m->cfg.block[layer].channel_mix->n_par; i++)
        if (p[i].flags & P_SPARSE && m->be->columns_fit(p[i].value)) return &p[i];
    return NULL;
}

static void let_go(const RkParam *p) {
    if (p->mapped) rk_pages_leave(p->value.p, rk_bytes(p->value));
}

/* Where each lies in the arena; of may be NULL. */
static void place(const RkModel *m, RkArena *a, RkTensor *of) {
    for (int l = 0; l < m->cfg.L; l++) {
        const RkParam *p = sparse_param(m, l);
        if (!p) continue;
        RkTensor columns = rk_arena_take(a, p->value.dtype, p->value.d);
        if (of) of[l] = columns;
    }
}

size_t rk_model_columns_bytes(const RkModel *m) {
    RkArena a = {0};
    place(m, &a, NULL);
    return a.used;
}

size_t rk_model_columns_beside(const RkModel *m) {
    RkArena a = {0};
    for (int l = 0; l < m->cfg.L; l++) {
        const RkParam *p = sparse_param(m, l);
        if (p && !p->mapped) rk_arena_take(&a, p->value.dtype, p->value.d);
    }
    return a.used;
}

static int allocate(RkModel *m) {
    RkColumns *c = &m->columns;
    c->of = calloc((size_t)m->cfg.L, sizeof *c->of);
    if (!c->of) return rk_fail(RK_ENOMEM, "no memory for the list of %d matrices", m->cfg.L);
    c->bytes = rk_model_columns_bytes(m);
    c->memory = c->bytes ? m->store.memory->alloc(m->store.memory, c->bytes) : NULL;
    if (c->memory) place(m, &(RkArena){c->memory, 0, c->bytes}, c->of);
    return RK_OK;
}

int rk_model_need_columns(RkModel *m, size_t rows) {
    RkColumns *c = &m->columns;
    if (rows > (size_t)m->be->columns_rows || (c->of && c->writes == m->writes)) return RK_OK;
    if (!c->of) RK_TRY(allocate(m));
    c->writes = m->writes;
    for (int l = 0; l < m->cfg.L; l++) {
        if (!c->of[l].p) continue;
        const RkParam *p = sparse_param(m, l);
        RK_TRY(m->be->columns(p->value, c->of[l]));
        let_go(p);
    }
    return RK_OK;
}

void rk_model_leave_mapped(const RkModel *m, int layer) {
    if (!m->columns.of || m->work.size.B * m->work.size.T <= m->be->columns_rows) return;
    const RkParam *p = sparse_param(m, layer);
    if (p) let_go(p);
}

void rk_model_forget_columns(RkModel *m) {
    RkColumns *c = &m->columns;
    if (c->memory) m->store.memory->release(m->store.memory, c->memory, c->bytes);
    free(c->of);
    *c = (RkColumns){0};
}
