/* transposed.c - transposed copies of the matrices whose input is mostly zeros: a row of them belongs to one number of the input, so that
 * decoding one sequence reads the rows whose number is not zero, and nothing of the others. */
#include "model/model.h"

static int wanted(const RkModel *m, const RkParam *p) {
    return m->be->transpose && !m->grads && (p->flags & P_SPARSE) && p->value.dtype == m->store.dtype;
}

/* Places all copies in the arena. */
static void place(RkModel *m, RkArena *a) {
    for (int i = 0; i < m->man.n; i++) {
        RkParam *p = &m->man.param[i];
        if (wanted(m, p)) p->transposed = rk_arena_take(a, p->value.dtype, (int32_t[4]){p->value.d[1], p->value.d[0]});
    }
}

size_t rk_model_transposed_bytes(const RkModel *m) {
    RkArena a = {0};
    for (int i = 0; i < m->man.n; i++)
        if (wanted(m, &m->man.param[i])) rk_arena_take(&a, m->man.param[i].value.dtype, m->man.param[i].value.d);
    return a.used;
}

void rk_model_forget_transposed(RkModel *m) {
    if (m->transposed) m->store.memory->release(m->store.memory, m->transposed, m->transposed_bytes);
    m->transposed = NULL;
    for (int i = 0; m->man.param && i < m->man.n; i++) m->man.param[i].transposed.p = NULL;
}

int rk_model_transpose(RkModel *m) {
    if (m->transposed_of == m->writes + 1) return RK_OK;
    m->transposed_of = m->writes + 1;
    if (!m->transposed) {
        m->transposed_bytes = rk_model_transposed_bytes(m);
        m->transposed = m->transposed_bytes ? m->store.memory->alloc(m->store.memory, m->transposed_bytes) : NULL;
        if (!m->transposed) return RK_OK;
        RkArena a = {m->transposed, 0, m->transposed_bytes};
        place(m, &a);
    }
    for (int i = 0; i < m->man.n; i++)
        if (m->man.param[i].transposed.p) RK_TRY(m->be->transpose(m->man.param[i].value, m->man.param[i].transposed));
    return RK_OK;
}
