/* simd_avx2.h - the vector vocabulary for AVX2 with FMA: 8 lanes, 16 registers. */
#ifndef RK_KERNELS_SIMD_AVX2_H
#define RK_KERNELS_SIMD_AVX2_H

#include <immintrin.h>

#define RK_LANES 8
#define RK_GEMM_ROWS 6
#define RK_GEMM_VECTORS 2
#define RK_WKV_FWD_TILE 2
#define RK_WKV_BWD_TILE 4
#define RK_WKV_ROW_TILE 8
#define RK_DOT_ROWS 2

typedef __m256 Vec;
typedef struct VecSum64 { __m256d lo, hi; } VecSum64;

SIMD __m256i mask_of(size_t n) {
    static const int32_t ones_then_zeros[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i *)(ones_then_zeros + 8 - n));
}

SIMD Vec vec_load(const float *p) { return _mm256_loadu_ps(p); }
SIMD void vec_store(float *p, Vec v) { _mm256_storeu_ps(p, v); }
SIMD Vec vec_load_part(const float *p, size_t n) { return n >= 8 ? vec_load(p) : _mm256_maskload_ps(p, mask_of(n)); }
SIMD void vec_store_part(float *p, size_t n, Vec v) {
    if (n >= 8) vec_store(p, v);
    else _mm256_maskstore_ps(p, mask_of(n), v);
}
SIMD Vec vec_keep_part(Vec v, size_t n) { return n >= 8 ? v : _mm256_and_ps(v, _mm256_castsi256_ps(mask_of(n))); }
SIMD Vec vec_set(float x) { return _mm256_set1_ps(x); }
SIMD Vec vec_fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
SIMD Vec vec_min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
SIMD Vec vec_max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
SIMD Vec vec_sqrt(Vec a) { return _mm256_sqrt_ps(a); }
SIMD Vec vec_abs(Vec a) { return _mm256_andnot_ps(vec_set(-0.0f), a); }
SIMD Vec vec_copy_sign(Vec size, Vec sign) {
    Vec bit = vec_set(-0.0f);
    return _mm256_or_ps(_mm256_andnot_ps(bit, size), _mm256_and_ps(bit, sign));
}

SIMD float vec_sum(Vec v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
SIMD float vec_max_lane(Vec v) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

/* Within each 128 bits: {sum of a's four, of b's, of c's, of d's} of that part. A blend where one will do: it runs beside the
 * shuffles, which are the scarce ones. */
SIMD Vec vec_fold2(Vec a, Vec b) { return _mm256_shuffle_ps(a, b, 0x4e) + _mm256_blend_ps(a, b, 0xcc); }
SIMD Vec vec_fold4(Vec a, Vec b, Vec c, Vec d) {
    Vec ab = vec_fold2(a, b), cd = vec_fold2(c, d);
    return _mm256_shuffle_ps(ab, cd, 0x88) + _mm256_shuffle_ps(ab, cd, 0xdd);
}
SIMD Vec vec_fold4_rows(const float *p) { return vec_fold4(vec_load(p), vec_load(p + 8), vec_load(p + 16), vec_load(p + 24)); }
/* {p0+p1, q0+q1} in parts of 128 bits. */
SIMD Vec vec_fold_parts(Vec p, Vec q) { return _mm256_permute2f128_ps(p, q, 0x21) + _mm256_blend_ps(p, q, 0xf0); }
SIMD Vec vec_sum_rows(const float *rows) { return vec_fold_parts(vec_fold4_rows(rows), vec_fold4_rows(rows + 32)); }
SIMD void vec_unfold(const float *rows, Vec sums[4]) {
    Vec two[4]; /* the sums of rows k and k + 4 in parts of 128 bits */
    for (int k = 0; k < 4; k++) two[k] = vec_fold_parts(vec_load(rows + k * 8), vec_load(rows + (k + 4) * 8));
    Vec ab = _mm256_unpacklo_ps(two[0], two[1]), AB = _mm256_unpacklo_ps(two[2], two[3]);
    Vec cd = _mm256_unpackhi_ps(two[0], two[1]), CD = _mm256_unpackhi_ps(two[2], two[3]);
    sums[0] = _mm256_shuffle_ps(ab, AB, 0x44), sums[1] = _mm256_shuffle_ps(ab, AB, 0xee);
    sums[2] = _mm256_shuffle_ps(cd, CD, 0x44), sums[3] = _mm256_shuffle_ps(cd, CD, 0xee);
}

SIMD void vec_transpose(const float *rows, size_t stride, Vec *columns) {
    Vec u[8];
    for (int r = 0; r < RK_LANES; r += 4) { /* within each 128 bits */
        Vec a = vec_load(rows + (size_t)r * stride), b = vec_load(rows + (size_t)(r + 1) * stride);
        Vec c = vec_load(rows + (size_t)(r + 2) * stride), d = vec_load(rows + (size_t)(r + 3) * stride);
        Vec ab = _mm256_unpacklo_ps(a, b), cd = _mm256_unpacklo_ps(c, d), AB = _mm256_unpackhi_ps(a, b), CD = _mm256_unpackhi_ps(c, d);
        u[r] = _mm256_shuffle_ps(ab, cd, 0x44), u[r + 1] = _mm256_shuffle_ps(ab, cd, 0xee);
        u[r + 2] = _mm256_shuffle_ps(AB, CD, 0x44), u[r + 3] = _mm256_shuffle_ps(AB, CD, 0xee);
    }
    for (int k = 0; k < 4; k++) {
        columns[k] = _mm256_permute2f128_ps(u[k], u[4 + k], 0x20);
        columns[4 + k] = _mm256_permute2f128_ps(u[k], u[4 + k], 0x31);
    }
}

SIMD Vec vec_pow2(Vec shifted) {
    __m256i n = _mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(n, 23));
}
SIMD Vec vec_ldexp(Vec a, Vec shifted) {
    __m256i n = _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(RK_ROUND_BITS)), half = _mm256_srai_epi32(n, 1);
    return a * vec_pow2(_mm256_castsi256_ps(half)) * vec_pow2(_mm256_castsi256_ps(_mm256_sub_epi32(n, half)));
}

SIMD __m128i half_part(const uint16_t *p, size_t n) {
    uint16_t part[8] = {0};
    memcpy(part, p, n * sizeof *part);
    return _mm_loadu_si128((const __m128i *)part);
}
SIMD Vec vec_from_bf16(__m128i h) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }
SIMD Vec vec_load_bf16(const uint16_t *p) { return vec_from_bf16(_mm_loadu_si128((const __m128i *)p)); }
SIMD Vec vec_load_bf16_part(const uint16_t *p, size_t n) { return n >= 8 ? vec_load_bf16(p) : vec_from_bf16(half_part(p, n)); }
SIMD Vec vec_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
SIMD Vec vec_load_f16_part(const uint16_t *p, size_t n) { return n >= 8 ? vec_load_f16(p) : _mm256_cvtph_ps(half_part(p, n)); }

SIMD Vec vec_load_i8(const int8_t *p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p))); }
SIMD Vec vec_load_u4(const uint8_t *p, int high) {
    __m256i b = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    return _mm256_cvtepi32_ps(high ? _mm256_srli_epi32(b, 4) : _mm256_and_si256(b, _mm256_set1_epi32(15)));
}

typedef __m256i Bytes;
SIMD Bytes bytes_load(const void *p) { return _mm256_loadu_si256(p); }
SIMD Bytes bytes_load_part(const void *p, size_t n) {
    if (n >= 32) return bytes_load(p);
    char part[32] = {0};
    memcpy(part, p, n);
    return bytes_load(part);
}
SIMD Bytes bytes_low(Bytes b) { return _mm256_and_si256(b, _mm256_set1_epi8(15)); }
SIMD Bytes bytes_high(Bytes b) { return bytes_low(_mm256_srli_epi16(b, 4)); }
enum { RK_Q8_OFFSET = 0 };
SIMD Vec vec_dot_q8(Bytes w, Bytes x) {
    Bytes pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
SIMD Vec vec_dot_q4(Bytes low, Bytes xlow, Bytes high, Bytes xhigh) {
    Bytes pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low, xlow), _mm256_maddubs_epi16(high, xhigh));
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
SIMD Vec vec_spread4(const float *p, size_t at) {
    return _mm256_set_m128(_mm_broadcast_ss(p + at / 4 + 1), _mm_broadcast_ss(p + at / 4));
}
SIMD Vec vec_spread8(const float *p, size_t at) { return _mm256_broadcast_ss(p + at / 8); }

SIMD VecSum64 vec_sum64_zero(void) { return (VecSum64){_mm256_setzero_pd(), _mm256_setzero_pd()}; }
SIMD VecSum64 vec_sum64_square(VecSum64 s, Vec v) {
    __m256d lo = _mm256_cvtps_pd(_mm256_castps256_ps128(v)), hi = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
    return (VecSum64){_mm256_fmadd_pd(lo, lo, s.lo), _mm256_fmadd_pd(hi, hi, s.hi)};
}
SIMD double vec_sum64(VecSum64 s) {
    __m256d v = s.lo + s.hi;
    __m128d h = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(h, _mm_unpackhi_pd(h, h)));
}

#endif
