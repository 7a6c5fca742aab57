#include "model/logits.h"

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"

enum { FIRST_CHANGES = 1024 };

static size_t place(RkLogits *l, RkArena *a, int n, int V) {
    l->rows = rk_arena_take(a, l->store.sum_dtype, (int32_t[4]){n, V});
    if (rk_on_host(l->store.memory)) return a->used;
    l->tokens = rk_arena_take(a, RK_F32, (int32_t[4]){n}).p; /* 4 bytes each */
    l->how = rk_arena_take(a, RK_F64, (int32_t[4]){n, sizeof(RkDrawRow) / 8}).p;
    return a->used;
}

/* Room on the device and the host for so many changes of logits in one draw: it grows by half at least, so that texts that grow token by
 * token seldom do. */
static int reserve_changes(RkLogits *l, size_t n) {
    RkMemory *memory = l->store.memory;
    size_t bytes = n * sizeof *l->changes, rows = (size_t)l->rows.d[0] * sizeof *l->how;
    if (bytes <= l->change_bytes) return RK_OK;
    if (bytes < l->change_bytes + l->change_bytes / 2) bytes = l->change_bytes + l->change_bytes / 2;
    void *larger = memory->alloc(memory, bytes), *host = larger ? realloc(l->host, rows + bytes) : NULL;
    if (host) l->host = host;
    if (!host) {
        if (larger) memory->release(memory, larger, bytes);
        return rk_fail(RK_ENOMEM, "no memory for %zu changes of logits", n);
    }
    if (l->changes) memory->release(memory, l->changes, l->change_bytes);
    l->changes = larger;
    l->change_bytes = bytes;
    return RK_OK;
}

int rk_logits_create(RkLogits *l, const RkModel *m, int n) {
    RK_CHECK(n >= 1, "logits need at least one row, not %d", n);
    *l = (RkLogits){.be = m->be, .store = m->store};
    RkArena a = {0};
    l->bytes = place(l, &a, n, m->cfg.V);
    l->memory = l->store.memory->alloc(l->store.memory, l->bytes);
    if (!l->memory) return rk_fail(RK_ENOMEM, "no memory for %d rows of %d logits", n, m->cfg.V);
    a = (RkArena){l->memory, 0, l->bytes};
    place(l, &a, n, m->cfg.V);
    int rc = rk_on_host(l->store.memory) ? RK_OK : reserve_changes(l, FIRST_CHANGES);
    if (rc) rk_logits_free(l);
    return rc;
}

void rk_logits_free(RkLogits *l) {
    RkMemory *memory = l->store.memory;
    if (l->memory) memory->release(memory, l->memory, l->bytes);
    if (l->changes) memory->release(memory, l->changes, l->change_bytes);
    free(l->host);
    *l = (RkLogits){0};
}

int rk_logits_copy_row(RkLogits *to, int row, const RkLogits *from, int from_row) {
    RkTensor a = rk_slice_rows(to->rows, (size_t)row, 1), b = rk_slice_rows(from->rows, (size_t)from_row, 1);
    return to->store.memory->copy(to->store.memory, a.p, b.p, rk_bytes(b));
}

/* ---- drawing on the host ---- */

/* The reference backend's logits are float64. */
static int draw_wide(RkLogits *l, RkSampler **s, size_t n, int32_t *tokens) {
    size_t numbers = n * (size_t)rk_cols(l->rows);
    float *narrow = malloc((numbers ? numbers : 1) * sizeof *narrow);
    if (!narrow) return rk_fail(RK_ENOMEM, "no memory for %zu logits", numbers);
    for (size_t i = 0; i < numbers; i++) narrow[i] = (float)((const double *)l->rows.p)[i];
    int rc = rk_sampler_draw_all(s, n, narrow, tokens);
    free(narrow);
    return rc;
}

/* ---- drawing on a device ---- */

static size_t count_changes(RkSampler *const *s, size_t n) {
    size_t all = 0;
    for (size_t i = 0; i < n; i++) all += s[i]->n_seen + s[i]->n_bias;
    return all;
}

/* Row i of what a draw reads; returns where the changes of the next row begin. */
static size_t describe(const RkSampler *s, size_t first, RkDrawRow *row, RkDrawChange *changes) {
    *row = (RkDrawRow){s->how.temperature, s->how.top_p, s->how.min_p, s->how.typical_p, rk_sampler_uniform(s), s->how.top_k, (int32_t)first,
                       (int32_t)s->n_seen, (int32_t)s->n_bias};
    for (size_t i = 0; i < s->n_seen; i++)
        changes[first++] = (RkDrawChange){s->seen[i].token, (float)s->how.repetition_penalty, rk_sampler_taken_off(s, &s->seen[i]), 0};
    for (size_t i = 0; i < s->n_bias; i++) changes[first++] = (RkDrawChange){s->bias[i].token, 1, 0, s->bias[i].add};
    return first;
}

/* Sets the message of a row from which nothing could be drawn: that of drawing on the host. */
static int explain(RkLogits *l, const RkSampler *s, size_t row) {
    int V = rk_cols(l->rows), token;
    float *logits = malloc((size_t)V * sizeof *logits);
    if (!logits) return rk_fail(RK_ENOMEM, "no memory to sample from %d tokens", V);
    int rc = rk_tensor_read(l->store.memory, rk_slice_rows(l->rows, row, 1), logits);
    if (!rc) rc = rk_sample(&s->how, logits, V, rk_sampler_uniform(s), &token);
    free(logits);
    return rc ? rc : rk_fail(RK_EDEVICE, "row %zu of the logits changed while a token was drawn", row);
}

static int draw_there(RkLogits *l, RkSampler **s, size_t n, int32_t *tokens) {
    RkMemory *memory = l->store.memory;
    size_t changes = count_changes(s, n), first = 0;
    RK_TRY(memory->bind(memory));
    RK_TRY(reserve_changes(l, changes));
    RkDrawRow *how = l->host;
    RkDrawChange *list = (RkDrawChange *)(how + l->rows.d[0]);
    for (size_t i = 0; i < n; i++) first = describe(s[i], first, &how[i], list);
    RK_TRY(memory->write(memory, l->how, how, n * sizeof *how));
    if (changes) RK_TRY(memory->write(memory, l->changes, list, changes * sizeof *list));
    RkDraw op = {l->rows.p, l->how, l->changes, l->tokens, (int)n, rk_cols(l->rows)};
    RK_TRY(l->be->draw(&op));
    RK_TRY(memory->read(memory, tokens, l->tokens, n * sizeof *tokens));
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0) return explain(l, s[i], i);
    for (size_t i = 0; i < n; i++) RK_TRY(rk_sampler_note(s[i], tokens[i]));
    return RK_OK;
}

int rk_logits_draw(RkLogits *l, RkSampler **s, size_t n, int32_t *tokens) {
    if (!n) return RK_OK;
    RK_CHECK(n <= (size_t)l->rows.d[0], "there are logits of %d sequences, not of %zu", l->rows.d[0], n);
    if (l->be->draw && rk_cols(l->rows) <= RK_DRAW_MOST) return draw_there(l, s, n, tokens);
    RK_CHECK(rk_on_host(l->store.memory), "a device draws from at most %d tokens", RK_DRAW_MOST);
    return l->rows.dtype == RK_F64 ? draw_wide(l, s, n, tokens) : rk_sampler_draw_all(s, n, l->rows.p, tokens);
}
