/* cuda_fp16.h - float16 for the host, rounded by the project's own definition (base/half.h). */
#ifndef CUDA_HOST_FP16_H
#define CUDA_HOST_FP16_H

#include <cuda_bf16.h>

CUDA_HOST_HALF(__half, __half2, rk_f32_to_f16, rk_f16_to_f32)
typedef __half half;
typedef __half2 half2;

inline float __half2float(__half x) { return rk_f16_to_f32(x.bits); }
inline __half __float2half(float x) { return __half(x); }
inline __half __float2half_rn(float x) { return __half(x); }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short x) { __half y; y.bits = x; return y; }
inline __half2 __hsub2(__half2 a, __half2 b) { return {float(a.x) - float(b.x), float(a.y) - float(b.y)}; }

#endif
