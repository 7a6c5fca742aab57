/* shift.h - (B,T,C) rows beside the ones before them in time. The first token's is `prev`, which is a state: (B,C) float32. */
#ifndef RK_CUDA_SHIFT_H
#define RK_CUDA_SHIFT_H

#include "cuda/columns.h"

template <typename T> struct RkShifted {
    const T *x;
    const float *prev; /* may be NULL: zeros */
    int T_, C;
    size_t R;
    bool aligned;
};

/* n columns from c on of row r, and of the row before it. */
template <typename T> __device__ inline void rk_load_before(const RkShifted<T> &a, size_t r, int c, int n, bool whole, float *v) {
    if (r % a.T_) return rk_load(a.x + (r - 1) * a.C + c, n, whole, v);
    for (int i = 0; i < RK_VEC<T>; i++) v[i] = a.prev && i < n ? a.prev[r / a.T_ * a.C + c + i] : 0;
}

/* last = the last token of every sequence. A launch of its own, after all that read prev, which may be the same memory. */
template <typename T> __global__ void rk_shift_last(const T *x, float *last, int T_, int C, size_t n) {
    size_t e = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e < n) last[e] = rk_float(x[((e / C + 1) * T_ - 1) * C + e % C]);
}
template <typename T> int rk_keep_last(const RkShifted<T> &a, RkTensor last) {
    if (!last.p) return RK_OK;
    size_t n = a.R / a.T_ * a.C;
    return rk_launch(rk_shift_last<T>, rk_blocks(n, 256), 256, 0, rk_stream(), a.x, rk_ptr<float>(last), a.T_, a.C, n);
}

#endif
