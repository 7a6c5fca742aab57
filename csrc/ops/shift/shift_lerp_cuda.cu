/* A thread owns some columns and walks the rows of a slice, so x and each dy are read once: in the forward from the first row on, in
 * the backward from the last, with e of the row after it kept. Slices are of rows of all sequences, cut at any token. */
#include "ops/backend_cuda.h"

#include "cuda/shift.h"

enum { THREADS = 128 };

template <typename T> struct Lerps {
    RkShifted<T> in;
    RkSlices slices;
    int n, keep;
    const T *mu[RK_MAX_MIX], *dy[RK_MAX_MIX];
    T *y[RK_MAX_MIX], *dx;
    const float *dlast;
    float *dprev;
};

struct Piece { int c, n; bool whole; size_t first, end; };

template <typename T> __device__ static Piece piece_of(const Lerps<T> &a) {
    int c = static_cast<int>(blockIdx.x * THREADS + threadIdx.x) * RK_VEC<T>, n = a.in.C - c < RK_VEC<T> ? a.in.C - c : RK_VEC<T>;
    size_t first = static_cast<size_t>(blockIdx.y) * a.slices.rows, end = first + a.slices.rows;
    return {c, n, a.in.aligned && n == RK_VEC<T>, first, end < a.in.R ? end : a.in.R};
}

/* The share of the token before. */
template <typename T, int N> __device__ static void load_shares(const Lerps<T> &a, const Piece &p, float (*share)[RK_VEC<T>]) {
#pragma unroll
    for (int z = 0; z < N; z++) {
        rk_load(a.mu[z] + p.c, p.n, p.whole, share[z]);
        for (int i = 0; i < RK_VEC<T>; i++) share[z][i] = a.keep ? 1 - share[z][i] : share[z][i];
    }
}

template <typename T, int N> __global__ void shift_lerp_rows(Lerps<T> a) {
    constexpr int VEC = RK_VEC<T>;
    Piece p = piece_of(a);
    if (p.n <= 0) return;
    float share[N][VEC], x[VEC], before[VEC], y[VEC];
    load_shares<T, N>(a, p, share);
    for (size_t r = p.first; r < p.end; r++) {
        if (r == p.first || r % a.in.T_ == 0) rk_load_before(a.in, r, p.c, p.n, p.whole, before);
        rk_load(a.in.x + r * a.in.C + p.c, p.n, p.whole, x);
#pragma unroll
        for (int z = 0; z < N; z++) {
            for (int i = 0; i < VEC; i++) y[i] = x[i] + (before[i] - x[i]) * share[z][i];
            rk_store(a.y[z] + r * a.in.C + p.c, p.n, p.whole, y);
        }
        for (int i = 0; i < VEC; i++) before[i] = x[i];
    }
}

/* e of row r: what it gives to the token before. */
template <typename T, int N> __device__ static void load_e(const Lerps<T> &a, const Piece &p, size_t r, float (*share)[RK_VEC<T>], float *e) {
    float dy[RK_VEC<T>];
    for (int i = 0; i < RK_VEC<T>; i++) e[i] = 0;
#pragma unroll
    for (int z = 0; z < N; z++) {
        rk_load(a.dy[z] + r * a.in.C + p.c, p.n, p.whole, dy);
        for (int i = 0; i < RK_VEC<T>; i++) e[i] += dy[i] * share[z][i];
    }
}

template <typename T, int N> __global__ void shift_lerp_rows_bwd(Lerps<T> a, float *partial) {
    constexpr int VEC = RK_VEC<T>;
    Piece p = piece_of(a);
    if (p.n <= 0) return;
    float share[N][VEC], dmu[N][VEC] = {}, x[VEC], before[VEC], dy[VEC], e_next[VEC], e[VEC], sum[VEC];
    load_shares<T, N>(a, p, share);
    if (p.end < a.in.R && p.end % a.in.T_) load_e<T, N>(a, p, p.end, share, e_next);
    rk_load(a.in.x + (p.end - 1) * a.in.C + p.c, p.n, p.whole, x);
    for (size_t r = p.end; r-- > p.first;) {
        if ((r + 1) % a.in.T_ == 0)
            for (int i = 0; i < VEC; i++) e_next[i] = a.dlast && i < p.n ? a.dlast[r / a.in.T_ * a.in.C + p.c + i] : 0;
        rk_load_before(a.in, r, p.c, p.n, p.whole, before);
        for (int i = 0; i < VEC; i++) e[i] = sum[i] = 0;
#pragma unroll
        for (int z = 0; z < N; z++) {
            rk_load(a.dy[z] + r * a.in.C + p.c, p.n, p.whole, dy);
            for (int i = 0; i < VEC; i++) {
                sum[i] += dy[i];
                e[i] += dy[i] * share[z][i];
                dmu[z][i] += dy[i] * (before[i] - x[i]);
            }
        }
        for (int i = 0; i < VEC; i++) sum[i] += e_next[i] - e[i], e_next[i] = e[i], x[i] = before[i];
        rk_store(a.dx + r * a.in.C + p.c, p.n, p.whole, sum);
        if (a.dprev && r % a.in.T_ == 0)
            for (int i = 0; i < p.n; i++) a.dprev[r / a.in.T_ * a.in.C + p.c + i] = e[i];
        if (r % a.in.T_ == 0 && r > p.first) rk_load(a.in.x + (r - 1) * a.in.C + p.c, p.n, p.whole, x); /* of the sequence before */
    }
#pragma unroll
    for (int z = 0; z < N; z++)
        for (int i = 0; i < p.n; i++)
            partial[(static_cast<size_t>(blockIdx.y) * N + z) * a.in.C + p.c + i] = a.keep ? -dmu[z][i] : dmu[z][i];
}

template <typename T> static Lerps<T> arguments(const RkShiftLerp *o) {
    int C = o->x.d[2];
    size_t R = rk_rows(o->x);
    Lerps<T> a = {{rk_ptr<T>(o->x), rk_ptr<float>(o->prev), o->x.d[1], C, R, C % RK_VEC<T> == 0 && rk_all_aligned({o->x.p, o->dx.p})},
                  rk_slices(R), o->n, o->keep, {}, {}, {}, rk_ptr<T>(o->dx), rk_ptr<float>(o->dlast), rk_ptr<float>(o->dprev)};
    for (int z = 0; z < o->n; z++) {
        a.mu[z] = rk_ptr<T>(o->mu[z]);
        a.dy[z] = rk_ptr<T>(o->dy[z]);
        a.y[z] = rk_ptr<T>(o->y[z]);
        a.in.aligned = a.in.aligned && rk_all_aligned({a.mu[z], a.dy[z], a.y[z]});
    }
    return a;
}

template <typename T, int N> static int forward(const Lerps<T> &a) {
    return rk_launch(shift_lerp_rows<T, N>, dim3(rk_blocks(a.in.C, THREADS * RK_VEC<T>), a.slices.count), THREADS, 0, rk_stream(), a);
}
template <typename T, int N> static int backward(const Lerps<T> &a, float *partial) {
    return rk_launch(shift_lerp_rows_bwd<T, N>, dim3(rk_blocks(a.in.C, THREADS * RK_VEC<T>), a.slices.count), THREADS, 0, rk_stream(), a, partial);
}

/* The statement with N = n, so that a thread's sums stay in registers. */
#define BY_COUNT(n, N, ...)                              \
    switch (n) {                                         \
    case 1: { constexpr int N = 1; __VA_ARGS__; } break; \
    case 2: { constexpr int N = 2; __VA_ARGS__; } break; \
    case 3: { constexpr int N = 3; __VA_ARGS__; } break; \
    case 4: { constexpr int N = 4; __VA_ARGS__; } break; \
    case 5: { constexpr int N = 5; __VA_ARGS__; } break; \
    default: { constexpr int N = 6; __VA_ARGS__; } break; \
    }

template <typename T> static int run(const RkShiftLerp *o) {
    Lerps<T> a = arguments<T>(o);
    BY_COUNT(o->n, N, RK_TRY((forward<T, N>(a))))
    return rk_keep_last(a.in, o->last);
}

template <typename T> static int run_bwd(const RkShiftLerp *o) {
    Lerps<T> a = arguments<T>(o);
    RkColumnSums to = {};
    for (int z = 0; z < o->n; z++) to.to[z] = rk_ptr<float>(o->dmu[z]);
    return rk_sum_columns(a.slices, o->n, a.in.C, to, [&](float *partial) -> int {
        BY_COUNT(o->n, N, RK_TRY((backward<T, N>(a, partial))))
        return RK_OK;
    });
}

int rk_cuda_shift_lerp_fwd(const RkShiftLerp *o) { RK_CUDA_BY_DTYPE(o->x.dtype, T, return run<T>(o)) }
int rk_cuda_shift_lerp_bwd(const RkShiftLerp *o) { RK_CUDA_BY_DTYPE(o->x.dtype, T, return run_bwd<T>(o)) }
