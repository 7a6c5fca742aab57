/* attention_cuda.cu - causal attention in float32, any head size up to 128: the exact kernels, and the choice of kernels.
 *
 * A warp has ROWS rows (queries, or in the gradient of keys: keys) and meets the other side in tiles of 32, one per lane: a lane
 * makes the scores of its own partner, then the lanes share the partners' rows out by channel. The softmax keeps a running
 * maximum. The backward makes the scores again from lse, once along queries (dq) and once along keys (dk, dv), so that every sum
 * has one owner and one order. The algebra is in attention.h. */
#include "ops/attn/attention_cuda.h"

namespace {
constexpr int WARPS = 8, ROWS = 4, TILE = 32, BLOCK_ROWS = WARPS * ROWS;

template <int P> struct AttentionTile {
    static constexpr int LINE = P + 4; /* rows begin in different banks, at multiples of 16 bytes */
    float partner[2][TILE][LINE], row[2][BLOCK_ROWS][LINE];
    float lse[TILE], D[TILE];
};
} // namespace

/* Copies rows first .. first + count of `rows` into shared memory, zeros where there is none or beyond the head. */
template <int P, typename RowOf> __device__ static inline void attention_fill(float (*to)[P + 4], int count, int n, RowOf row_of) {
    for (int i = static_cast<int>(threadIdx.x); i < count * P; i += 32 * WARPS) to[i / P][i % P] = i % P < n ? row_of(i / P, i % P) : 0;
}

/* The dot products of the warp's rows with this lane's partner. */
template <int P> __device__ static inline void attention_dots(const float (*rows)[P + 4], const float *partner, float *dots) {
#pragma unroll
    for (int i = 0; i < ROWS; i++) dots[i] = 0;
#pragma unroll 4
    for (int x = 0; x < P; x += 4) {
        float4 b = *reinterpret_cast<const float4 *>(partner + x);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            float4 a = *reinterpret_cast<const float4 *>(rows[i] + x);
            dots[i] += a.x * b.x, dots[i] += a.y * b.y, dots[i] += a.z * b.z, dots[i] += a.w * b.w;
        }
    }
}

/* sums[i][c] += sum over the lanes' partners of weight[i] times channel lane + 32 c of the partner. */
template <int P> __device__ static inline void attention_gather(const float *weight, const float (*partners)[P + 4], float (*sums)[P / 32]) {
    int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 4
    for (int j = 0; j < TILE; j++) {
        float x[P / 32];
#pragma unroll
        for (int c = 0; c < P / 32; c++) x[c] = partners[j][lane + 32 * c];
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            float w = __shfl_sync(0xffffffffu, weight[i], j);
#pragma unroll
            for (int c = 0; c < P / 32; c++) sums[i][c] += w * x[c];
        }
    }
}

__device__ static inline float attention_warp_max(float x) {
    for (int offset = 16; offset; offset >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}

/* Grid: tiles of queries, heads, sequences. */
template <typename T, int P> __global__ void __launch_bounds__(32 * WARPS, 1) attention_fwd_kernel(RkAttention o) {
    RK_DYNAMIC_SHARED(AttentionTile<P>, sh);
    const RkAttentionHead<T> s(o, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z));
    int lane = static_cast<int>(threadIdx.x) % 32, first = static_cast<int>(blockIdx.x) * BLOCK_ROWS, mine = static_cast<int>(threadIdx.x) / 32 * ROWS;
    float top[ROWS], sum[ROWS], y[ROWS][P / 32];
    for (int i = 0; i < ROWS; i++) {
        top[i] = -INFINITY, sum[i] = 0;
        for (int c = 0; c < P / 32; c++) y[i][c] = 0;
    }
    attention_fill<P>(sh->row[0], BLOCK_ROWS, s.N, [&](int i, int x) { return first + i < s.tokens ? s.query(o.q, first + i, x) : 0; });
    int seen = min(s.past + first + BLOCK_ROWS, s.past + s.tokens);
    for (int j0 = 0; j0 < seen; j0 += TILE) {
        __syncthreads();
        attention_fill<P>(sh->partner[0], TILE, s.N, [&](int j, int x) { return j0 + j < seen ? s.key(o.k_past, o.k, j0 + j, x) : 0; });
        attention_fill<P>(sh->partner[1], TILE, s.N, [&](int j, int x) { return j0 + j < seen ? s.key(o.v_past, o.v, j0 + j, x) : 0; });
        __syncthreads();
        float p[ROWS];
        attention_dots<P>(sh->row[0] + mine, sh->partner[0][lane], p);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            p[i] = j0 + lane <= s.past + first + mine + i ? p[i] * s.scale : -INFINITY;
            float before = top[i];
            top[i] = fmaxf(before, attention_warp_max(p[i]));
            float shrink = expf(before - top[i]); /* 0 in the first tile, which every query sees at least one key of */
            p[i] = expf(p[i] - top[i]);
            sum[i] = sum[i] * shrink + rk_warp_sum(p[i]);
#pragma unroll
            for (int c = 0; c < P / 32; c++) y[i][c] *= shrink;
        }
        attention_gather<P>(p, sh->partner[1], y);
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        int t = first + mine + i;
        if (t >= s.tokens) break;
#pragma unroll
        for (int c = 0; c < P / 32; c++)
            if (lane + 32 * c < s.N) static_cast<T *>(o.y.p)[s.query_at(t) + static_cast<size_t>(lane + 32 * c)] = rk_element<T>(y[i][c] / sum[i]);
        if (o.lse.p && lane == 0) static_cast<float *>(o.lse.p)[s.lse_at(t)] = top[i] + logf(sum[i]);
    }
}

/* dq, and D for the other kernel. Grid: tiles of queries, heads, sequences from b0. */
template <typename T, int P> __global__ void __launch_bounds__(32 * WARPS, 1) attention_dq_kernel(RkAttention o, float *D, int b0) {
    RK_DYNAMIC_SHARED(AttentionTile<P>, sh);
    const RkAttentionHead<T> s(o, static_cast<int>(blockIdx.y), b0 + static_cast<int>(blockIdx.z));
    int lane = static_cast<int>(threadIdx.x) % 32, first = static_cast<int>(blockIdx.x) * BLOCK_ROWS, mine = static_cast<int>(threadIdx.x) / 32 * ROWS;
    float lse[ROWS], d[ROWS], dq[ROWS][P / 32];
    attention_fill<P>(sh->row[0], BLOCK_ROWS, s.N, [&](int i, int x) { return first + i < s.tokens ? s.query(o.q, first + i, x) : 0; });
    attention_fill<P>(sh->row[1], BLOCK_ROWS, s.N, [&](int i, int x) { return first + i < s.tokens ? s.query(o.dy, first + i, x) : 0; });
    __syncthreads();
    for (int i = 0; i < ROWS; i++) {
        int t = first + mine + i;
        float sum = 0;
        for (int c = 0; c < P / 32; c++) {
            int x = lane + 32 * c;
            sum += t < s.tokens && x < s.N ? sh->row[1][mine + i][x] * s.query(o.y, t, x) : 0;
            dq[i][c] = 0;
        }
        d[i] = rk_warp_sum(sum);
        lse[i] = t < s.tokens ? static_cast<const float *>(o.lse.p)[s.lse_at(t)] : 0;
        if (lane == 0 && t < s.tokens) D[s.lse_at(t) - static_cast<size_t>(b0) * static_cast<size_t>(s.H) * static_cast<size_t>(s.tokens)] = d[i];
    }
    int seen = min(s.past + first + BLOCK_ROWS, s.past + s.tokens);
    for (int j0 = 0; j0 < seen; j0 += TILE) {
        __syncthreads();
        attention_fill<P>(sh->partner[0], TILE, s.N, [&](int j, int x) { return j0 + j < seen ? s.key(o.k_past, o.k, j0 + j, x) : 0; });
        attention_fill<P>(sh->partner[1], TILE, s.N, [&](int j, int x) { return j0 + j < seen ? s.key(o.v_past, o.v, j0 + j, x) : 0; });
        __syncthreads();
        float score[ROWS], dp[ROWS];
        attention_dots<P>(sh->row[0] + mine, sh->partner[0][lane], score);
        attention_dots<P>(sh->row[1] + mine, sh->partner[1][lane], dp);
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            score[i] = j0 + lane <= s.past + first + mine + i ? expf(score[i] * s.scale - lse[i]) * (dp[i] - d[i]) * s.scale : 0;
        attention_gather<P>(score, sh->partner[0], dq);
    }
    for (int i = 0; i < ROWS && first + mine + i < s.tokens; i++)
#pragma unroll
        for (int c = 0; c < P / 32; c++)
            if (lane + 32 * c < s.N) static_cast<T *>(o.dq.p)[s.query_at(first + mine + i) + static_cast<size_t>(lane + 32 * c)] = rk_element<T>(dq[i][c]);
}

/* dk and dv of BLOCK_ROWS keys, from all heads that share them. Grid: tiles of keys, heads of keys, sequences from b0. */
template <typename T, int P> __global__ void __launch_bounds__(32 * WARPS, 1) attention_dkv_kernel(RkAttention o, const float *D, int b0) {
    RK_DYNAMIC_SHARED(AttentionTile<P>, sh);
    int group = o.q.d[2] / o.k.d[2], lane = static_cast<int>(threadIdx.x) % 32, mine = static_cast<int>(threadIdx.x) / 32 * ROWS;
    int wanted = o.dk_past.p || o.dv_past.p ? 0 : o.past, first = wanted + static_cast<int>(blockIdx.x) * BLOCK_ROWS;
    const RkAttentionHead<T> g(o, static_cast<int>(blockIdx.y) * group, b0 + static_cast<int>(blockIdx.z));
    int keys = g.past + g.tokens;
    float dk[ROWS][P / 32], dv[ROWS][P / 32];
    for (int i = 0; i < ROWS; i++)
        for (int c = 0; c < P / 32; c++) {
            int j = first + mine + i, x = lane + 32 * c;
            bool there = j < keys && x < g.N;
            dk[i][c] = there && o.dk_all.p ? g.cache(o.dk_all, j)[x] : 0;
            dv[i][c] = there && o.dv_all.p ? g.cache(o.dv_all, j)[x] : 0;
        }
    attention_fill<P>(sh->row[0], BLOCK_ROWS, g.N, [&](int i, int x) { return first + i < keys ? g.key(o.k_past, o.k, first + i, x) : 0; });
    attention_fill<P>(sh->row[1], BLOCK_ROWS, g.N, [&](int i, int x) { return first + i < keys ? g.key(o.v_past, o.v, first + i, x) : 0; });
    int start = max(first - g.past, 0) / TILE * TILE; /* queries before it see none of these keys */
    for (int h = 0; h < group; h++) {
        const RkAttentionHead<T> s(o, g.h + h, g.b);
        for (int t0 = start; t0 < s.tokens; t0 += TILE) {
            __syncthreads();
            attention_fill<P>(sh->partner[0], TILE, s.N, [&](int t, int x) { return t0 + t < s.tokens ? s.query(o.q, t0 + t, x) : 0; });
            attention_fill<P>(sh->partner[1], TILE, s.N, [&](int t, int x) { return t0 + t < s.tokens ? s.query(o.dy, t0 + t, x) : 0; });
            if (threadIdx.x < TILE) {
                int t = t0 + lane;
                size_t slice = static_cast<size_t>(b0) * static_cast<size_t>(s.H) * static_cast<size_t>(s.tokens);
                sh->lse[lane] = t < s.tokens ? static_cast<const float *>(o.lse.p)[s.lse_at(t)] : 0;
                sh->D[lane] = t < s.tokens ? D[s.lse_at(t) - slice] : 0;
            }
            __syncthreads();
            float p[ROWS], ds[ROWS];
            attention_dots<P>(sh->row[0] + mine, sh->partner[0][lane], p);
            attention_dots<P>(sh->row[1] + mine, sh->partner[1][lane], ds);
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                bool sees = t0 + lane < s.tokens && first + mine + i <= s.past + t0 + lane;
                p[i] = sees ? expf(p[i] * s.scale - sh->lse[lane]) : 0;
                ds[i] = sees ? p[i] * (ds[i] - sh->D[lane]) * s.scale : 0;
            }
            attention_gather<P>(ds, sh->partner[0], dk);
            attention_gather<P>(p, sh->partner[1], dv);
        }
    }
    for (int i = 0; i < ROWS && first + mine + i < keys; i++)
        for (int c = 0; c < P / 32; c++) {
            int j = first + mine + i, x = lane + 32 * c;
            if (x >= g.N) break;
            g.write(o.dk_past, o.dk, j, x, dk[i][c]);
            g.write(o.dv_past, o.dv, j, x, dv[i][c]);
        }
}

/* `all` = past, then this call's tokens; rows of the past are only copied where the caches differ. One thread per element. */
template <typename T> __global__ static void attention_append_kernel(RkTensor past, RkTensor now, RkTensor all, int n_past, bool same) {
    size_t token = static_cast<size_t>(now.d[2]) * static_cast<size_t>(now.d[3]), tokens = static_cast<size_t>(now.d[1]), begin = same ? static_cast<size_t>(n_past) : 0;
    size_t count = (static_cast<size_t>(n_past) + tokens - begin) * token, i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x, b = blockIdx.y;
    if (i >= count) return;
    size_t j = begin + i / token, x = i % token;
    float value = j < static_cast<size_t>(n_past) ? static_cast<const float *>(past.p)[(b * static_cast<size_t>(past.d[1]) + j) * token + x]
                                                  : rk_float(static_cast<const T *>(now.p)[(b * tokens + j - static_cast<size_t>(n_past)) * token + x]);
    static_cast<float *>(all.p)[(b * static_cast<size_t>(all.d[1]) + j) * token + x] = value;
}

template <typename T> static int attention_append(RkTensor past, RkTensor now, RkTensor all, int n_past, cudaStream_t stream) {
    if (!all.p) return RK_OK;
    bool same = all.p == past.p;
    size_t count = static_cast<size_t>((same ? 0 : n_past) + now.d[1]) * static_cast<size_t>(now.d[2]) * static_cast<size_t>(now.d[3]);
    dim3 grid(static_cast<unsigned>((count + 255) / 256), static_cast<unsigned>(now.d[0]));
    return rk_launch(attention_append_kernel<T>, grid, 256, 0, stream, past, now, all, n_past, same);
}

#define ATTENTION_BY_SIZE(n, P, ...)                                                                         \
    do {                                                                                                     \
        if ((n) <= 32) { constexpr int P = 32; __VA_ARGS__; }                                                \
        else if ((n) <= 64) { constexpr int P = 64; __VA_ARGS__; }                                           \
        else if ((n) <= 128) { constexpr int P = 128; __VA_ARGS__; }                                         \
        else return rk_fail(RK_EUNSUP, "attention: a head size of %d on cuda; at most 128 is possible", (n)); \
    } while (0)

static unsigned attention_tiles(int rows) { return static_cast<unsigned>((rows + BLOCK_ROWS - 1) / BLOCK_ROWS); }

template <typename T> static int attention_fwd(const RkAttention *o, cudaStream_t stream) {
    dim3 grid(attention_tiles(o->q.d[1]), static_cast<unsigned>(o->q.d[2]), static_cast<unsigned>(o->q.d[0]));
    ATTENTION_BY_SIZE(o->q.d[3], P, return rk_launch(attention_fwd_kernel<T, P>, grid, 32 * WARPS, sizeof(AttentionTile<P>), stream, *o));
}

template <typename T> static int attention_bwd(const RkAttention *o, const RkAttentionSlice &slice, cudaStream_t stream) {
    dim3 queries(attention_tiles(o->q.d[1]), static_cast<unsigned>(o->q.d[2]), slice.sequences);
    dim3 keys(attention_tiles(slice.keys), static_cast<unsigned>(o->k.d[2]), slice.sequences);
    ATTENTION_BY_SIZE(o->q.d[3], P, {
        size_t shared = sizeof(AttentionTile<P>);
        RK_TRY(rk_launch(attention_dq_kernel<T, P>, queries, 32 * WARPS, shared, stream, *o, slice.D, slice.b0));
        return rk_launch(attention_dkv_kernel<T, P>, keys, 32 * WARPS, shared, stream, *o, static_cast<const float *>(slice.D), slice.b0);
    });
}

extern "C" int rk_cuda_attention_fwd(const RkAttention *o) {
    RK_TRY(rk_attention_check(o));
    cudaStream_t stream = rk_stream();
    RK_CUDA_BY_DTYPE(o->q.dtype, T, {
        RK_TRY(rk_attention_split(o) ? rk_attention_split_fwd(o, stream) : rk_attention_mma(o) ? rk_attention_mma_fwd(o, stream) : attention_fwd<T>(o, stream));
        RK_TRY(attention_append<T>(o->k_past, o->k, o->k_all, o->past, stream));
        return attention_append<T>(o->v_past, o->v, o->v_all, o->past, stream);
    });
}

extern "C" int rk_cuda_attention_bwd(const RkAttention *o) {
    RK_TRY(rk_attention_check(o));
    cudaStream_t stream = rk_stream();
    int B = o->q.d[0], tokens = o->q.d[1], H = o->q.d[2];
    size_t sequence = static_cast<size_t>(H) * static_cast<size_t>(tokens) * sizeof(float); /* of D */
    int together = static_cast<int>(min(static_cast<size_t>(B), RK_CUDA_SCRATCH / sequence));
    RK_CHECK(together, "attention: %d tokens of %d heads at once; D of one sequence must fit in %d bytes", tokens, H, RK_CUDA_SCRATCH);
    void *D;
    RK_TRY(rk_cuda_scratch(static_cast<size_t>(together) * sequence, &D));
    RkAttentionSlice slice = {static_cast<float *>(D), 0, tokens + (o->dk_past.p || o->dv_past.p ? o->past : 0), 0};
    for (; slice.b0 < B; slice.b0 += together) {
        slice.sequences = static_cast<unsigned>(min(together, B - slice.b0));
        RK_CUDA_BY_DTYPE(o->q.dtype, T, RK_TRY(rk_attention_mma(o) ? rk_attention_mma_bwd(o, slice, stream) : attention_bwd<T>(o, slice, stream)));
    }
    return RK_OK;
}
