/* cuda_bf16.h - bfloat16 for the host, rounded by the project's own definition (base/half.h). */
#ifndef CUDA_HOST_BF16_H
#define CUDA_HOST_BF16_H

#include <cuda_runtime.h>

#include "base/half.h"

#define CUDA_HOST_HALF(Type, Pair, from, to)                            \
    struct Type {                                                       \
        uint16_t bits;                                                  \
        Type() = default;                                               \
        Type(float x) : bits(from(x)) {}                                \
        operator float() const { return to(bits); }                     \
    };                                                                  \
    struct alignas(4) Pair {                                            \
        Type x, y;                                                      \
        Pair() = default;                                               \
        Pair(Type x, Type y) : x(x), y(y) {}                            \
    };

CUDA_HOST_HALF(__nv_bfloat16, __nv_bfloat162, rk_f32_to_bf16, rk_bf16_to_f32)
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;

inline float __bfloat162float(__nv_bfloat16 x) { return rk_bf16_to_f32(x.bits); }
inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { __nv_bfloat16 y; y.bits = x; return y; }

inline __nv_bfloat162 __hsub2(__nv_bfloat162 a, __nv_bfloat162 b) { return {float(a.x) - float(b.x), float(a.y) - float(b.y)}; }

#endif
