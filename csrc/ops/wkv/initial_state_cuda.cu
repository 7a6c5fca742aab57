#include "ops/backend_cuda.h"

#include "cuda/launch.h"

enum { THREADS = 128 };

/* Element e of the parameter (H, value, key) stands at this place of a state (H, key, value). */
__device__ static size_t place_of(size_t e, size_t N) { return e / (N * N) * N * N + e % N * N + e / N % N; }

template <typename T> __global__ void initial_state_copy(const T *p, float *s, int B, size_t n, int N) {
    size_t e = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    for (int b = 0; e < n && b < B; b++) s[b * n + place_of(e, N)] = rk_float(p[e]);
}

static __global__ void initial_state_sum(const float *ds, float *dp, int B, size_t n, int N) {
    size_t e = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (e >= n) return;
    float sum = 0;
    for (int b = 0; b < B; b++) sum += ds[b * n + place_of(e, N)];
    dp[e] += sum;
}

int rk_cuda_initial_state_fwd(const RkInitialState *o) {
    size_t n = rk_numel(o->p);
    RK_CUDA_BY_DTYPE(o->p.dtype, T, return rk_launch(initial_state_copy<T>, rk_blocks(n, THREADS), THREADS, 0, rk_stream(), rk_ptr<T>(o->p), rk_ptr<float>(o->s),
                                                     o->s.d[0], n, o->s.d[2]))
}

int rk_cuda_initial_state_bwd(const RkInitialState *o) {
    size_t n = rk_numel(o->dp);
    return rk_launch(initial_state_sum, rk_blocks(n, THREADS), THREADS, 0, rk_stream(), rk_ptr<float>(o->ds), rk_ptr<float>(o->dp), o->ds.d[0], n, o->ds.d[2]);
}
