/* The small products are cuBLASLt's, one per lerp; between them kernels walk columns as in shift_lerp_cuda.cu. In the backward `mixed` holds
 * the coefficients of one lerp after another, then the gradient of each, then the input of the low-rank function, then its gradient. */
#include "ops/backend_cuda.h"

#include "cuda/blas.h"
#include "cuda/map.h"
#include "cuda/shift.h"

enum { THREADS = 128 };

struct Tanh {
    __device__ void operator()(const float *in, float *out) const { out[0] = tanhf(in[0]); }
};
struct TanhSlope {
    __device__ void operator()(const float *in, float *out) const { out[0] = in[0] * (1 - in[1] * in[1]); }
};

struct Sizes { int R, C, n, D, W; };

template <typename T> struct Walk {
    RkShifted<T> in;
    RkSlices slices;
};

struct Piece { int c, n; bool whole; size_t first, end; };

template <typename T> __device__ static Piece piece_of(const Walk<T> &a) {
    int c = static_cast<int>(blockIdx.x * THREADS + threadIdx.x) * RK_VEC<T>, n = a.in.C - c < RK_VEC<T> ? a.in.C - c : RK_VEC<T>;
    size_t first = static_cast<size_t>(blockIdx.y) * a.slices.rows, end = first + a.slices.rows;
    return {c, n, a.in.aligned && n == RK_VEC<T>, first, end < a.in.R ? end : a.in.R};
}

/* y = x + (before - x) (mu + y): y holds the data's part of the coefficients, or nothing yet where `from_y` is 0. */
template <typename T> __global__ void mix_rows(Walk<T> a, const T *mu, T *y, int from_y) {
    Piece p = piece_of(a);
    if (p.n <= 0) return;
    float m[RK_VEC<T>], x[RK_VEC<T>], before[RK_VEC<T>], v[RK_VEC<T>] = {};
    rk_load(mu + p.c, p.n, p.whole, m);
    for (size_t r = p.first; r < p.end; r++) {
        size_t at = r * a.in.C + p.c;
        rk_load_before(a.in, r, p.c, p.n, p.whole, before);
        rk_load(a.in.x + at, p.n, p.whole, x);
        if (from_y) rk_load(y + at, p.n, p.whole, v);
        for (int i = 0; i < RK_VEC<T>; i++) v[i] = x[i] + (before[i] - x[i]) * (m[i] + (from_y ? v[i] : 0));
        rk_store(y + at, p.n, p.whole, v);
    }
}

/* One lerp backwards: coefficients in `mixed` become c = dy delta; e and dx receive, or begin with, what goes to the token before and
 * what stays. */
template <typename T> struct LerpBackward { const T *mu, *dy; T *mixed, *e, *dx; int begin; };

template <typename T> __global__ void lerp_rows_bwd(Walk<T> a, LerpBackward<T> b, float *partial) {
    Piece p = piece_of(a);
    if (p.n <= 0) return;
    float mu[RK_VEC<T>], x[RK_VEC<T>], before[RK_VEC<T>], dy[RK_VEC<T>], l[RK_VEC<T>], e[RK_VEC<T>] = {}, dx[RK_VEC<T>] = {}, sum[RK_VEC<T>] = {};
    rk_load(b.mu + p.c, p.n, p.whole, mu);
    for (size_t r = p.first; r < p.end; r++) {
        size_t at = r * a.in.C + p.c;
        rk_load_before(a.in, r, p.c, p.n, p.whole, before);
        rk_load(a.in.x + at, p.n, p.whole, x);
        rk_load(b.dy + at, p.n, p.whole, dy);
        rk_load(b.mixed + at, p.n, p.whole, l);
        if (!b.begin) rk_load(b.e + at, p.n, p.whole, e), rk_load(b.dx + at, p.n, p.whole, dx);
        for (int i = 0; i < RK_VEC<T>; i++) {
            float share = dy[i] * (mu[i] + l[i]);
            e[i] = (b.begin ? 0 : e[i]) + share;
            dx[i] = (b.begin ? 0 : dx[i]) + dy[i] - share;
            l[i] = dy[i] * (before[i] - x[i]);
            sum[i] += l[i];
        }
        rk_store(b.e + at, p.n, p.whole, e);
        rk_store(b.dx + at, p.n, p.whole, dx);
        rk_store(b.mixed + at, p.n, p.whole, l);
    }
    for (int i = 0; i < p.n; i++) partial[static_cast<size_t>(blockIdx.y) * a.in.C + p.c + i] = sum[i];
}

/* The last step: f, in `mixed`, to dmu_x, to dx, and with e to the token before. */
template <typename T> struct InputBackward { const T *mu_x, *f, *e; T *dx; const float *dlast; float *dprev; };

template <typename T> __global__ void input_rows_bwd(Walk<T> a, InputBackward<T> b, float *partial) {
    Piece p = piece_of(a);
    if (p.n <= 0) return;
    float mu[RK_VEC<T>], x[RK_VEC<T>], before[RK_VEC<T>], f[RK_VEC<T>], e[RK_VEC<T>], next[RK_VEC<T>], f_next[RK_VEC<T>], dx[RK_VEC<T>], sum[RK_VEC<T>] = {};
    rk_load(b.mu_x + p.c, p.n, p.whole, mu);
    for (size_t r = p.first; r < p.end; r++) {
        size_t at = r * a.in.C + p.c, batch = r / a.in.T_ * a.in.C + p.c;
        bool last = (r + 1) % a.in.T_ == 0;
        rk_load_before(a.in, r, p.c, p.n, p.whole, before);
        rk_load(a.in.x + at, p.n, p.whole, x);
        rk_load(b.f + at, p.n, p.whole, f);
        rk_load(b.e + at, p.n, p.whole, e);
        rk_load(b.dx + at, p.n, p.whole, dx);
        if (!last) rk_load(b.f + at + a.in.C, p.n, p.whole, f_next), rk_load(b.e + at + a.in.C, p.n, p.whole, next);
        for (int i = 0; i < RK_VEC<T>; i++) {
            float from_next = last ? (b.dlast && i < p.n ? b.dlast[batch + i] : 0) : next[i] + f_next[i] * mu[i];
            sum[i] += f[i] * (before[i] - x[i]);
            dx[i] += f[i] - f[i] * mu[i] + from_next;
            if (b.dprev && r % a.in.T_ == 0 && i < p.n) b.dprev[batch + i] = e[i] + f[i] * mu[i];
        }
        rk_store(b.dx + at, p.n, p.whole, dx);
    }
    for (int i = 0; i < p.n; i++) partial[static_cast<size_t>(blockIdx.y) * a.in.C + p.c + i] = sum[i];
}

static Sizes sizes(const RkDdlerp *o) {
    int n = o->m2.d[0], D = o->m2.d[1];
    return {static_cast<int>(rk_rows(o->x)), o->x.d[2], n, D, n * D};
}

template <typename T> static Walk<T> walk_of(const RkDdlerp *o) {
    int C = o->x.d[2];
    size_t R = rk_rows(o->x);
    bool aligned = C % RK_VEC<T> == 0 && rk_all_aligned({o->x.p, o->mu_x.p, o->mixed.p, o->e.p, o->dx.p});
    for (int z = 0; z < o->m2.d[0]; z++) aligned = aligned && rk_all_aligned({o->mu[z].p, o->y[z].p, o->dy[z].p});
    return {{rk_ptr<T>(o->x), rk_ptr<float>(o->prev), o->x.d[1], C, R, aligned}, rk_slices(R)};
}

template <typename T> static dim3 grid_of(const Walk<T> &a) { return dim3(rk_blocks(a.in.C, THREADS * RK_VEC<T>), a.slices.count); }

template <typename T> static int mix(const Walk<T> &a, RkTensor mu, RkTensor y, int from_y) {
    return rk_launch(mix_rows<T>, grid_of(a), THREADS, 0, rk_stream(), a, rk_ptr<T>(mu), rk_ptr<T>(y), from_y);
}

/* The coefficients' data part of lerp z: h_z m2_z. */
template <typename T> static int coefficients(const RkDdlerp *o, Sizes s, int z, void *to) {
    RkCudaGemm g = {s.R, s.C, s.D, o->x.dtype, o->x.dtype, rk_ptr<T>(o->h) + z * s.D, rk_ptr<T>(o->m2) + static_cast<size_t>(z) * s.D * s.C, nullptr, to, s.W, s.C, s.C, 0, 0, 0};
    return rk_cuda_gemm(&g);
}

template <typename T> static int forward(const RkDdlerp *o) {
    Sizes s = sizes(o);
    Walk<T> a = walk_of<T>(o);
    RK_TRY(mix(a, o->mu_x, o->mixed, 0));
    RkCudaGemm h = {s.R, s.W, s.C, o->x.dtype, o->x.dtype, o->mixed.p, o->m1.p, nullptr, o->h.p, s.C, s.W, s.W, 0, 0, 0};
    RK_TRY(rk_cuda_gemm(&h));
    RK_TRY((rk_map<1, 1>(o->h.dtype, rk_numel(o->h), {o->h.p}, {o->h.p}, Tanh{})));
    for (int z = 0; z < s.n; z++) {
        RK_TRY(coefficients<T>(o, s, z, o->y[z].p));
        RK_TRY(mix(a, o->mu[z], o->y[z], 1));
    }
    return rk_keep_last(a.in, o->last);
}

template <typename T> static int lerp_backward(const RkDdlerp *o, Sizes s, const Walk<T> &a, int z) {
    int dtype = o->x.dtype;
    RK_TRY(coefficients<T>(o, s, z, o->mixed.p));
    LerpBackward<T> b = {rk_ptr<T>(o->mu[z]), rk_ptr<T>(o->dy[z]), rk_ptr<T>(o->mixed), rk_ptr<T>(o->e), rk_ptr<T>(o->dx), z == 0};
    RK_TRY(rk_sum_columns(a.slices, 1, s.C, {{rk_ptr<float>(o->dmu[z])}},
                          [&](float *partial) { return rk_launch(lerp_rows_bwd<T>, grid_of(a), THREADS, 0, rk_stream(), a, b, partial); }));
    size_t at = static_cast<size_t>(z) * s.D * s.C;
    RkCudaGemm dm2 = {s.D, s.C, s.R, dtype, RK_F32, rk_ptr<T>(o->h) + z * s.D, o->mixed.p, nullptr, rk_ptr<float>(o->dm2) + at, s.W, s.C, s.C, 1, 0, 1};
    RkCudaGemm dh = {s.R, s.D, s.C, dtype, dtype, o->mixed.p, rk_ptr<T>(o->m2) + at, nullptr, rk_ptr<T>(o->dh) + z * s.D, s.C, s.C, s.W, 0, 1, 0};
    RK_TRY(rk_cuda_gemm(&dm2));
    return rk_cuda_gemm(&dh);
}

template <typename T> static int backward(const RkDdlerp *o) {
    Sizes s = sizes(o);
    Walk<T> a = walk_of<T>(o);
    int dtype = o->x.dtype;
    for (int z = 0; z < s.n; z++) RK_TRY(lerp_backward(o, s, a, z));
    RK_TRY((rk_map<2, 1>(dtype, rk_numel(o->dh), {o->dh.p, o->h.p}, {o->dh.p}, TanhSlope{})));
    RK_TRY(mix(a, o->mu_x, o->mixed, 0));
    RkCudaGemm dm1 = {s.C, s.W, s.R, dtype, RK_F32, o->mixed.p, o->dh.p, nullptr, o->dm1.p, s.C, s.W, s.W, 1, 0, 1};
    RkCudaGemm f = {s.R, s.C, s.W, dtype, dtype, o->dh.p, o->m1.p, nullptr, o->mixed.p, s.W, s.W, s.C, 0, 1, 0};
    RK_TRY(rk_cuda_gemm(&dm1));
    RK_TRY(rk_cuda_gemm(&f));
    InputBackward<T> b = {rk_ptr<T>(o->mu_x), rk_ptr<T>(o->mixed), rk_ptr<T>(o->e), rk_ptr<T>(o->dx), rk_ptr<float>(o->dlast), rk_ptr<float>(o->dprev)};
    return rk_sum_columns(a.slices, 1, s.C, {{rk_ptr<float>(o->dmu_x)}},
                          [&](float *partial) { return rk_launch(input_rows_bwd<T>, grid_of(a), THREADS, 0, rk_stream(), a, b, partial); });
}

int rk_cuda_ddlerp_fwd(const RkDdlerp *o) { RK_CUDA_BY_DTYPE(o->x.dtype, T, return forward<T>(o)) }
int rk_cuda_ddlerp_bwd(const RkDdlerp *o) { RK_CUDA_BY_DTYPE(o->x.dtype, T, return backward<T>(o)) }
