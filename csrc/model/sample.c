#include "model/sample.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/parallel.h"
#include "base/rng.h"
#include "kernels/kernels.h"

int rk_sampling_check(const RkSampling *s) {
    RK_CHECK(s->temperature >= 0 && isfinite(s->temperature), "temperature must be at least 0, not %g", s->temperature);
    RK_CHECK(s->top_p >= 0, "top_p must be at least 0 (1 or more switches it off), not %g", s->top_p);
    RK_CHECK(s->min_p >= 0 && s->min_p <= 1, "min_p must be 0 to 1 (0 switches it off), not %g", s->min_p);
    RK_CHECK(s->typical_p >= 0, "typical_p must be at least 0 (1 or more switches it off), not %g", s->typical_p);
    RK_CHECK(s->top_k >= 0, "top_k must be at least 0 (0 switches it off), not %d", s->top_k);
    RK_CHECK(isfinite(s->presence_penalty) && isfinite(s->frequency_penalty), "penalties must be finite");
    RK_CHECK(s->repetition_penalty > 0 && isfinite(s->repetition_penalty), "repetition_penalty must be greater than 0, not %g",
             s->repetition_penalty);
    RK_CHECK(s->penalty_decay >= 0 && s->penalty_decay <= 1, "penalty_decay must be 0 to 1, not %g", s->penalty_decay);
    return RK_OK;
}

/* ---- scratch ---- */

/* A token that may still be drawn: its weight, and the number it is selected by, in [0,1] like the weight. */
typedef struct Candidate { float weight, key; int token; } Candidate;

/* Floats in [0,1] order like their 30 lowest bits, of which selection looks at 10 at a time. */
enum { DIGIT = 10, BINS = 1 << DIGIT };
typedef struct Bin { double sum; size_t n; } Bin;

typedef struct Row {
    RkSampleRow exp;
    Candidate *list; /* in the order of their ids */
    size_t n, n_blocks;
    Bin *bins;
} Row;

static size_t rounded(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

/* Lays a row of V logits out in the thread's scratch, about 1 MB for 65536, which is kept from token to token. */
static int row_place(Row *r, const float *logits, int V) {
    size_t n = (size_t)V, blocks = (n + RK_SAMPLE_BLOCK - 1) / RK_SAMPLE_BLOCK;
    size_t p = rounded(n * sizeof(float)), sums = rounded(blocks * sizeof(float)), bins = BINS * sizeof(Bin);
    char *at = rk_thread_scratch(bins + p + 2 * sums + n * sizeof(Candidate));
    if (!at) return rk_fail(RK_ENOMEM, "no memory to sample from %d tokens", V);
    *r = (Row){.exp = {.z = logits, .p = (float *)(at + bins), .sum = (float *)(at + bins + p),
                       .max = (float *)(at + bins + p + sums), .n = n},
               .list = (Candidate *)(at + bins + p + 2 * sums), .n_blocks = blocks, .bins = (Bin *)at};
    return RK_OK;
}

/* ---- selection ---- */

static uint32_t bits_of(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

/* The key of the candidate, in descending order of keys, at which the running sum of weights first passes `mass` or the
 * running count reaches `k`; 0 when neither happens. One pass over the candidates for each ten bits of the key, no sort. */
static float edge_of(const Candidate *list, size_t n, Bin *bins, double mass, size_t k) {
    double sum = 0;
    size_t count = 0;
    uint32_t found = 0;
    for (int shift = 2 * DIGIT; shift >= 0; shift -= DIGIT) {
        memset(bins, 0, BINS * sizeof *bins);
        for (size_t i = 0; i < n; i++) {
            uint32_t u = bits_of(list[i].key);
            if (shift < 2 * DIGIT && u >> (shift + DIGIT) != found) continue;
            Bin *bin = &bins[u >> shift & (BINS - 1)];
            bin->sum += (double)list[i].weight;
            bin->n++;
        }
        int at = BINS - 1, last = -1;
        for (; at >= 0; at--) {
            if (!bins[at].n) continue;
            last = at;
            if (sum + bins[at].sum > mass || count + bins[at].n >= k) break;
            sum += bins[at].sum;
            count += bins[at].n;
        }
        if (at < 0 && shift == 2 * DIGIT) return 0;
        if (at < 0) at = last, sum -= bins[at].sum, count -= bins[at].n; /* rounding: of the parts, where the whole had passed */
        found = found << DIGIT | (uint32_t)at;
    }
    float edge;
    memcpy(&edge, &found, sizeof edge);
    return edge;
}

/* A bound that the k-th largest probability reaches: the k-th largest of the blocks' largest. */
static float bound_of_k(const Row *r, size_t k) {
    if (k > r->n_blocks) return 0;
    for (size_t b = 0; b < r->n_blocks; b++) r->list[b] = (Candidate){0, r->exp.max[b], 0};
    return edge_of(r->list, r->n_blocks, r->bins, INFINITY, k);
}

/* The tokens with at least this probability, relative to the likeliest; returns their sum. */
static double collect(Row *r, float least) {
    double sum = 0;
    r->n = 0;
    for (size_t b = 0; b < r->n_blocks; b++) {
        if (r->exp.max[b] < least) continue;
        size_t lo = b * RK_SAMPLE_BLOCK, hi = lo + RK_SAMPLE_BLOCK < r->exp.n ? lo + RK_SAMPLE_BLOCK : r->exp.n;
        for (size_t i = lo; i < hi; i++) {
            float p = r->exp.p[i];
            if (p < least || p <= 0) continue;
            r->list[r->n++] = (Candidate){p, p, (int)i};
            sum += (double)p;
        }
    }
    return sum;
}

/* As few of the likeliest tokens as a few attempts find that hold more than `mass`; none below `least`. */
static void collect_mass(Row *r, double least, double mass) {
    double from = 1;
    do from /= 64;
    while (collect(r, (float)fmax(from, least)) <= mass && from > least);
}

/* Keeps the candidates whose key is at least `edge`; of equals at the edge, the lowest ids, so many that there are k. */
static void keep(Row *r, float edge, size_t k) {
    size_t above = 0, n = 0;
    for (size_t i = 0; i < r->n; i++) above += r->list[i].key > edge;
    for (size_t i = 0; i < r->n; i++)
        if (r->list[i].key > edge || (r->list[i].key == edge && above++ < k)) r->list[n++] = r->list[i];
    r->n = n;
}

/* The keys become exp(-|surprise - entropy|), the entropy that of the candidates alone. */
static void keep_typical(Row *r, double mass) {
    double sum = 0, entropy = 0;
    for (size_t i = 0; i < r->n; i++) sum += (double)r->list[i].weight;
    for (size_t i = 0; i < r->n; i++) entropy -= (double)r->list[i].weight / sum * log((double)r->list[i].weight / sum);
    for (size_t i = 0; i < r->n; i++)
        r->list[i].key = (float)exp(-fabs(-log((double)r->list[i].weight / sum) - entropy));
    keep(r, edge_of(r->list, r->n, r->bins, mass * sum, SIZE_MAX), SIZE_MAX);
}

/* Tokens below (1 - top_p) / V of the sum hold less than 1 - top_p of it together, so top_p is passed without them: the
 * selection need not look at them. Half of that leaves room for rounding. */
static void select_candidates(const RkSampling *s, Row *r, double total) {
    size_t k = s->top_k > 0 ? (size_t)s->top_k : SIZE_MAX;
    double least = s->min_p;
    if (s->top_p < 1) least = fmax(least, 0.5 * (1 - s->top_p) * total / (double)r->exp.n);
    if (k < r->exp.n) least = fmax(least, (double)bound_of_k(r, k));
    if (s->top_p < 1) collect_mass(r, least, s->top_p * total);
    else collect(r, (float)least);
    if (s->top_p < 1) keep(r, edge_of(r->list, r->n, r->bins, s->top_p * total, SIZE_MAX), SIZE_MAX);
    if (k < r->n) keep(r, edge_of(r->list, r->n, r->bins, INFINITY, k), k);
    if (s->typical_p < 1) keep_typical(r, s->typical_p);
}

static int draw_candidate(const RkSampling *s, Row *r, double uniform) {
    double total = 0;
    for (size_t i = 0; i < r->n; i++) {
        if (s->temperature != 1) r->list[i].weight = expf((r->exp.z[r->list[i].token] - r->exp.top) * r->exp.scale);
        total += (double)r->list[i].weight;
    }
    double target = uniform * total;
    int token = r->list[0].token;
    for (size_t i = 0; i < r->n; i++) {
        if (r->list[i].weight > 0) token = r->list[i].token; /* rounding may leave the target past the end: then the last counts */
        target -= (double)r->list[i].weight;
        if (target < 0) break;
    }
    return token;
}

/* Of all tokens: the block first, then the token in it. */
static int draw_any(const Row *r, double total, double uniform, int top) {
    double target = uniform * total;
    int token = top;
    for (size_t b = 0; b < r->n_blocks; b++) {
        if (target >= (double)r->exp.sum[b] && b + 1 < r->n_blocks) {
            target -= (double)r->exp.sum[b];
            continue;
        }
        for (size_t i = b * RK_SAMPLE_BLOCK; i < r->exp.n && i < (b + 1) * RK_SAMPLE_BLOCK; i++) {
            if (r->exp.p[i] > 0) token = (int)i;
            target -= (double)r->exp.p[i];
            if (target < 0 && r->exp.p[i] > 0) return token;
        }
    }
    return token;
}

static int not_a_number(const float *logits, int V) {
    int i = 0;
    while (i < V - 1 && !isnan(logits[i])) i++;
    return rk_fail(RK_EINVAL, isnan(logits[i]) ? "the logit of token %d is not a number: the model is damaged"
                                               : "logits up to that of token %d are infinite: the model is damaged", i);
}

int rk_sample(const RkSampling *s, const float *logits, int V, double uniform, int *token) {
    size_t top = rk_k.sample_top(logits, (size_t)V);
    if (top == (size_t)V) return not_a_number(logits, V);
    if (isinf(logits[top]))
        return rk_fail(RK_EINVAL, "the largest logit is %g: the model is damaged, a penalty too large or every token forbidden",
                       (double)logits[top]);
    *token = (int)top;
    if (s->temperature == 0 || s->top_k == 1) return RK_OK;
    Row row;
    RK_TRY(row_place(&row, logits, V));
    float sharpened = (float)fmin(1 / s->temperature, FLT_MAX);
    int all = s->top_p >= 1 && s->min_p <= 0 && s->typical_p >= 1 && (s->top_k == 0 || s->top_k >= V);
    row.exp.top = logits[top];
    row.exp.scale = all ? sharpened : 1;
    double total = rk_k.sample_exp(&row.exp);
    if (all) {
        *token = draw_any(&row, total, uniform, *token);
        return RK_OK;
    }
    select_candidates(s, &row, total);
    row.exp.scale = sharpened;
    *token = draw_candidate(s, &row, uniform);
    return RK_OK;
}

/* ---- one sequence ---- */

static RkSeen *sampler_add(RkSampler *s, int token) {
    if (s->n_seen == s->room) {
        size_t room = s->room ? 2 * s->room : 256;
        RkSeen *larger = realloc(s->seen, room * sizeof *larger);
        if (!larger) return NULL;
        s->seen = larger;
        s->room = room;
    }
    s->seen[s->n_seen] = (RkSeen){token, 0};
    return &s->seen[s->n_seen++];
}

int rk_sampler_create(RkSampler *s, const RkSampling *how, int V, const RkSamplerStart *start) {
    RK_TRY(rk_sampling_check(how));
    RK_CHECK(V >= 1, "logits must not be empty");
    s->how = *how;
    s->V = V;
    for (size_t i = 0; i < start->n_prompt; i++) {
        RK_CHECK(start->prompt[i] >= 0 && start->prompt[i] < V, "prompt holds %d; vocab_size %d allows 0 to %d", start->prompt[i], V, V - 1);
        if (!sampler_add(s, start->prompt[i])) return rk_fail(RK_ENOMEM, "no memory for %zu tokens", start->n_prompt);
    }
    if (start->n_bias) s->bias = malloc(start->n_bias * sizeof *s->bias);
    if (start->n_bias && !s->bias) return rk_fail(RK_ENOMEM, "no memory for a bias of %zu tokens", start->n_bias);
    for (size_t i = 0; i < start->n_bias; i++) {
        int token = start->bias_token[i];
        RK_CHECK(token >= 0 && token < V, "logit_bias is for token %d; vocab_size %d allows 0 to %d", token, V, V - 1);
        RK_CHECK(start->bias[i] < INFINITY, "logit_bias of token %d is %g; it must be finite, or -inf to forbid the token", token,
                 (double)start->bias[i]);
        s->bias[s->n_bias++] = (RkBias){token, start->bias[i]};
    }
    return RK_OK;
}

void rk_sampler_free(RkSampler *s) {
    free(s->seen);
    free(s->bias);
    s->seen = NULL;
    s->bias = NULL;
}

float rk_sampler_taken_off(const RkSampler *s, const RkSeen *seen) {
    return seen->count > 0 ? (float)(s->how.presence_penalty + seen->count * s->how.frequency_penalty) : 0;
}

double rk_sampler_uniform(const RkSampler *s) { return rk_rng_uniform(rk_rng(s->how.seed, "generate"), (uint64_t)s->drawn); }

static void change_logits(const RkSampler *s, float *logits) {
    float repetition = (float)s->how.repetition_penalty;
    for (size_t i = 0; i < s->n_seen; i++) {
        const RkSeen *seen = &s->seen[i];
        float *z = &logits[seen->token];
        if (repetition != 1) *z = *z > 0 ? *z / repetition : *z * repetition;
        *z -= rk_sampler_taken_off(s, seen);
    }
    for (size_t i = 0; i < s->n_bias; i++) logits[s->bias[i].token] += s->bias[i].add;
}

/* Notes the token drawn; only where something depends on it, because texts may be long. */
int rk_sampler_note(RkSampler *s, int token) {
    s->drawn++;
    if (s->how.repetition_penalty == 1 && s->how.presence_penalty == 0 && s->how.frequency_penalty == 0) return RK_OK;
    RkSeen *found = NULL;
    for (size_t i = 0; i < s->n_seen; i++) {
        s->seen[i].count *= s->how.penalty_decay;
        if (s->seen[i].token == token) found = &s->seen[i];
    }
    if (!found) found = sampler_add(s, token);
    if (!found) return rk_fail(RK_ENOMEM, "no memory for the counts of %zu tokens", s->n_seen);
    found->count += 1;
    return RK_OK;
}

int rk_sampler_draw(RkSampler *s, float *logits, int *token) {
    change_logits(s, logits);
    RK_TRY(rk_sample(&s->how, logits, s->V, rk_sampler_uniform(s), token));
    return rk_sampler_note(s, *token);
}

typedef struct DrawAll { RkSampler **s; float *logits; int32_t *tokens; } DrawAll;

static void draw_task(void *ctx, size_t row) {
    const DrawAll *d = ctx;
    int token = -1;
    if (rk_sampler_draw(d->s[row], d->logits + row * (size_t)d->s[row]->V, &token)) token = -1;
    d->tokens[row] = token;
}

/* What a task fails of, stays in its thread: the first row that failed is drawn again, in this one, for the message. */
int rk_sampler_draw_all(RkSampler **s, size_t n, float *logits, int32_t *tokens) {
    DrawAll all = {s, logits, tokens};
    rk_parallel(n, draw_task, &all);
    for (size_t row = 0; row < n; row++) {
        int token;
        if (tokens[row] >= 0) continue;
        RK_TRY(rk_sampler_draw(s[row], logits + row * (size_t)s[row]->V, &token));
        return rk_fail(RK_ENOMEM, "no memory to sample from %d tokens", s[row]->V);
    }
    return RK_OK;
}
