/* sample.h - choosing the next token from a row of logits.
 *
 * In the order of the reference implementation (rwkv pip package): softmax; top_p keeps the most likely tokens up to
 * and including the one whose cumulative probability passes top_p; top_k keeps the k most likely; the rest are drawn
 * with weights p^(1/temperature). temperature 0 takes the most likely token, ties to the lowest id.
 *
 * min_p keeps tokens with at least that share of the largest probability. typical_p (locally typical sampling: Meister,
 * Pimentel, Wiher, Cotterell, TACL 2023) comes last: of what is left it keeps the tokens whose surprise -ln p is nearest to
 * the entropy, up to and including the one whose cumulative probability passes typical_p.
 *
 * Before all that, logits change: repetition_penalty (Keskar et al., "CTRL", 2019) divides the positive logits of tokens of
 * the prompt and the text by it and multiplies the negative ones; presence_penalty + count * frequency_penalty is taken off
 * for tokens of the text, whose counts fade by penalty_decay with every token; a bias per token is added. */
#ifndef RK_MODEL_SAMPLE_H
#define RK_MODEL_SAMPLE_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

typedef struct RkSampling {
    double temperature; /* >= 0 */
    double top_p;       /* >= 1: off */
    double min_p;       /* 0: off */
    double typical_p;   /* >= 1: off */
    int top_k;          /* 0: off */
    double repetition_penalty;                                 /* 1: off */
    double presence_penalty, frequency_penalty, penalty_decay; /* on tokens already generated */
    uint64_t seed;
} RkSampling;

int rk_sampling_check(const RkSampling *s);

/* Draws with `uniform` in [0,1). Scratch is the calling thread's. RK_EINVAL when a logit is NaN or none is finite. */
int rk_sample(const RkSampling *s, const float *logits, int V, double uniform, int *token);

/* ---- one sequence ---- */

typedef struct RkSeen { int token; double count; } RkSeen; /* count 0: in the prompt only */
typedef struct RkBias { int token; float add; } RkBias;

typedef struct RkSampler {
    RkSampling how;
    int V, drawn;
    RkSeen *seen; /* every token of the text once, and of the prompt where they matter */
    size_t n_seen, room;
    RkBias *bias;
    size_t n_bias;
} RkSampler;

/* bias: n_bias pairs of distinct tokens that are copied, -infinity forbids a token; prompt: the distinct tokens that repetition_penalty applies to
 * from the beginning. Of an RkSampler of zeros; rk_sampler_free takes back what it holds, also after an error. */
typedef struct RkSamplerStart {
    const int32_t *bias_token, *prompt;
    const float *bias;
    size_t n_bias, n_prompt;
} RkSamplerStart;
int rk_sampler_create(RkSampler *s, const RkSampling *how, int V, const RkSamplerStart *start);
void rk_sampler_free(RkSampler *s);

/* The next token of the sequence; the logits are changed by penalties and bias. A function of the options, of the tokens drawn
 * before, of the logits and of (seed, number of tokens drawn): of nothing that happens to other sequences. */
int rk_sampler_draw(RkSampler *s, float *logits, int *token);

/* The two halves of it for logits that lie elsewhere. The uniform number and the change of logits of a token seen; and what is noted of a
 * token drawn. */
double rk_sampler_uniform(const RkSampler *s);
float rk_sampler_taken_off(const RkSampler *s, const RkSeen *seen);
int rk_sampler_note(RkSampler *s, int token);

/* One token for each of n sequences from its row of logits (n, V), in parallel. */
int rk_sampler_draw_all(RkSampler **s, size_t n, float *logits, int32_t *tokens);

#endif
