/* model.h - a model: parameters, and the memory of the call it is running.
 *
 * The block loop knows only: norm, mixer, add. A whole sequence, a chunk of one and a single token are the same
 * forward with a state in and a state out. Not for use by two threads at once: the caller holds a lock. */
#ifndef RK_MODEL_MODEL_H
#define RK_MODEL_MODEL_H

#include "model/state.h"
#include "model/sparse.h"
#include "model/work.h"

typedef struct RkModel {
    RkConfig cfg;
    const RkBackend *be;
    RkStore store;
    RkManifest man;
    void *values, *grads; /* one allocation each; grads is NULL until needed, values where the weights lie elsewhere */
    int held;             /* for inference: there are no gradients */
    size_t value_bytes, grad_bytes;
    int32_t *used;    /* (V), with the gradients: 0 where a token's embedding certainly has no gradient */
    int grads_shared; /* others may write the gradients: `used` says nothing */
    int fresh;        /* the next backward writes the gradients of P_MATRIX instead of adding to them */
    RkColumns columns; /* once few rows were read */
    RkWork work;
    uint64_t writes; /* how often somebody has replaced values: copies of them are then old */
} RkModel;

int rk_model_create(RkModel *m, const RkConfig *cfg, const RkBackend *be, int device); /* device: which of the backend's */

/* A model for inference of weights in formats of their own, one per row of the manifest. On the host they stay where they are and must
 * outlive it; to a device they are copied, quantised ones as they are, the others in the backend's element type. */
int rk_model_create_held(RkModel *m, const RkConfig *cfg, const RkBackend *be, int device, const RkTensor *weights);

void rk_model_free(RkModel *m);
int rk_model_need_grads(RkModel *m); /* allocates them as zeros the first time */
size_t rk_embedding_bytes(const RkModel *m);
int rk_model_zero_grads(RkModel *m);

/* The same for a caller that goes on to rk_model_forward_backward: what that writes is not stored as zeros first. */
int rk_model_restart_grads(RkModel *m);

/* Before others see the gradients: they may write them from then on. */
void rk_model_share_grads(RkModel *m);
const int32_t *rk_model_used_tokens(const RkModel *m); /* `used`, or NULL when any embedding may have a gradient */

/* Lays out and allocates the memory of calls of this size; reuses what is there when it is large enough. */
int rk_model_prepare(RkModel *m, RkWorkSize size);

/* At most this much scratch is allocated by the threads, each when it first needs it, and all that a device takes for its ops. */
size_t rk_model_scratch_bytes(const RkModel *m);

/* ---- running ---- */

enum { RK_LOGITS_NONE, RK_LOGITS_LAST, RK_LOGITS_ALL };

typedef struct RkForward {
    int B, T;
    const int32_t *ids;     /* (B,T), each in [0,V) */
    const int32_t *targets; /* (B,T), each in [0,V) or -100; NULL when no loss is wanted */
    const int32_t *op_ids, *op_targets; /* the same in the model's memory; set by the call */
    const RkState *before;  /* NULL: the model's initial state */
    RkState *after;         /* written; may be `before` in inference; NULL in training: not wanted */
    int logits;             /* RK_LOGITS_* */
    void *out;              /* (B,T,V) or (B,V) of the backend's sum_dtype, in the host's memory */
    RkTensor kept;          /* (B,V) of sum_dtype in the model's memory: where RK_LOGITS_LAST go instead, so that nothing waits; may be absent */
    double loss;            /* out: sum of cross-entropy over counted targets */
    int64_t count;          /* out: how many targets count */
} RkForward;

/* Inference: any T >= 1, in pieces of at most rk_model_piece tokens, so that T costs no memory. */
int rk_model_piece(const RkModel *m, int B);
int rk_model_forward(RkModel *m, RkForward *f);

typedef struct RkBackward {
    RkForward f;            /* B, T, ids, targets, before (not NULL), after; loss and count are written */
    double scale, l2;       /* gradient of scale * sum of cross-entropy, plus L2Wrap with factor l2 (0: off) */
    RkTensor factors, loss; /* both or neither, in the model's memory: (2) float64, in place of scale and l2; (1) float64, where the
                               loss is added instead of to f.loss, so that nothing waits */
    const RkState *dafter;  /* gradient of the final state, NULL: zeros */
    RkState *dbefore;       /* gradient of the initial state, NULL: not wanted */
    int initial;            /* f.before is the model's own initial state: dbefore also goes to its parameters */
    int grad_cp;            /* recompute the blocks instead of saving their activations: the same bits, less memory */
} RkBackward;

/* Training: forward, loss and backward; adds to the gradients. */
int rk_model_forward_backward(RkModel *m, RkBackward *b);

/* ---- pieces shared by forward.c, backward.c and head.c ---- */

int rk_blocks_forward(RkModel *m, const RkState *before, RkState *after);
int rk_blocks_backward(RkModel *m, const RkBackward *b, const RkState *before);
int rk_block_forward(RkModel *m, int layer, const RkState *before, RkState *after);
int rk_head_loss(RkModel *m, const RkForward *f, const RkBackward *b); /* b: NULL without gradients */
int rk_head_loss_sum(RkModel *m, double *loss);
int rk_head_logits(RkModel *m, RkForward *f, int t0);
int rk_head_keep_logits(RkModel *m, RkTensor logits);
RkCall rk_block_call(RkModel *m, int layer, int channel_mix, const RkState *before, RkState *after);
RkLayerNorm rk_norm_call(RkModel *m, int param, RkTensor x, RkTensor y, RkTensor stats);
int rk_check_ids(const RkModel *m, const RkForward *f);

#endif
