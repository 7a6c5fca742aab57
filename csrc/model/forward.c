#include <stdlib.h>
#include <string.h>

#include "model/model.h"

static const double LN_EPS = 1e-5; /* of every layer norm */
static const RkTensor absent[RK_MAX_ROWS]; /* a table whose tensors are all absent */

RkLayerNorm rk_norm_call(RkModel *m, int param, RkTensor x, RkTensor y, RkTensor stats) {
    const RkParam *p = &m->man.param[param]; /* weight, then bias */
    return (RkLayerNorm){.x = x, .w = p[0].value, .b = p[1].value, .y = y, .stats = stats, .dw = p[0].grad,
                         .db = p[1].grad, .eps = LN_EPS};
}

/* A mixer's call, bound to this layer's tensors; valid until the next one is bound. */
RkCall rk_block_call(RkModel *m, int layer, int channel_mix, const RkState *before, RkState *after) {
    RkWork *w = &m->work;
    const RkBlockConfig *config = &m->cfg.block[layer];
    const RkMixer *mixer = channel_mix ? config->channel_mix : config->time_mix;
    const RkParam *p = &m->man.param[channel_mix ? m->man.layer[layer].channel_mix : m->man.layer[layer].time_mix];
    for (int i = 0; i < mixer->n_par; i++) {
        int here = !(mixer->par[i].flags & P_INIT_STATE) || m->cfg.time_state;
        w->par[i] = here ? p[i].value : absent[0];
        w->grad[i] = here ? p[i].grad : absent[0];
    }
    const RkTensor *state = channel_mix ? before->channel_mix[layer] : before->time_mix[layer];
    const RkTensor *state_out = !after ? absent : channel_mix ? after->channel_mix[layer] : after->time_mix[layer];
    RkDims dims = rk_config_dims(&m->cfg, layer, w->size.B, w->size.T);
    dims.P = before->past;
    return (RkCall){.be = m->be, .dims = dims, .layer = layer,
                    .training = w->size.training, .fresh = m->fresh, .par = w->par, .grad = w->grad,
                    .act = w->block[layer].act[channel_mix], .tmp = w->block[layer].tmp[channel_mix],
                    .state = state, .state_out = state_out,
                    .columns = channel_mix && m->columns.of ? m->columns.of[layer] : absent[0], .dstate = absent, .dstate_out = absent,
                    .x = w->xn, .y = w->y, .carry = &w->carry};
}

/* x -> mid = x + time_mix(ln1(x)) -> next block's x = mid + channel_mix(ln2(mid)) */
int rk_block_forward(RkModel *m, int layer, const RkState *before, RkState *after) {
    const RkBackend *be = m->be;
    RkWork *w = &m->work;
    RkBlockWork *b = &w->block[layer];
    const RkLayerParams *p = &m->man.layer[layer];
    RkTensor out = layer + 1 < m->cfg.L ? w->block[layer + 1].x : w->x_out;
    for (int half = 0; half < 2; half++) {
        RkTensor in = half ? b->mid : b->x;
        RkLayerNorm norm = rk_norm_call(m, half ? p->ln2 : p->ln1, in, w->xn, half ? b->stats2 : b->stats1);
        RK_TRY(be->layernorm_fwd(&norm));
        RkCall call = rk_block_call(m, layer, half, before, after);
        RK_TRY((half ? m->cfg.block[layer].channel_mix : m->cfg.block[layer].time_mix)->fwd(&call));
        RkAdd add = {.a = in, .b = w->y, .y = half ? out : b->mid};
        RK_TRY(be->add_fwd(&add));
    }
    return RK_OK;
}

int rk_blocks_forward(RkModel *m, const RkState *before, RkState *after) {
    for (int l = 0; l < m->cfg.L; l++) {
        RK_TRY(rk_block_forward(m, l, before, after));
        rk_model_leave_mapped(m, l);
    }
    return RK_OK;
}

/* Ids and targets as ops see them: copied where the memory is not the host's. */
static int upload_ids(RkModel *m, RkForward *f) {
    RkMemory *memory = m->store.memory;
    size_t R = (size_t)f->B * (size_t)f->T;
    f->op_ids = f->ids;
    f->op_targets = f->targets;
    if (rk_on_host(memory)) return RK_OK;
    RK_TRY(memory->write(memory, m->work.ids, f->ids, R * sizeof *f->ids));
    f->op_ids = m->work.ids;
    f->op_targets = f->targets ? m->work.ids + R : NULL;
    return f->targets ? memory->write(memory, m->work.ids + R, f->targets, R * sizeof *f->targets) : RK_OK;
}

static int embed(RkModel *m, const int32_t *ids) {
    RkWork *w = &m->work;
    RkEmbed e = {.ids = ids, .w = m->man.param[m->man.emb].value, .y = w->emb};
    RK_TRY(m->be->embed_fwd(&e));
    if (m->man.ln0 < 0) return RK_OK;
    RkLayerNorm norm = rk_norm_call(m, m->man.ln0, w->emb, w->block[0].x, w->stats0);
    return m->be->layernorm_fwd(&norm);
}

int rk_check_ids(const RkModel *m, const RkForward *f) {
    size_t R = (size_t)f->B * (size_t)f->T;
    RK_CHECK(f->B >= 1 && f->T >= 1, "ids must hold at least one token, not shape (%d, %d)", f->B, f->T);
    for (size_t i = 0; i < R; i++) {
        RK_CHECK(f->ids[i] >= 0 && f->ids[i] < m->cfg.V, "ids[%zu, %zu] is %d; vocab_size %d allows 0 to %d",
                 i / (size_t)f->T, i % (size_t)f->T, f->ids[i], m->cfg.V, m->cfg.V - 1);
        RK_CHECK(!f->targets || f->targets[i] == RK_IGNORE || (f->targets[i] >= 0 && f->targets[i] < m->cfg.V),
                 "targets[%zu, %zu] is %d; vocab_size %d allows 0 to %d, and -100 to ignore",
                 i / (size_t)f->T, i % (size_t)f->T, f->targets[i], m->cfg.V, m->cfg.V - 1);
    }
    return RK_OK;
}

/* All that the ops of a call depend on, besides the contents of memory and what is the same in all calls of a model. */
typedef struct Key {
    int64_t T, training, grad_cp, fresh, initial;
    const void *work, *grads, *columns, *logits, *loss, *factors;
    struct { const void *memory; int64_t B, most, past, room; } state[4];
} Key;

static Key key_of(const RkModel *m, const RkState *const state[4]) {
    Key key = {.T = m->work.size.T, .training = m->work.size.training, .grad_cp = m->work.size.grad_cp, .fresh = m->fresh,
               .work = m->work.memory, .grads = m->grads, .columns = m->columns.memory};
    for (int i = 0; i < 4; i++) {
        const RkState *s = state[i];
        if (!s) continue;
        key.state[i].memory = s->memory;
        key.state[i].B = s->B;
        key.state[i].most = s->most;
        key.state[i].past = s->past;
        key.state[i].room = s->room;
    }
    return key;
}

/* The rows of sequence b, tokens [t0, t0 + n), gathered for all b: a piece of ids or targets. */
static void gather(const int32_t *from, int32_t *to, const RkForward *f, int t0, int n) {
    for (int b = 0; b < f->B; b++)
        memcpy(to + (size_t)b * (size_t)n, from + (size_t)b * (size_t)f->T + t0, (size_t)n * sizeof *to);
}

/* Rows (B*T) of one piece of an inference forward, or one token of every sequence. On a device a product of 512 rows and 4096 outputs
 * would be 64 tiles of 128 x 256 for 132 multiprocessors. */
enum { INFER_ROWS = 512, DEVICE_INFER_ROWS = 4096 };

int rk_model_piece(const RkModel *m, int B) {
    int rows = rk_on_host(m->store.memory) ? INFER_ROWS : DEVICE_INFER_ROWS;
    return B >= rows ? 1 : rows / B;
}

typedef struct Piece { RkModel *m; const RkForward *f; RkState *state; } Piece;

static int piece_ops(void *ctx) {
    const Piece *p = ctx;
    RK_TRY(embed(p->m, p->f->op_ids));
    RK_TRY(rk_blocks_forward(p->m, p->state, p->state));
    if (p->f->targets) RK_TRY(rk_head_loss(p->m, p->f, NULL));
    return p->f->kept.p ? rk_head_keep_logits(p->m, p->f->kept) : RK_OK;
}

/* A token of every sequence comes again and again, with the same sizes. */
static int run_piece(RkModel *m, const RkForward *f, RkState *state) {
    RkMemory *memory = m->store.memory;
    Piece piece = {m, f, state};
    if (f->T > 1 || f->targets || rk_config_grows(&m->cfg)) return piece_ops(&piece);
    Key key = key_of(m, (const RkState *const[4]){state});
    key.logits = f->kept.p;
    return memory->repeat(memory, &(RkWorkload){piece_ops, &piece, &key, sizeof key});
}

static int infer_piece(RkModel *m, RkForward *f, int32_t *room, int t0, int n) {
    RkState *state = f->after;
    int32_t *ids = room, *targets = room ? room + (size_t)f->B * (size_t)n : NULL;
    int whole = n == f->T, last = t0 + n == f->T; /* of the whole no copy is needed, whatever its size */
    RkForward piece = {.B = f->B, .T = n, .ids = whole ? f->ids : ids, .targets = NULL};
    if (!whole) gather(f->ids, ids, f, t0, n);
    if (f->targets) {
        if (!whole) gather(f->targets, targets, f, t0, n);
        piece.targets = whole ? f->targets : targets;
    }
    if (last && f->logits == RK_LOGITS_LAST) piece.kept = f->kept;
    RK_TRY(rk_model_prepare(m, (RkWorkSize){f->B, n, 0, 0}));
    RK_TRY(rk_model_need_columns(m, (size_t)f->B * (size_t)n));
    RK_TRY(upload_ids(m, &piece));
    RK_TRY(run_piece(m, &piece, state));
    rk_state_advance(state, state->past, n);
    if (piece.targets) {
        RK_TRY(rk_head_loss_sum(m, &piece.loss));
        f->loss += piece.loss;
    }
    int wanted = f->logits == RK_LOGITS_ALL || (f->logits == RK_LOGITS_LAST && last && !f->kept.p);
    return wanted ? rk_head_logits(m, f, t0) : RK_OK;
}

static int64_t counted(const RkForward *f) {
    int64_t n = 0;
    for (size_t i = 0, R = (size_t)f->B * (size_t)f->T; f->targets && i < R; i++) n += f->targets[i] != RK_IGNORE;
    return n;
}

/* The state is copied first and then updated in place: with one token per call there is nothing else to keep. */
int rk_model_forward(RkModel *m, RkForward *f) {
    RK_TRY(rk_check_ids(m, f));
    RK_TRY(m->store.memory->bind(m->store.memory));
    RK_TRY(rk_state_reserve(f->after, (int64_t)(f->before ? f->before->past : 0) + f->T));
    if (f->before && f->before != f->after) RK_TRY(rk_state_copy(f->after, f->before));
    if (!f->before) RK_TRY(rk_state_from_params(f->after, &m->man, m->be));
    int piece = rk_model_piece(m, f->B);
    f->loss = 0;
    f->count = counted(f);
    size_t rows = (size_t)f->B * (size_t)piece;
    int32_t *room = piece < f->T ? malloc(2 * rows * sizeof *room) : NULL; /* a call of one piece copies nothing */
    if (piece < f->T && !room) return rk_fail(RK_ENOMEM, "no memory for %zu ids", 2 * rows);
    int rc = RK_OK;
    for (int t0 = 0; !rc && t0 < f->T; t0 += piece) rc = infer_piece(m, f, room, t0, f->T - t0 < piece ? f->T - t0 : piece);
    free(room);
    return rc;
}

/* ---- training ---- */

static int embed_backward(RkModel *m, const RkForward *f) {
    RkWork *w = &m->work;
    if (m->man.ln0 >= 0) {
        RkLayerNorm norm = rk_norm_call(m, m->man.ln0, w->emb, w->xn, w->stats0);
        norm.dy = w->dx;
        norm.dx = w->dx;
        RK_TRY(m->be->layernorm_bwd(&norm));
    }
    RkEmbed e = {.ids = f->op_ids, .dy = w->dx, .dw = m->man.param[m->man.emb].grad};
    return m->be->embed_bwd(&e);
}

/* Room in the states that are written, and agreement of those that are read. */
static int prepare_states(RkBackward *b) {
    int past = b->f.before->past;
    if (b->f.after) {
        RK_TRY(rk_state_reserve(b->f.after, (int64_t)past + b->f.T));
        rk_state_advance(b->f.after, past, b->f.T);
    }
    if (b->dbefore) {
        RK_TRY(rk_state_reserve(b->dbefore, past));
        rk_state_advance(b->dbefore, past, 0);
    }
    RK_CHECK(!b->dafter || b->dafter->past == past + b->f.T || !rk_config_grows(b->dafter->cfg),
             "the gradient of the final state is of %d tokens; the state holds %d", b->dafter->past, past + b->f.T);
    return RK_OK;
}

typedef struct Run { RkModel *m; RkBackward *b; } Run;

static int training_ops(void *ctx) {
    const Run *run = ctx;
    RkModel *m = run->m;
    RkBackward *b = run->b;
    RK_TRY(embed(m, b->f.op_ids));
    RK_TRY(rk_blocks_forward(m, b->f.before, b->f.after));
    RK_TRY(rk_head_loss(m, &b->f, b));
    RK_TRY(rk_blocks_backward(m, b, b->f.before));
    if (b->initial && b->dbefore) RK_TRY(rk_state_grad_to_params(b->dbefore, &m->man, m->be));
    RK_TRY(embed_backward(m, &b->f));
    return b->loss.p ? m->be->sum_fwd(&(RkSum){.x = m->work.loss, .out = b->loss}) : RK_OK;
}

/* Micro-batches come again with the same sizes and in the same memory, and find their numbers there. */
static int run_training(RkModel *m, RkBackward *b) {
    RkMemory *memory = m->store.memory;
    Run run = {m, b};
    if (!b->loss.p) return training_ops(&run);
    Key key = key_of(m, (const RkState *const[4]){b->f.before, b->f.after, b->dafter, b->dbefore});
    key.initial = b->initial;
    key.loss = b->loss.p;
    key.factors = b->factors.p;
    return memory->repeat(memory, &(RkWorkload){training_ops, &run, &key, sizeof key});
}

int rk_model_forward_backward(RkModel *m, RkBackward *b) {
    RK_TRY(rk_check_ids(m, &b->f));
    RK_TRY(m->store.memory->bind(m->store.memory));
    RK_TRY(rk_model_need_grads(m));
    RK_TRY(prepare_states(b));
    RK_TRY(rk_model_prepare(m, (RkWorkSize){b->f.B, b->f.T, 1, b->grad_cp}));
    RK_TRY(upload_ids(m, &b->f));
    RK_TRY(run_training(m, b));
    m->fresh = 0;
    for (size_t i = 0, n = (size_t)b->f.B * (size_t)b->f.T; i < n; i++) m->used[b->f.ids[i]] = 1;
    b->f.count = counted(&b->f);
    return b->loss.p ? RK_OK : rk_head_loss_sum(m, &b->f.loss);
}
