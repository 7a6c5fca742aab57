/* half.h - bf16 and f16 to and from float32, round to nearest even; the scalar definition. */
#ifndef RK_BASE_HALF_H
#define RK_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t rk_bits_of(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static inline float rk_float_of(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }

static inline float rk_bf16_to_f32(uint16_t h) { return rk_float_of((uint32_t)h << 16); }

static inline uint16_t rk_f32_to_bf16(float f) {
    uint32_t u = rk_bits_of(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40); /* NaN stays NaN */
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

static inline float rk_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = h & 0x7fffu;
    if (rest >= 0x7c00u) return rk_float_of(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    if (rest >= 0x0400u) return rk_float_of(sign | ((rest << 13) + 0x38000000u));
    float f = (float)rest * 5.9604644775390625e-8f; /* subnormal: multiples of 2^-24 */
    return sign ? -f : f;
}

static inline uint16_t rk_f32_to_f16(float f) {
    uint32_t u = rk_bits_of(f), sign = (u >> 16) & 0x8000u;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (u >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds past 65504 */
    if (u < 0x38800000u) {                                   /* subnormal: let the FPU round at 2^-24 */
        float r = rk_float_of(u) + 0.5f;
        return (uint16_t)(sign | (rk_bits_of(r) - 0x3f000000u));
    }
    return (uint16_t)(sign | ((u + 0xfffu + ((u >> 13) & 1) - 0x38000000u) >> 13));
}

#endif
