/* attention_mma_cuda.cu - causal attention on tensor cores, for 16-bit activations and heads of 32, 64 or 128.
 *
 * A block of four warps owns ROWS rows (queries, or in the gradient of keys: keys), 16 per warp, and meets the other side in tiles
 * through shared memory, the next tile on its way while one is worked on. Scores, probabilities and their gradients are sums of
 * tensor-core products that become operands of the next product in the same registers, rounded to T; the softmax keeps a
 * running maximum in float32. As in attention_cuda.cu the backward makes the scores again, once along queries and once along
 * keys, so that every sum has one owner and one order: 7 products of (T,T,N) where atomic sums would save one of scores and one of dp.
 * Source: Dao, "FlashAttention-2" (2023). */
#include "ops/attn/attention_cuda.h"

#include "cuda/mma.h"

namespace {
constexpr int ROWS = 64, THREADS = 128, FORWARD_TILE = 64;
template <int N> constexpr int BACKWARD_TILE = N == 128 ? 16 : 32; /* as many as registers allow beside dk and dv */

template <int N, int COUNT> using AttentionRows = uint16_t[COUNT][N + 8];

template <int N> struct AttentionForward { AttentionRows<N, ROWS> q; AttentionRows<N, FORWARD_TILE> k[2], v[2]; };
template <int N> struct AttentionBackward {
    AttentionRows<N, ROWS> own[2];                 /* q and dy, or k and v */
    AttentionRows<N, BACKWARD_TILE<N>> other[2][2];   /* k and v, or q and dy */
    float lse[ROWS], D[ROWS], tile_lse[2][BACKWARD_TILE<N>], tile_D[2][BACKWARD_TILE<N>];
};

/* The lane's place in sums: rows g and g + 8 of the warp's 16, columns 2q and 2q + 1 of each tile of 8. */
struct AttentionLane {
    int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4, row = 16 * warp;
};
} // namespace

/* Asks for COUNT rows: row(i) is where row i is, NULL for zeros. */
template <int N, int COUNT, typename Row> __device__ static inline void attention_ask(AttentionRows<N, COUNT> &to, Row row) {
#pragma unroll
    for (int i = static_cast<int>(threadIdx.x); i < COUNT * N / 8; i += THREADS) {
        int x = i % (N / 8) * 8;
        const void *from = row(i / (N / 8), x);
        rk_copy_async(&to[i / (N / 8)][x], from ? from : &to, from ? 16 : 0);
    }
}

/* Asks for COUNT keys from j0 on, as far as `end`; those in the float32 cache are rounded and stored at once. */
template <typename T, int N, int COUNT>
__device__ static inline void attention_ask_keys(AttentionRows<N, COUNT> &to, const RkAttentionHead<T> &s, const RkTensor &past, const RkTensor &now, int j0, int end) {
    attention_ask<N, COUNT>(to, [&](int i, int x) { return j0 + i >= s.past && j0 + i < end ? s.now(now, j0 + i) + x : nullptr; });
    if (j0 >= s.past) return;
    rk_copy_commit();
    rk_copy_wait<0>(); /* the zeros first */
    for (int i = static_cast<int>(threadIdx.x); i < COUNT * N / 8; i += THREADS) {
        int j = j0 + i / (N / 8), x = i % (N / 8) * 8;
        if (j >= s.past) continue;
        const float *from = s.cache(past, j) + x;
#pragma unroll
        for (int c = 0; c < 8; c += 2) *reinterpret_cast<uint32_t *>(&to[i / (N / 8)][x + c]) = rk_pack<T>(from[c], from[c + 1]);
    }
}

template <typename T, int N, int COUNT>
__device__ static inline void attention_ask_queries(AttentionRows<N, COUNT> &to, const RkAttentionHead<T> &s, const RkTensor &q, int t0) {
    attention_ask<N, COUNT>(to, [&](int i, int x) { return t0 + i < s.tokens ? static_cast<const T *>(q.p) + s.query_at(t0 + i) + x : nullptr; });
}

/* scores = own other^T over the channels: the warp's 16 rows by COUNT. */
template <typename T, int N, int COUNT>
__device__ static inline void attention_scores(float (*scores)[4], const AttentionRows<N, ROWS> &own, int row, const AttentionRows<N, COUNT> &other) {
#pragma unroll
    for (int tile = 0; tile < COUNT / 8; tile++)
#pragma unroll
        for (int c = 0; c < 4; c++) scores[tile][c] = 0;
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        uint32_t a[4], b[4];
        rk_load_a(a, own, row, 16 * k);
#pragma unroll
        for (int n = 0; n < COUNT / 16; n++) {
            rk_load_b(b, other, 16 * n, 16 * k);
            rk_mma<T>(scores[2 * n], a, b);
            rk_mma<T>(scores[2 * n + 1], a, b + 2);
        }
    }
}

/* sums += weights other: the warp's 16 rows by all channels, over COUNT rows of `other`. */
template <typename T, int N, int COUNT>
__device__ static inline void attention_weigh(float (*sums)[4], const float (*weights)[4], const AttentionRows<N, COUNT> &other) {
#pragma unroll
    for (int k = 0; k < COUNT / 16; k++) {
        const float *low = weights[2 * k], *high = weights[2 * k + 1];
        uint32_t a[4] = {rk_pack<T>(low[0], low[1]), rk_pack<T>(low[2], low[3]), rk_pack<T>(high[0], high[1]), rk_pack<T>(high[2], high[3])}, b[4];
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            rk_load_b_transposed(b, other, 16 * k, 16 * n);
            rk_mma<T>(sums[2 * n], a, b);
            rk_mma<T>(sums[2 * n + 1], a, b + 2);
        }
    }
}

/* put(i, channel, value, next) for the lane's sums of row i of the warp's. */
template <int N, typename Put> __device__ static inline void attention_each(const float (*sums)[4], Put put) {
    const AttentionLane me;
#pragma unroll
    for (int tile = 0; tile < N / 8; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) put(me.g + 8 * half, 8 * tile + 2 * me.q, sums[tile][2 * half], sums[tile][2 * half + 1]);
}

/* Over the four lanes of a row. */
__device__ static inline float attention_row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ static inline float attention_row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/* Grid: tiles of queries, the last ones first, since they have the most keys; heads; sequences. */
template <typename T, int N> __global__ void __launch_bounds__(THREADS) attention_mma_fwd_kernel(RkAttention o) {
    RK_DYNAMIC_SHARED(AttentionForward<N>, sh);
    const AttentionLane me;
    const RkAttentionHead<T> s(o, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z));
    const int first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * ROWS, seen = min(s.past + first + ROWS, s.past + s.tokens);
    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, y[N / 8][4] = {};
    auto ask = [&](int j0, int stage) {
        attention_ask_keys<T, N, FORWARD_TILE>(sh->k[stage], s, o.k_past, o.k, j0, seen);
        attention_ask_keys<T, N, FORWARD_TILE>(sh->v[stage], s, o.v_past, o.v, j0, seen);
        rk_copy_commit();
    };
    attention_ask_queries<T, N, ROWS>(sh->q, s, o.q, first);
    ask(0, 0);
    for (int j0 = 0, stage = 0; j0 < seen; j0 += FORWARD_TILE, stage ^= 1) {
        rk_copy_wait<0>();
        __syncthreads(); /* this tile is here, the other one no longer read */
        if (j0 + FORWARD_TILE < seen) ask(j0 + FORWARD_TILE, stage ^ 1);
        float p[FORWARD_TILE / 8][4];
        attention_scores<T, N, FORWARD_TILE>(p, sh->q, me.row, sh->k[stage]);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int last = s.past + first + me.row + me.g + 8 * half; /* the last key this row sees */
            float best = -INFINITY;
#pragma unroll
            for (int i = 0; i < FORWARD_TILE / 4; i++) {
                float &x = p[i / 2][2 * half + i % 2];
                x = j0 + i / 2 * 8 + 2 * me.q + i % 2 <= last ? x * s.scale : -INFINITY;
                best = fmaxf(best, x);
            }
            float before = top[half];
            top[half] = fmaxf(before, attention_row_max(best));
            float shrink = __expf(before - top[half]), tile_sum = 0; /* 0 in the first tile, of which every row sees a key */
#pragma unroll
            for (int i = 0; i < FORWARD_TILE / 4; i++) {
                float &x = p[i / 2][2 * half + i % 2];
                tile_sum += x = __expf(x - top[half]);
            }
            sum[half] = sum[half] * shrink + attention_row_sum(tile_sum);
#pragma unroll
            for (int i = 0; i < N / 4; i++) y[i / 2][2 * half + i % 2] *= shrink;
        }
        attention_weigh<T, N, FORWARD_TILE>(y, p, sh->v[stage]);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int t = first + me.row + me.g + 8 * half;
        float inverse = 1 / sum[half];
        if (t < s.tokens && o.lse.p && me.q == 0) static_cast<float *>(o.lse.p)[s.lse_at(t)] = top[half] + logf(sum[half]);
#pragma unroll
        for (int tile = 0; tile < N / 8; tile++)
            if (t < s.tokens)
                *reinterpret_cast<uint32_t *>(static_cast<T *>(o.y.p) + s.query_at(t) + static_cast<size_t>(8 * tile + 2 * me.q)) =
                    rk_pack<T>(y[tile][2 * half] * inverse, y[tile][2 * half + 1] * inverse);
    }
}

/* dq, and D for the other kernel. Grid: tiles of queries, the last ones first; heads; sequences from b0. */
template <typename T, int N> __global__ void __launch_bounds__(THREADS) attention_mma_dq_kernel(RkAttention o, float *D, int b0) {
    RK_DYNAMIC_SHARED(AttentionBackward<N>, sh);
    const AttentionLane me;
    const RkAttentionHead<T> s(o, static_cast<int>(blockIdx.y), b0 + static_cast<int>(blockIdx.z));
    const int first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * ROWS, seen = min(s.past + first + ROWS, s.past + s.tokens);
    auto ask = [&](int j0, int stage) {
        attention_ask_keys<T, N, BACKWARD_TILE<N>>(sh->other[stage][0], s, o.k_past, o.k, j0, seen);
        attention_ask_keys<T, N, BACKWARD_TILE<N>>(sh->other[stage][1], s, o.v_past, o.v, j0, seen);
        rk_copy_commit();
    };
    attention_ask_queries<T, N, ROWS>(sh->own[0], s, o.q, first);
    attention_ask_queries<T, N, ROWS>(sh->own[1], s, o.dy, first);
    ask(0, 0);
    { /* two lanes per row, half of the channels each */
        int row = me.row + me.lane / 2, t = first + row;
        float sum = 0;
        for (int x = me.lane % 2 * 2; x < N && t < s.tokens; x += 4) {
            size_t at = s.query_at(t) + static_cast<size_t>(x);
            float2 dy = rk_unpack<T>(*reinterpret_cast<const uint32_t *>(static_cast<const T *>(o.dy.p) + at));
            float2 y = rk_unpack<T>(*reinterpret_cast<const uint32_t *>(static_cast<const T *>(o.y.p) + at));
            sum += dy.x * y.x + dy.y * y.y;
        }
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        if (me.lane % 2 == 0) {
            sh->D[row] = sum;
            sh->lse[row] = t < s.tokens ? static_cast<const float *>(o.lse.p)[s.lse_at(t)] : 0;
            if (t < s.tokens) D[s.lse_at(t) - static_cast<size_t>(b0) * static_cast<size_t>(s.H) * static_cast<size_t>(s.tokens)] = sum;
        }
        __syncwarp();
    }
    float dq[N / 8][4] = {};
    for (int j0 = 0, stage = 0; j0 < seen; j0 += BACKWARD_TILE<N>, stage ^= 1) {
        rk_copy_wait<0>();
        __syncthreads(); /* this tile is here, the other one no longer read */
        if (j0 + BACKWARD_TILE<N> < seen) ask(j0 + BACKWARD_TILE<N>, stage ^ 1);
        float p[BACKWARD_TILE<N> / 8][4], ds[BACKWARD_TILE<N> / 8][4];
        attention_scores<T, N, BACKWARD_TILE<N>>(p, sh->own[0], me.row, sh->other[stage][0]);
        attention_scores<T, N, BACKWARD_TILE<N>>(ds, sh->own[1], me.row, sh->other[stage][1]);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = me.row + me.g + 8 * half, last = s.past + first + row;
            float lse = sh->lse[row], d = sh->D[row];
#pragma unroll
            for (int i = 0; i < BACKWARD_TILE<N> / 4; i++) {
                float &x = ds[i / 2][2 * half + i % 2], score = p[i / 2][2 * half + i % 2] * s.scale - lse;
                x = j0 + i / 2 * 8 + 2 * me.q + i % 2 <= last ? __expf(score) * (x - d) * s.scale : 0;
            }
        }
        attention_weigh<T, N, BACKWARD_TILE<N>>(dq, ds, sh->other[stage][0]);
    }
    attention_each<N>(dq, [&](int i, int x, float value, float next) {
        int t = first + me.row + i;
        if (t < s.tokens) *reinterpret_cast<uint32_t *>(static_cast<T *>(o.dq.p) + s.query_at(t) + static_cast<size_t>(x)) = rk_pack<T>(value, next);
    });
}

/* dk and dv of ROWS keys, from all heads that share them. Grid: tiles of keys, heads of keys, sequences from b0. */
template <typename T, int N> __global__ void __launch_bounds__(THREADS) attention_mma_dkv_kernel(RkAttention o, const float *D, int b0) {
    RK_DYNAMIC_SHARED(AttentionBackward<N>, sh);
    const AttentionLane me;
    const int group = o.q.d[2] / o.k.d[2], first = (o.dk_past.p || o.dv_past.p ? 0 : o.past) + static_cast<int>(blockIdx.x) * ROWS;
    const RkAttentionHead<T> keys(o, static_cast<int>(blockIdx.y) * group, b0 + static_cast<int>(blockIdx.z));
    const int end = keys.past + keys.tokens, start = max(first - keys.past, 0) / BACKWARD_TILE<N> * BACKWARD_TILE<N>; /* earlier queries see none of these */
    const int tiles = (keys.tokens - start + BACKWARD_TILE<N> - 1) / BACKWARD_TILE<N>; /* per head */
    auto ask = [&](int step, int stage) {
        const RkAttentionHead<T> s(o, keys.h + step / tiles, keys.b);
        int t0 = start + step % tiles * BACKWARD_TILE<N>;
        attention_ask_queries<T, N, BACKWARD_TILE<N>>(sh->other[stage][0], s, o.q, t0);
        attention_ask_queries<T, N, BACKWARD_TILE<N>>(sh->other[stage][1], s, o.dy, t0);
        if (threadIdx.x < BACKWARD_TILE<N>) {
            int t = t0 + static_cast<int>(threadIdx.x);
            size_t before = static_cast<size_t>(b0) * static_cast<size_t>(s.H) * static_cast<size_t>(s.tokens);
            sh->tile_lse[stage][threadIdx.x] = t < s.tokens ? static_cast<const float *>(o.lse.p)[s.lse_at(t)] : 0;
            sh->tile_D[stage][threadIdx.x] = t < s.tokens ? D[s.lse_at(t) - before] : 0;
        }
        rk_copy_commit();
    };
    attention_ask_keys<T, N, ROWS>(sh->own[0], keys, o.k_past, o.k, first, end);
    attention_ask_keys<T, N, ROWS>(sh->own[1], keys, o.v_past, o.v, first, end);
    ask(0, 0);
    float dk[N / 8][4] = {}, dv[N / 8][4] = {};
    for (int step = 0, stage = 0; step < group * tiles; step++, stage ^= 1) {
        rk_copy_wait<0>();
        __syncthreads(); /* this tile is here, the other one no longer read */
        if (step + 1 < group * tiles) ask(step + 1, stage ^ 1);
        int t0 = start + step % tiles * BACKWARD_TILE<N>;
        float p[BACKWARD_TILE<N> / 8][4], ds[BACKWARD_TILE<N> / 8][4];
        attention_scores<T, N, BACKWARD_TILE<N>>(p, sh->own[0], me.row, sh->other[stage][0]);
        attention_scores<T, N, BACKWARD_TILE<N>>(ds, sh->own[1], me.row, sh->other[stage][1]);
#pragma unroll
        for (int i = 0; i < BACKWARD_TILE<N> / 2; i++) {
            int column = i / 4 * 8 + 2 * me.q + i % 2, j = first + me.row + me.g + i % 4 / 2 * 8, t = t0 + column;
            float &x = p[i / 4][i % 4], &d = ds[i / 4][i % 4];
            bool sees = t < keys.tokens && j <= keys.past + t;
            x = sees ? __expf(x * keys.scale - sh->tile_lse[stage][column]) : 0;
            d = sees ? x * (d - sh->tile_D[stage][column]) * keys.scale : 0;
        }
        attention_weigh<T, N, BACKWARD_TILE<N>>(dk, ds, sh->other[stage][0]);
        attention_weigh<T, N, BACKWARD_TILE<N>>(dv, p, sh->other[stage][1]);
    }
    auto put = [&](const RkTensor &all, const RkTensor &past, const RkTensor &now, const float (*sums)[4]) {
        attention_each<N>(sums, [&](int i, int x, float value, float next) {
            int j = first + me.row + i;
            if (j >= end) return;
            if (all.p) value += keys.cache(all, j)[x], next += keys.cache(all, j)[x + 1];
            keys.write(past, now, j, x, value);
            keys.write(past, now, j, x + 1, next);
        });
    };
    put(o.dk_all, o.dk_past, o.dk, dk);
    put(o.dv_all, o.dv_past, o.dv, dv);
}

#define ATTENTION_MMA_BY_TYPE(o, T, N, ...)                                                           \
    do {                                                                                              \
        int size_ = (o)->q.d[3];                                                                      \
        if ((o)->q.dtype == RK_BF16) {                                                                \
            using T = __nv_bfloat16;                                                                  \
            if (size_ == 32) { constexpr int N = 32; __VA_ARGS__; }                                   \
            else if (size_ == 64) { constexpr int N = 64; __VA_ARGS__; }                              \
            else { constexpr int N = 128; __VA_ARGS__; }                                              \
        } else {                                                                                      \
            using T = __half;                                                                         \
            if (size_ == 32) { constexpr int N = 32; __VA_ARGS__; }                                   \
            else if (size_ == 64) { constexpr int N = 64; __VA_ARGS__; }                              \
            else { constexpr int N = 128; __VA_ARGS__; }                                              \
        }                                                                                             \
    } while (0)

static unsigned attention_tiles(int rows) { return static_cast<unsigned>((rows + ROWS - 1) / ROWS); }

int rk_attention_mma_fwd(const RkAttention *o, cudaStream_t stream) {
    dim3 grid(attention_tiles(o->q.d[1]), static_cast<unsigned>(o->q.d[2]), static_cast<unsigned>(o->q.d[0]));
    ATTENTION_MMA_BY_TYPE(o, T, N, return rk_launch(attention_mma_fwd_kernel<T, N>, grid, THREADS, sizeof(AttentionForward<N>), stream, *o));
}

int rk_attention_mma_bwd(const RkAttention *o, const RkAttentionSlice &slice, cudaStream_t stream) {
    dim3 queries(attention_tiles(o->q.d[1]), static_cast<unsigned>(o->q.d[2]), slice.sequences);
    dim3 keys(attention_tiles(slice.keys), static_cast<unsigned>(o->k.d[2]), slice.sequences);
    ATTENTION_MMA_BY_TYPE(o, T, N, {
        size_t shared = sizeof(AttentionBackward<N>);
        RK_TRY(rk_launch(attention_mma_dq_kernel<T, N>, queries, THREADS, shared, stream, *o, slice.D, slice.b0));
        return rk_launch(attention_mma_dkv_kernel<T, N>, keys, THREADS, shared, stream, *o, static_cast<const float *>(slice.D), slice.b0);
    });
}
