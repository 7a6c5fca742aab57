/* map.h - functions of elements: out[0..OUT) = f(in[0..IN)) at every place of tensors of one shape and element type.
 * f is a struct with `__device__ void operator()(const float *in, float *out) const`; an output may be an input. */
#ifndef RK_CUDA_MAP_H
#define RK_CUDA_MAP_H

#include "cuda/launch.h"

template <typename T, int IN, int OUT, typename F> struct RkMap {
    const T *in[IN];
    T *out[OUT];
    F f;
};

template <typename T, int IN, int OUT, typename F> __global__ void rk_map_kernel(RkMap<T, IN, OUT, F> map, size_t n, bool aligned) {
    constexpr int VEC = RK_VEC<T>;
    size_t at = (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x) * VEC;
    if (at >= n) return;
    int part = n - at < VEC ? static_cast<int>(n - at) : VEC;
    bool whole = aligned && part == VEC;
    float x[IN][VEC], y[OUT][VEC];
#pragma unroll
    for (int k = 0; k < IN; k++) rk_load(map.in[k] + at, part, whole, x[k]);
#pragma unroll
    for (int i = 0; i < VEC; i++) {
        float in[IN], out[OUT];
#pragma unroll
        for (int k = 0; k < IN; k++) in[k] = x[k][i];
        map.f(in, out);
#pragma unroll
        for (int k = 0; k < OUT; k++) y[k][i] = out[k];
    }
#pragma unroll
    for (int k = 0; k < OUT; k++) rk_store(map.out[k] + at, part, whole, y[k]);
}

template <typename T, int IN, int OUT, typename F> int rk_map_of(size_t n, void *const *in, void *const *out, F f) {
    RkMap<T, IN, OUT, F> map = {{}, {}, f};
    bool aligned = true;
    for (int k = 0; k < IN; k++) map.in[k] = static_cast<const T *>(in[k]), aligned = aligned && rk_aligned(in[k]);
    for (int k = 0; k < OUT; k++) map.out[k] = static_cast<T *>(out[k]), aligned = aligned && rk_aligned(out[k]);
    constexpr int THREADS = 256;
    return rk_launch(rk_map_kernel<T, IN, OUT, F>, rk_blocks(n, THREADS * RK_VEC<T>), THREADS, 0, rk_stream(), map, n, aligned);
}

template <int IN, int OUT, typename F> int rk_map(int dtype, size_t n, void *const (&in)[IN], void *const (&out)[OUT], F f) {
    RK_CUDA_BY_DTYPE(dtype, T, return (rk_map_of<T, IN, OUT>(n, in, out, f)))
}

#endif
