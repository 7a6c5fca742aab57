#include "train/step.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Of float16: halved where a gradient overflows, doubled after so many steps in which none did. */
static const double FIRST_LOSS_SCALE = 65536, LAST_LOSS_SCALE = 16777216;
enum { STEPS_UNTIL_DOUBLED = 1000 };

/* ---- memory ---- */

static void place(RkTrainer *t, RkArena *a, const unsigned char *frozen) {
    RkManifest *man = &t->model->man;
    RkStore store = t->model->store;
    RkTensor *kind[3] = {t->m, t->v, t->master};
    int kinds = store.dtype == store.sum_dtype ? 2 : 3;
    for (int k = 0; k < kinds; k++) /* all of a kind in the order of the parameters, so that neighbours make one range */
        for (int i = 0; i < man->n; i++) {
            if (frozen && frozen[i]) continue;
            RkTensor taken = rk_arena_take(a, store.sum_dtype, man->param[i].value.d);
            if (kind[k]) kind[k][i] = taken;
        }
    t->moment_bytes = a->used;
    size_t longest = rk_manifest_numel(man) + (size_t)man->n * 16; /* with what lies between two tensors */
    int32_t blocks[4] = {(int32_t)(longest / RK_SUMSQ_BLOCK + 1)};
    t->partial = rk_arena_take(a, RK_F64, blocks);
    t->norms = rk_arena_take(a, RK_F64, (int32_t[4]){man->n});
    t->factors = rk_arena_take(a, RK_F64, (int32_t[4]){2});
    t->result = rk_arena_take(a, RK_F64, (int32_t[4]){RK_RESULTS});
    t->rates = rk_arena_take(a, RK_F64, (int32_t[4]){RK_RATES});
}

void rk_trainer_measure(RkModel *model, size_t *moments, size_t *scratch) {
    RkTrainer t = {.model = model};
    RkArena a = {0};
    place(&t, &a, NULL);
    *moments = t.moment_bytes;
    *scratch = a.used - t.moment_bytes;
}

int rk_trainer_create(RkTrainer *t, RkModel *model, const unsigned char *frozen) {
    *t = (RkTrainer){.model = model, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-18, .grad_clip = 1, .writes = model->writes - 1};
    t->loss_scale = model->store.dtype == RK_F16 ? FIRST_LOSS_SCALE : 1;
    size_t n = (size_t)model->man.n;
    t->m = calloc(n, sizeof *t->m);
    t->v = calloc(n, sizeof *t->v);
    t->master = calloc(n, sizeof *t->master);
    t->rule = calloc(n, sizeof *t->rule);
    t->rows = calloc((size_t)model->cfg.V, sizeof *t->rows);
    t->norm = calloc(n, sizeof *t->norm);
    if (!t->m || !t->v || !t->master || !t->rule || !t->rows || !t->norm)
        return rk_trainer_free(t), rk_fail(RK_ENOMEM, "no memory for the list of moments");
    for (size_t i = 0; i < n; i++) {
        unsigned flags = model->man.param[i].flags;
        t->rule[i] = (RkUpdateRule){flags & P_LR2X ? 2 : 1, flags & P_DECAY ? -1 : 0};
    }
    RkArena a = {0};
    place(t, &a, frozen);
    t->bytes = a.used;
    t->memory = model->store.memory->alloc(model->store.memory, a.used);
    if (!t->memory) return rk_trainer_free(t), rk_fail(RK_ENOMEM, "no memory for the moments: %zu MiB", a.used >> 20);
    a = (RkArena){t->memory, 0, t->bytes};
    place(t, &a, frozen);
    RK_TRY(rk_trainer_load_masters(t));
    RkTensor emb[2] = {t->m[model->man.emb], t->v[model->man.emb]};
    for (int k = 0; k < 2 && rk_on_host(model->store.memory); k++)
        if (emb[k].p) rk_pages_sparse(emb[k].p, rk_embedding_bytes(model));
    return rk_model_need_grads(model);
}

static void free_states(RkTrainer *t) {
    rk_state_free(&t->before);
    rk_state_free(&t->after);
    rk_state_free(&t->dbefore);
    t->carried = 0;
}

void rk_trainer_free(RkTrainer *t) {
    free_states(t);
    if (t->memory) t->model->store.memory->release(t->model->store.memory, t->memory, t->bytes);
    free(t->m);
    free(t->v);
    free(t->master);
    free(t->rule);
    free(t->norm);
    free(t->rows);
    free(t->chunk);
    *t = (RkTrainer){0};
}

void rk_trainer_share_moments(RkTrainer *t) {
    for (int id = 0; id < t->model->cfg.V; id++)
        if (t->rows[id] == RK_ROW_ASLEEP) t->rows[id] = RK_ROW_IDLE;
}

int rk_trainer_prepare(RkTrainer *t, RkWorkSize size) {
    RkModel *m = t->model;
    size.training = 1;
    int ready = t->before.memory && (t->dbefore.memory || !m->cfg.time_state);
    if (!ready || t->before.most < size.B) {
        free_states(t);
        RK_TRY(rk_state_create(&t->before, &m->cfg, m->store, size.B, 0));
        if (m->cfg.time_state) RK_TRY(rk_state_create(&t->dbefore, &m->cfg, m->store, size.B, 0));
    }
    RK_TRY(rk_state_narrow(&t->before, size.B));
    if (m->cfg.time_state) RK_TRY(rk_state_narrow(&t->dbefore, size.B));
    return rk_model_prepare(m, size);
}

/* ---- masters ---- */

int rk_trainer_load_masters(RkTrainer *t) {
    RkMemory *memory = t->model->store.memory;
    if (t->writes == t->model->writes) return RK_OK;
    for (int i = 0; i < t->model->man.n; i++) {
        RkTensor value = t->model->man.param[i].value, master = t->master[i];
        if (!master.p) continue;
        float *numbers = malloc(rk_numel(value) * sizeof *numbers);
        if (!numbers) return rk_fail(RK_ENOMEM, "no memory to copy %s", t->model->man.param[i].name);
        int rc = rk_tensor_read(memory, value, numbers);
        if (!rc) rc = rk_tensor_write(memory, master, numbers);
        free(numbers);
        RK_TRY(rc);
    }
    t->writes = t->model->writes;
    return RK_OK;
}

/* ---- one step ---- */

/* Number i of the step's results, where ops write it. */
static RkTensor result(const RkTrainer *t, int i) { return (RkTensor){(double *)t->result.p + i, RK_F64, {1}}; }

static int set_loss(RkTrainer *t, double loss) {
    RkMemory *memory = t->model->store.memory;
    return memory->write(memory, result(t, RK_RESULT_LOSS).p, &loss, sizeof loss);
}

/* The state before the first token of every row. */
static int begin(RkTrainer *t) {
    RkMemory *memory = t->model->store.memory;
    if (t->carried) RK_TRY(memory->zero(memory, t->before.memory, t->before.bytes));
    t->carried = 0;
    rk_state_advance(&t->before, 0, 0);
    return rk_state_from_params(&t->before, &t->model->man, t->model->be);
}

/* Room for ids and targets of a chunk of n tokens of every row, and for the state after it. */
static int prepare_chunks(RkTrainer *t, int rows, int n) {
    size_t bytes = 2 * (size_t)rows * (size_t)n * sizeof *t->chunk;
    if (bytes > t->chunk_bytes) {
        int32_t *larger = realloc(t->chunk, bytes);
        if (!larger) return rk_fail(RK_ENOMEM, "no memory for a chunk of %d x %d ids", rows, n);
        t->chunk = larger;
        t->chunk_bytes = bytes;
    }
    if (t->after.memory && t->after.most != t->before.most) rk_state_free(&t->after);
    if (!t->after.memory) RK_TRY(rk_state_create(&t->after, &t->model->cfg, t->model->store, t->before.most, 0));
    return rk_state_narrow(&t->after, rows);
}

/* Tokens [at, at + n) of rows [first, first + rows), whose states before them are in t->before. */
static int run_chunk(RkTrainer *t, const RkStep *s, int first, int rows, int at, int n) {
    size_t from = (size_t)first * (size_t)s->T, N = (size_t)rows * (size_t)n;
    int cut = n < s->T;
    RkBackward b = {.f = {.B = rows, .T = n, .ids = s->ids + from, .targets = s->targets + from, .before = &t->before},
                    .factors = t->factors, .loss = result(t, RK_RESULT_LOSS), .initial = !at, .grad_cp = s->grad_cp,
                    .dbefore = t->dbefore.memory && !at ? &t->dbefore : NULL};
    if (cut) {
        for (size_t r = 0; r < (size_t)rows; r++) {
            memcpy(t->chunk + r * (size_t)n, b.f.ids + r * (size_t)s->T + at, (size_t)n * sizeof *t->chunk);
            memcpy(t->chunk + N + r * (size_t)n, b.f.targets + r * (size_t)s->T + at, (size_t)n * sizeof *t->chunk);
        }
        b.f.ids = t->chunk;
        b.f.targets = t->chunk + N;
        b.f.after = &t->after;
    }
    RK_TRY(rk_model_forward_backward(t->model, &b));
    RkState left = t->after;
    if (cut) t->after = t->before, t->before = left, t->carried = 1;
    return RK_OK;
}

static int run_rows(RkTrainer *t, const RkStep *s, int first, int rows) {
    int chunk = s->chunk > 0 && s->chunk < s->T ? s->chunk : s->T;
    for (int at = 0; at < s->T; at += chunk) {
        int n = s->T - at < chunk ? s->T - at : chunk;
        RK_TRY(rk_trainer_prepare(t, (RkWorkSize){rows, n, 1, s->grad_cp}));
        if (!at) RK_TRY(begin(t));
        if (chunk < s->T) RK_TRY(prepare_chunks(t, rows, n));
        RK_TRY(run_chunk(t, s, first, rows, at, n));
    }
    return RK_OK;
}

/* Gradients of all micro-batches, and the sum of their losses in the step's results. */
static int accumulate(RkTrainer *t, const RkStep *s, int64_t counted) {
    RkMemory *memory = t->model->store.memory;
    double l2 = s->l2wrap ? 1e-4 / ((double)s->B * s->T) : 0, factors[2] = {t->loss_scale / (double)counted, l2 * t->loss_scale};
    RK_TRY(memory->write(memory, t->factors.p, factors, sizeof factors));
    RK_TRY(set_loss(t, 0));
    for (int first = 0; first < s->B; first += s->micro_bsz)
        RK_TRY(run_rows(t, s, first, s->B - first < s->micro_bsz ? s->B - first : s->micro_bsz));
    return RK_OK;
}

/* Parameters [first, end) that are updated alike and lie one after another: one range for the optimizer, which a hundred
 * small tensors by themselves would keep waiting. Between them are only zeros. */
typedef struct Range { int first, end; RkTensor value, grad, m, v, master; const int32_t *used; } Range;
enum { RANGE_MAX = 1 << 30 /* elements: a dimension is 32 bits */ };

static int is_frozen(const RkStep *s, int i) { return s->frozen && s->frozen[i]; }

static size_t distance(RkTensor a, RkTensor b) { return (size_t)((char *)b.p - (char *)a.p) / rk_dtype_size(a.dtype); }

/* Whether parameter i may follow those from `first` on, as the last of n elements. */
static int joins(const RkTrainer *t, const RkStep *s, int first, int i, size_t n) {
    const RkParam *p = t->model->man.param;
    const RkUpdateRule *a = &t->rule[first], *b = &t->rule[i];
    int emb = t->model->man.emb;
    if (first == emb || i == emb || n > RANGE_MAX || is_frozen(s, first) != is_frozen(s, i)) return 0;
    if (a->lr_scale != b->lr_scale || a->decay != b->decay || !t->m[first].p != !t->m[i].p) return 0;
    size_t at = distance(p[first].value, p[i].value);
    return distance(p[first].grad, p[i].grad) == at &&
           (!t->m[i].p || (distance(t->m[first], t->m[i]) == at && distance(t->v[first], t->v[i]) == at &&
                            (!t->master[i].p || distance(t->master[first], t->master[i]) == at)));
}

static Range range_at(const RkTrainer *t, const RkStep *s, int first) {
    const RkManifest *man = &t->model->man;
    const RkParam *p = man->param;
    Range r = {first, first + 1, p[first].value, p[first].grad, t->m[first], t->v[first], t->master[first], NULL};
    if (first == man->emb) {
        r.used = rk_model_used_tokens(t->model);
        return r;
    }
    size_t n = rk_numel(r.value);
    for (int i = first + 1; i < man->n; i = r.end) {
        size_t longer = distance(p[first].value, p[i].value) + rk_numel(p[i].value);
        if (!joins(t, s, first, i, longer)) break;
        n = longer;
        r.end = i + 1;
    }
    RkTensor *const all[] = {&r.value, &r.grad, &r.m, &r.v, &r.master};
    for (int k = 0; k < 5; k++) *all[k] = (RkTensor){all[k]->p, all[k]->dtype, {(int32_t)n}};
    return r;
}

/* Into t->norms, at the place of parameter i. */
static int sumsq(RkTrainer *t, RkTensor x, const int32_t *rows, int i) {
    RkSumsq op = {.x = x, .rows = rows, .partial = t->partial, .out = {(double *)t->norms.p + i, RK_F64, {1}}};
    return t->model->be->sumsq_fwd(&op);
}

/* t->norms to t->norm. */
static int read_norms(RkTrainer *t) {
    RkMemory *memory = t->model->store.memory;
    return memory->read(memory, t->norm, t->norms.p, rk_numel(t->norms) * sizeof *t->norm);
}

/* Names the first tensor that is not finite, a parameter before its gradients: a damaged weight explains every bad
 * gradient after it. */
static int name_bad(RkTrainer *t, RkStep *s) {
    RkManifest *man = &t->model->man;
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < man->n; i++) RK_TRY(sumsq(t, k ? man->param[i].grad : man->param[i].value, NULL, i));
        RK_TRY(read_norms(t));
        for (int i = 0; i < man->n && !s->bad; i++)
            if (!isfinite(t->norm[i])) s->bad = man->param[i].name;
        if (s->bad) return RK_OK;
    }
    s->bad = "loss";
    return RK_OK;
}

/* The gradient's norm and what the update multiplies it by, in the step's results. */
static int measure(RkTrainer *t, const RkStep *s, double loss_scale) {
    RkMemory *memory = t->model->store.memory;
    Range r;
    RK_TRY(memory->zero(memory, t->norms.p, rk_numel(t->norms) * sizeof *t->norm)); /* of ranges, only the first has one */
    for (int i = 0; i < t->model->man.n; i = r.end) {
        r = range_at(t, s, i);
        if (!is_frozen(s, i)) RK_TRY(sumsq(t, r.grad, r.used, i));
    }
    RkClip op = {.squares = t->norms, .loss = result(t, RK_RESULT_LOSS), .factor = result(t, RK_RESULT_CLIP),
                 .norm = result(t, RK_RESULT_NORM), .max_norm = t->grad_clip, .scale = loss_scale};
    return t->model->be->clip_fwd(&op);
}

/* What is known of the embeddings' rows, now that the gradients are complete; a step that is skipped does not make it wrong. */
static void look_at_rows(RkTrainer *t, const int32_t *used) {
    for (int id = 0; id < t->model->cfg.V; id++) {
        if (!used || used[id]) t->rows[id] = RK_ROW_LIVE;
        else if (t->rows[id] == RK_ROW_LIVE) t->rows[id] = RK_ROW_IDLE;
    }
}

/* Of all that is not frozen; nothing changes where the step's results say so. */
static int update(RkTrainer *t, const RkStep *s) {
    Range r;
    for (int i = 0; i < t->model->man.n; i = r.end) {
        const RkUpdateRule *rule = &t->rule[i];
        r = range_at(t, s, i);
        if (is_frozen(s, i)) continue;
        RK_CHECK(r.m.p, "%s has no moments: this trainer was made with it frozen", t->model->man.param[i].name);
        RkAdamW op = {.p = r.value, .g = r.grad, .m = r.m, .v = r.v, .master = r.master, .clip = result(t, RK_RESULT_CLIP),
                      .rates = t->rates, .gscale = 1, .lr = rule->lr_scale, .wd = rule->decay, .beta1 = t->beta1, .beta2 = t->beta2,
                      .eps = t->eps};
        if (i == t->model->man.emb) op.rows = t->rows;
        RK_TRY(t->model->be->adamw_fwd(&op));
    }
    return RK_OK;
}

static int check_rates(const RkStep *s) {
    RK_CHECK(isfinite((float)s->lr) && s->lr >= 0, "lr must be finite and not negative, not %g", s->lr);
    RK_CHECK(isfinite((float)s->weight_decay) && s->weight_decay >= 0, "weight_decay must be finite and not negative, not %g",
             s->weight_decay);
    return RK_OK;
}

static int write_rates(RkTrainer *t, const RkStep *s) {
    RkMemory *memory = t->model->store.memory;
    double n = (double)(t->steps + 1);
    double rates[RK_RATES] = {[RK_RATE_LR] = s->lr, [RK_RATE_WD] = s->weight_decay, [RK_RATE_INVERSE_BIAS1] = 1 / (1 - pow(t->beta1, n)),
                              [RK_RATE_INVERSE_BIAS2] = 1 / (1 - pow(t->beta2, n))};
    return memory->write(memory, t->rates.p, rates, sizeof rates);
}

typedef struct Update { RkTrainer *t; const RkStep *s; double loss_scale; } Update;

static int update_ops(void *ctx) {
    const Update *u = ctx;
    RK_TRY(measure(u->t, u->s, u->loss_scale));
    return update(u->t, u->s);
}

/* FNV-1a. */
static uint64_t hash(const void *p, size_t bytes) {
    uint64_t h = 0xcbf29ce484222325;
    for (size_t i = 0; p && i < bytes; i++) h = (h ^ ((const unsigned char *)p)[i]) * 0x100000001b3;
    return h;
}

/* Of a hundred ranges that three ops each look at, on a device one recording. */
static int measure_and_update(RkTrainer *t, const RkStep *s, double loss_scale) {
    RkMemory *memory = t->model->store.memory;
    size_t n = (size_t)t->model->man.n;
    Update u = {t, s, loss_scale};
    struct { const void *memory; uint64_t rules, frozen; double numbers[5]; } key = {
        t->memory, hash(t->rule, n * sizeof *t->rule), hash(s->frozen, n), {loss_scale, t->grad_clip, t->beta1, t->beta2, t->eps}};
    if (!is_frozen(s, t->model->man.emb)) look_at_rows(t, rk_model_used_tokens(t->model));
    RK_TRY(write_rates(t, s));
    return memory->repeat(memory, &(RkWorkload){update_ops, &u, &key, sizeof key});
}

/* The one time in a step that the host waits for a device is when it reads the results, after all has been queued. */
static int apply(RkTrainer *t, RkStep *s, double loss_scale, int64_t counted) {
    RkMemory *memory = t->model->store.memory;
    double results[RK_RESULTS];
    RK_TRY(measure_and_update(t, s, loss_scale));
    RK_TRY(memory->read(memory, results, t->result.p, sizeof results));
    s->loss = results[RK_RESULT_LOSS] / (double)counted;
    s->grad_norm = results[RK_RESULT_NORM];
    s->bad = NULL;
    if (!isfinite(s->loss) || !isfinite(s->grad_norm)) return name_bad(t, s);
    t->steps++;
    return RK_OK;
}

/* A step whose gradient overflowed comes again with half the scale: it is lost only where the scale is not to blame. */
static void adapt_loss_scale(RkTrainer *t, RkStep *s) {
    s->again = s->bad && t->loss_scale > 1;
    if (s->again) t->loss_scale /= 2, t->good_steps = 0;
    if (s->bad || t->model->store.dtype != RK_F16 || ++t->good_steps < STEPS_UNTIL_DOUBLED) return;
    if (t->loss_scale < LAST_LOSS_SCALE) t->loss_scale *= 2;
    t->good_steps = 0;
}

int rk_train_apply(RkTrainer *t, RkStep *s) {
    RK_TRY(check_rates(s));
    RK_TRY(t->model->store.memory->bind(t->model->store.memory));
    RK_TRY(rk_trainer_load_masters(t));
    RK_TRY(set_loss(t, s->loss));
    RK_TRY(apply(t, s, t->loss_scale, 1));
    adapt_loss_scale(t, s);
    return RK_OK;
}

int rk_train_step(RkTrainer *t, RkStep *s) {
    RK_CHECK(s->micro_bsz >= 1, "micro_bsz must be at least 1, not %d", s->micro_bsz);
    RK_CHECK(s->chunk >= 0, "chunk must not be negative, not %d", s->chunk);
    RK_TRY(check_rates(s));
    int64_t counted = 0;
    for (size_t i = 0, n = (size_t)s->B * (size_t)s->T; i < n; i++) counted += s->targets[i] != RK_IGNORE;
    RK_CHECK(counted > 0, "every target is %d: there is nothing to predict", RK_IGNORE);
    RK_TRY(t->model->store.memory->bind(t->model->store.memory));
    RK_TRY(rk_trainer_load_masters(t));
    do {
        RK_TRY(rk_model_restart_grads(t->model));
        RK_TRY(accumulate(t, s, counted));
        RK_TRY(apply(t, s, t->loss_scale, counted));
        adapt_loss_scale(t, s);
    } while (s->again);
    return RK_OK;
}
