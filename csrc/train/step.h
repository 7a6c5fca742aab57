/* step.h - one call, one optimizer step: micro-batches, accumulation, clipping, AdamW.
 *
 * Gradients are those of the mean cross-entropy over all counted targets of the batch, whatever the micro-batches;
 * L2Wrap's factor is 1e-4 / (B T) of the whole batch. */
#ifndef RK_TRAIN_STEP_H
#define RK_TRAIN_STEP_H

#include "model/model.h"

/* How one parameter is updated, apart from what a step says of all. */
typedef struct RkUpdateRule {
    double lr_scale; /* times the step's learning rate */
    double decay;    /* its weight decay; negative: that of the step */
} RkUpdateRule;

/* What a step comes to; the host reads it once, at the end. */
enum { RK_RESULT_LOSS, RK_RESULT_CLIP, RK_RESULT_NORM, RK_RESULTS };

typedef struct RkTrainer {
    RkModel *model;
    double beta1, beta2, eps, grad_clip; /* grad_clip <= 0: off */
    int64_t steps;                       /* applied so far: Adam's t */
    void *memory;                        /* moments and masters, then scratch */
    size_t bytes, moment_bytes;
    RkTensor *m, *v;                     /* per parameter; without memory where it is frozen for good */
    RkTensor *master;                    /* per parameter, of sum_dtype: what is updated, where values are narrower; else absent */
    RkUpdateRule *rule;                  /* per parameter; at first as the manifest's flags say */
    RkTensor partial, norms;             /* float64: scratch of sumsq; one per parameter */
    RkTensor factors, result, rates;     /* float64, of a step: what losses are multiplied by; (RK_RESULTS); (RK_RATES) */
    double *norm;                        /* norms, on the host */
    int32_t *rows;                       /* (V): RK_ROW_* of each token's embedding */
    uint64_t writes;                     /* of the model when masters were loaded */
    double loss_scale;                   /* float16: gradients are computed times this, so that small ones are not lost; else 1 */
    int64_t good_steps;                  /* since it last changed */
    RkState before, after, dbefore;      /* of one micro-batch; after: where chunks leave the state for the next */
    int carried;                         /* `before` holds what a chunk left behind: it is no beginning */
    int32_t *chunk;                      /* ids and targets of one */
    size_t chunk_bytes;
} RkTrainer;

/* Bytes of the moments and masters of a trainer that updates all of the model, and of its scratch. */
void rk_trainer_measure(RkModel *model, size_t *moments, size_t *scratch);

/* frozen: per parameter, 1 = never updated, which needs no moments; NULL: none. */
int rk_trainer_create(RkTrainer *t, RkModel *model, const unsigned char *frozen);
void rk_trainer_free(RkTrainer *t);

/* Masters from the values, where somebody has replaced those since. */
int rk_trainer_load_masters(RkTrainer *t);

/* Before others see the moments: they may write them, so no embedding's are known to be zero any more. */
void rk_trainer_share_moments(RkTrainer *t);

/* Allocates what steps of this size need, so that no step of it or of fewer rows allocates. */
int rk_trainer_prepare(RkTrainer *t, RkWorkSize size);

typedef struct RkStep {
    int B, T, micro_bsz;
    const int32_t *ids, *targets; /* (B,T) */
    double lr, weight_decay;
    int l2wrap, grad_cp;
    int chunk;                    /* > 0: rows are run in chunks of so many tokens, the state carried on, no gradient through it */
    const unsigned char *frozen;  /* per parameter; NULL: none */
    double loss, grad_norm;       /* out: mean over counted targets; norm before clipping */
    const char *bad;              /* out: the first tensor that is not finite; then nothing was updated */
    int again;              /* out: a gradient overflowed; the step is to be taken again, with the model's gradients times the new loss_scale */
} RkStep;

int rk_train_step(RkTrainer *t, RkStep *s);

/* The second half of a step: clipping and AdamW with the gradients that are in the model, times loss_scale, whoever put them there.
 * Reads lr, weight_decay, frozen and loss (which must be finite) of s; writes grad_norm, bad and again. */
int rk_train_apply(RkTrainer *t, RkStep *s);

#endif
