/* Philox4x32-10: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
 * Ten rounds of a keyed bijection on a 128-bit counter. Here key = seed, counter = (index, purpose); the 128 bits that
 * come out are two 64-bit words, so one index gives two uniforms. */
#include "base/rng.h"

#include <math.h>

enum { ROUNDS = 10 };

static void philox4x32(uint32_t x[4], uint32_t key0, uint32_t key1) {
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t a = (uint64_t)0xD2511F53 * x[0], b = (uint64_t)0xCD9E8D57 * x[2];
        uint32_t x1 = x[1], x3 = x[3];
        x[0] = (uint32_t)(b >> 32) ^ x1 ^ key0;
        x[1] = (uint32_t)b;
        x[2] = (uint32_t)(a >> 32) ^ x3 ^ key1;
        x[3] = (uint32_t)a;
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
}

/* FNV-1a, 64 bits. */
RkRng rk_rng(uint64_t seed, const char *purpose) {
    uint64_t hash = 0xcbf29ce484222325;
    for (const unsigned char *c = (const unsigned char *)purpose; *c; c++) hash = (hash ^ *c) * 0x100000001b3;
    return (RkRng){seed, hash};
}

/* Two uniforms of one index, each a multiple of 2^-53 in [0, 1). */
static void uniform_pair(RkRng r, uint64_t index, double u[2]) {
    uint32_t x[4] = {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)r.purpose, (uint32_t)(r.purpose >> 32)};
    philox4x32(x, (uint32_t)r.seed, (uint32_t)(r.seed >> 32));
    for (int i = 0; i < 2; i++) u[i] = (double)(((uint64_t)x[2 * i + 1] << 32 | x[2 * i]) >> 11) * 0x1p-53;
}

double rk_rng_uniform(RkRng r, uint64_t index) {
    double u[2];
    uniform_pair(r, index, u);
    return u[0];
}

/* Box-Muller; 1 - u is in (0, 1], so the logarithm is finite. */
double rk_rng_normal(RkRng r, uint64_t index) {
    double u[2];
    uniform_pair(r, index, u);
    return sqrt(-2.0 * log(1.0 - u[0])) * cos(6.283185307179586477 * u[1]);
}
