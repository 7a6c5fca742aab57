#include "data/sampler.h"

#include <string.h>

#include "base/err.h"

static uint64_t mul_mod(uint64_t a, uint64_t b, uint64_t m) { return (uint64_t)((unsigned __int128)a * b % m); }

static uint64_t pow_mod(uint64_t a, uint64_t e, uint64_t m) {
    uint64_t x = 1;
    for (; e; e >>= 1, a = mul_mod(a, a, m))
        if (e & 1) x = mul_mod(x, a, m);
    return x;
}

/* Miller-Rabin; the first twelve primes as bases decide every n below 2^64 (Sorenson and Webster, 2015). */
int rk_is_prime(uint64_t n) {
    static const uint8_t base[12] = {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37};
    if (n < 2) return 0;
    for (int i = 0; i < 12; i++)
        if (n % base[i] == 0) return n == base[i];
    uint64_t odd = n - 1;
    int twos = 0;
    for (; !(odd & 1); odd >>= 1) twos++;
    for (int i = 0; i < 12; i++) {
        uint64_t x = pow_mod(base[i], odd, n);
        int k = 0;
        if (x == 1) continue;
        while (x != n - 1 && k < twos - 1) {
            x = mul_mod(x, x, n);
            k++;
        }
        if (x != n - 1) return 0;
    }
    return 1;
}

uint64_t rk_magic_prime(uint64_t n_tokens, uint64_t ctx_len) {
    if (!ctx_len || n_tokens / ctx_len < 3) return 0;
    uint64_t p = n_tokens / ctx_len - 1;
    while (p % 3 != 2 || !rk_is_prime(p)) p--;
    return p;
}

int rk_sampler_init(RkSampler *s, uint64_t n_tokens, uint64_t ctx_len, uint64_t prime, uint64_t world, uint64_t rank) {
    RK_CHECK(ctx_len >= 1 && ctx_len <= INT32_MAX, "ctx_len must be from 1 to %d, not %llu", INT32_MAX,
             (unsigned long long)ctx_len);
    RK_CHECK(world >= 1, "world_size must be at least 1, not 0");
    RK_CHECK(rank < world, "rank must be below world_size %llu, not %llu", (unsigned long long)world,
             (unsigned long long)rank);
    if (!prime) {
        prime = rk_magic_prime(n_tokens, ctx_len);
        RK_CHECK(prime,
                 "%llu tokens are too few for ctx_len %llu: at least 3 * ctx_len are needed; use more data or a "
                 "smaller ctx_len",
                 (unsigned long long)n_tokens, (unsigned long long)ctx_len);
    }
    RK_CHECK(prime % 3 == 2 && rk_is_prime(prime), "magic_prime must be a prime of the form 3 k + 2, not %llu",
             (unsigned long long)prime);
    RK_CHECK(n_tokens && prime <= (n_tokens - 1) / ctx_len,
             "magic_prime %llu with ctx_len %llu reads past the end of %llu tokens: at most %llu",
             (unsigned long long)prime, (unsigned long long)ctx_len, (unsigned long long)n_tokens,
             (unsigned long long)(n_tokens ? (n_tokens - 1) / ctx_len : 0));
    const double golden = 0.61803398874989484820; /* (sqrt(5) - 1) / 2 */
    *s = (RkSampler){n_tokens, ctx_len, prime, (uint64_t)((double)prime * golden), world, rank};
    return RK_OK;
}

uint64_t rk_sampler_offset(const RkSampler *s, uint64_t epoch, uint64_t idx) {
    const uint64_t P = s->prime;
    uint64_t m =
        (uint64_t)((1 + (unsigned __int128)epoch * RK_EPOCH_SAMPLES + (unsigned __int128)idx * s->world + s->rank) % P);
    return mul_mod(s->factor, mul_mod(m, mul_mod(m, m, P), P), P) * s->ctx_len;
}

int rk_sampler_fill(const RkSampler *s, const RkBinIdx *d, const RkBatch *b) {
    const size_t T = (size_t)s->ctx_len;
    for (size_t i = 0; i < b->B; i++) {
        const uint64_t at = rk_sampler_offset(s, b->epoch, b->idx0 + i);
        RK_TRY(rk_binidx_read(d, at, T, b->vocab_size, b->ids + i * T));
        memcpy(b->targets + i * T, b->ids + i * T + 1, (T - 1) * sizeof(int32_t));
        RK_TRY(rk_binidx_read(d, at + T, 1, b->vocab_size, b->targets + i * T + T - 1));
    }
    return RK_OK;
}
