/* simd_scalar.h - the vector vocabulary with one lane: plain C, for every machine. */
#ifndef RK_KERNELS_SIMD_SCALAR_H
#define RK_KERNELS_SIMD_SCALAR_H

#include <math.h>

#define RK_LANES 1
#define RK_GEMM_ROWS 4
#define RK_GEMM_VECTORS 4
#define RK_WKV_FWD_TILE 4 /* vectors of values kept in registers while the forward walks the keys */
#define RK_WKV_BWD_TILE 4 /* the same for the backward */
#define RK_WKV_ROW_TILE 4 /* vectors of one state row kept in registers */
#define RK_DOT_ROWS 2 /* rows of x whose dot products with four rows of w are summed at once */

typedef float Vec;
typedef struct VecSum64 { double sum; } VecSum64;

SIMD Vec vec_load(const float *p) { return *p; }
SIMD void vec_store(float *p, Vec v) { *p = v; }
SIMD Vec vec_load_part(const float *p, size_t n) { return n ? *p : 0; }
SIMD void vec_store_part(float *p, size_t n, Vec v) { if (n) *p = v; }
SIMD Vec vec_keep_part(Vec v, size_t n) { return n ? v : 0; }
SIMD Vec vec_set(float x) { return x; }
SIMD Vec vec_fma(Vec a, Vec b, Vec c) { return a * b + c; }
SIMD Vec vec_min(Vec a, Vec b) { return a < b ? a : b; }
SIMD Vec vec_max(Vec a, Vec b) { return a > b ? a : b; }
SIMD Vec vec_sqrt(Vec a) { return __builtin_sqrtf(a); }
SIMD Vec vec_abs(Vec a) { return __builtin_fabsf(a); }
SIMD Vec vec_copy_sign(Vec size, Vec sign) { return __builtin_copysignf(size, sign); }
SIMD float vec_sum(Vec v) { return v; }
SIMD float vec_max_lane(Vec v) { return v; }
SIMD Vec vec_sum_rows(const float *rows) { return *rows; }
SIMD void vec_unfold(const float *rows, Vec sums[4]) { memcpy(sums, rows, 4 * sizeof *sums); }
SIMD void vec_transpose(const float *rows, size_t stride, Vec *columns) {
    (void)stride;
    *columns = *rows;
}

SIMD Vec vec_pow2(Vec shifted) { return rk_float_of((rk_bits_of(shifted) + 127) << 23); }
SIMD Vec vec_ldexp(Vec a, Vec shifted) {
    uint32_t n = rk_bits_of(shifted) - RK_ROUND_BITS, half = n >> 1 | (n & 0x80000000u);
    return a * rk_float_of((half + 127) << 23) * rk_float_of((n - half + 127) << 23);
}

SIMD Vec vec_load_bf16(const uint16_t *p) { return rk_bf16_to_f32(*p); }
SIMD Vec vec_load_bf16_part(const uint16_t *p, size_t n) { return n ? rk_bf16_to_f32(*p) : 0; }
SIMD Vec vec_load_f16(const uint16_t *p) { return rk_f16_to_f32(*p); }
SIMD Vec vec_load_f16_part(const uint16_t *p, size_t n) { return n ? rk_f16_to_f32(*p) : 0; }
SIMD Vec vec_load_i8(const int8_t *p) { return *p; }
SIMD Vec vec_load_u4(const uint8_t *p, int high) { return high ? *p >> 4 : *p & 15; }

typedef struct Bytes { int8_t at[4]; } Bytes;
SIMD Bytes bytes_load(const void *p) {
    Bytes b;
    memcpy(&b, p, sizeof b);
    return b;
}
SIMD Bytes bytes_load_part(const void *p, size_t n) {
    Bytes b = {{0}};
    memcpy(&b, p, n < sizeof b ? n : sizeof b);
    return b;
}
SIMD Bytes bytes_low(Bytes b) { return (Bytes){{b.at[0] & 15, b.at[1] & 15, b.at[2] & 15, b.at[3] & 15}}; }
SIMD Bytes bytes_high(Bytes b) { return (Bytes){{b.at[0] >> 4 & 15, b.at[1] >> 4 & 15, b.at[2] >> 4 & 15, b.at[3] >> 4 & 15}}; }
SIMD int32_t dot_four(Bytes a, Bytes b) { return a.at[0] * b.at[0] + a.at[1] * b.at[1] + a.at[2] * b.at[2] + a.at[3] * b.at[3]; }
enum { RK_Q8_OFFSET = 0 };
SIMD Vec vec_dot_q8(Bytes w, Bytes x) {
    return (float)dot_four(w, x);
}
SIMD Vec vec_dot_q4(Bytes low, Bytes xlow, Bytes high, Bytes xhigh) {
    return (float)(dot_four(low, xlow) + dot_four(high, xhigh));
}
SIMD Vec vec_spread4(const float *p, size_t at) { return p[at / 4]; }
SIMD Vec vec_spread8(const float *p, size_t at) { return p[at / 8]; }

SIMD VecSum64 vec_sum64_zero(void) { return (VecSum64){0}; }
SIMD VecSum64 vec_sum64_square(VecSum64 s, Vec v) { return (VecSum64){s.sum + (double)v * (double)v}; }
SIMD double vec_sum64(VecSum64 s) { return s.sum; }

#endif
