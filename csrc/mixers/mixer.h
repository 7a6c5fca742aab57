/* mixer.h - what a layer is: tables of its tensors and two functions.
 *
 * Time mixes, channel mixes, attention and MLP are the same type. A mixer's file states its parameters, saved
 * activations, scratch and state as lists; everything generic (memory, checkpoints, initialisation, optimizer
 * groups, tests) is a loop over those lists. Its forward and backward call ops of whatever backend they are given.
 *
 * Glossary of sizes:  B sequences  T tokens of each  C channels (n_embd)  H heads  N head size (C = H N)
 *   G heads of keys and values (attention)  P tokens of the past that a growing state holds
 *   F channel-mix width  V vocabulary  Dw Da Dv Dg Dm low-rank widths (decay, in-context rate, value residual, gate, mixing)
 * Lifetimes: parameter; saved (written by the forward, read by the backward); scratch (inside one call, shared by
 * all layers); state (carried from one call to the next). A backward may rely on x and saved rows, never on scratch. */
#ifndef RK_MIXERS_MIXER_H
#define RK_MIXERS_MIXER_H

#include "ops/ops.h"

/* Sizes of one layer in one run. */
typedef struct RkDims {
    int B, T, C, H, N, F, V, Dw, Da, Dv, Dg, Dm;
    int divisor; /* head_size_divisor of RWKV-5 and 6: their norm per head has eps = 1e-5 divisor^2 */
    int G, P;
    int rope; /* attention has rotary positions */
} RkDims;

/* A dimension of a table row: a literal (> 0) or one of these symbols; 0 = unused. */
enum { D_B = -1, D_T = -2, D_C = -3, D_H = -4, D_N = -5, D_F = -6, D_V = -7,
       D_DW = -8, D_DA = -9, D_DV = -10, D_DG = -11, D_BH = -12, D_CHUNKS = -13 /* ceil(T / RK_WKV_CHUNK) */, D_DM = -14, D_5DM = -15 /* 5 Dm */ };
enum { D_G = -20, D_GN = -21 /* G N */, D_P = -22 /* second in a state row: the row grows by T tokens with every call */ };
typedef struct RkShape { int16_t d[4]; } RkShape;
#define SHAPE(...) {{__VA_ARGS__}}

/* ---- initialisation: a rule per parameter ---- */

typedef struct RkInitAt { int layer, n_layer, C, N; } RkInitAt;
typedef double (*RkRamp)(const RkInitAt *at, int i); /* value of element i */
typedef enum {
    INIT_CONST,     /* arg everywhere */
    INIT_UNIFORM,   /* uniform in (-arg, arg) */
    INIT_NORMAL,    /* normal, standard deviation arg */
    INIT_NORMAL_DEEP, /* the same divided by sqrt(2 n_layer): two such sums per layer then keep the stream's size */
    INIT_ORTHO,     /* the shorter side orthonormal, times arg */
    INIT_ORTHO_TALL, /* the same times max(1, sqrt(rows / cols)) */
    INIT_RAMP       /* ramp(at, i) */
} RkInitKind;
typedef struct RkInit { RkInitKind kind; double arg; RkRamp ramp; } RkInit;

#define CONST(value) {INIT_CONST, value, NULL}
#define UNIFORM(bound) {INIT_UNIFORM, bound, NULL}
#define NORMAL(deviation) {INIT_NORMAL, deviation, NULL}
#define NORMAL_DEEP(deviation) {INIT_NORMAL_DEEP, deviation, NULL}
#define ORTHO(gain) {INIT_ORTHO, gain, NULL}
#define ORTHO_TALL(gain) {INIT_ORTHO_TALL, gain, NULL}
#define RAMP(fn) {INIT_RAMP, 0, fn}

/* ---- table rows ---- */

enum {
    P_DECAY = 1,       /* weight decay applies */
    P_LR2X = 2,        /* twice the learning rate */
    P_VALUE_GATE = 4,  /* unused, and optional in files, in the first layer that defines v_first */
    P_INIT_STATE = 8,  /* present only in models with a trained initial state; its row of state starts from it */
    A_TRAIN = 16,      /* a saved row that only training needs */
    P_MATRIX = 32,     /* read by one `linear` alone: may be held in every format of weights, and its gradient is written by
                          that op where the call says fresh */
    P_HALF = 64,       /* read by `lowrank` or `embed` alone: may be held as bf16 or f16 */
    P_WEIGHT = P_DECAY | P_MATRIX,
    A_SUM = 128,       /* a row of the store's sum_dtype */
    A_TOKENWISE = 256, /* a row that wkv7 saves where it goes token by token; where it goes by chunks it is not there, or, if it is
                          of sum_dtype, holds half as much: rk_wkv7_by_chunks */
    P_SPARSE = 512     /* its product's input is mostly zero: RkCall has its columns; one of a channel mix */
};
typedef struct RkParamSpec { const char *name; RkShape shape; RkInit init; unsigned flags; } RkParamSpec;
typedef struct RkRowSpec { const char *name; RkShape shape; unsigned flags; } RkRowSpec;

/* One list gives both the struct (typed access) and the rows (everything generic). */
#define RK_FIELD(field, ...) RkTensor field;
#define RK_PARAM_ROW(field, name, shape, init, flags) {name, shape, init, flags},
#define RK_ROW(field, shape, flags) {#field, shape, flags},
#define RK_ROWS(T) ((int)(sizeof(T) / sizeof(RkTensor)))
enum { RK_MAX_ROWS = 40 }; /* of any one table */

/* ---- one run of one layer ---- */

/* What flows beside the residual stream, through the layers of one call. */
typedef struct RkCarry {
    int value_layer;         /* the layer that defines v_first; -1: none does */
    RkTensor v_first, dv_first; /* (B,T,H,N) */
} RkCarry;

typedef struct RkCall {
    const RkBackend *be;
    RkDims dims;
    int layer, training;
    int fresh; /* in a backward: gradients of P_MATRIX are written, not added to */
    const RkTensor *par, *grad;   /* in table order, like all the following; cast to the mixer's own structs */
    const RkTensor *act, *tmp;
    const RkTensor *state, *state_out;   /* before and after the call; absent tensors: zeros, not wanted */
    const RkTensor *dstate_out, *dstate; /* gradient of the state after (in) and before (out) the call */
    RkTensor x, y, dx, dy;               /* (B,T,C): input, output, and their gradients; dx is written */
    RkTensor columns;                    /* of the P_SPARSE parameter (model/sparse.h), or absent */
    RkCarry *carry;
} RkCall;

typedef struct RkMixer {
    const char *name;
    const RkParamSpec *par;
    const RkRowSpec *act, *tmp, *state;
    int n_par, n_act, n_tmp, n_state;
    int (*fwd)(const RkCall *);
    int (*bwd)(const RkCall *);
    int (*check)(const RkDims *); /* sizes it cannot work with, beyond what every mixer needs; NULL: none */
} RkMixer;

/* The end of a mixer's file: rows from its lists PARAMS, SAVED, SCRATCH and STATE, and the mixer rk_<name> itself with its functions. */
#define RK_MIXER(mixer, ...)                                                                                    \
    static const RkParamSpec params[] = {PARAMS(RK_PARAM_ROW)};                                                 \
    static const RkRowSpec saved[] = {SAVED(RK_ROW)}, scratch[] = {SCRATCH(RK_ROW)}, state[] = {STATE(RK_ROW)}; \
    extern const RkMixer rk_##mixer;                                                                            \
    const RkMixer rk_##mixer = {                                                                                \
        .name = #mixer, __VA_ARGS__, .par = params, .n_par = RK_ROWS(Params), .act = saved, .n_act = RK_ROWS(Saved), \
        .tmp = scratch, .n_tmp = RK_ROWS(Scratch), .state = state, .n_state = RK_ROWS(State)}

extern const RkMixer *const rk_mixers[]; /* NULL-terminated: the only list to edit when a mixer is added */
const RkMixer *rk_mixer_find(const char *name); /* NULL with a message that lists what there is */

/* The tensor a table row describes, for these sizes, without memory. */
RkTensor rk_shape_resolve(RkShape shape, int dtype, const RkDims *dims);

#endif
