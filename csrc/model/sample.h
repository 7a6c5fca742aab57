/* sample.h - choosing the next token from a row of logits.
 *
 * In the order of the reference implementation (rwkv pip package): softmax; top_p keeps the most likely tokens up to
 * and including the one whose cumulative probability passes top_p; top_k keeps the k most likely; the rest are drawn
 * with weights p^(1/temperature). temperature 0 takes the most likely token, ties to the lowest id. */
#ifndef RK_MODEL_SAMPLE_H
#define RK_MODEL_SAMPLE_H

#include "base/err.h"

typedef struct RkSampling {
    double temperature; /* >= 0 */
    double top_p;       /* >= 1: off */
    int top_k;          /* 0: off */
    double presence_penalty, frequency_penalty, penalty_decay; /* on tokens already generated */
    unsigned long long seed;
} RkSampling;

int rk_sampling_check(const RkSampling *s);

/* Draws with `uniform` in [0,1); p is scratch of V floats. RK_EINVAL when a logit is NaN. */
int rk_sample(const RkSampling *s, const float *logits, int V, double uniform, float *p, int *token);

/* Lowers the logits of tokens by their counts: presence_penalty + count * frequency_penalty where count > 0. */
void rk_sample_penalise(const RkSampling *s, float *logits, const float *count, int V);

#endif
