/* logits.h - rows of logits in a model's memory, one for each sequence, from which tokens are drawn where they lie. */
#ifndef RK_MODEL_LOGITS_H
#define RK_MODEL_LOGITS_H

#include "model/model.h"
#include "model/sample.h"

typedef struct RkLogits {
    const RkBackend *be;
    RkStore store;
    RkTensor rows; /* (n, V) of the store's sum_dtype */
    /* Of a device: what its draws read and write, which begins with one block for `rows` and what is below. */
    void *memory;
    size_t bytes, change_bytes;
    RkDrawRow *how;
    RkDrawChange *changes;
    int32_t *tokens;
    void *host; /* as much as `how` and `changes` take */
} RkLogits;

int rk_logits_create(RkLogits *l, const RkModel *m, int n);
void rk_logits_free(RkLogits *l);
int rk_logits_copy_row(RkLogits *to, int row, const RkLogits *from, int from_row); /* of the same model; `to` may be `from` */

/* The next token of n sequences from the first n rows, as rk_sampler_draw_all does; the rows are changed. On a device only ids come
 * back, and what penalties and biases change goes there. */
int rk_logits_draw(RkLogits *l, RkSampler **s, size_t n, int32_t *tokens);

#endif
