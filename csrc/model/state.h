/* state.h - the recurrent state of a batch: what a model remembers of the tokens it has read.
 *
 * One tensor per row of every mixer's state table. A state is a value: calls read one and write another. Gradients
 * of states have the same type.
 *
 * Rows with a dimension D_P (attention's keys and values) grow by the tokens of every call: they have room for `room`
 * tokens and hold the first `past` of them. A state that has to hold more moves to a larger allocation. */
#ifndef RK_MODEL_STATE_H
#define RK_MODEL_STATE_H

#include "model/manifest.h"

enum { RK_MAX_STATE_ROWS = 4 };

typedef struct RkState {
    const RkConfig *cfg;
    RkStore store; /* rows are of its sum_dtype */
    int B, most;   /* sequences, and how many there is memory for */
    void *memory;
    size_t bytes;
    int past, room; /* of the growing rows; past is 0 where there are none */
    RkTensor (*time_mix)[RK_MAX_STATE_ROWS], (*channel_mix)[RK_MAX_STATE_ROWS]; /* one array per layer */
} RkState;

/* Zeros, with room for `past` tokens, which it is taken to hold. */
int rk_state_create(RkState *s, const RkConfig *cfg, RkStore store, int B, int past);
void rk_state_free(RkState *s);
size_t rk_state_bytes(const RkConfig *cfg, RkStore store, int B, int past); /* what rk_state_create allocates */

/* Room for `tokens` tokens, keeping what it holds. Room grows by half at least, so that a token at a time costs no more than
 * a constant per token. On an error the state is as it was. */
int rk_state_reserve(RkState *s, int64_t tokens);
int rk_state_copy(RkState *dst, const RkState *src); /* of the same model and batch; dst keeps its room or grows */
void rk_state_advance(RkState *s, int past, int T);  /* it now holds past + T tokens */

/* The first B sequences only, B <= most; the others keep what they hold and come back with a larger B, until the state moves. */
int rk_state_narrow(RkState *s, int B);
/* Sequence `from` of src, of the same model and holding as many tokens, over sequence `to` of dst, which may be src. */
int rk_state_copy_sequence(RkState *dst, int to, const RkState *src, int from);

/* Row `i` of all rows, time mix before channel mix, layer by layer; 0 when there is no such row. A row that grows has its room
 * as second dimension. */
typedef struct RkStateRow { int layer, grows; const char *name; RkTensor t; } RkStateRow;
int rk_state_row(const RkState *s, int i, RkStateRow *row);

/* The trained initial state (time_state, stored (H, value, key)) into every sequence's wkv row, and its gradient back. */
int rk_state_from_params(RkState *s, const RkManifest *m, const RkBackend *be);
int rk_state_grad_to_params(const RkState *ds, const RkManifest *m, const RkBackend *be);

#endif
