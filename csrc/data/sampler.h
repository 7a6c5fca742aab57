/* sampler.h - which stretch of the token stream the n-th training sample is.
 *
 * The stream's first P * ctx_len tokens are P slots of ctx_len tokens, P prime and P mod 3 = 2. Sample m (from 1) is slot
 *     (f * m^3) mod P,    f = trunc(P * (sqrt(5) - 1) / 2), in double precision
 * P mod 3 = 2 makes cubing a bijection modulo P, so P samples in a row visit every slot once, in scattered order, with no
 * table and no state. A sample is T = ctx_len inputs and the T tokens one further on as targets.
 *
 * Samples are counted in mini-epochs of 40320; with w processes, sample idx of process r in mini-epoch e is
 *     m = 1 + e * 40320 + idx * w + r
 * Source: the data set of RWKV-LM's trainer; the same numbers here give the same samples. */
#ifndef RK_DATA_SAMPLER_H
#define RK_DATA_SAMPLER_H

#include "data/binidx.h"

enum { RK_EPOCH_SAMPLES = 40320 };

typedef struct RkSampler {
    uint64_t n_tokens, ctx_len, prime, factor, world, rank;
} RkSampler;

typedef struct RkBatch { /* B samples idx0 .. idx0 + B - 1 of one process */
    uint64_t epoch, idx0;
    size_t B;
    int32_t vocab_size;     /* tokens must be below; 0: no limit */
    int32_t *ids, *targets; /* (B,T) */
} RkBatch;

int rk_is_prime(uint64_t n);

/* The largest prime P <= n_tokens / ctx_len - 1 with P mod 3 = 2; 0 if n_tokens < 3 * ctx_len or ctx_len is 0. */
uint64_t rk_magic_prime(uint64_t n_tokens, uint64_t ctx_len);

/* Checks everything and fills *s; prime 0 means rk_magic_prime. */
int rk_sampler_init(RkSampler *s, uint64_t n_tokens, uint64_t ctx_len, uint64_t prime, uint64_t world, uint64_t rank);

/* The first token of a sample's inputs. */
uint64_t rk_sampler_offset(const RkSampler *s, uint64_t epoch, uint64_t idx);

int rk_sampler_fill(const RkSampler *s, const RkBinIdx *d, const RkBatch *b);

#endif
