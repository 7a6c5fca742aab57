#include "train/step.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- memory ---- */

static void place(RkTrainer *t, RkArena *a, const unsigned char *frozen) {
    RkManifest *man = &t->model->man;
    size_t longest = 1;
    for (int i = 0; i < man->n; i++) {
        RkTensor p = man->param[i].value;
        if (rk_numel(p) > longest) longest = rk_numel(p);
        if (frozen && frozen[i]) continue;
        t->m[i] = rk_arena_take(a, p.dtype, p.d);
        t->v[i] = rk_arena_take(a, p.dtype, p.d);
    }
    t->moment_bytes = a->used;
    int32_t blocks[4] = {(int32_t)((longest + RK_SUMSQ_BLOCK - 1) / RK_SUMSQ_BLOCK)}, n[4] = {man->n};
    t->partial = rk_arena_take(a, RK_F64, blocks);
    t->norms = rk_arena_take(a, RK_F64, n);
}

int rk_trainer_create(RkTrainer *t, RkModel *model, const unsigned char *frozen) {
    *t = (RkTrainer){.model = model, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-18, .grad_clip = 1};
    size_t n = (size_t)model->man.n;
    t->m = calloc(n, sizeof *t->m);
    t->v = calloc(n, sizeof *t->v);
    t->rule = calloc(n, sizeof *t->rule);
    if (!t->m || !t->v || !t->rule) return rk_trainer_free(t), rk_fail(RK_ENOMEM, "no memory for the list of moments");
    for (size_t i = 0; i < n; i++) {
        unsigned flags = model->man.param[i].flags;
        t->rule[i] = (RkUpdateRule){flags & P_LR2X ? 2 : 1, flags & P_DECAY ? -1 : 0};
    }
    RkArena a = {0};
    place(t, &a, frozen);
    t->bytes = a.used;
    t->memory = rk_pages_alloc(a.used);
    if (!t->memory) return rk_trainer_free(t), rk_fail(RK_ENOMEM, "no memory for the moments: %zu MiB", a.used >> 20);
    a = (RkArena){t->memory, 0, t->bytes};
    place(t, &a, frozen);
    return rk_model_need_grads(model);
}

static void free_states(RkTrainer *t) {
    rk_state_free(&t->before);
    rk_state_free(&t->dbefore);
}

void rk_trainer_free(RkTrainer *t) {
    free_states(t);
    rk_pages_free(t->memory, t->bytes);
    free(t->m);
    free(t->v);
    free(t->rule);
    *t = (RkTrainer){0};
}

int rk_trainer_prepare(RkTrainer *t, RkWorkSize size) {
    RkModel *m = t->model;
    size.training = 1;
    int ready = t->before.memory && (t->dbefore.memory || !m->cfg.time_state);
    if (!ready || t->before.B != size.B) {
        free_states(t);
        RK_TRY(rk_state_create(&t->before, &m->cfg, m->be->dtype, size.B, 0));
        if (m->cfg.time_state) RK_TRY(rk_state_create(&t->dbefore, &m->cfg, m->be->dtype, size.B, 0));
    }
    return rk_model_prepare(m, size);
}

/* ---- one step ---- */

static int accumulate(RkTrainer *t, RkStep *s, int64_t counted) {
    double sum = 0, l2 = s->l2wrap ? 1e-4 / ((double)s->B * s->T) : 0;
    for (int first = 0; first < s->B; first += s->micro_bsz) {
        int rows = s->B - first < s->micro_bsz ? s->B - first : s->micro_bsz;
        RK_TRY(rk_trainer_prepare(t, (RkWorkSize){rows, s->T, 1, s->grad_cp}));
        rk_state_from_params(&t->before, &t->model->man);
        size_t at = (size_t)first * (size_t)s->T;
        RkBackward b = {.f = {.B = rows, .T = s->T, .ids = s->ids + at, .targets = s->targets + at, .before = &t->before},
                        .scale = 1.0 / (double)counted, .l2 = l2, .initial = 1, .grad_cp = s->grad_cp,
                        .dbefore = t->dbefore.memory ? &t->dbefore : NULL};
        RK_TRY(rk_model_forward_backward(t->model, &b));
        sum += b.f.loss;
    }
    s->loss = sum / (double)counted;
    return RK_OK;
}

static int sumsq(RkTrainer *t, RkTensor x, double *out) {
    RkSumsq op = {.x = x, .partial = t->partial, .out = {out, RK_F64, {1}}};
    return t->model->be->sumsq_fwd(&op);
}

/* Fills t->norms with every gradient's sum of squares; names the first that is not finite, a parameter before its
 * gradients: a damaged weight explains every bad gradient after it. */
static int inspect(RkTrainer *t, RkStep *s) {
    RkManifest *man = &t->model->man;
    double total = 0, *norm = t->norms.p;
    for (int i = 0; i < man->n; i++) {
        RK_TRY(sumsq(t, man->param[i].grad, &norm[i]));
        if (!(s->frozen && s->frozen[i])) total += norm[i];
    }
    s->grad_norm = sqrt(total);
    s->bad = NULL;
    if (isfinite(total) && isfinite(s->loss)) return RK_OK;
    for (int i = 0; i < man->n && !s->bad; i++) {
        double value;
        RK_TRY(sumsq(t, man->param[i].value, &value));
        if (!isfinite(value)) s->bad = man->param[i].name;
    }
    for (int i = 0; i < man->n && !s->bad; i++)
        if (!isfinite(norm[i])) s->bad = man->param[i].name;
    if (!s->bad) s->bad = "loss";
    return RK_OK;
}

static int update(RkTrainer *t, const RkStep *s) {
    RkManifest *man = &t->model->man;
    double ratio = t->grad_clip > 0 ? (s->grad_norm + 1e-6) / t->grad_clip : 0;
    double gscale = ratio > 1 ? 1 / ratio : 1, n = (double)(t->steps + 1);
    for (int i = 0; i < man->n; i++) {
        const RkParam *p = &man->param[i];
        const RkUpdateRule *rule = &t->rule[i];
        if (s->frozen && s->frozen[i]) continue;
        RK_CHECK(t->m[i].p, "%s has no moments: this trainer was made with it frozen", p->name);
        RkAdamW op = {.p = p->value, .g = p->grad, .m = t->m[i], .v = t->v[i], .gscale = gscale,
                      .lr = s->lr * rule->lr_scale, .beta1 = t->beta1, .beta2 = t->beta2, .eps = t->eps,
                      .wd = rule->decay < 0 ? s->weight_decay : rule->decay, .bias1 = 1 - pow(t->beta1, n),
                      .bias2 = 1 - pow(t->beta2, n)};
        RK_TRY(t->model->be->adamw_fwd(&op));
    }
    t->steps++;
    return RK_OK;
}

static int check_rates(const RkStep *s) {
    RK_CHECK(isfinite((float)s->lr) && s->lr >= 0, "lr must be finite and not negative, not %g", s->lr);
    RK_CHECK(isfinite((float)s->weight_decay) && s->weight_decay >= 0, "weight_decay must be finite and not negative, not %g",
             s->weight_decay);
    return RK_OK;
}

int rk_train_apply(RkTrainer *t, RkStep *s) {
    RK_TRY(check_rates(s));
    RK_TRY(inspect(t, s));
    return s->bad ? RK_OK : update(t, s);
}

int rk_train_step(RkTrainer *t, RkStep *s) {
    RK_CHECK(s->micro_bsz >= 1, "micro_bsz must be at least 1, not %d", s->micro_bsz);
    RK_TRY(check_rates(s));
    int64_t counted = 0;
    for (size_t i = 0, n = (size_t)s->B * (size_t)s->T; i < n; i++) counted += s->targets[i] != RK_IGNORE;
    RK_CHECK(counted > 0, "every target is %d: there is nothing to predict", RK_IGNORE);
    rk_model_zero_grads(t->model);
    RK_TRY(accumulate(t, s, counted));
    return rk_train_apply(t, s);
}
