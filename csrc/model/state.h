/* state.h - the recurrent state of a batch: what a model remembers of the tokens it has read.
 *
 * One tensor per row of every mixer's state table. A state is a value: calls read one and write another. Gradients
 * of states have the same type. */
#ifndef RK_MODEL_STATE_H
#define RK_MODEL_STATE_H

#include "model/manifest.h"

enum { RK_MAX_STATE_ROWS = 4 };

typedef struct RkState {
    const RkConfig *cfg;
    int dtype, B;
    void *memory;
    size_t bytes;
    RkTensor (*time_mix)[RK_MAX_STATE_ROWS], (*channel_mix)[RK_MAX_STATE_ROWS]; /* one array per layer */
} RkState;

int rk_state_create(RkState *s, const RkConfig *cfg, int dtype, int B); /* zeros */
void rk_state_free(RkState *s);
size_t rk_state_bytes(const RkConfig *cfg, int dtype, int B);
void rk_state_copy(RkState *dst, const RkState *src); /* of the same model and batch */

/* Row `i` of all rows, time mix before channel mix, layer by layer; 0 when there is no such row. */
int rk_state_row(const RkState *s, int i, int *layer, const char **name, RkTensor *row);

/* The trained initial state (time_state, stored (H, value, key)) into every sequence's wkv row, and its gradient back. */
void rk_state_from_params(RkState *s, const RkManifest *m);
void rk_state_grad_to_params(const RkState *ds, RkManifest *m);

#endif
