/* One block is one row; the row is read again from the cache for the variance and for the result. The sums over rows of dw and db are a
 * second walk over x and dy. */
#include "ops/backend_cuda.h"

#include "cuda/columns.h"

enum { THREADS = 256 };

/* Calls f(first column, columns, whether whole) for the pieces of a row that this thread owns. */
template <typename T, typename F> __device__ void each_piece(int C, bool aligned, F f) {
    for (int c = static_cast<int>(threadIdx.x) * RK_VEC<T>; c < C; c += static_cast<int>(blockDim.x) * RK_VEC<T>) {
        int n = C - c < RK_VEC<T> ? C - c : RK_VEC<T>;
        f(c, n, aligned && n == RK_VEC<T>);
    }
}

template <typename T> __global__ void layernorm_rows(const T *x, const T *w, const T *b, T *y, float *stats, int C, bool aligned, float eps) {
    RK_SHARED(float, scratch, [32]);
    x += static_cast<size_t>(blockIdx.x) * C;
    y += static_cast<size_t>(blockIdx.x) * C;
    float sum = 0, var = 0, v[RK_VEC<T>], scale[RK_VEC<T>], shift[RK_VEC<T>];
    each_piece<T>(C, aligned, [&](int c, int n, bool whole) {
        rk_load(x + c, n, whole, v);
        for (int i = 0; i < RK_VEC<T>; i++) sum += v[i];
    });
    float mean = rk_block_sum(sum, scratch) / C;
    each_piece<T>(C, aligned, [&](int c, int n, bool whole) {
        rk_load(x + c, n, whole, v);
        for (int i = 0; i < RK_VEC<T>; i++) var += i < n ? (v[i] - mean) * (v[i] - mean) : 0;
    });
    float inverse = 1 / sqrtf(rk_block_sum(var, scratch) / C + eps);
    each_piece<T>(C, aligned, [&](int c, int n, bool whole) {
        rk_load(x + c, n, whole, v);
        rk_load(w + c, n, whole, scale);
        rk_load(b + c, n, whole, shift);
        for (int i = 0; i < RK_VEC<T>; i++) v[i] = (v[i] - mean) * inverse * scale[i] + shift[i];
        rk_store(y + c, n, whole, v);
    });
    if (stats && threadIdx.x == 0) {
        stats[2 * static_cast<size_t>(blockIdx.x)] = mean;
        stats[2 * static_cast<size_t>(blockIdx.x) + 1] = inverse;
    }
}

template <typename T> struct NormBackward { const T *x, *w, *dy, *dres; T *dx; const float *stats; size_t R; int C; bool aligned; };

template <typename T> __global__ void layernorm_dx(NormBackward<T> a) {
    RK_SHARED(float, scratch, [32]);
    size_t row = blockIdx.x, first = row * a.C;
    float mean = a.stats[2 * row], inverse = a.stats[2 * row + 1], sum = 0, sum_x = 0;
    float x[RK_VEC<T>], dy[RK_VEC<T>], w[RK_VEC<T>], dres[RK_VEC<T>] = {};
    each_piece<T>(a.C, a.aligned, [&](int c, int n, bool whole) {
        rk_load(a.x + first + c, n, whole, x);
        rk_load(a.dy + first + c, n, whole, dy);
        rk_load(a.w + c, n, whole, w);
        for (int i = 0; i < RK_VEC<T>; i++) sum += dy[i] * w[i], sum_x += dy[i] * w[i] * ((x[i] - mean) * inverse);
    });
    sum = rk_block_sum(sum, scratch) / a.C;
    sum_x = rk_block_sum(sum_x, scratch) / a.C;
    each_piece<T>(a.C, a.aligned, [&](int c, int n, bool whole) {
        rk_load(a.x + first + c, n, whole, x);
        rk_load(a.dy + first + c, n, whole, dy);
        rk_load(a.w + c, n, whole, w);
        if (a.dres) rk_load(a.dres + first + c, n, whole, dres);
        for (int i = 0; i < RK_VEC<T>; i++) x[i] = inverse * (dy[i] * w[i] - sum - (x[i] - mean) * inverse * sum_x) + dres[i];
        rk_store(a.dx + first + c, n, whole, x);
    });
}

template <typename T> __global__ void layernorm_sums(NormBackward<T> a, RkSlices s, float *partial) {
    int c = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * RK_VEC<T>, n = a.C - c < RK_VEC<T> ? a.C - c : RK_VEC<T>;
    if (n <= 0) return;
    bool whole = a.aligned && n == RK_VEC<T>;
    size_t first = static_cast<size_t>(blockIdx.y) * s.rows, end = first + s.rows < a.R ? first + s.rows : a.R;
    float x[RK_VEC<T>], dy[RK_VEC<T>], dw[RK_VEC<T>] = {}, db[RK_VEC<T>] = {};
    for (size_t r = first; r < end; r++) {
        rk_load(a.x + r * a.C + c, n, whole, x);
        rk_load(a.dy + r * a.C + c, n, whole, dy);
        float mean = a.stats[2 * r], inverse = a.stats[2 * r + 1];
        for (int i = 0; i < RK_VEC<T>; i++) dw[i] += dy[i] * ((x[i] - mean) * inverse), db[i] += dy[i];
    }
    for (int i = 0; i < n; i++) {
        partial[(static_cast<size_t>(blockIdx.y) * 2) * a.C + c + i] = dw[i];
        partial[(static_cast<size_t>(blockIdx.y) * 2 + 1) * a.C + c + i] = db[i];
    }
}

int rk_cuda_layernorm_fwd(const RkLayerNorm *o) {
    int C = rk_cols(o->x);
    bool aligned = rk_aligned(o->x.p) && rk_aligned(o->w.p) && rk_aligned(o->b.p) && rk_aligned(o->y.p);
    RK_CUDA_BY_DTYPE(o->x.dtype, T, return rk_launch(layernorm_rows<T>, rk_blocks(rk_rows(o->x), 1), THREADS, 0, rk_stream(), rk_ptr<T>(o->x), rk_ptr<T>(o->w),
                                                     rk_ptr<T>(o->b), rk_ptr<T>(o->y), rk_ptr<float>(o->stats), C, aligned && C % RK_VEC<T> == 0, o->eps))
}

template <typename T> static int backward(const RkLayerNorm *o) {
    int C = rk_cols(o->x);
    bool aligned = C % RK_VEC<T> == 0 && rk_aligned(o->x.p) && rk_aligned(o->w.p) && rk_aligned(o->dy.p) && rk_aligned(o->dres.p) && rk_aligned(o->dx.p);
    NormBackward<T> a = {rk_ptr<T>(o->x), rk_ptr<T>(o->w), rk_ptr<T>(o->dy), rk_ptr<T>(o->dres), rk_ptr<T>(o->dx), rk_ptr<float>(o->stats),
                         rk_rows(o->x), C, aligned};
    RkSlices s = rk_slices(a.R);
    RK_TRY(rk_sum_columns(s, 2, C, {{rk_ptr<float>(o->dw), rk_ptr<float>(o->db)}}, [&](float *partial) { /* before dx, which may be dy */
        return rk_launch(layernorm_sums<T>, dim3(rk_blocks(C, 128 * RK_VEC<T>), s.count), 128, 0, rk_stream(), a, s, partial);
    }));
    return rk_launch(layernorm_dx<T>, rk_blocks(a.R, 1), THREADS, 0, rk_stream(), a);
}

int rk_cuda_layernorm_bwd(const RkLayerNorm *o) { RK_CUDA_BY_DTYPE(o->x.dtype, T, return backward<T>(o)) }
