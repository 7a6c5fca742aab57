#include "model/state.h"

#include <stdlib.h>

static void place(RkState *s, RkArena *a) {
    for (int l = 0; l < s->cfg->L; l++) {
        RkDims dims = rk_config_dims(s->cfg, l, s->B, 1);
        dims.P = s->room;
        const RkMixer *mixer[2] = {s->cfg->block[l].time_mix, s->cfg->block[l].channel_mix};
        for (int half = 0; half < 2; half++)
            for (int i = 0; i < mixer[half]->n_state; i++) {
                RkTensor t = rk_shape_resolve(mixer[half]->state[i].shape, s->store.sum_dtype, &dims);
                t = rk_arena_take(a, t.dtype, t.d);
                if (a->base) (half ? s->channel_mix : s->time_mix)[l][i] = t;
            }
    }
}

/* A row has room for one token at least: no tensor is empty. */
static RkState sized(const RkConfig *cfg, RkStore store, int B, int past) {
    return (RkState){.cfg = cfg, .store = store, .B = B, .most = B, .past = rk_config_grows(cfg) ? past : 0, .room = past > 1 ? past : 1};
}

size_t rk_state_bytes(const RkConfig *cfg, RkStore store, int B, int past) {
    RkState s = sized(cfg, store, B, past);
    RkArena a = {0};
    place(&s, &a);
    return a.used;
}

int rk_state_create(RkState *s, const RkConfig *cfg, RkStore store, int B, int past) {
    *s = sized(cfg, store, B, past);
    s->bytes = rk_state_bytes(cfg, store, B, past);
    s->memory = store.memory->alloc(store.memory, s->bytes);
    s->time_mix = calloc((size_t)cfg->L, sizeof *s->time_mix);
    s->channel_mix = calloc((size_t)cfg->L, sizeof *s->channel_mix);
    if (!s->memory || !s->time_mix || !s->channel_mix) {
        rk_state_free(s);
        return rk_fail(RK_ENOMEM, "no memory for the state of %d sequences (%zu bytes)", B, s->bytes);
    }
    RkArena a = {s->memory, 0, s->bytes};
    place(s, &a);
    return RK_OK;
}

void rk_state_free(RkState *s) {
    if (s->memory) s->store.memory->release(s->store.memory, s->memory, s->bytes);
    free(s->time_mix);
    free(s->channel_mix);
    s->memory = NULL;
    s->time_mix = s->channel_mix = NULL;
}

/* Copies n sequences of a row: all of them at once, or of each the `past` tokens it holds, as the two may have different room. */
static int copy_part(RkMemory *m, RkTensor to, size_t b_to, const RkStateRow *from, size_t b_from, size_t n, int past) {
    size_t element = rk_dtype_size(to.dtype);
    size_t step_to = rk_numel(to) / (size_t)to.d[0] * element, step_from = rk_numel(from->t) / (size_t)from->t.d[0] * element;
    size_t pieces = from->grows ? n : 1, bytes = from->grows ? step_from / (size_t)from->t.d[1] * (size_t)past : n * step_from;
    for (size_t i = 0; i < pieces; i++)
        RK_TRY(m->copy(m, (char *)to.p + (b_to + i) * step_to, (char *)from->t.p + (b_from + i) * step_from, bytes));
    return RK_OK;
}

static int copy_sequences(RkState *dst, int to, const RkState *src, int from, int n) {
    RkStateRow row, place;
    for (int i = 0; rk_state_row(src, i, &row) && rk_state_row(dst, i, &place); i++)
        RK_TRY(copy_part(src->store.memory, place.t, (size_t)to, &row, (size_t)from, (size_t)n, src->past));
    return RK_OK;
}

int rk_state_copy_sequence(RkState *dst, int to, const RkState *src, int from) { return copy_sequences(dst, to, src, from, 1); }

static int copy_rows(RkState *dst, const RkState *src) {
    RK_TRY(copy_sequences(dst, 0, src, 0, src->B));
    dst->past = src->past;
    return RK_OK;
}

int rk_state_reserve(RkState *s, int64_t tokens) {
    if (tokens <= s->room || !rk_config_grows(s->cfg)) return RK_OK;
    RK_CHECK(tokens <= INT32_MAX / 2, "a state of %lld tokens is longer than %d", (long long)tokens, INT32_MAX / 2);
    RkState larger;
    int grown = s->room + s->room / 2;
    RK_TRY(rk_state_create(&larger, s->cfg, s->store, s->B, s->past && tokens < grown ? grown : (int)tokens));
    int rc = copy_rows(&larger, s);
    rk_state_free(rc ? &larger : s);
    if (!rc) *s = larger;
    return rc;
}

int rk_state_copy(RkState *dst, const RkState *src) {
    RK_TRY(rk_state_reserve(dst, src->past));
    return copy_rows(dst, src);
}

int rk_state_narrow(RkState *s, int B) {
    RK_CHECK(B >= 1 && B <= s->most, "the state has memory for %d sequences, not for %d", s->most, B);
    s->B = B;
    for (int l = 0; l < s->cfg->L; l++)
        for (int i = 0; i < RK_MAX_STATE_ROWS; i++) {
            s->time_mix[l][i].d[0] = s->time_mix[l][i].p ? B : 0;
            s->channel_mix[l][i].d[0] = s->channel_mix[l][i].p ? B : 0;
        }
    return RK_OK;
}

void rk_state_advance(RkState *s, int past, int T) {
    if (rk_config_grows(s->cfg)) s->past = past + T;
}

int rk_state_row(const RkState *s, int i, RkStateRow *row) {
    for (int l = 0; l < s->cfg->L; l++) {
        const RkMixer *mixer[2] = {s->cfg->block[l].time_mix, s->cfg->block[l].channel_mix};
        for (int half = 0; half < 2; half++) {
            if (i < mixer[half]->n_state) {
                const RkRowSpec *spec = &mixer[half]->state[i];
                *row = (RkStateRow){l, spec->shape.d[1] == D_P, spec->name, (half ? s->channel_mix : s->time_mix)[l][i]};
                return 1;
            }
            i -= mixer[half]->n_state;
        }
    }
    return 0;
}

/* Runs the op on the pair (state row, parameter) of every trained initial state. */
static int each_pair(const RkState *s, const RkManifest *m, int (*op)(const RkInitialState *)) {
    for (int l = 0; s->cfg->time_state && l < s->cfg->L; l++) {
        const RkMixer *mixer = s->cfg->block[l].time_mix;
        for (int i = 0; i < mixer->n_state; i++)
            for (int j = 0; j < mixer->n_par; j++) {
                if (!(mixer->state[i].flags & P_INIT_STATE) || !(mixer->par[j].flags & P_INIT_STATE)) continue;
                const RkParam *p = &m->param[m->layer[l].time_mix + j];
                RkTensor row = s->time_mix[l][i];
                RK_TRY(op(&(RkInitialState){.p = p->value, .s = row, .ds = row, .dp = p->grad}));
            }
    }
    return RK_OK;
}

int rk_state_from_params(RkState *s, const RkManifest *m, const RkBackend *be) {
    RK_TRY(s->store.memory->bind(s->store.memory));
    return each_pair(s, m, be->initial_state_fwd);
}

int rk_state_grad_to_params(const RkState *ds, const RkManifest *m, const RkBackend *be) { return each_pair(ds, m, be->initial_state_bwd); }
