/* work.h - the memory of one call, laid out: what every layer saves, what they share, what the loss needs.
 *
 * One allocation. The layout is computed twice by the same code, once to measure and once to place, so what a plan
 * says is what is allocated. */
#ifndef RK_MODEL_WORK_H
#define RK_MODEL_WORK_H

#include "base/arena.h"
#include "model/manifest.h"

typedef struct RkWorkSize { int B, T, training, grad_cp; } RkWorkSize;

/* One block's tensors. Without training, and with grad_cp, all blocks share the same memory except for x. */
typedef struct RkBlockWork {
    RkTensor x;              /* (B,T,C) the residual stream entering the block */
    RkTensor mid;            /* (B,T,C) between time mix and channel mix */
    RkTensor stats1, stats2; /* (R,2) of ln1, ln2 */
    RkTensor act[2][RK_MAX_ROWS]; /* saved rows of time mix, channel mix */
    RkTensor tmp[2][RK_MAX_ROWS]; /* scratch: shared by all layers and both halves */
} RkBlockWork;

typedef struct RkWork {
    RkWorkSize size;
    RkStore store;
    void *memory;
    size_t bytes;         /* allocated */
    RkBlockWork *block;   /* L */
    RkTensor emb, stats0; /* the embedding before ln0 */
    RkTensor x_out;       /* (B,T,C) the residual stream leaving the last block */
    RkTensor xn, y;       /* (B,T,C) a mixer's input and output */
    RkTensor dx, dxn;     /* (B,T,C) gradient of the residual stream, of a mixer's input */
    RkTensor stats_out;   /* (R,2) of ln_out */
    int32_t *ids;         /* (2,R) ids, then targets, where the memory is not the host's */
    RkTensor logits;      /* (rows, V) a piece of the logits, then of their gradient; sum_dtype without training */
    RkTensor loss;        /* (R) float64 */
    RkTensor last;        /* (B,C) the last position of every sequence */
    RkTensor par[RK_MAX_ROWS], grad[RK_MAX_ROWS]; /* of the mixer that is running, in its table's order */
    RkCarry carry;
} RkWork;

/* Bytes of a call of this size. */
size_t rk_work_measure(const RkConfig *cfg, const RkManifest *man, RkStore store, RkWorkSize size);

/* Lays `w` out for this size, growing its memory when needed. */
int rk_work_prepare(RkWork *w, const RkConfig *cfg, const RkManifest *man, RkStore store, RkWorkSize size);
void rk_work_free(RkWork *w);

/* How many rows of logits exist at once: 8 Mi elements, between 64 and 1024 rows. */
int rk_head_rows(int V, size_t rows);

#endif
