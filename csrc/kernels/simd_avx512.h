/* simd_avx512.h - the vector vocabulary for AVX-512 (F, VL, BW, DQ): 16 lanes, 32 registers, masked memory access. */
#ifndef RK_KERNELS_SIMD_AVX512_H
#define RK_KERNELS_SIMD_AVX512_H

#include <immintrin.h>

#define RK_LANES 16
#define RK_GEMM_ROWS 14
#define RK_GEMM_VECTORS 2
#define RK_WKV_FWD_TILE 4
#define RK_WKV_BWD_TILE 4
#define RK_WKV_ROW_TILE 4
#define RK_DOT_ROWS 4

typedef __m512 Vec;
typedef struct VecSum64 { __m512d lo, hi; } VecSum64;

SIMD __mmask16 mask_of(size_t n) { return (__mmask16)((1u << n) - 1); }

SIMD Vec vec_load(const float *p) { return _mm512_loadu_ps(p); }
SIMD void vec_store(float *p, Vec v) { _mm512_storeu_ps(p, v); }
SIMD Vec vec_load_part(const float *p, size_t n) { return n >= 16 ? vec_load(p) : _mm512_maskz_loadu_ps(mask_of(n), p); }
SIMD void vec_store_part(float *p, size_t n, Vec v) {
    if (n >= 16) vec_store(p, v);
    else _mm512_mask_storeu_ps(p, mask_of(n), v);
}
SIMD Vec vec_keep_part(Vec v, size_t n) { return n >= 16 ? v : _mm512_maskz_mov_ps(mask_of(n), v); }
SIMD Vec vec_set(float x) { return _mm512_set1_ps(x); }
SIMD Vec vec_fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
SIMD Vec vec_min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
SIMD Vec vec_max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
SIMD Vec vec_sqrt(Vec a) { return _mm512_sqrt_ps(a); }
SIMD Vec vec_abs(Vec a) { return _mm512_abs_ps(a); }
SIMD Vec vec_copy_sign(Vec size, Vec sign) {
    Vec bit = vec_set(-0.0f);
    return _mm512_or_ps(_mm512_andnot_ps(bit, size), _mm512_and_ps(bit, sign));
}
SIMD float vec_sum(Vec v) { return _mm512_reduce_add_ps(v); }
SIMD float vec_max_lane(Vec v) { return _mm512_reduce_max_ps(v); }

/* Within each 128 bits: {sum of a's four, of b's, of c's, of d's} of that part. A blend where one will do: it runs beside the
 * shuffles, which are the scarce ones. */
SIMD Vec vec_fold2(Vec a, Vec b) { return _mm512_shuffle_ps(a, b, 0x4e) + _mm512_mask_blend_ps(0xcccc, a, b); }
SIMD Vec vec_fold4(Vec a, Vec b, Vec c, Vec d) {
    Vec ab = vec_fold2(a, b), cd = vec_fold2(c, d);
    return _mm512_shuffle_ps(ab, cd, 0x88) + _mm512_shuffle_ps(ab, cd, 0xdd);
}
SIMD Vec vec_fold4_rows(const float *p) { return vec_fold4(vec_load(p), vec_load(p + 16), vec_load(p + 32), vec_load(p + 48)); }
/* {p0+p2, p1+p3, q0+q2, q1+q3} in parts of 128 bits. */
SIMD Vec vec_fold_parts(Vec p, Vec q) { return _mm512_shuffle_f32x4(p, q, 0x4e) + _mm512_mask_blend_ps(0xff00, p, q); }
SIMD Vec vec_sum_rows(const float *rows) {
    Vec low = vec_fold_parts(vec_fold4_rows(rows), vec_fold4_rows(rows + 64));
    Vec high = vec_fold_parts(vec_fold4_rows(rows + 128), vec_fold4_rows(rows + 192));
    return _mm512_shuffle_f32x4(low, high, 0x88) + _mm512_shuffle_f32x4(low, high, 0xdd);
}
SIMD void vec_unfold(const float *rows, Vec sums[4]) {
    Vec four[4]; /* the sums of rows k, k + 4, k + 8, k + 12 in parts of 128 bits */
    for (int k = 0; k < 4; k++) {
        Vec low = vec_fold_parts(vec_load(rows + k * 16), vec_load(rows + (k + 4) * 16));
        Vec high = vec_fold_parts(vec_load(rows + (k + 8) * 16), vec_load(rows + (k + 12) * 16));
        four[k] = _mm512_shuffle_f32x4(low, high, 0x88) + _mm512_shuffle_f32x4(low, high, 0xdd);
    }
    Vec ab = _mm512_unpacklo_ps(four[0], four[1]), AB = _mm512_unpacklo_ps(four[2], four[3]);
    Vec cd = _mm512_unpackhi_ps(four[0], four[1]), CD = _mm512_unpackhi_ps(four[2], four[3]);
    sums[0] = _mm512_shuffle_ps(ab, AB, 0x44), sums[1] = _mm512_shuffle_ps(ab, AB, 0xee);
    sums[2] = _mm512_shuffle_ps(cd, CD, 0x44), sums[3] = _mm512_shuffle_ps(cd, CD, 0xee);
}

SIMD void vec_transpose(const float *rows, size_t stride, Vec *columns) {
    Vec u[16];
    for (int r = 0; r < RK_LANES; r += 4) { /* within each 128 bits */
        Vec a = vec_load(rows + (size_t)r * stride), b = vec_load(rows + (size_t)(r + 1) * stride);
        Vec c = vec_load(rows + (size_t)(r + 2) * stride), d = vec_load(rows + (size_t)(r + 3) * stride);
        Vec ab = _mm512_unpacklo_ps(a, b), cd = _mm512_unpacklo_ps(c, d), AB = _mm512_unpackhi_ps(a, b), CD = _mm512_unpackhi_ps(c, d);
        u[r] = _mm512_shuffle_ps(ab, cd, 0x44), u[r + 1] = _mm512_shuffle_ps(ab, cd, 0xee);
        u[r + 2] = _mm512_shuffle_ps(AB, CD, 0x44), u[r + 3] = _mm512_shuffle_ps(AB, CD, 0xee);
    }
    for (int k = 0; k < 4; k++) {
        Vec even = _mm512_shuffle_f32x4(u[k], u[4 + k], 0x88), odd = _mm512_shuffle_f32x4(u[k], u[4 + k], 0xdd);
        Vec even2 = _mm512_shuffle_f32x4(u[8 + k], u[12 + k], 0x88), odd2 = _mm512_shuffle_f32x4(u[8 + k], u[12 + k], 0xdd);
        columns[k] = _mm512_shuffle_f32x4(even, even2, 0x88), columns[4 + k] = _mm512_shuffle_f32x4(odd, odd2, 0x88);
        columns[8 + k] = _mm512_shuffle_f32x4(even, even2, 0xdd), columns[12 + k] = _mm512_shuffle_f32x4(odd, odd2, 0xdd);
    }
}

SIMD Vec vec_pow2(Vec shifted) {
    __m512i n = _mm512_add_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(n, 23));
}
SIMD Vec vec_ldexp(Vec a, Vec shifted) { return _mm512_scalef_ps(a, shifted - vec_set(RK_ROUND)); }

SIMD Vec vec_from_bf16(__m256i h) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }
SIMD Vec vec_load_bf16(const uint16_t *p) { return vec_from_bf16(_mm256_loadu_si256((const __m256i *)p)); }
SIMD Vec vec_load_bf16_part(const uint16_t *p, size_t n) {
    return n >= 16 ? vec_load_bf16(p) : vec_from_bf16(_mm256_maskz_loadu_epi16(mask_of(n), p));
}
SIMD Vec vec_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
SIMD Vec vec_load_f16_part(const uint16_t *p, size_t n) {
    return n >= 16 ? vec_load_f16(p) : _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask_of(n), p));
}

SIMD Vec vec_load_i8(const int8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p))); }
SIMD Vec vec_load_u4(const uint8_t *p, int high) {
    __m512i b = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm512_cvtepi32_ps(high ? _mm512_srli_epi32(b, 4) : _mm512_and_si512(b, _mm512_set1_epi32(15)));
}

typedef __m512i Bytes;
SIMD Bytes bytes_load(const void *p) { return _mm512_loadu_si512(p); }
SIMD Bytes bytes_load_part(const void *p, size_t n) {
    return n >= 64 ? bytes_load(p) : _mm512_maskz_loadu_epi8(((uint64_t)1 << n) - 1, p);
}
SIMD Bytes bytes_low(Bytes b) { return _mm512_and_si512(b, _mm512_set1_epi8(15)); }
SIMD Bytes bytes_high(Bytes b) { return bytes_low(_mm512_srli_epi16(b, 4)); }
#ifdef __AVX512VNNI__
enum { RK_Q8_OFFSET = 128 };
SIMD Vec vec_dot_q8(Bytes w, Bytes x) {
    Bytes shifted = _mm512_xor_si512(w, _mm512_set1_epi8((char)RK_Q8_OFFSET));
    return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), shifted, x));
}
SIMD Vec vec_dot_q4(Bytes low, Bytes xlow, Bytes high, Bytes xhigh) {
    return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), low, xlow), high, xhigh));
}
#else
enum { RK_Q8_OFFSET = 0 };
SIMD Vec vec_dot_q8(Bytes w, Bytes x) {
    Bytes signed_x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
    Bytes pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w), signed_x);
    return _mm512_cvtepi32_ps(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
SIMD Vec vec_dot_q4(Bytes low, Bytes xlow, Bytes high, Bytes xhigh) {
    Bytes pairs = _mm512_add_epi16(_mm512_maddubs_epi16(low, xlow), _mm512_maddubs_epi16(high, xhigh));
    return _mm512_cvtepi32_ps(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
#endif
SIMD Vec vec_spread4(const float *p, size_t at) {
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3), _mm512_castps128_ps512(_mm_loadu_ps(p + at / 4)));
}
SIMD Vec vec_spread8(const float *p, size_t at) {
    __m128 two = _mm_castpd_ps(_mm_load_sd((const double *)(const void *)(p + at / 8)));
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1), _mm512_castps128_ps512(two));
}

SIMD VecSum64 vec_sum64_zero(void) { return (VecSum64){_mm512_setzero_pd(), _mm512_setzero_pd()}; }
SIMD VecSum64 vec_sum64_square(VecSum64 s, Vec v) {
    __m512d lo = _mm512_cvtps_pd(_mm512_castps512_ps256(v)), hi = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
    return (VecSum64){_mm512_fmadd_pd(lo, lo, s.lo), _mm512_fmadd_pd(hi, hi, s.hi)};
}
SIMD double vec_sum64(VecSum64 s) { return _mm512_reduce_add_pd(s.lo + s.hi); }

#endif
