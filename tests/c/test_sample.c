/* Drawing tokens from rows of every size: within the row, only tokens that the options allow, the same on any number of threads,
 * and without allocating. The distribution is compared with float64 in tests/py/test_sampling.py. */
#include "model/sample.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/parallel.h"
#include "kernels/kernels.h"
#include "test.h"

static uint64_t random_state = 88172645463325252u;
static double uniform(void) {
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return (double)(random_state >> 11) * 0x1p-53;
}
static int below(int n) { return (int)(uniform() * n); }

static RkSampling options(void) {
    static const double top_p[] = {1, 0.9, 0.3, 0}, min_p[] = {0, 0.1, 1}, typical_p[] = {1, 0.5}, temperature[] = {1, 0.5, 2, 1e-300, 0};
    return (RkSampling){.temperature = temperature[below(5)], .top_p = top_p[below(4)], .min_p = min_p[below(3)],
                        .typical_p = typical_p[below(2)], .top_k = below(2) ? below(100) : 0, .repetition_penalty = 1,
                        .penalty_decay = 1};
}

/* A row of its own, so that a sanitizer sees what is read beyond it; some logits are -inf, some equal. */
static float *row_of(int V, double spread) {
    float *z = malloc((size_t)V * sizeof *z);
    for (int i = 0; i < V; i++) z[i] = below(8) ? (float)(spread * (uniform() - 0.5)) : below(2) ? -INFINITY : 1;
    z[below(V)] = 2;
    return z;
}

static int is_allowed(const RkSampling *s, const float *z, int V, int token) {
    float top = -INFINITY;
    int larger = 0;
    if (token < 0 || token >= V || z[token] == -INFINITY) return 0;
    for (int i = 0; i < V; i++) top = z[i] > top ? z[i] : top, larger += z[i] > z[token];
    if (s->temperature == 0 && z[token] != top) return 0;
    if (s->top_k && larger >= s->top_k) return 0;
    if (s->top_p == 0 && z[token] != top) return 0;
    return exp((double)(z[token] - top)) >= s->min_p * (1 - 1e-6);
}

static void test_every_size(void) {
    for (int round = 0; round < 3000; round++) {
        int V = round < 200 ? round + 1 : 1 + below(3000), token = -1;
        float *z = row_of(V, round % 3 ? 10 : 0.01);
        RkSampling s = options();
        double u = round % 10 ? uniform() : round % 20 ? 0 : 1 - 0x1p-53;
        if (!CHECK(rk_sample(&s, z, V, u, &token) == RK_OK && is_allowed(&s, z, V, token)))
            printf("    V %d, temperature %g, top_p %g, top_k %d, min_p %g, typical_p %g, u %g: token %d\n", V, s.temperature, s.top_p,
                   s.top_k, s.min_p, s.typical_p, u, token);
        z[below(V)] = NAN;
        CHECK(rk_sample(&s, z, V, u, &token) == RK_EINVAL);
        free(z);
    }
}

enum { SEQUENCES = 7, STEPS = 40, V = 1000 };

static void write_texts(int32_t text[STEPS][SEQUENCES]) {
    RkSampler sampler[SEQUENCES], *all[SEQUENCES];
    static float logits[SEQUENCES * V];
    int32_t banned = 3, prompt[] = {5, 6};
    float minus = -INFINITY;
    RkSamplerStart start = {.bias_token = &banned, .bias = &minus, .n_bias = 1, .prompt = prompt, .n_prompt = 2};
    for (int i = 0; i < SEQUENCES; i++) {
        RkSampling how = {.temperature = 0.9, .top_p = 0.95, .typical_p = i % 2 ? 1 : 0.8, .repetition_penalty = 1.2,
                          .presence_penalty = 0.3, .frequency_penalty = 0.1, .penalty_decay = 0.99, .seed = (uint64_t)i};
        memset(all[i] = &sampler[i], 0, sizeof sampler[i]);
        CHECK(rk_sampler_create(all[i], &how, V, &start) == RK_OK);
    }
    size_t scratch = 0;
    for (int step = 0; step < STEPS; step++) {
        for (int i = 0; i < SEQUENCES * V; i++) logits[i] = (float)((i * 7919 + step * 104729) % 1009) / 200;
        CHECK(rk_sampler_draw_all(all, SEQUENCES, logits, text[step]) == RK_OK);
        if (rk_num_threads() == 1 && step > 0) CHECK(rk_thread_scratch_total() == scratch); /* other threads may begin later */
        scratch = rk_thread_scratch_total();
        for (int i = 0; i < SEQUENCES; i++) CHECK(text[step][i] >= 0 && text[step][i] < V && text[step][i] != banned);
    }
    for (int i = 0; i < SEQUENCES; i++) rk_sampler_free(all[i]);
}

static void test_threads_give_the_same_texts(void) {
    static int32_t one[STEPS][SEQUENCES], more[STEPS][SEQUENCES];
    int before = rk_num_threads();
    rk_set_num_threads(1);
    write_texts(one);
    for (int threads = 2; threads <= 4; threads++) {
        rk_set_num_threads(threads);
        write_texts(more);
        CHECK(!memcmp(one, more, sizeof one));
    }
    rk_set_num_threads(before);
}

static void test_wrong_options(void) {
    static const RkSamplerStart none;
    const RkSampling good = {.temperature = 1, .top_p = 1, .typical_p = 1, .repetition_penalty = 1, .penalty_decay = 1};
    RkSampling bad[6] = {good, good, good, good, good, good};
    bad[0].temperature = -1, bad[1].min_p = 2, bad[2].repetition_penalty = 0, bad[3].top_k = -1, bad[4].typical_p = NAN, bad[5].penalty_decay = 1.1;
    for (int i = 0; i < 6; i++) {
        RkSampler s = {0};
        CHECK(rk_sampler_create(&s, &bad[i], V, &none) == RK_EINVAL);
        rk_sampler_free(&s);
    }
    int32_t token[] = {1, V};
    float bias[] = {0, 0};
    RkSamplerStart wrong[] = {{.bias_token = token, .bias = bias, .n_bias = 2}, {.prompt = token, .n_prompt = 2}};
    for (int i = 0; i < 2; i++) {
        RkSampler s = {0};
        CHECK(rk_sampler_create(&s, &good, V, &wrong[i]) == RK_EINVAL);
        rk_sampler_free(&s);
    }
}

int main(void) {
    static const char *const tiers[] = {"scalar", "avx2", "avx512", "neon"};
    rk_kernels_init();
    for (int i = 0; i < 4; i++)
        if (rk_kernels_select(tiers[i]) == RK_OK) test_every_size();
    test_threads_give_the_same_texts();
    test_wrong_options();
    return test_summary();
}
