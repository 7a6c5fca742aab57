#include "model/sample.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int rk_sampling_check(const RkSampling *s) {
    RK_CHECK(s->temperature >= 0 && isfinite(s->temperature), "temperature must be at least 0, not %g", s->temperature);
    RK_CHECK(s->top_p >= 0, "top_p must be at least 0 (1 or more switches it off), not %g", s->top_p);
    RK_CHECK(s->top_k >= 0, "top_k must be at least 0 (0 switches it off), not %d", s->top_k);
    RK_CHECK(isfinite(s->presence_penalty) && isfinite(s->frequency_penalty), "penalties must be finite");
    RK_CHECK(s->penalty_decay >= 0 && s->penalty_decay <= 1, "penalty_decay must be 0 to 1, not %g", s->penalty_decay);
    return RK_OK;
}

void rk_sample_penalise(const RkSampling *s, float *logits, const float *count, int V) {
    for (int i = 0; i < V; i++)
        if (count[i] > 0) logits[i] -= (float)(s->presence_penalty + (double)count[i] * s->frequency_penalty);
}

/* Probabilities relative to the largest, p = exp(logit - max) in [0,1], and their sum. */
static int softmax(const float *logits, int V, float *p, double *sum, int *argmax) {
    *argmax = 0;
    for (int i = 0; i < V; i++) {
        if (isnan(logits[i])) return rk_fail(RK_EINVAL, "the logit of token %d is not a number: the model is damaged", i);
        if (logits[i] > logits[*argmax]) *argmax = i;
    }
    if (isinf(logits[*argmax]))
        return rk_fail(RK_EINVAL, "the largest logit is %g: the model is damaged or a penalty too large", (double)logits[*argmax]);
    *sum = 0;
    for (int i = 0; i < V; i++) {
        p[i] = i == *argmax ? 1 : expf(logits[i] - logits[*argmax]);
        *sum += (double)p[i];
    }
    return RK_OK;
}

/* Floats in [0,1] order like their bits; the upper half of the bits makes 16257 bins, so that finding a threshold
 * takes one pass over the vocabulary and a sort of one bin instead of a sort of everything. */
enum { BINS = (0x3f800000 >> 16) + 1 };
typedef struct { double sum; int n; } Bin;

static int bin_of(float p) {
    uint32_t u;
    memcpy(&u, &p, 4);
    return (int)(u >> 16);
}

static int descending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/* The value of the element, in descending order, at which the running sum first passes `mass` or the running count
 * reaches `k`; 0 when neither happens. */
static int threshold(const float *p, int V, double mass, int k, float *out) {
    Bin *bins = calloc(BINS, sizeof *bins);
    float *inside = malloc((size_t)V * sizeof *inside);
    if (!bins || !inside) return free(bins), free(inside), rk_fail(RK_ENOMEM, "no memory to sample from %d tokens", V);
    for (int i = 0; i < V; i++) bins[bin_of(p[i])].sum += (double)p[i], bins[bin_of(p[i])].n++;
    double sum = 0;
    int n = 0, at = BINS - 1;
    while (at > 0 && sum + bins[at].sum <= mass && n + bins[at].n < k) sum += bins[at].sum, n += bins[at].n, at--;
    int m = 0;
    for (int i = 0; i < V; i++)
        if (bin_of(p[i]) == at) inside[m++] = p[i];
    qsort(inside, (size_t)m, sizeof *inside, descending);
    *out = 0;
    for (int i = 0; i < m; i++) {
        sum += (double)inside[i];
        if (sum > mass || ++n >= k) {
            *out = inside[i];
            break;
        }
    }
    free(bins);
    free(inside);
    return RK_OK;
}

/* Keeps the k largest; of equals at the edge, the lowest ids. */
static void keep_k(float *p, int V, int k, float edge) {
    int above = 0;
    for (int i = 0; i < V; i++) above += p[i] > edge;
    for (int i = 0; i < V; i++)
        if (p[i] < edge || (p[i] == edge && above++ >= k)) p[i] = 0;
}

int rk_sample(const RkSampling *s, const float *logits, int V, double uniform, float *p, int *token) {
    double sum = 0;
    float edge = 0;
    RK_TRY(softmax(logits, V, p, &sum, token));
    if (s->temperature == 0 || s->top_k == 1) return RK_OK;
    if (s->top_p < 1) {
        RK_TRY(threshold(p, V, s->top_p * sum, V + 1, &edge));
        for (int i = 0; i < V; i++)
            if (p[i] < edge) p[i] = 0;
    }
    if (s->top_k > 0 && s->top_k < V) {
        RK_TRY(threshold(p, V, INFINITY, s->top_k, &edge));
        keep_k(p, V, s->top_k, edge);
    }
    double total = 0;
    for (int i = 0; i < V; i++) {
        if (p[i] > 0 && s->temperature != 1) p[i] = (float)pow((double)p[i], 1 / s->temperature);
        total += (double)p[i];
    }
    double target = uniform * total;
    for (int i = 0; i < V; i++) {
        if (p[i] > 0) *token = i; /* rounding may leave the target just past the end: then the last one counts */
        target -= (double)p[i];
        if (target < 0) break;
    }
    return RK_OK;
}
