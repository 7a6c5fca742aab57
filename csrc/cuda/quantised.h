/* quantised.h - weights of 8 and 4 bits (base/quant.h) in registers.
 *
 * Whole numbers become elements of T, pairs in a register, without conversions: their bits are put into the fraction of a number whose
 * last place counts 1 (128 to 255 in bfloat16, 1024 to 2047 in float16), and what that number is too large by is subtracted, exactly. */
#ifndef RK_CUDA_QUANTISED_H
#define RK_CUDA_QUANTISED_H

#include "cuda/launch.h"

template <typename T> struct RkPair;
template <> struct RkPair<__nv_bfloat16> {
    typedef __nv_bfloat162 type;
    static constexpr uint32_t UNITS = 0x43004300u, UNITS_AND_8 = 0x43084308u; /* 128, 128 + 8 */
};
template <> struct RkPair<__half> {
    typedef __half2 type;
    static constexpr uint32_t UNITS = 0x64006400u, UNITS_AND_8 = 0x64086408u; /* 1024, 1024 + 8 */
};

template <typename T> __device__ inline uint32_t rk_subtract_pair(uint32_t a, uint32_t b) {
    typename RkPair<T>::type x, y;
    memcpy(&x, &a, sizeof a);
    memcpy(&y, &b, sizeof b);
    x = __hsub2(x, y);
    memcpy(&a, &x, sizeof a);
    return a;
}

/* Bytes 0 and 1 of a word, or 2 and 3, in the lower halves of 16 bits each. */
__device__ inline uint32_t rk_spread(uint32_t word, int high) { return __byte_perm(word, 0, high ? 0x4342 : 0x4140); }

/* Two signed bytes. In bfloat16 128 + q does not fit when q is a byte: its low seven bits do, and its sign bit makes 128 or 256 of what
 * is subtracted. */
template <typename T> __device__ inline uint32_t rk_q8_pair(uint32_t spread);
template <> __device__ inline uint32_t rk_q8_pair<__nv_bfloat16>(uint32_t spread) {
    return rk_subtract_pair<__nv_bfloat16>((spread & 0x007f007fu) | 0x43004300u, (spread & 0x00800080u) | 0x43004300u);
}
template <> __device__ inline uint32_t rk_q8_pair<__half>(uint32_t spread) {
    return rk_subtract_pair<__half>((spread ^ 0x00800080u) | 0x64006400u, 0x64806480u);
}

/* Two values of 4 bits, less 8. */
template <typename T> __device__ inline uint32_t rk_q4_pair(uint32_t spread) {
    return rk_subtract_pair<T>((spread & 0x000f000fu) | RkPair<T>::UNITS, RkPair<T>::UNITS_AND_8);
}

/* One weight of a quantised row. */
__device__ inline float rk_quantised_weight(const unsigned char *row, int dtype, int K, int k) {
    constexpr int HALF = RK_QUANT_BLOCK / 2;
    int block = k / RK_QUANT_BLOCK, at = k % RK_QUANT_BLOCK;
    const __half *scale = reinterpret_cast<const __half *>(row + (dtype == RK_Q8 ? K : K / 2)) + block;
    if (dtype == RK_Q8) return rk_float(*scale) * static_cast<float>(static_cast<signed char>(row[k]));
    int pair = row[block * HALF + at % HALF];
    return rk_float(*scale) * static_cast<float>((at < HALF ? pair & 15 : pair >> 4) - 8);
}

#endif
