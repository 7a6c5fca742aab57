/* cuda_runtime.h - the part of CUDA's runtime and language that csrc/ uses, for the host: see ../README.md.
 *
 * Blocks run one after another, the threads of a block as fibers that switch at barriers and at operations of a warp. */
#ifndef CUDA_HOST_RUNTIME_H
#define CUDA_HOST_RUNTIME_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <functional>
#include <tuple>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __restrict__
#define __grid_constant__
#define __constant__ static
#define __align__(n) alignas(n)

/* ---- vector types ---- */

#define CUDA_HOST_VECTOR(type, name, align)                                     \
    struct alignas(align) name##2 { type x, y; };                               \
    struct name##3 { type x, y, z; };                                           \
    struct alignas(2 * align > 16 ? 16 : 2 * align) name##4 { type x, y, z, w; }; \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }            \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
CUDA_HOST_VECTOR(float, float, 8)
CUDA_HOST_VECTOR(int, int, 8)
CUDA_HOST_VECTOR(unsigned, uint, 8)
CUDA_HOST_VECTOR(double, double, 16)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

/* ---- the running thread ---- */

namespace cuda_host {

struct Where { const char *file; int line; };

void barrier(Where at);
int barrier_or(int yes, Where at); /* whether any thread of the block said yes */
/* Waits for all lanes of `mask`, each with `size` bytes; all[i] is then lane i's. Valid until the lane's next exchange. */
const char *exchange(unsigned mask, const void *mine, size_t size, Where at);
constexpr size_t LANE_BYTES = 256;
const char *lane(const char *all, int i);
int lane_id();
void *shared_variable(const void *tag, size_t size);
void *dynamic_shared();
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

} // namespace cuda_host

/* Of the thread that runs; launches of several host threads wait for one another. */
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

/* A shared variable is made by its first thread, filled with NaN; `tag` is one per declaration and template instance. */
#define RK_SHARED(type, name, ...)              \
    static const char name##_tag = 0;           \
    typedef type name##_shared __VA_ARGS__;     \
    name##_shared &name = *static_cast<name##_shared *>(cuda_host::shared_variable(&name##_tag, sizeof(name##_shared)))
#define RK_DYNAMIC_SHARED(type, name) type *name = static_cast<type *>(cuda_host::dynamic_shared())

/* Where a default argument takes its place from the caller. */
#define CUDA_HOST_AT const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(CUDA_HOST_AT) { cuda_host::barrier({file, line}); }
inline int __syncthreads_or(int yes, CUDA_HOST_AT) { return cuda_host::barrier_or(yes, {file, line}); }
inline void __threadfence() {}
inline void __threadfence_block() {}

/* ---- warps ---- */

namespace cuda_host {
template <typename T> T from_lane(const char *all, int i) {
    T value;
    memcpy(&value, lane(all, i), sizeof value);
    return value;
}
/* The value of the lane that `pick` names, or one's own where that lies outside one's group of `width` lanes. */
template <typename T, typename Pick> T shuffle(unsigned mask, T mine, int width, Where at, Pick pick) {
    const char *all = exchange(mask, &mine, sizeof mine, at);
    int self = lane_id(), first = self / width * width, from = pick(self - first);
    if (from < 0 || from >= width) return mine;
    if (!(mask >> (first + from) & 1)) fail("%s:%d: a shuffle reads lane %d, which is not in its mask", at.file, at.line, first + from);
    return from_lane<T>(all, first + from);
}
template <typename T, typename Join> T reduce(unsigned mask, T mine, Where at, Join join) {
    const char *all = exchange(mask, &mine, sizeof mine, at);
    bool begun = false;
    T sum = mine;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) sum = begun ? join(sum, from_lane<T>(all, i)) : from_lane<T>(all, i), begun = true;
    return sum;
}
} // namespace cuda_host

inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_HOST_AT) { cuda_host::exchange(mask, "", 1, {file, line}); }
template <typename T> T __shfl_sync(unsigned mask, T v, int from, int width = 32, CUDA_HOST_AT) {
    return cuda_host::shuffle(mask, v, width, {file, line}, [=](int) { return from % width; });
}
template <typename T> T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, CUDA_HOST_AT) {
    return cuda_host::shuffle(mask, v, width, {file, line}, [=](int self) { return self ^ bits; });
}
template <typename T> T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, CUDA_HOST_AT) {
    return cuda_host::shuffle(mask, v, width, {file, line}, [=](int self) { return self - static_cast<int>(by); });
}
template <typename T> T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, CUDA_HOST_AT) {
    return cuda_host::shuffle(mask, v, width, {file, line}, [=](int self) { return self + static_cast<int>(by); });
}
inline unsigned __ballot_sync(unsigned mask, int yes, CUDA_HOST_AT) {
    unsigned mine = yes ? 1u << cuda_host::lane_id() : 0;
    return cuda_host::reduce(mask, mine, {file, line}, [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int yes, CUDA_HOST_AT) { return __ballot_sync(mask, yes, file, line) != 0; }
inline int __all_sync(unsigned mask, int yes, CUDA_HOST_AT) { return __ballot_sync(mask, yes, file, line) == mask; }
inline unsigned __reduce_add_sync(unsigned mask, unsigned v, CUDA_HOST_AT) {
    return cuda_host::reduce(mask, v, {file, line}, [](unsigned a, unsigned b) { return a + b; });
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned v, CUDA_HOST_AT) {
    return cuda_host::reduce(mask, v, {file, line}, [](unsigned a, unsigned b) { return a > b ? a : b; });
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned v, CUDA_HOST_AT) {
    return cuda_host::reduce(mask, v, {file, line}, [](unsigned a, unsigned b) { return a < b ? a : b; });
}

/* ---- arithmetic ---- */

template <typename T> T atomicAdd(T *p, T v) { T old = *p; *p = old + v; return old; }
template <typename T> T atomicMax(T *p, T v) { T old = *p; *p = old > v ? old : v; return old; }
template <typename T> T __ldg(const T *p) { return *p; }
template <typename T> T __ldcs(const T *p) { return *p; }
template <typename T> void __stcs(T *p, T v) { *p = v; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
/* Byte i of the result is byte (order >> 4 i) & 7 of low and high together. */
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned order) {
    unsigned long long both = static_cast<unsigned long long>(high) << 32 | low;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) out |= static_cast<unsigned>(both >> (order >> 4 * i & 7) * 8 & 255) << 8 * i;
    return out;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
template <typename To, typename From> To cuda_host_bits(From x) { To y; static_assert(sizeof x == sizeof y, ""); memcpy(&y, &x, sizeof y); return y; }
inline unsigned __float_as_uint(float x) { return cuda_host_bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return cuda_host_bits<float>(x); }
inline int __float_as_int(float x) { return cuda_host_bits<int>(x); }
inline float __int_as_float(int x) { return cuda_host_bits<float>(x); }
inline int __float2int_rn(float x) { return static_cast<int>(lrintf(x)); }
inline size_t __cvta_generic_to_shared(const void *p) { return reinterpret_cast<size_t>(p); }
#define CUDA_HOST_ORDER(type)                                      \
    inline type min(type a, type b) { return b < a ? b : a; }      \
    inline type max(type a, type b) { return a < b ? b : a; }
CUDA_HOST_ORDER(int)
CUDA_HOST_ORDER(unsigned)
CUDA_HOST_ORDER(long)
CUDA_HOST_ORDER(unsigned long)
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

/* ---- the runtime ---- */

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorMemoryAllocation, cudaErrorLaunchFailure, cudaErrorStreamCaptureInvalidated, cudaErrorInsufficientDriver };
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributePreferredSharedMemoryCarveout };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor,
                      cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed };
struct CUstream_st;
struct CUevent_st;
struct CUgraph_st;
typedef CUstream_st *cudaStream_t;
typedef CUevent_st *cudaEvent_t;
typedef CUgraph_st *cudaGraph_t, *cudaGraphExec_t;
constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2;

extern "C" {
const char *cudaGetErrorString(cudaError_t);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
cudaError_t cudaGetDeviceCount(int *);
cudaError_t cudaDriverGetVersion(int *);
cudaError_t cudaSetDevice(int);
cudaError_t cudaGetDevice(int *);
cudaError_t cudaDeviceGetAttribute(int *, cudaDeviceAttr, int device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaFree(void *);
cudaError_t cudaMallocHost(void **, size_t);
cudaError_t cudaFreeHost(void *);
cudaError_t cudaMemcpy(void *, const void *, size_t, cudaMemcpyKind);
cudaError_t cudaMemcpyAsync(void *, const void *, size_t, cudaMemcpyKind, cudaStream_t = nullptr);
cudaError_t cudaMemcpy2DAsync(void *, size_t, const void *, size_t, size_t, size_t, cudaMemcpyKind, cudaStream_t = nullptr);
cudaError_t cudaMemset(void *, int, size_t);
cudaError_t cudaMemsetAsync(void *, int, size_t, cudaStream_t = nullptr);
cudaError_t cudaMemGetInfo(size_t *, size_t *);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *, unsigned);
cudaError_t cudaStreamDestroy(cudaStream_t);
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode);
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *, cudaGraph_t, unsigned long long = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t);
cudaError_t cudaGraphDestroy(cudaGraph_t);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t);
cudaError_t cudaEventCreate(cudaEvent_t *);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *, unsigned);
cudaError_t cudaEventDestroy(cudaEvent_t);
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t = nullptr);
cudaError_t cudaEventSynchronize(cudaEvent_t);
cudaError_t cudaEventElapsedTime(float *, cudaEvent_t, cudaEvent_t);
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned = 0);
cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int);
}
cudaError_t cuda_host_malloc(void **, size_t);
template <typename T> cudaError_t cudaMalloc(T **p, size_t bytes) { return cuda_host_malloc(reinterpret_cast<void **>(p), bytes); }

struct cudaLaunchAttribute;
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute *attrs;
    unsigned numAttrs;
};

namespace cuda_host {
struct Shape { dim3 grid, block; size_t shared_bytes; const void *kernel; };
cudaError_t queue(cudaStream_t stream, const Shape &shape, std::function<void()> thread);
/* Work of a library: NULL, or what was wrong. */
cudaError_t queue_call(cudaStream_t stream, std::function<const char *()> work);
} // namespace cuda_host

template <typename... P, typename... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *how, void (*kernel)(P...), A &&...args) {
    std::tuple<P...> values(static_cast<P>(args)...);
    return cuda_host::queue(how->stream, {how->gridDim, how->blockDim, how->dynamicSmemBytes, reinterpret_cast<const void *>(kernel)},
                            [kernel, values] { std::apply(kernel, values); });
}

#endif
