/* wkv7_chunk_tile.h - the matrices of one chunk of WKV-7 in shared memory and registers; the algebra is in wkv7_chunk_cuda.cu.
 *
 * A block has N / 16 warps and 2 N threads. Warp w owns 16 value slots, rows 16 w .. of a state (value, key), as sums of
 * tensor-core products: S[tile][0..3], tiles of 8 keys. Rounded and packed in pairs they are operands of products over keys. */
#ifndef RK_OPS_WKV7_CHUNK_TILE_H
#define RK_OPS_WKV7_CHUNK_TILE_H

#include "cuda/mma.h"
#include "ops/ops.h"

constexpr int WKV7_SMALL = 24, WKV7_SOLVE = 20; /* lines of (16,16) matrices: 16 bit, and float32 read by float4 */

template <int N> struct Wkv7Size {
    static constexpr int THREADS = 2 * N, LINE = N + 8, WIDE = N + 4, KEYS = N / 8, STEPS = N / 16;
};
template <int N> using Wkv7Rows = uint16_t[RK_WKV_CHUNK][Wkv7Size<N>::LINE]; /* (token, channel) */
typedef uint16_t Wkv7Small[RK_WKV_CHUNK][WKV7_SMALL];                        /* (token, token) */
template <int N> using Wkv7Sums = float[RK_WKV_CHUNK][Wkv7Size<N>::WIDE];

/* The tensors of a chunk in the order of their rows; the forward has the first six. */
enum { WKV7_R, WKV7_S, WKV7_K, WKV7_V, WKV7_A, WKV7_B, WKV7_FORWARD, WKV7_DY = WKV7_FORWARD, WKV7_BACKWARD };
enum { WKV7_Q, WKV7_M, WKV7_W, WKV7_P }; /* (token, token) matrices; of P the forward has float32 alone */

/* Decays over the chunk per channel: quarters' sums of g, e^{c} and e^{G_n - c}. */
template <int N> struct Wkv7Decays { float quarter[4][N], enter[N], leave[N]; };

__device__ inline uint32_t &wkv7_pair(uint16_t *at) { return *reinterpret_cast<uint32_t *>(at); }
__device__ inline uint32_t wkv7_pair(const uint16_t *at) { return *reinterpret_cast<const uint32_t *>(at); }

/* The lane's place in a matrix of sums: row g (and g + 8), columns 2q and 2q + 1 of each tile of 8. */
struct Wkv7Lane {
    int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
};

__device__ inline float wkv7_gate(float s) { return __fdividef(1, 1 + __expf(-s)); }

/* Asks for the rows of FIELDS tensors, one vector of 16 bytes per thread and tensor; tokens past the end become zeros. */
template <typename T, int N, int FIELDS>
__device__ inline void wkv7_ask(const RkWkv7 &o, Wkv7Rows<N> *rows, size_t first, size_t stride, int t0) {
    int t = static_cast<int>(threadIdx.x) / (N / 8), x = static_cast<int>(threadIdx.x) % (N / 8) * 8;
    bool there = t0 + t < o.r.d[1];
    size_t at = first + (there ? static_cast<size_t>(t0 + t) * stride : 0) + static_cast<size_t>(x);
#pragma unroll
    for (int f = 0; f < FIELDS; f++) {
        const RkTensor &from = f == WKV7_R ? o.r : f == WKV7_S ? o.s : f == WKV7_K ? o.k : f == WKV7_V ? o.v : f == WKV7_A ? o.a : f == WKV7_B ? o.b : o.dy;
        rk_copy_async(&rows[f][t][x], static_cast<const T *>(from.p) + at, there ? 16 : 0);
    }
    rk_copy_commit();
}

/* Scales the rows in place by e^{G - c} and its like, rounding them to T again, and fills `decays`. `power`, if any, gets
 * e^{X_t - c} in row t, so that row t + 1 is e^{G_t - c}. A barrier inside, none at the end. */
template <typename T, int N>
__device__ inline void wkv7_scale(Wkv7Rows<N> *rows, int tokens, Wkv7Decays<N> *decays, float (*power)[N]) {
    int x = static_cast<int>(threadIdx.x) % (N / 2) * 2, quarter = static_cast<int>(threadIdx.x) / (N / 2), t0 = 4 * quarter;
    float g[4][2], sum[2] = {0, 0};
#pragma unroll
    for (int t = 0; t < 4; t++) {
        float2 s = rk_unpack<T>(wkv7_pair(&rows[WKV7_S][t0 + t][x]));
        bool there = t0 + t < tokens; /* beyond the end nothing decays */
        g[t][0] = sum[0] -= there ? 0.60653065971263342f * wkv7_gate(s.x) : 0;
        g[t][1] = sum[1] -= there ? 0.60653065971263342f * wkv7_gate(s.y) : 0;
    }
    decays->quarter[quarter][x] = sum[0];
    decays->quarter[quarter][x + 1] = sum[1];
    __syncthreads();
    float before[2], up[2], down[2]; /* e^{X - c} of the token at hand, e^{c} and e^{-c} */
#pragma unroll
    for (int c = 0; c < 2; c++) {
        float start = 0, middle = decays->quarter[0][x + c] + decays->quarter[1][x + c];
#pragma unroll
        for (int i = 0; i < 4; i++) start += i < quarter ? decays->quarter[i][x + c] : 0;
        int exponent = __float2int_rn(middle * 1.4426950408889634f); /* of e^c, in [-7, 0] */
        up[c] = __int_as_float((127 + exponent) << 23), down[c] = __int_as_float((127 - exponent) << 23);
        before[c] = __expf(start) * down[c];
#pragma unroll
        for (int t = 0; t < 4; t++) g[t][c] += start;
        if (quarter == 0) decays->enter[x + c] = up[c];
        if (quarter == 3) decays->leave[x + c] = __expf(g[3][c]) * down[c];
    }
#pragma unroll
    for (int t = 0; t < 4; t++) {
        float now[2] = {__expf(g[t][0]) * down[0], __expf(g[t][1]) * down[1]}, back[2] = {__expf(-g[t][0]) * up[0], __expf(-g[t][1]) * up[1]};
        auto scale = [&](int f, const float *by) {
            uint32_t &pair = wkv7_pair(&rows[f][t0 + t][x]);
            float2 v = rk_unpack<T>(pair);
            pair = rk_pack<T>(v.x * by[0], v.y * by[1]);
        };
        scale(WKV7_R, now), scale(WKV7_A, before), scale(WKV7_K, back), scale(WKV7_B, back);
        if (power) *reinterpret_cast<float2 *>(&power[t0 + t][x]) = make_float2(before[0], before[1]);
        before[0] = now[0], before[1] = now[1];
    }
    if (power && quarter == 3) *reinterpret_cast<float2 *>(&power[RK_WKV_CHUNK][x]) = make_float2(before[0], before[1]);
}

/* ---- states ---- */

/* The warp's rows of a state in memory, which is (key, value); NULL: zeros. */
template <int N> __device__ inline void wkv7_get_state(const float *from, float (*S)[4]) {
    const Wkv7Lane me;
#pragma unroll
    for (int tile = 0; tile < Wkv7Size<N>::KEYS; tile++)
#pragma unroll
        for (int c = 0; c < 4; c++) S[tile][c] = from ? from[(8 * tile + 2 * me.q + c % 2) * N + 16 * me.warp + me.g + c / 2 * 8] : 0;
}
template <int N> __device__ inline void wkv7_put_state(float *to, const float (*S)[4]) {
    const Wkv7Lane me;
#pragma unroll
    for (int tile = 0; tile < Wkv7Size<N>::KEYS; tile++)
#pragma unroll
        for (int c = 0; c < 4; c++) to[(8 * tile + 2 * me.q + c % 2) * N + 16 * me.warp + me.g + c / 2 * 8] = S[tile][c];
}
template <int N> __device__ inline void wkv7_scale_state(float (*S)[4], const float *by) {
    const Wkv7Lane me;
#pragma unroll
    for (int tile = 0; tile < Wkv7Size<N>::KEYS; tile++) {
        float2 d = *reinterpret_cast<const float2 *>(by + 8 * tile + 2 * me.q);
        S[tile][0] *= d.x, S[tile][1] *= d.y, S[tile][2] *= d.x, S[tile][3] *= d.y;
    }
}
template <typename T, int N> __device__ inline void wkv7_pack_state(const float (*S)[4], uint32_t (*packed)[2]) {
#pragma unroll
    for (int tile = 0; tile < Wkv7Size<N>::KEYS; tile++) {
        packed[tile][0] = rk_pack<T>(S[tile][0], S[tile][1]);
        packed[tile][1] = rk_pack<T>(S[tile][2], S[tile][3]);
    }
}

/* ---- products; a result of 16 tokens and 16 channels is two tiles, sums[2][4] ---- */

/* sums += rows S^T: tokens by the warp's values, over keys. */
template <typename T, int N> __device__ inline void wkv7_times_state(float (*sums)[4], const Wkv7Rows<N> &rows, const uint32_t (*packed)[2]) {
#pragma unroll
    for (int k = 0; k < Wkv7Size<N>::STEPS; k++) {
        uint32_t a[4], low[2] = {packed[2 * k][0], packed[2 * k + 1][0]}, high[2] = {packed[2 * k][1], packed[2 * k + 1][1]};
        rk_load_a(a, rows, 0, 16 * k);
        rk_mma<T>(sums[0], a, low);
        rk_mma<T>(sums[1], a, high);
    }
}

/* S += left^T right: the warp's values by all keys, over tokens. */
template <typename T, int N> __device__ inline void wkv7_add_to_state(float (*S)[4], const Wkv7Rows<N> &left, const Wkv7Rows<N> &right) {
    uint32_t a[4];
    rk_load_a_transposed(a, left, 0, 16 * (static_cast<int>(threadIdx.x) / 32));
#pragma unroll
    for (int k = 0; k < Wkv7Size<N>::STEPS; k++) {
        uint32_t b[4];
        rk_load_b_transposed(b, right, 0, 16 * k);
        rk_mma<T>(S[2 * k], a, b);
        rk_mma<T>(S[2 * k + 1], a, b + 2);
    }
}

/* sums = left right^T: tokens by tokens, over channels. */
template <typename T, int N> __device__ inline void wkv7_tokens_product(float (*sums)[4], const Wkv7Rows<N> &left, const Wkv7Rows<N> &right) {
#pragma unroll
    for (int c = 0; c < 4; c++) sums[0][c] = sums[1][c] = 0;
#pragma unroll 4
    for (int k = 0; k < Wkv7Size<N>::STEPS; k++) {
        uint32_t a[4], b[4];
        rk_load_a(a, left, 0, 16 * k);
        rk_load_b(b, right, 0, 16 * k);
        rk_mma<T>(sums[0], a, b);
        rk_mma<T>(sums[1], a, b + 2);
    }
}

/* sums += small rows, or small^T rows, in the 16 channels from `column` on. */
template <typename T, int N, bool TRANSPOSED = false>
__device__ inline void wkv7_mix(float (*sums)[4], const Wkv7Small &small, const Wkv7Rows<N> &rows, int column) {
    uint32_t a[4], b[4];
    if (TRANSPOSED) rk_load_a_transposed(a, small, 0, 0);
    else rk_load_a(a, small, 0, 0);
    rk_load_b_transposed(b, rows, 0, column);
    rk_mma<T>(sums[0], a, b);
    rk_mma<T>(sums[1], a, b + 2);
}

/* f(t, s, value) for each of the lane's elements of a (token, token) matrix, zero where s > t, or s >= t if `strict`: selected, since
 * what is above the diagonal may be anything. */
template <typename Put> __device__ inline void wkv7_lower(const float (*sums)[4], bool strict, Put put) {
    const Wkv7Lane me;
#pragma unroll
    for (int tile = 0; tile < 2; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int t = me.g + 8 * half, s = 8 * tile + 2 * me.q, end = strict ? t : t + 1;
            put(t, s, s < end ? sums[tile][2 * half] : 0, s + 1 < end ? sums[tile][2 * half + 1] : 0);
        }
}
template <typename T> __device__ inline void wkv7_put_lower(const float (*sums)[4], bool strict, Wkv7Small &to) {
    wkv7_lower(sums, strict, [&](int t, int s, float x, float y) { wkv7_pair(&to[t][s]) = rk_pack<T>(x, y); });
}

/* The lane's sums of 16 channels from `column` on, as f(token, channel, value, next channel's value). */
template <typename Put> __device__ inline void wkv7_each(const float (*sums)[4], int column, Put put) {
    const Wkv7Lane me;
#pragma unroll
    for (int tile = 0; tile < 2; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            put(me.g + 8 * half, column + 8 * tile + 2 * me.q, sums[tile][2 * half], sums[tile][2 * half + 1]);
}

/* x_t = rhs_t + sum_{s<t} L_ts x_s down one column, in float32; out(t, x_t) for each. */
template <int WIDE, typename Out>
__device__ inline void wkv7_solve(const float (*L)[WKV7_SOLVE], const float (*rhs)[WIDE], int column, Out out) {
    float x[RK_WKV_CHUNK];
#pragma unroll
    for (int t = 0; t < RK_WKV_CHUNK; t++) {
        float sum = rhs[t][column];
#pragma unroll
        for (int s = 0; s < t; s += 4) {
            float4 l = *reinterpret_cast<const float4 *>(&L[t][s]);
            sum += l.x * x[s];
            if (s + 1 < t) sum += l.y * x[s + 1];
            if (s + 2 < t) sum += l.z * x[s + 2];
            if (s + 3 < t) sum += l.w * x[s + 3];
        }
        out(t, x[t] = sum);
    }
}

#endif
