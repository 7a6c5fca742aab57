#include "model/work.h"

#include <stdlib.h>

int rk_head_rows(int V, size_t rows) {
    size_t n = ((size_t)8 << 20) / (size_t)V & ~(size_t)15;
    n = n < 64 ? 64 : n > 1024 ? 1024 : n;
    return (int)(n < rows ? n : rows);
}

typedef struct { RkArena a; const RkConfig *cfg; RkStore store; RkWorkSize size; } Layout;

static RkTensor take(Layout *o, int dtype, int d0, int d1, int d2) {
    int32_t d[4] = {d0, d1, d2, 0};
    return rk_arena_take(&o->a, dtype, d);
}

static RkTensor take_rows(Layout *o) { return take(o, o->store.dtype, o->size.B, o->size.T, o->cfg->C); }
static RkTensor take_stats(Layout *o) { return take(o, o->store.sum_dtype, o->size.B * o->size.T, 2, 0); }

static void take_table(Layout *o, const RkRowSpec *rows, int n, const RkDims *dims, RkTensor *out) {
    int by_chunks = rk_wkv7_by_chunks(o->store.dtype, dims->N);
    for (int i = 0; i < n; i++) {
        unsigned flags = rows[i].flags, spared = flags & A_TOKENWISE && by_chunks;
        out[i] = rk_shape_resolve(rows[i].shape, flags & A_SUM && !spared ? o->store.sum_dtype : o->store.dtype, dims);
        if ((flags & A_TRAIN && !o->size.training) || (spared && !(flags & A_SUM))) continue;
        out[i] = rk_arena_take(&o->a, out[i].dtype, out[i].d);
    }
}

static void take_saved(Layout *o, int l, RkBlockWork *b) {
    RkDims dims = rk_config_dims(o->cfg, l, o->size.B, o->size.T);
    const RkMixer *tm = o->cfg->block[l].time_mix, *cm = o->cfg->block[l].channel_mix;
    b->mid = o->size.training ? take_rows(o) : b->x; /* without a backward the stream is updated in place */
    b->stats1 = take_stats(o);
    b->stats2 = take_stats(o);
    take_table(o, tm->act, tm->n_act, &dims, b->act[0]);
    take_table(o, cm->act, cm->n_act, &dims, b->act[1]);
}

/* Places the blocks' saved rows: one after another, or, when they are not kept, all in the same place. */
static void take_all_saved(Layout *o, RkBlockWork *block) {
    int keep = o->size.training && !o->size.grad_cp;
    size_t start = o->a.used, high = start;
    for (int l = 0; l < o->cfg->L; l++) {
        if (!keep) o->a.used = start;
        take_saved(o, l, &block[l]);
        if (o->a.used > high) high = o->a.used;
    }
    o->a.used = high;
}

/* Scratch: every mixer of every layer starts at the same place. */
static void take_all_scratch(Layout *o, RkBlockWork *block) {
    size_t start = o->a.used, high = start;
    for (int l = 0; l < o->cfg->L; l++) {
        RkDims dims = rk_config_dims(o->cfg, l, o->size.B, o->size.T);
        const RkMixer *mixer[2] = {o->cfg->block[l].time_mix, o->cfg->block[l].channel_mix};
        for (int half = 0; half < 2; half++) {
            o->a.used = start;
            take_table(o, mixer[half]->tmp, mixer[half]->n_tmp, &dims, block[l].tmp[half]);
            if (o->a.used > high) high = o->a.used;
        }
    }
    o->a.used = high;
}

static void take_carry(Layout *o, const RkManifest *man, RkCarry *carry) {
    carry->value_layer = man->value_layer;
    if (man->value_layer < 0) return;
    RkDims dims = rk_config_dims(o->cfg, man->value_layer, o->size.B, o->size.T);
    int32_t d[4] = {dims.B, dims.T, dims.H, dims.N};
    carry->v_first = rk_arena_take(&o->a, o->store.dtype, d);
    if (o->size.training) carry->dv_first = rk_arena_take(&o->a, o->store.dtype, d);
}

static void layout(Layout *o, const RkManifest *man, RkWork *w) {
    int B = o->size.B, T = o->size.T, R = B * T, training = o->size.training;
    RkBlockWork *block = w->block;
    for (int l = 0; l < o->cfg->L; l++) block[l].x = l == 0 || training ? take_rows(o) : block[0].x;
    w->x_out = training ? take_rows(o) : block[0].x;
    w->emb = man->ln0 < 0 ? block[0].x : take_rows(o);
    w->stats0 = take_stats(o);
    w->stats_out = take_stats(o);
    w->xn = take_rows(o);
    w->y = take_rows(o);
    if (training) w->dx = take_rows(o), w->dxn = w->y; /* no forward of a half meets its own backward */
    take_carry(o, man, &w->carry);
    w->last = take(o, o->store.dtype, B, o->cfg->C, 0);
    w->ids = rk_on_host(o->store.memory) ? NULL : take(o, RK_F32, 2, R, 0).p; /* 4 bytes each */
    w->loss = take(o, RK_F64, R, 0, 0);
    take_all_saved(o, block);
    /* The loss runs between the forward and the backward of the blocks: its logits share the scratch's place. */
    size_t start = o->a.used;
    w->logits = take(o, training ? o->store.dtype : o->store.sum_dtype, rk_head_rows(o->cfg->V, (size_t)R), o->cfg->V, 0);
    size_t after_logits = o->a.used;
    o->a.used = start;
    take_all_scratch(o, block);
    if (o->a.used < after_logits) o->a.used = after_logits;
}

size_t rk_work_measure(const RkConfig *cfg, const RkManifest *man, RkStore store, RkWorkSize size) {
    Layout o = {{0}, cfg, store, size};
    RkWork w = {.block = calloc((size_t)cfg->L, sizeof *w.block)};
    if (!w.block) return 0;
    layout(&o, man, &w);
    free(w.block);
    return o.a.used;
}

static void release(RkWork *w) {
    if (w->memory) w->store.memory->release(w->store.memory, w->memory, w->bytes);
    w->memory = NULL;
}

int rk_work_prepare(RkWork *w, const RkConfig *cfg, const RkManifest *man, RkStore store, RkWorkSize size) {
    const RkWorkSize *have = &w->size;
    if (w->memory && have->B == size.B && have->T == size.T && have->training == size.training &&
        have->grad_cp == size.grad_cp)
        return RK_OK;
    if (!w->block) w->block = calloc((size_t)cfg->L, sizeof *w->block);
    RK_CHECK((int64_t)size.B * size.T <= INT32_MAX / 2, "a batch of %d x %d tokens is too large for one call; use a smaller micro_bsz or ctx_len",
             size.B, size.T);
    size_t bytes = rk_work_measure(cfg, man, store, size);
    if (!w->block || !bytes) return rk_fail(RK_ENOMEM, "no memory for the layout of %d layers", cfg->L);
    if (bytes > w->bytes) {
        release(w);
        w->store = store;
        w->memory = store.memory->alloc(store.memory, bytes);
        w->bytes = w->memory ? bytes : 0;
        if (!w->memory)
            return rk_fail(RK_ENOMEM, "no memory for activations: %zu MiB for batch %d x %d tokens; "
                           "use a smaller micro_bsz or ctx_len, or grad_cp=1", bytes >> 20, size.B, size.T);
    }
    Layout o = {{w->memory, 0, w->bytes}, cfg, store, size};
    layout(&o, man, w);
    w->size = size;
    return RK_OK;
}

void rk_work_free(RkWork *w) {
    release(w);
    free(w->block);
    *w = (RkWork){0};
}
