/* attention_split_cuda.cu - attention of few queries after many tokens, as in decoding: the forward.
 *
 * One sequence has too few queries to fill a device with blocks of them, so its keys are cut into pieces. A block has one piece of the keys that
 * `group` heads share, and ROWS of their queries. Several lanes hold one key, four channels each; such groups of lanes take turns at the keys, each
 * with a softmax of its own, by a running maximum. What they have is joined in their order, and a second kernel joins the pieces in theirs:
 *   m = max_s m_s    sum = sum_s sum_s e^{m_s - m}    y = sum_s y_s e^{m_s - m} / sum    lse = m + log sum
 * Pieces are a function of the shape alone. The cache is read once, 16 bytes a lane, eight loads under way.
 * Source: Dao, Haziza, Massa and Sizov, "Flash-Decoding" (2023). */
#include "ops/attn/attention_cuda.h"

namespace {
constexpr int THREADS = 128, ROWS = 4, AHEAD = 4, CHANNELS = 4 /* of a lane */, PIECE = 256, MOST_ROWS = 16, JOIN = 2 /* numbers of a piece before its y */;

struct Split {
    int piece, pieces; /* keys of one, and how many there are */
    float *partial; /* [B][H][tokens][pieces][JOIN + N]: maximum, sum, y */
};
} // namespace

/* Four channels of key (or value) j, from x on. PAST: it is one of the cache; known while compiling, so that no load waits for a branch. */
template <bool PAST, typename T> __device__ static inline float4 attention_channels(const RkAttentionHead<T> &s, const RkTensor &past, const RkTensor &now, int j, int x) {
    if (PAST || j < s.past) return *reinterpret_cast<const float4 *>(s.cache(past, j) + x);
    const T *from = s.now(now, j) + x;
    return make_float4(rk_float(from[0]), rk_float(from[1]), rk_float(from[2]), rk_float(from[3]));
}

/* e^{score - top}, which is 0 where both are minus infinity: no key has been seen. */
__device__ static inline float attention_weight(float score, float top) { return expf(score - (top == -INFINITY ? 0 : top)); }

/* LANES hold a key. Grid: pieces; heads of keys by rows of queries; sequences. */
template <typename T, int LANES> __global__ void __launch_bounds__(THREADS) attention_split_kernel(RkAttention o, Split split) {
    constexpr int GROUPS = THREADS / LANES;
    RK_SHARED(float, all_y, [ROWS][THREADS * CHANNELS]);
    RK_SHARED(float, all_top, [ROWS][THREADS]);
    RK_SHARED(float, all_sum, [ROWS][THREADS]);
    int share = o.q.d[2] / o.k.d[2], rows = share * o.q.d[1], row_tiles = (rows + ROWS - 1) / ROWS;
    int thread = static_cast<int>(threadIdx.x), group = thread / LANES, x = thread % LANES * CHANNELS;
    int row0 = static_cast<int>(blockIdx.y) % row_tiles * ROWS, b = static_cast<int>(blockIdx.z);
    const RkAttentionHead<T> s(o, static_cast<int>(blockIdx.y) / row_tiles * share, b);
    int at = min(x, s.N - CHANNELS); /* lanes beyond the head: any channels, with a query of zeros */
    int begin = static_cast<int>(blockIdx.x) * split.piece, end = min(begin + split.piece, s.past + s.tokens);
    float q[ROWS][CHANNELS], y[ROWS][CHANNELS] = {}, top[ROWS], sum[ROWS] = {};
    int last[ROWS]; /* the last key that a query sees */
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        int row = min(row0 + r, rows - 1), t = row % s.tokens;
        const RkAttentionHead<T> of(o, s.h + row / s.tokens, b);
        top[r] = -INFINITY, last[r] = s.past + t;
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) q[r][c] = x < s.N ? of.query(o.q, t, x + c) : 0;
    }
    for (int j0 = begin; j0 < end; j0 += AHEAD * GROUPS) {
        float4 k[AHEAD], v[AHEAD];
        if (j0 + AHEAD * GROUPS <= min(s.past, end)) {
#pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                int j = j0 + u * GROUPS + group;
                k[u] = attention_channels<true>(s, o.k_past, o.k, j, at);
                v[u] = attention_channels<true>(s, o.v_past, o.v, j, at);
            }
        } else {
#pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                int j = min(j0 + u * GROUPS + group, end - 1);
                k[u] = attention_channels<false>(s, o.k_past, o.k, j, at);
                v[u] = attention_channels<false>(s, o.v_past, o.v, j, at);
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (row0 + r >= rows) break;
            float p[AHEAD], before = top[r];
#pragma unroll
            for (int u = 0; u < AHEAD; u++) p[u] = q[r][0] * k[u].x + q[r][1] * k[u].y + q[r][2] * k[u].z + q[r][3] * k[u].w;
#pragma unroll
            for (int offset = LANES / 2; offset; offset /= 2)
#pragma unroll
                for (int u = 0; u < AHEAD; u++) p[u] += __shfl_xor_sync(0xffffffffu, p[u], offset);
#pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                int j = j0 + u * GROUPS + group;
                p[u] = j < end && j <= last[r] ? p[u] * s.scale : -INFINITY;
                top[r] = fmaxf(top[r], p[u]);
            }
            float shrink = attention_weight(before, top[r]);
            sum[r] *= shrink;
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) y[r][c] *= shrink;
#pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                float w = attention_weight(p[u], top[r]);
                sum[r] += w;
                y[r][0] += w * v[u].x, y[r][1] += w * v[u].y, y[r][2] += w * v[u].z, y[r][3] += w * v[u].w;
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        all_top[r][thread] = top[r], all_sum[r][thread] = sum[r];
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) all_y[r][thread * CHANNELS + c] = y[r][c];
    }
    __syncthreads();
    for (int r = 0; r < ROWS && row0 + r < rows; r++) {
        if (thread >= s.N) break;
        int row = row0 + r;
        const RkAttentionHead<T> of(o, s.h + row / s.tokens, b);
        float most = -INFINITY, joined = 0, value = 0;
        for (int g = 0; g < GROUPS; g++) most = fmaxf(most, all_top[r][g * LANES]);
        for (int g = 0; g < GROUPS; g++) {
            float w = attention_weight(all_top[r][g * LANES], most);
            joined += all_sum[r][g * LANES] * w;
            value += all_y[r][g * LANES * CHANNELS + thread] * w;
        }
        size_t place = of.lse_at(row % s.tokens) * static_cast<size_t>(split.pieces) + blockIdx.x;
        float *to = split.partial + place * static_cast<size_t>(s.N + JOIN);
        if (thread == 0) to[0] = most, to[1] = joined;
        to[JOIN + thread] = value;
    }
}

/* Joins the pieces. Grid: queries; heads; sequences. A thread has a channel. */
template <typename T> __global__ void attention_join_kernel(RkAttention o, Split split) {
    const RkAttentionHead<T> s(o, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z));
    int t = static_cast<int>(blockIdx.x), x = static_cast<int>(threadIdx.x), line = s.N + JOIN;
    const float *from = split.partial + s.lse_at(t) * static_cast<size_t>(split.pieces) * static_cast<size_t>(line);
    float top = -INFINITY, sum = 0, y = 0;
    for (int i = 0; i < split.pieces; i++) top = fmaxf(top, from[static_cast<size_t>(i) * static_cast<size_t>(line)]);
    for (int i = 0; i < split.pieces; i++) {
        const float *piece = from + static_cast<size_t>(i) * static_cast<size_t>(line);
        float w = attention_weight(piece[0], top);
        sum += piece[1] * w;
        y += (x < s.N ? piece[JOIN + x] : 0) * w;
    }
    if (x < s.N) static_cast<T *>(o.y.p)[s.query_at(t) + static_cast<size_t>(x)] = rk_element<T>(y / sum);
    if (x == 0 && o.lse.p) static_cast<float *>(o.lse.p)[s.lse_at(t)] = top + logf(sum);
}

bool rk_attention_split(const RkAttention *o) {
    bool aligned = rk_all_aligned({o->k_past.p, o->v_past.p});
    return aligned && o->past >= PIECE && o->q.d[3] % CHANNELS == 0 && o->q.d[3] <= THREADS && o->q.d[1] * (o->q.d[2] / o->k.d[2]) <= MOST_ROWS;
}

template <typename T> static int split_fwd(const RkAttention *o, cudaStream_t stream) {
    int B = o->q.d[0], tokens = o->q.d[1], H = o->q.d[2], N = o->q.d[3], seen = o->past + tokens;
    Split split = {PIECE, 0, nullptr};
    size_t line = static_cast<size_t>(B) * static_cast<size_t>(tokens) * static_cast<size_t>(H) * static_cast<size_t>(N + JOIN) * sizeof(float);
    while (rk_blocks(static_cast<size_t>(seen), static_cast<size_t>(split.piece)) * line > RK_CUDA_SCRATCH && split.piece < seen) split.piece *= 2;
    split.pieces = static_cast<int>(rk_blocks(static_cast<size_t>(seen), static_cast<size_t>(split.piece)));
    RK_TRY(rk_cuda_scratch(static_cast<size_t>(split.pieces) * line, reinterpret_cast<void **>(&split.partial)));
    unsigned row_tiles = rk_blocks(static_cast<size_t>(tokens * (H / o->k.d[2])), ROWS);
    dim3 pieces(static_cast<unsigned>(split.pieces), static_cast<unsigned>(o->k.d[2]) * row_tiles, static_cast<unsigned>(B));
    if (N <= 8 * CHANNELS) RK_TRY(rk_launch(attention_split_kernel<T, 8>, pieces, THREADS, 0, stream, *o, split));
    else if (N <= 16 * CHANNELS) RK_TRY(rk_launch(attention_split_kernel<T, 16>, pieces, THREADS, 0, stream, *o, split));
    else RK_TRY(rk_launch(attention_split_kernel<T, 32>, pieces, THREADS, 0, stream, *o, split));
    dim3 queries(static_cast<unsigned>(tokens), static_cast<unsigned>(H), static_cast<unsigned>(B));
    return rk_launch(attention_join_kernel<T>, queries, THREADS, 0, stream, *o, split);
}

int rk_attention_split_fwd(const RkAttention *o, cudaStream_t stream) {
    RK_CUDA_BY_DTYPE(o->q.dtype, T, return split_fwd<T>(o, stream))
}
