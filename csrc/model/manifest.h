/* manifest.h - every parameter of a model as one list, in the order of RWKV-LM's checkpoints.
 *
 * Initialisation, checkpoints, optimizer groups, clipping, freezing and model.parameters() are loops over it. */
#ifndef RK_MODEL_MANIFEST_H
#define RK_MODEL_MANIFEST_H

#include "base/arena.h"
#include "base/memory.h"
#include "model/config.h"

typedef struct RkParam {
    char name[64]; /* "blocks.3.att.w1" */
    RkInit init;
    unsigned flags;
    int layer;      /* -1 outside the blocks */
    int optional;   /* never used by this model: files may lack it; its gradient is 0 and it has no decay */
    RkTensor value, grad;
    int mapped;     /* the value lies in a file: its pages can be let go of, the next use reads them again */
} RkParam;

/* Where each table of each layer begins in the list. */
typedef struct RkLayerParams { int ln1, ln2, time_mix, channel_mix; } RkLayerParams;

typedef struct RkManifest {
    RkParam *param;
    int n;
    int emb, ln0, ln_out, head; /* index of the first tensor of each; ln0 is -1 when absent */
    RkLayerParams layer[RK_MAX_LAYERS];
    int value_layer; /* the first layer whose time mix has a value gate, which defines v_first; -1: none */
} RkManifest;

/* Shapes and element types; memory comes with rk_manifest_place. */
int rk_manifest_build(RkManifest *m, const RkConfig *cfg, RkStore store);
void rk_manifest_free(RkManifest *m);

/* Places every value (or gradient) in the arena, which has rk_manifest_bytes. */
size_t rk_manifest_bytes(const RkManifest *m, int gradients);
void rk_manifest_place(RkManifest *m, RkArena *a, int gradients);

/* The reference initialisation: each element is a function of (seed, name, index) alone. */
int rk_manifest_init(RkManifest *m, const RkConfig *cfg, RkMemory *memory, uint64_t seed);

/* Whether a parameter may be held in this format of weights: matrices in any whose blocks fit their rows, low-rank matrices
 * and the embedding as bf16 or f16 too, everything else as float32 alone. */
int rk_param_takes(const RkParam *p, int dtype);

size_t rk_manifest_numel(const RkManifest *m);

#endif
