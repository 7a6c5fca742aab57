#include "model/manifest.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- parameters outside the mixers ---- */

enum { NORM_ROWS = 2 };
#define NORM(name)                                 \
    {name ".weight", SHAPE(D_C), CONST(1), 0}, {name ".bias", SHAPE(D_C), CONST(0), 0}

static const RkParamSpec emb_rows[] = {{"emb.weight", SHAPE(D_V, D_C), UNIFORM(1e-4), P_DECAY | P_HALF}};
/* Without ln0 numbers that small would vanish in the epsilon of the first layer's norm. */
static const RkParamSpec bare_emb_rows[] = {{"emb.weight", SHAPE(D_V, D_C), NORMAL(0.02), P_DECAY | P_HALF}};
static const RkParamSpec ln1_rows[NORM_ROWS] = {NORM("ln1")}, ln2_rows[NORM_ROWS] = {NORM("ln2")};
static const RkParamSpec ln0_rows[NORM_ROWS] = {NORM("ln0")}, ln_out_rows[NORM_ROWS] = {NORM("ln_out")};
static const RkParamSpec head_rows[] = {{"head.weight", SHAPE(D_V, D_C), ORTHO(0.5), P_WEIGHT}};

/* ---- building the list ---- */

typedef struct { RkManifest *m; const RkConfig *cfg; RkStore store; int layer; } Builder;

/* Appends a table's rows; returns where they begin. Without memory (first pass) only counts. */
static int append(Builder *b, const RkParamSpec *rows, int n) {
    int first = b->m->n;
    RkDims dims = rk_config_dims(b->cfg, b->layer < 0 ? 0 : b->layer, 1, 1);
    for (int i = 0; i < n; i++) {
        if ((rows[i].flags & P_INIT_STATE) && !b->cfg->time_state) continue;
        int at = b->m->n++;
        if (!b->m->param) continue;
        RkParam *p = &b->m->param[at];
        if (b->layer < 0) snprintf(p->name, sizeof p->name, "%s", rows[i].name);
        else snprintf(p->name, sizeof p->name, "blocks.%d.%s", b->layer, rows[i].name);
        p->init = rows[i].init;
        p->flags = rows[i].flags;
        p->layer = b->layer;
        p->optional = (p->flags & P_VALUE_GATE) && b->layer == b->m->value_layer;
        p->value = rk_shape_resolve(rows[i].shape, b->store.dtype, &dims);
        p->grad = rk_shape_resolve(rows[i].shape, b->store.sum_dtype, &dims);
    }
    return first;
}

static int has_value_gate(const RkMixer *mixer) {
    for (int i = 0; i < mixer->n_par; i++)
        if (mixer->par[i].flags & P_VALUE_GATE) return 1;
    return 0;
}

static void append_all(Builder *b) {
    RkManifest *m = b->m;
    m->n = 0;
    b->layer = -1;
    m->emb = append(b, b->cfg->ln0 ? emb_rows : bare_emb_rows, 1);
    m->ln0 = -1;
    for (int l = 0; l < b->cfg->L; l++) {
        const RkBlockConfig *block = &b->cfg->block[l];
        b->layer = l;
        m->layer[l].ln1 = append(b, ln1_rows, NORM_ROWS);
        m->layer[l].ln2 = append(b, ln2_rows, NORM_ROWS);
        if (l == 0 && b->cfg->ln0) m->ln0 = append(b, ln0_rows, NORM_ROWS);
        m->layer[l].time_mix = append(b, block->time_mix->par, block->time_mix->n_par);
        m->layer[l].channel_mix = append(b, block->channel_mix->par, block->channel_mix->n_par);
    }
    b->layer = -1;
    m->ln_out = append(b, ln_out_rows, NORM_ROWS);
    m->head = append(b, head_rows, 1);
}

int rk_manifest_build(RkManifest *m, const RkConfig *cfg, RkStore store) {
    Builder b = {m, cfg, store, -1};
    m->param = NULL;
    m->value_layer = -1;
    for (int l = cfg->L - 1; l >= 0; l--)
        if (has_value_gate(cfg->block[l].time_mix)) m->value_layer = l;
    append_all(&b);
    m->param = calloc((size_t)m->n, sizeof *m->param);
    if (!m->param) return rk_fail(RK_ENOMEM, "no memory for a list of %d parameters", m->n);
    append_all(&b);
    if (cfg->V > cfg->C) m->param[m->head].init.arg *= sqrt((double)cfg->V / cfg->C);
    return RK_OK;
}

void rk_manifest_free(RkManifest *m) {
    free(m->param);
    m->param = NULL;
}

size_t rk_manifest_bytes(const RkManifest *m, int gradients) {
    RkArena a = {0};
    for (int i = 0; i < m->n; i++) rk_arena_take(&a, (gradients ? m->param[i].grad : m->param[i].value).dtype, m->param[i].value.d);
    return a.used;
}

void rk_manifest_place(RkManifest *m, RkArena *a, int gradients) {
    for (int i = 0; i < m->n; i++) {
        RkTensor *t = gradients ? &m->param[i].grad : &m->param[i].value;
        *t = rk_arena_take(a, t->dtype, t->d);
    }
}

int rk_param_takes(const RkParam *p, int dtype) {
    if (rk_quantised(dtype)) return (p->flags & P_MATRIX) && rk_cols(p->value) % RK_QUANT_BLOCK == 0;
    if (dtype == RK_BF16 || dtype == RK_F16) return (p->flags & (P_MATRIX | P_HALF)) != 0;
    return dtype == RK_F32;
}

size_t rk_manifest_numel(const RkManifest *m) {
    size_t n = 0;
    for (int i = 0; i < m->n; i++) n += rk_numel(m->param[i].value);
    return n;
}
