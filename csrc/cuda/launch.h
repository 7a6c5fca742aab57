/* launch.h - what every kernel file starts from: launching, shared memory, loads of any element type.
 *
 * Kernels are `__global__` templates over the element type in csrc/ops/<family>/<op>_cuda.cu. The same files compile with nvcc
 * for a device and with g++ for the host, where tests/cuda_host/ runs a block's threads as fibers; so they use nothing but CUDA's
 * own names and the few of this header:
 *
 *   RK_SHARED(float, tile, [32][33]);       a shared variable; RK_SHARED(int, count, ); for a scalar
 *   RK_DYNAMIC_SHARED(float, rows);         float *rows: the launch's shared_bytes
 *   rk_launch(kernel, grid, block, shared_bytes, stream, arguments...)    RK_OK or RK_EDEVICE; never waits
 *   RK_CUDA_BY_DTYPE(dtype, T, statement)   the statement with T = float, __nv_bfloat16 or __half
 *
 * Element types. T is that of activations, of their gradients and of parameter values. Always float32: states and their
 * gradients (s0, sT, prev, last, k_past, k_all, ...), gradients of parameters (dw, db, dmu, du, dr_k, ...), stats, ckpt, lse and sums;
 * always float64: losses and norms. Kernels compute in float32. What wkv7 saves: see rk_wkv7_by_chunks; its z is T. */
#ifndef RK_CUDA_LAUNCH_H
#define RK_CUDA_LAUNCH_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <climits>
#include <initializer_list>

#include "base/err.h"
#include "base/tensor.h"
#include "cuda/device.h"

#ifndef RK_SHARED /* the host build brings its own, which fills the memory with NaN and guards it */
#define RK_SHARED(type, name, ...) __shared__ __align__(16) type name __VA_ARGS__
#define RK_DYNAMIC_SHARED(type, name)                               \
    extern __shared__ __align__(128) unsigned char rk_dynamic_shared[]; \
    type *name = reinterpret_cast<type *>(rk_dynamic_shared)
#endif

/* RK_OK, or RK_EDEVICE with CUDA's own explanation. */
int rk_cuda_check(cudaError_t status, const char *doing);

template <typename... P, typename... A>
int rk_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, A... args) {
    if (shared_bytes > 48 << 10) /* more has to be asked for, once per kernel; asking again costs a microsecond */
        if (int rc = rk_cuda_check(cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                        static_cast<int>(shared_bytes)), "asking for shared memory"))
            return rc;
    cudaLaunchConfig_t how = {};
    how.gridDim = grid;
    how.blockDim = block;
    how.dynamicSmemBytes = shared_bytes;
    how.stream = stream;
    return rk_cuda_check(cudaLaunchKernelEx(&how, kernel, static_cast<P>(args)...), "launching a kernel");
}

#define RK_CUDA_BY_DTYPE(dtype, T, ...)                                                            \
    switch (dtype) {                                                                               \
    case RK_F32: { using T = float; __VA_ARGS__; } break;                                          \
    case RK_BF16: { using T = __nv_bfloat16; __VA_ARGS__; } break;                                 \
    case RK_F16: { using T = __half; __VA_ARGS__; } break;                                         \
    default: return rk_fail(RK_EUNSUP, "the cuda backend has no elements of float64; use precision fp32, bf16 or fp16"); \
    }

/* ---- for launches ---- */

static inline cudaStream_t rk_stream() { return static_cast<cudaStream_t>(rk_cuda_stream()); }
static inline unsigned rk_blocks(size_t n, size_t per_block) { return static_cast<unsigned>((n + per_block - 1) / per_block); }
static inline bool rk_aligned(const void *p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
static inline bool rk_all_aligned(std::initializer_list<const void *> all) {
    for (const void *p : all)
        if (!rk_aligned(p)) return false;
    return true;
}
template <typename T> T *rk_ptr(RkTensor t) { return static_cast<T *>(t.p); }

/* Of ops whose weights have the type of the activations and no format of their own. */
static inline int rk_same_type(const char *op, RkTensor weight, RkTensor rows) {
    return weight.dtype == rows.dtype ? RK_OK : rk_fail(RK_EUNSUP, "%s: the cuda backend takes weights of the activations' type only", op);
}

/* ---- elements ---- */

__device__ inline float rk_float(float x) { return x; }
__device__ inline float rk_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float rk_float(__half x) { return __half2float(x); }

template <typename T> __device__ T rk_element(float x);
template <> __device__ inline float rk_element<float>(float x) { return x; }
template <> __device__ inline __nv_bfloat16 rk_element<__nv_bfloat16>(float x) { return __float2bfloat16(x); }
template <> __device__ inline __half rk_element<__half>(float x) { return __float2half(x); }

/* Sixteen bytes of elements: what one thread moves at a time. */
template <typename T> struct alignas(16) RkVec { T e[16 / sizeof(T)]; };
template <typename T> constexpr int RK_VEC = 16 / static_cast<int>(sizeof(T));

/* n <= RK_VEC elements of a row as floats, the rest zero. `aligned`: they are a full vector at a multiple of 16 bytes. */
template <typename T> __device__ inline void rk_load(const T *p, int n, bool aligned, float *x) {
    if (aligned) {
        RkVec<T> v = *reinterpret_cast<const RkVec<T> *>(p);
#pragma unroll
        for (int i = 0; i < RK_VEC<T>; i++) x[i] = rk_float(v.e[i]);
    } else {
#pragma unroll
        for (int i = 0; i < RK_VEC<T>; i++) x[i] = i < n ? rk_float(p[i]) : 0;
    }
}
template <typename T> __device__ inline void rk_store(T *p, int n, bool aligned, const float *x) {
    if (aligned) {
        RkVec<T> v;
#pragma unroll
        for (int i = 0; i < RK_VEC<T>; i++) v.e[i] = rk_element<T>(x[i]);
        *reinterpret_cast<RkVec<T> *>(p) = v;
    } else {
#pragma unroll
        for (int i = 0; i < RK_VEC<T>; i++)
            if (i < n) p[i] = rk_element<T>(x[i]);
    }
}

/* ---- sums over lanes and blocks, in an order that depends on nothing ---- */

__device__ inline float rk_warp_sum(float x) {
    for (int offset = 16; offset; offset >>= 1) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

/* The sum over a block of a multiple of 32 threads, for all of them; `scratch` is 32 shared floats, free again after the call. */
__device__ inline float rk_block_sum(float x, float *scratch) {
    int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32, warps = static_cast<int>(blockDim.x) / 32;
    x = rk_warp_sum(x);
    if (warps == 1) return x;
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = rk_warp_sum(lane < warps ? scratch[lane] : 0);
    __syncthreads();
    return x;
}

#endif
