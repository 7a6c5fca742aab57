#include "model/state.h"

#include <stdlib.h>
#include <string.h>

static void place(RkState *s, RkArena *a) {
    for (int l = 0; l < s->cfg->L; l++) {
        RkDims dims = rk_config_dims(s->cfg, l, s->B, 1);
        dims.P = s->room;
        const RkMixer *mixer[2] = {s->cfg->block[l].time_mix, s->cfg->block[l].channel_mix};
        for (int half = 0; half < 2; half++)
            for (int i = 0; i < mixer[half]->n_state; i++) {
                RkTensor t = rk_shape_resolve(mixer[half]->state[i].shape, s->dtype, &dims);
                t = rk_arena_take(a, s->dtype, t.d);
                if (a->base) (half ? s->channel_mix : s->time_mix)[l][i] = t;
            }
    }
}

/* A row has room for one token at least: no tensor is empty. */
static RkState sized(const RkConfig *cfg, int dtype, int B, int past) {
    return (RkState){.cfg = cfg, .dtype = dtype, .B = B, .most = B, .past = rk_config_grows(cfg) ? past : 0, .room = past > 1 ? past : 1};
}

size_t rk_state_bytes(const RkConfig *cfg, int dtype, int B, int past) {
    RkState s = sized(cfg, dtype, B, past);
    RkArena a = {0};
    place(&s, &a);
    return a.used;
}

int rk_state_create(RkState *s, const RkConfig *cfg, int dtype, int B, int past) {
    *s = sized(cfg, dtype, B, past);
    s->bytes = rk_state_bytes(cfg, dtype, B, past);
    s->memory = rk_pages_alloc(s->bytes);
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
    rk_pages_free(s->memory, s->bytes);
    free(s->time_mix);
    free(s->channel_mix);
    s->memory = NULL;
    s->time_mix = s->channel_mix = NULL;
}

/* Copies n sequences of a row: all of them at once, or of each the `past` tokens it holds, as the two may have different room. */
static int copy_part(RkTensor to, size_t b_to, const RkStateRow *from, size_t b_from, size_t n, int past) {
    size_t element = rk_dtype_size(to.dtype);
    size_t step_to = rk_numel(to) / (size_t)to.d[0] * element, step_from = rk_numel(from->t) / (size_t)from->t.d[0] * element;
    size_t pieces = from->grows ? n : 1, bytes = from->grows ? step_from / (size_t)from->t.d[1] * (size_t)past : n * step_from;
    for (size_t i = 0; i < pieces; i++)
        memmove((char *)to.p + (b_to + i) * step_to, (char *)from->t.p + (b_from + i) * step_from, bytes);
    return RK_OK;
}

static int copy_sequences(RkState *dst, int to, const RkState *src, int from, int n) {
    RkStateRow row, place;
    for (int i = 0; rk_state_row(src, i, &row) && rk_state_row(dst, i, &place); i++)
        RK_TRY(copy_part(place.t, (size_t)to, &row, (size_t)from, (size_t)n, src->past));
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
    RK_TRY(rk_state_create(&larger, s->cfg, s->dtype, s->B, s->past && tokens < grown ? grown : (int)tokens));
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

/* Calls fn on the pair (state row, parameter) of every trained initial state. */
typedef void (*PairFn)(RkTensor row, RkParam *p);

static void each_pair(const RkState *s, const RkManifest *m, PairFn fn) {
    for (int l = 0; s->cfg->time_state && l < s->cfg->L; l++) {
        const RkMixer *mixer = s->cfg->block[l].time_mix;
        for (int i = 0; i < mixer->n_state; i++)
            for (int j = 0; j < mixer->n_par; j++)
                if ((mixer->state[i].flags & P_INIT_STATE) && (mixer->par[j].flags & P_INIT_STATE))
                    fn(s->time_mix[l][i], &m->param[m->layer[l].time_mix + j]);
    }
}

/* Element (h, value, key) of a parameter stands at (b, h, key, value) of a state row. */
#define EACH_ELEMENT(row, statement)                                                                      \
    do {                                                                                                  \
        size_t B_ = (size_t)(row).d[0], H_ = (size_t)(row).d[1], N_ = (size_t)(row).d[2];                 \
        for (size_t b = 0; b < B_; b++)                                                                   \
            for (size_t h = 0; h < H_; h++)                                                               \
                for (size_t j = 0; j < N_; j++)                                                           \
                    for (size_t i = 0; i < N_; i++) {                                                     \
                        size_t at_row = ((b * H_ + h) * N_ + j) * N_ + i, at_par = (h * N_ + i) * N_ + j; \
                        statement;                                                                        \
                    }                                                                                     \
    } while (0)

static void load_row(RkTensor row, RkParam *p) {
    if (row.dtype == RK_F64) EACH_ELEMENT(row, ((double *)row.p)[at_row] = ((double *)p->value.p)[at_par]);
    else EACH_ELEMENT(row, rk_f32(row)[at_row] = rk_f32(p->value)[at_par]);
}

static void add_grad(RkTensor row, RkParam *p) {
    if (row.dtype == RK_F64) EACH_ELEMENT(row, ((double *)p->grad.p)[at_par] += ((double *)row.p)[at_row]);
    else EACH_ELEMENT(row, rk_f32(p->grad)[at_par] += rk_f32(row)[at_row]);
}

void rk_state_from_params(RkState *s, const RkManifest *m) { each_pair(s, m, load_row); }
void rk_state_grad_to_params(const RkState *ds, RkManifest *m) { each_pair(ds, m, add_grad); }
