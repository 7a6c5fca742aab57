/* rng.h - counter-based random numbers: a value is a function of (seed, purpose, index) and of nothing else,
 * so it does not depend on call order, threads or what was drawn before. Philox4x32-10 (Salmon et al., 2011). */
#ifndef RK_BASE_RNG_H
#define RK_BASE_RNG_H

#include <stdint.h>

typedef struct RkRng { uint64_t seed, purpose; } RkRng;

/* A stream named by text, e.g. a parameter's name: the purpose is a hash of it. */
RkRng rk_rng(uint64_t seed, const char *purpose);
double rk_rng_uniform(RkRng r, uint64_t index); /* in [0, 1), 53 bits */
double rk_rng_normal(RkRng r, uint64_t index);  /* standard normal */

#endif
