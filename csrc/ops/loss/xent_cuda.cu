/* One block is one row, read twice: for the maximum and the sum of exponentials, which are kept together, and for the gradient. */
#include "ops/backend_cuda.h"

#include "cuda/launch.h"

enum { THREADS = 256 };

/* The largest value seen, its lowest index, and the sum of exp(z - top). NaN is never the largest and makes the sum NaN. */
struct Running { float top, sum; int at; };

__device__ static Running join(Running a, Running b) {
    bool b_wins = b.top > a.top || (b.top == a.top && b.at < a.at);
    Running most = b_wins ? b : a, less = b_wins ? a : b;
    /* of -inf the exponential of the difference would be NaN */
    float scale = less.top == most.top ? 1 : expf(less.top - most.top);
    return {most.top, most.sum + less.sum * scale, most.at};
}

__device__ static Running join_lanes(Running r) {
    for (int offset = 16; offset; offset >>= 1) {
        Running other = {__shfl_xor_sync(0xffffffffu, r.top, offset), __shfl_xor_sync(0xffffffffu, r.sum, offset), __shfl_xor_sync(0xffffffffu, r.at, offset)};
        r = join(r, other);
    }
    return r;
}

__device__ static Running join_block(Running r) {
    RK_SHARED(float, tops, [THREADS / 32]);
    RK_SHARED(float, sums, [THREADS / 32]);
    RK_SHARED(int, places, [THREADS / 32]);
    int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    r = join_lanes(r);
    if (lane == 0) tops[warp] = r.top, sums[warp] = r.sum, places[warp] = r.at;
    __syncthreads();
    r = {-INFINITY, 0, INT_MAX};
    if (lane < THREADS / 32) r = {tops[lane], sums[lane], places[lane]};
    return join_lanes(r);
}

template <typename T> struct Xent { T *logits; const int32_t *targets; double *loss; int V, grad; bool aligned; const double *factors; float scale, l2; };

template <typename T> __global__ void xent_rows(Xent<T> a) {
    constexpr int VEC = RK_VEC<T>;
    T *z = a.logits + static_cast<size_t>(blockIdx.x) * a.V;
    int target = a.targets[blockIdx.x];
    bool counts = target != RK_IGNORE;
    Running r = {-INFINITY, 0, INT_MAX};
    float v[VEC];
    for (int i = static_cast<int>(threadIdx.x) * VEC; i < a.V; i += THREADS * VEC) {
        int n = a.V - i < VEC ? a.V - i : VEC;
        rk_load(z + i, n, a.aligned && n == VEC, v);
        float top = r.top;
        int at = r.at;
        for (int k = 0; k < n; k++)
            if (v[k] > top) top = v[k], at = i + k;
        if (top > r.top) r.sum *= expf(r.top - top);
        for (int k = 0; k < n; k++) r.sum += expf(v[k] - top);
        r.top = top;
        r.at = at;
    }
    r = join_block(r);
    float aim = counts ? rk_float(z[target]) : 0;
    if (threadIdx.x == 0) a.loss[blockIdx.x] = counts ? log(static_cast<double>(r.sum)) + (static_cast<double>(r.top) - static_cast<double>(aim)) : 0;
    if (!a.grad) return;
    __syncthreads(); /* all have read their target before it is overwritten */
    float whole_scale = a.factors ? static_cast<float>(a.factors[0]) : a.scale, l2 = a.factors ? static_cast<float>(a.factors[1]) : a.l2;
    float scale = counts ? whole_scale / r.sum : 0;
    for (int i = static_cast<int>(threadIdx.x) * VEC; i < a.V; i += THREADS * VEC) {
        int n = a.V - i < VEC ? a.V - i : VEC;
        bool whole = a.aligned && n == VEC;
        rk_load(z + i, n, whole, v);
        for (int k = 0; k < VEC; k++) {
            v[k] = counts ? scale * expf(v[k] - r.top) : 0;
            if (i + k == target) v[k] -= whole_scale;
            if (i + k == r.at) v[k] += l2 * r.top;
        }
        rk_store(z + i, n, whole, v);
    }
}

int rk_cuda_xent_fwd(const RkXent *o) {
    int V = rk_cols(o->logits);
    unsigned R = rk_blocks(rk_rows(o->logits), 1);
    RK_CUDA_BY_DTYPE(o->logits.dtype, T,
                     Xent<T> a = {rk_ptr<T>(o->logits), o->targets, rk_ptr<double>(o->loss), V, o->grad, rk_aligned(o->logits.p) && V % RK_VEC<T> == 0, rk_ptr<double>(o->factors),
                                  static_cast<float>(o->scale), static_cast<float>(o->l2)};
                     return rk_launch(xent_rows<T>, R, THREADS, 0, rk_stream(), a))
}
