/* simd_neon.h - the vector vocabulary for AArch64 NEON: 4 lanes, 32 registers. */
#ifndef RK_KERNELS_SIMD_NEON_H
#define RK_KERNELS_SIMD_NEON_H

#include <arm_neon.h>

#define RK_LANES 4
#define RK_GEMM_ROWS 8
#define RK_GEMM_VECTORS 3
#define RK_WKV_FWD_TILE 4
#define RK_WKV_BWD_TILE 8
#define RK_WKV_ROW_TILE 16
#define RK_DOT_ROWS 4

typedef float32x4_t Vec;
typedef struct VecSum64 { float64x2_t lo, hi; } VecSum64;

SIMD Vec vec_load(const float *p) { return vld1q_f32(p); }
SIMD void vec_store(float *p, Vec v) { vst1q_f32(p, v); }
SIMD Vec vec_load_part(const float *p, size_t n) {
    if (n >= 4) return vec_load(p);
    float part[4] = {0};
    for (size_t i = 0; i < n; i++) part[i] = p[i];
    return vec_load(part);
}
SIMD void vec_store_part(float *p, size_t n, Vec v) {
    if (n >= 4) { vec_store(p, v); return; }
    float part[4];
    vec_store(part, v);
    for (size_t i = 0; i < n; i++) p[i] = part[i];
}
SIMD Vec vec_keep_part(Vec v, size_t n) {
    if (n >= 4) return v;
    float part[4];
    vec_store(part, v);
    return vec_load_part(part, n);
}
SIMD Vec vec_set(float x) { return vdupq_n_f32(x); }
SIMD Vec vec_fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
SIMD Vec vec_min(Vec a, Vec b) { return vminq_f32(a, b); }
SIMD Vec vec_max(Vec a, Vec b) { return vmaxq_f32(a, b); }
SIMD Vec vec_sqrt(Vec a) { return vsqrtq_f32(a); }
SIMD Vec vec_abs(Vec a) { return vabsq_f32(a); }
SIMD Vec vec_copy_sign(Vec size, Vec sign) { return vbslq_f32(vdupq_n_u32(0x80000000u), sign, size); }
SIMD float vec_sum(Vec v) { return vaddvq_f32(v); }
SIMD float vec_max_lane(Vec v) { return vmaxvq_f32(v); }
SIMD Vec vec_fold4(Vec a, Vec b, Vec c, Vec d) { return vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)); }
SIMD Vec vec_sum_rows(const float *rows) { return vec_fold4(vec_load(rows), vec_load(rows + 4), vec_load(rows + 8), vec_load(rows + 12)); }

SIMD void vec_transpose(const float *rows, size_t stride, Vec *columns) {
    Vec a = vec_load(rows), b = vec_load(rows + stride), c = vec_load(rows + 2 * stride), d = vec_load(rows + 3 * stride);
    float64x2_t ab = vreinterpretq_f64_f32(vtrn1q_f32(a, b)), AB = vreinterpretq_f64_f32(vtrn2q_f32(a, b));
    float64x2_t cd = vreinterpretq_f64_f32(vtrn1q_f32(c, d)), CD = vreinterpretq_f64_f32(vtrn2q_f32(c, d));
    columns[0] = vreinterpretq_f32_f64(vtrn1q_f64(ab, cd)), columns[1] = vreinterpretq_f32_f64(vtrn1q_f64(AB, CD));
    columns[2] = vreinterpretq_f32_f64(vtrn2q_f64(ab, cd)), columns[3] = vreinterpretq_f32_f64(vtrn2q_f64(AB, CD));
}
SIMD void vec_unfold(const float *rows, Vec sums[4]) { vec_transpose(rows, 4, sums); }

SIMD Vec vec_pow2(Vec shifted) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vreinterpretq_s32_f32(shifted), vdupq_n_s32(127)), 23));
}
SIMD Vec vec_ldexp(Vec a, Vec shifted) {
    int32x4_t n = vsubq_s32(vreinterpretq_s32_f32(shifted), vdupq_n_s32(RK_ROUND_BITS)), half = vshrq_n_s32(n, 1);
    return a * vec_pow2(vreinterpretq_f32_s32(half)) * vec_pow2(vreinterpretq_f32_s32(vsubq_s32(n, half)));
}

SIMD uint16x4_t half_part(const uint16_t *p, size_t n) {
    uint16_t part[4] = {0};
    memcpy(part, p, n * sizeof *part);
    return vld1_u16(part);
}
SIMD Vec vec_from_bf16(uint16x4_t h) { return vreinterpretq_f32_u32(vshll_n_u16(h, 16)); }
SIMD Vec vec_load_bf16(const uint16_t *p) { return vec_from_bf16(vld1_u16(p)); }
SIMD Vec vec_load_bf16_part(const uint16_t *p, size_t n) { return n >= 4 ? vec_load_bf16(p) : vec_from_bf16(half_part(p, n)); }
SIMD Vec vec_from_f16(uint16x4_t h) { return vcvt_f32_f16(vreinterpret_f16_u16(h)); }
SIMD Vec vec_load_f16(const uint16_t *p) { return vec_from_f16(vld1_u16(p)); }
SIMD Vec vec_load_f16_part(const uint16_t *p, size_t n) { return n >= 4 ? vec_load_f16(p) : vec_from_f16(half_part(p, n)); }

SIMD Vec vec_load_i8(const int8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
}
SIMD Vec vec_load_u4(const uint8_t *p, int high) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    uint8x8_t b = vreinterpret_u8_u32(vdup_n_u32(four));
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(high ? vshr_n_u8(b, 4) : vand_u8(b, vdup_n_u8(15))))));
}

typedef int8x16_t Bytes;
SIMD Bytes bytes_load(const void *p) { return vld1q_s8(p); }
SIMD Bytes bytes_load_part(const void *p, size_t n) {
    if (n >= 16) return bytes_load(p);
    char part[16] = {0};
    memcpy(part, p, n);
    return bytes_load(part);
}
SIMD Bytes bytes_low(Bytes b) { return vandq_s8(b, vdupq_n_s8(15)); }
SIMD Bytes bytes_high(Bytes b) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(b), 4)); }
SIMD int32x4_t dot_fours(int32x4_t start, Bytes a, Bytes b) {
#ifdef __ARM_FEATURE_DOTPROD
    return vdotq_s32(start, a, b);
#else
    int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b))), high = vpaddlq_s16(vmull_high_s8(a, b));
    return vaddq_s32(start, vpaddq_s32(low, high));
#endif
}
enum { RK_Q8_OFFSET = 0 };
SIMD Vec vec_dot_q8(Bytes w, Bytes x) {
    return vcvtq_f32_s32(dot_fours(vdupq_n_s32(0), w, x));
}
SIMD Vec vec_dot_q4(Bytes low, Bytes xlow, Bytes high, Bytes xhigh) {
    return vcvtq_f32_s32(dot_fours(dot_fours(vdupq_n_s32(0), low, xlow), high, xhigh));
}
SIMD Vec vec_spread4(const float *p, size_t at) { return vdupq_n_f32(p[at / 4]); }
SIMD Vec vec_spread8(const float *p, size_t at) { return vdupq_n_f32(p[at / 8]); }

SIMD VecSum64 vec_sum64_zero(void) { return (VecSum64){vdupq_n_f64(0), vdupq_n_f64(0)}; }
SIMD VecSum64 vec_sum64_square(VecSum64 s, Vec v) {
    float64x2_t lo = vcvt_f64_f32(vget_low_f32(v)), hi = vcvt_high_f64_f32(v);
    return (VecSum64){vfmaq_f64(s.lo, lo, lo), vfmaq_f64(s.hi, hi, hi)};
}
SIMD double vec_sum64(VecSum64 s) { return vaddvq_f64(vaddq_f64(s.lo, s.hi)); }

#endif
