/* simd.h - one small vocabulary of vectors of RK_LANES floats; the arithmetic operators + - * / work on Vec too.
 *
 * The file that includes this defines RK_ISA_SCALAR, RK_ISA_AVX2, RK_ISA_AVX512 or RK_ISA_NEON first. Each variant gives
 *   vec_load, vec_store              unaligned
 *   vec_load_part, vec_store_part    the first n lanes only (n may exceed RK_LANES); the others read as 0, memory beyond is not touched
 *   vec_keep_part                    lanes from n on become 0
 *   vec_min, vec_max                 of (a, b): a NaN in b is kept
 *   vec_sum, vec_max_lane            over the lanes
 *   vec_sum_rows                     RK_LANES rows of RK_LANES floats -> the vector of their sums: as many horizontal sums at once
 *                                    for the price of about two
 *   vec_fold_store                   four sums over lanes, added up as far as RK_FOLDED floats hold them, stored or added to what is there
 *   vec_unfold                       RK_LANES rows of these -> the vectors of the four sums
 *   vec_transpose                    the columns of RK_LANES rows of RK_LANES floats that lie `stride` apart
 *   vec_pow2, vec_ldexp              2^n for n in [-126, 127], and a 2^n for any n; n is given as n + RK_ROUND
 *   vec_sum64_*                      a sum of squares in float64
 *   vec_load_i8, vec_load_u4          RK_LANES signed bytes, low or high halves of bytes, as floats
 *   vec_load_bf16, vec_load_f16      RK_LANES numbers of 2 bytes as floats; with _part as above
 * and of 4 RK_LANES bytes, the elements of quantised rows (base/quant.h):
 *   bytes_load, bytes_load_part      unaligned; the first n bytes only
 *   bytes_low, bytes_high            the low or the high half of each byte
 *   vec_dot_q8                       per lane the sum over its four bytes of (w + RK_Q8_OFFSET) x, w and x signed, x not -128
 *   vec_dot_q4                       the same of low xlow + high xhigh, halves of bytes and signed bytes
 *   vec_spread4, vec_spread8         lane l is p[(at + l) / 4] or p[(at + l) / 8]
 * and the register tiles of the wkv kernels. */
#ifndef RK_KERNELS_SIMD_H
#define RK_KERNELS_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/half.h"
#include "base/tensor.h"

#define SIMD static inline __attribute__((always_inline, unused))
#define NOINLINE __attribute__((noinline))

enum { LINE = 16 }; /* floats of a cache line */

/* Adding 1.5 2^23 rounds a small float to an integer and leaves that integer in the low bits. */
#define RK_ROUND 12582912.0f
#define RK_ROUND_BITS 0x4b400000

#if defined RK_ISA_AVX512
#include "kernels/simd_avx512.h"
#elif defined RK_ISA_AVX2
#include "kernels/simd_avx2.h"
#elif defined RK_ISA_NEON
#include "kernels/simd_neon.h"
#else
#include "kernels/simd_scalar.h"
#endif

enum { RK_FOLDED = RK_LANES < 4 ? 4 : RK_LANES };
SIMD void vec_fold_store(float *to, const Vec sums[4], int add) {
#if RK_LANES == 1
    for (int q = 0; q < 4; q++) to[q] = sums[q] + (add ? to[q] : 0);
#else
    Vec folded = vec_fold4(sums[0], sums[1], sums[2], sums[3]);
    if (add) folded = folded + vec_load(to);
    vec_store(to, folded);
#endif
}

/* Calls BODY(context, i, n) for i = lo, lo + RK_LANES, ...; n = RK_LANES but for a shorter last piece. The body is written
 * once and inlined twice: with n constant its partial loads and stores become whole ones. */
#define SWEEP(BODY, context, lo, hi)                                                      \
    do {                                                                                  \
        size_t at_ = (lo), end_ = (hi);                                                   \
        for (; at_ + RK_LANES <= end_; at_ += RK_LANES) BODY((context), at_, RK_LANES);   \
        if (at_ < end_) BODY((context), at_, end_ - at_);                                 \
    } while (0)

/* exp(x) - 1 = r + r^2 q(r) for the remainder r of x after n ln 2 is taken out; *shifted = n + RK_ROUND.
 * ln 2 in two parts, the first short enough that n times it is exact; q minimax on |r| <= ln(2)/2, error 3e-9. */
SIMD Vec vec_exp_remainder(Vec x, Vec *shifted) {
    *shifted = vec_fma(x, vec_set(1.44269504f), vec_set(RK_ROUND));
    Vec n = *shifted - vec_set(RK_ROUND);
    Vec r = vec_fma(n, vec_set(2.12194440e-4f), vec_fma(n, vec_set(-0.693359375f), x));
    Vec q = vec_fma(vec_set(1.3820722e-3f), r, vec_set(8.368673e-3f));
    q = vec_fma(q, r, vec_set(4.1668266e-2f));
    q = vec_fma(q, r, vec_set(0.16666521f));
    q = vec_fma(q, r, vec_set(0.49999994f));
    return vec_fma(r * r, q, r);
}

/* exp over the whole range: subnormal results, 0 below -104, infinity above 88.8, NaN for NaN; about 1 ulp. */
SIMD Vec vec_exp(Vec x) {
    x = vec_min(vec_set(90.0f), vec_max(vec_set(-110.0f), x));
    Vec shifted, e = vec_exp_remainder(x, &shifted);
    return vec_ldexp(vec_set(1.0f) + e, shifted);
}

SIMD Vec vec_sigmoid(Vec x) { return vec_set(1.0f) / (vec_set(1.0f) + vec_exp(vec_set(0.0f) - x)); }

/* 1 - sigmoid(x) with all its digits, which the subtraction would lose for large x. */
SIMD Vec vec_one_minus_sigmoid(Vec x) { return vec_sigmoid(vec_set(0.0f) - x); }

/* tanh |x| = -m / (2 + m) with m = exp(-2|x|) - 1, which keeps the relative precision near 0. */
SIMD Vec vec_tanh(Vec x) {
    Vec shifted, e = vec_exp_remainder(vec_max(vec_set(-80.0f), vec_set(-2.0f) * vec_abs(x)), &shifted);
    Vec scale = vec_pow2(shifted), m = vec_fma(e, scale, scale - vec_set(1.0f));
    return vec_copy_sign(m / (vec_set(2.0f) + m), x);
}

/* Sums over a row of n floats; four chains hide the latency of the additions. */
SIMD float row_sum(const float *x, size_t n) {
    Vec s[4] = {vec_set(0), vec_set(0), vec_set(0), vec_set(0)};
    size_t i = 0;
    for (; i + 4 * RK_LANES <= n; i += 4 * RK_LANES)
        for (int u = 0; u < 4; u++) s[u] = s[u] + vec_load(x + i + u * RK_LANES);
    for (; i < n; i += RK_LANES) s[0] = s[0] + vec_load_part(x + i, n - i);
    return vec_sum((s[0] + s[1]) + (s[2] + s[3]));
}

/* sum (x - m)^2 */
SIMD float row_spread(const float *x, float mean, size_t n) {
    Vec s[4] = {vec_set(0), vec_set(0), vec_set(0), vec_set(0)}, m = vec_set(mean);
    size_t i = 0;
    for (; i + 4 * RK_LANES <= n; i += 4 * RK_LANES)
        for (int u = 0; u < 4; u++) {
            Vec d = vec_load(x + i + u * RK_LANES) - m;
            s[u] = vec_fma(d, d, s[u]);
        }
    for (; i < n; i += RK_LANES) {
        Vec d = vec_keep_part(vec_load_part(x + i, n - i) - m, n - i);
        s[0] = vec_fma(d, d, s[0]);
    }
    return vec_sum((s[0] + s[1]) + (s[2] + s[3]));
}

#endif
