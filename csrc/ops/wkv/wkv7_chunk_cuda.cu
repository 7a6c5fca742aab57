/* wkv7_chunk_cuda.cu - WKV-7 by chunks of 16 tokens on tensor cores: operands of the activations' 16 bits, float32 sums, states and triangular solves.
 *
 * Within a chunk let G_t be the sum of the log decays g up to token t, X_t = G_t - g_t, and c the reference from which exponents are
 * counted: G_8, so that with |g| < e^{-1/2} none leaves e^{+-5.3}, moved to where e^c is a power of two. Scaling by that is exact, and
 * no bit of a token's result depends on later tokens. With the rows r, k, a, b of the tokens scaled,
 *   R = r e^{G-c},  A = a e^{X-c},  K = k e^{c-G},  B = b e^{c-G},  and S' = S e^{c} of the state S (value, key) before the chunk:
 *   P = A B^T, Q = A K^T  (s < t);   M = R B^T, W = R K^T  (s <= t)        tokens by tokens
 *   Z = A S'^T + Q V + P Z           solved downwards in float32
 *   Y = R S'^T + M Z + W V;          next S = (S' + Z^T B + V^T K) e^{G_n - c}
 * Backward, with D' = D e^{G_n - c} of the gradient D of the state after the chunk:
 *   E = M^T dY + B D'^T + P^T E      solved upwards;      dV = W^T dY + K D'^T + Q^T E
 *   dP = E Z^T, dQ = E V^T  (s < t);   dM = dY Z^T, dW = dY V^T  (s <= t)
 *   dR = dY S' + dM B + dW K;   dA = E S' + dP B + dQ K;   dB = Z D' + dP^T A + dM^T R;   dK = V D' + dQ^T A + dW^T R
 *   previous D = (D' + dY^T R + E^T A) e^{c}
 *   dg_t = H + sum_{p>=t} (R dR - B dB - K dK)_p + sum_{p>t} (A dA)_p,   H = colsum(S' D') + sum_p (B (Z D') + K (V D'))_p
 * The last line is exact for the rounded operands themselves, so that what cancels in it cancels to float32 rounding.
 *
 * One block walks along a sequence's head. The checkpoints are S' as rounded, which is all the backward uses, in the order of the forward's registers;
 * z is not saved. Beyond the last token rows are zero and nothing decays.
 * Algebra: "Parallelizing Linear Transformers with the Delta Rule" (2024), the RWKV-7 paper (2025). */
#include "ops/wkv/wkv7_chunk_cuda.h"

#include "ops/wkv/wkv7_chunk_tile.h"

namespace {
template <int N> struct Wkv7Forward {
    Wkv7Rows<N> rows[2][WKV7_FORWARD], z;
    Wkv7Small small[3];
    float p[RK_WKV_CHUNK][WKV7_SOLVE];
    Wkv7Sums<N> rhs;
    Wkv7Decays<N> decays;
};

template <int N> struct Wkv7Backward {
    Wkv7Rows<N> rows[2][WKV7_BACKWARD], z, e;
    Wkv7Small small[4];
    float p[2][RK_WKV_CHUNK][WKV7_SOLVE]; /* P, and P^T with both indices counted from the end */
    Wkv7Sums<N> rhs[2];                   /* of Z, and of E from the end; later the terms of dg */
    float power[RK_WKV_CHUNK + 1][N], rest[N];
    uint16_t S[N][Wkv7Size<N>::LINE], D[N][Wkv7Size<N>::LINE]; /* (value, key) */
    Wkv7Decays<N> decays;
};

/* The place of a block among (B,T,H,N) and the checkpoints. */
template <int N> struct Wkv7Place {
    size_t bh, first, stride;
    int T, chunks;

    __device__ explicit Wkv7Place(const RkTensor &r) {
        size_t H = static_cast<size_t>(r.d[2]);
        T = r.d[1], bh = blockIdx.x, stride = H * N;
        first = bh / H * static_cast<size_t>(T) * stride + bh % H * N;
        chunks = (T + RK_WKV_CHUNK - 1) / RK_WKV_CHUNK;
    }
    __device__ float *state(const RkTensor &s) const { return s.p ? static_cast<float *>(s.p) + bh * N * N : nullptr; }
    /* The first vector of this thread; vector i is i blocks of threads further. */
    __device__ uint4 *checkpoint(const RkTensor &ckpt, int chunk) const {
        uint16_t *base = static_cast<uint16_t *>(ckpt.p) + (bh * static_cast<size_t>(chunks) + static_cast<size_t>(chunk)) * N * N;
        return reinterpret_cast<uint4 *>(base) + threadIdx.x;
    }
};
} // namespace

template <typename T, int N> __global__ void __launch_bounds__(2 * N, N == 64 ? 4 : 1) wkv7_chunk_fwd_kernel(RkWkv7 o) {
    typedef Wkv7Size<N> Size;
    RK_DYNAMIC_SHARED(Wkv7Forward<N>, sh);
    const Wkv7Lane me;
    const Wkv7Place<N> place(o.r);
    const int column = 16 * me.warp;
    float S[Size::KEYS][4];
    wkv7_get_state<N>(place.state(o.s0), S);
    wkv7_ask<T, N, WKV7_FORWARD>(o, sh->rows[0], place.first, place.stride, 0);

    for (int chunk = 0; chunk < place.chunks; chunk++) {
        int t0 = chunk * RK_WKV_CHUNK, tokens = min(place.T - t0, static_cast<int>(RK_WKV_CHUNK));
        Wkv7Rows<N> *rows = sh->rows[chunk % 2];
        rk_copy_wait<0>();
        __syncthreads(); /* these rows are here, the other ones no longer read */
        if (chunk + 1 < place.chunks) wkv7_ask<T, N, WKV7_FORWARD>(o, sh->rows[(chunk + 1) % 2], place.first, place.stride, t0 + RK_WKV_CHUNK);
        wkv7_scale<T, N>(rows, tokens, &sh->decays, nullptr);
        __syncthreads();

        float z[2][4] = {}, y[2][4] = {};
        {
            uint32_t packed[Size::KEYS][2];
            wkv7_scale_state<N>(S, sh->decays.enter);
            wkv7_pack_state<T, N>(S, packed);
            if (o.ckpt.p)
#pragma unroll
                for (int i = 0; i < Size::KEYS / 2; i++)
                    place.checkpoint(o.ckpt, chunk)[i * Size::THREADS] = {packed[2 * i][0], packed[2 * i][1], packed[2 * i + 1][0], packed[2 * i + 1][1]};
            wkv7_times_state<T, N>(z, rows[WKV7_A], packed);
            wkv7_times_state<T, N>(y, rows[WKV7_R], packed);
        }
#pragma unroll
        for (int which = me.warp; which < 4; which += N / 16) {
            float sums[2][4];
            bool early = which == WKV7_P || which == WKV7_Q;
            wkv7_tokens_product<T, N>(sums, rows[early ? WKV7_A : WKV7_R], rows[which == WKV7_P || which == WKV7_M ? WKV7_B : WKV7_K]);
            if (which != WKV7_P) wkv7_put_lower<T>(sums, early, sh->small[which]);
            else wkv7_lower(sums, true, [&](int t, int s, float p, float next) { *reinterpret_cast<float2 *>(&sh->p[t][s]) = make_float2(p, next); });
        }
        __syncthreads();

        wkv7_mix<T, N>(z, sh->small[WKV7_Q], rows[WKV7_V], column);
        wkv7_each(z, column, [&](int t, int i, float p, float next) { *reinterpret_cast<float2 *>(&sh->rhs[t][i]) = make_float2(p, next); });
        __syncwarp();
        if (me.lane < 16)
            wkv7_solve(sh->p, sh->rhs, column + me.lane, [&](int t, float x) { sh->z[t][column + me.lane] = static_cast<uint16_t>(rk_pack<T>(x, 0)); });
        __syncwarp();
        wkv7_mix<T, N>(y, sh->small[WKV7_M], sh->z, column);
        wkv7_mix<T, N>(y, sh->small[WKV7_W], rows[WKV7_V], column);
        wkv7_add_to_state<T, N>(S, sh->z, rows[WKV7_B]);
        wkv7_add_to_state<T, N>(S, rows[WKV7_V], rows[WKV7_K]);
        wkv7_scale_state<N>(S, sh->decays.leave);
        /* Through this warp's columns of z, dead by now, to 16 bytes per lane. */
        __syncwarp();
        wkv7_each(y, column, [&](int t, int i, float p, float next) { wkv7_pair(&sh->z[t][i]) = rk_pack<T>(p, next); });
        __syncwarp();
        int t = me.lane / 2, x = column + me.lane % 2 * 8;
        if (t < tokens)
            *reinterpret_cast<uint4 *>(static_cast<T *>(o.y.p) + place.first + static_cast<size_t>(t0 + t) * place.stride + static_cast<size_t>(x)) =
                *reinterpret_cast<const uint4 *>(&sh->z[t][x]);
        __syncwarp();
    }
    if (o.sT.p) wkv7_put_state<N>(place.state(o.sT), S);
}

/* What a thread of the last step adds to or writes, 16 bytes of each tensor. */
template <typename T> __device__ static inline uint4 wkv7_sum(uint4 old, uint4 more) {
    const uint32_t *a = &old.x, *b = &more.x;
    uint32_t out[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 x = rk_unpack<T>(a[i]), y = rk_unpack<T>(b[i]);
        out[i] = rk_pack<T>(x.x + y.x, x.y + y.y);
    }
    return {out[0], out[1], out[2], out[3]};
}

/* Part of H: colsum of S' D' over a quarter of the values. */
template <typename T, int N> __device__ static inline void wkv7_state_sums(Wkv7Backward<N> *sh) {
    int x = static_cast<int>(threadIdx.x) % (N / 2) * 2, quarter = static_cast<int>(threadIdx.x) / (N / 2);
    float sum[2] = {0, 0};
#pragma unroll 8
    for (int i = quarter * (N / 4); i < (quarter + 1) * (N / 4); i++) {
        float2 s = rk_unpack<T>(wkv7_pair(&sh->S[i][x])), d = rk_unpack<T>(wkv7_pair(&sh->D[i][x]));
        sum[0] += s.x * d.x, sum[1] += s.y * d.y;
    }
    sh->decays.quarter[quarter][x] = sum[0];
    sh->decays.quarter[quarter][x + 1] = sum[1];
}

/* sums += rows m over the values, in 16 keys from `column` on. */
template <typename T, int N>
__device__ static inline void wkv7_times_rows(float (*sums)[4], const Wkv7Rows<N> &rows, const uint16_t (*m)[Wkv7Size<N>::LINE], int column) {
#pragma unroll 4
    for (int k = 0; k < Wkv7Size<N>::STEPS; k++) {
        uint32_t a[4], b[4];
        rk_load_a(a, rows, 0, 16 * k);
        rk_load_b_transposed(b, m, 16 * k, column);
        rk_mma<T>(sums[0], a, b);
        rk_mma<T>(sums[1], a, b + 2);
    }
}

/* ds of the chunk in place of s: suffix sums of the terms of dg down each channel, half of the tokens per thread. */
template <typename T, int N> __device__ static inline void wkv7_decay_gradient(Wkv7Backward<N> *sh, Wkv7Rows<N> *rows) {
    int x = static_cast<int>(threadIdx.x) % N, t0 = static_cast<int>(threadIdx.x) / N * 8;
    float sum = sh->rest[x];
#pragma unroll
    for (int i = 0; i < 4; i++) sum += sh->decays.quarter[i][x];
    if (t0 == 0)
#pragma unroll
        for (int t = RK_WKV_CHUNK - 1; t >= 8; t--) sum += sh->rhs[0][t][x];
#pragma unroll
    for (int t = 7; t >= 0; t--) {
        sum += sh->rhs[0][t0 + t][x];
        float gate = wkv7_gate(rk_unpack_one<T>(rows[WKV7_S][t0 + t][x]));
        float ds = -0.60653065971263342f * gate * (1 - gate) * (sum - sh->rhs[1][t0 + t][x]);
        rows[WKV7_S][t0 + t][x] = static_cast<uint16_t>(rk_pack<T>(ds, 0));
    }
}

template <typename T, int N> __global__ void __launch_bounds__(2 * N, N == 64 ? 3 : 1) wkv7_chunk_bwd_kernel(RkWkv7 o) {
    typedef Wkv7Size<N> Size;
    RK_DYNAMIC_SHARED(Wkv7Backward<N>, sh);
    const Wkv7Lane me;
    const Wkv7Place<N> place(o.r);
    const int column = 16 * me.warp, my_token = static_cast<int>(threadIdx.x) / (N / 8), my_channel = static_cast<int>(threadIdx.x) % (N / 8) * 8;
    float D[Size::KEYS][4];
    wkv7_get_state<N>(place.state(o.dsT), D);
    int last = place.chunks - 1;
    wkv7_ask<T, N, WKV7_BACKWARD>(o, sh->rows[last % 2], place.first, place.stride, last * RK_WKV_CHUNK);

    for (int chunk = last; chunk >= 0; chunk--) {
        int t0 = chunk * RK_WKV_CHUNK, tokens = min(place.T - t0, static_cast<int>(RK_WKV_CHUNK));
        Wkv7Rows<N> *rows = sh->rows[chunk % 2];
        uint32_t S[Size::KEYS][2]; /* asked for early: it takes as long to come as all of the scaling */
#pragma unroll
        for (int i = 0; i < Size::KEYS / 2; i++) {
            uint4 four = place.checkpoint(o.ckpt, chunk)[i * Size::THREADS];
            S[2 * i][0] = four.x, S[2 * i][1] = four.y, S[2 * i + 1][0] = four.z, S[2 * i + 1][1] = four.w;
        }
        rk_copy_wait<0>();
        __syncthreads(); /* these rows are here, the other ones no longer read */
        if (chunk) wkv7_ask<T, N, WKV7_BACKWARD>(o, sh->rows[(chunk - 1) % 2], place.first, place.stride, t0 - RK_WKV_CHUNK);
        wkv7_scale<T, N>(rows, tokens, &sh->decays, sh->power);
        __syncthreads();

        float z[2][4] = {}, e[2][4] = {}, dv[2][4] = {};
        {
            uint32_t packed[Size::KEYS][2];
            wkv7_scale_state<N>(D, sh->decays.leave);
            wkv7_pack_state<T, N>(D, packed);
#pragma unroll
            for (int tile = 0; tile < Size::KEYS; tile++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    wkv7_pair(&sh->S[column + me.g + 8 * half][8 * tile + 2 * me.q]) = S[tile][half];
                    wkv7_pair(&sh->D[column + me.g + 8 * half][8 * tile + 2 * me.q]) = packed[tile][half];
                }
            wkv7_times_state<T, N>(z, rows[WKV7_A], S);
            wkv7_times_state<T, N>(e, rows[WKV7_B], packed);
            wkv7_times_state<T, N>(dv, rows[WKV7_K], packed);
        }
#pragma unroll
        for (int which = me.warp; which < 4; which += N / 16) {
            float sums[2][4];
            bool early = which == WKV7_P || which == WKV7_Q;
            wkv7_tokens_product<T, N>(sums, rows[early ? WKV7_A : WKV7_R], rows[which == WKV7_P || which == WKV7_M ? WKV7_B : WKV7_K]);
            if (which != WKV7_P) wkv7_put_lower<T>(sums, early, sh->small[which]);
            else
                wkv7_lower(sums, true, [&](int t, int s, float p, float next) {
                    *reinterpret_cast<float2 *>(&sh->p[0][t][s]) = make_float2(p, next);
                    sh->p[1][15 - s][15 - t] = p;
                    sh->p[1][14 - s][15 - t] = next;
                });
        }
        __syncthreads();

        wkv7_mix<T, N>(z, sh->small[WKV7_Q], rows[WKV7_V], column);
        wkv7_mix<T, N, true>(e, sh->small[WKV7_M], rows[WKV7_DY], column);
        wkv7_mix<T, N, true>(dv, sh->small[WKV7_W], rows[WKV7_DY], column);
        wkv7_each(z, column, [&](int t, int i, float p, float next) { *reinterpret_cast<float2 *>(&sh->rhs[0][t][i]) = make_float2(p, next); });
        wkv7_each(e, column, [&](int t, int i, float p, float next) { *reinterpret_cast<float2 *>(&sh->rhs[1][15 - t][i]) = make_float2(p, next); });
        __syncwarp();
        {
            int up = me.lane / 16, i = column + me.lane % 16; /* half of the lanes solve for Z, half for E */
            Wkv7Rows<N> &to = up ? sh->e : sh->z;
            wkv7_solve(sh->p[up], sh->rhs[up], i, [&](int t, float x) { to[up ? 15 - t : t][i] = static_cast<uint16_t>(rk_pack<T>(x, 0)); });
        }
        __syncwarp();
        wkv7_mix<T, N, true>(dv, sh->small[WKV7_Q], sh->e, column);
        wkv7_add_to_state<T, N>(D, rows[WKV7_DY], rows[WKV7_R]);
        wkv7_add_to_state<T, N>(D, sh->e, rows[WKV7_A]);
        wkv7_scale_state<N>(D, sh->decays.enter);
        __syncthreads(); /* Z, E, S', D' of all warps; P, Q, M, W are dead */

#pragma unroll
        for (int which = me.warp; which < 4; which += N / 16) {
            float sums[2][4];
            bool early = which == WKV7_P || which == WKV7_Q;
            wkv7_tokens_product<T, N>(sums, early ? sh->e : rows[WKV7_DY], which == WKV7_P || which == WKV7_M ? sh->z : rows[WKV7_V]);
            wkv7_put_lower<T>(sums, early, sh->small[which]);
        }
        wkv7_state_sums<T, N>(sh);
        size_t at = place.first + static_cast<size_t>(t0 + my_token) * place.stride + static_cast<size_t>(my_channel);
        auto mine = [&](const RkTensor &x) { return reinterpret_cast<uint4 *>(static_cast<T *>(x.p) + at); };
        uint4 old_dr = {}, old_dk = {}, old_dv = {};
        if (my_token < tokens) old_dr = *mine(o.dr), old_dk = *mine(o.dk), old_dv = *mine(o.dv);
        __syncthreads();

        float dr[2][4] = {}, da[2][4] = {}, db[2][4] = {}, dk[2][4] = {}, rest[2][2] = {};
        wkv7_times_rows<T, N>(db, sh->z, sh->D, column);
        wkv7_times_rows<T, N>(dk, rows[WKV7_V], sh->D, column);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int tile = i / 4, t = me.g + i % 4 / 2 * 8, x = column + 8 * tile + 2 * me.q + i % 2;
            rest[tile][i % 2] += rk_unpack_one<T>(rows[WKV7_B][t][x]) * db[tile][i % 4] + rk_unpack_one<T>(rows[WKV7_K][t][x]) * dk[tile][i % 4];
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float sum = rest[i / 2][i % 2];
#pragma unroll
            for (int bit = 4; bit < 32; bit *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
            if (me.g == 0) sh->rest[column + i / 2 * 8 + 2 * me.q + i % 2] = sum;
        }
        wkv7_times_rows<T, N>(dr, rows[WKV7_DY], sh->S, column);
        wkv7_times_rows<T, N>(da, sh->e, sh->S, column);
        wkv7_mix<T, N>(dr, sh->small[WKV7_M], rows[WKV7_B], column), wkv7_mix<T, N>(dr, sh->small[WKV7_W], rows[WKV7_K], column);
        wkv7_mix<T, N>(da, sh->small[WKV7_P], rows[WKV7_B], column), wkv7_mix<T, N>(da, sh->small[WKV7_Q], rows[WKV7_K], column);
        wkv7_mix<T, N, true>(db, sh->small[WKV7_P], rows[WKV7_A], column), wkv7_mix<T, N, true>(db, sh->small[WKV7_M], rows[WKV7_R], column);
        wkv7_mix<T, N, true>(dk, sh->small[WKV7_Q], rows[WKV7_A], column), wkv7_mix<T, N, true>(dk, sh->small[WKV7_W], rows[WKV7_R], column);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int tile = i / 4, t = me.g + i % 4 / 2 * 8, x = column + 8 * tile + 2 * me.q + i % 2, c = i % 4;
            float now = sh->power[t + 1][x], back = __fdividef(1, now), a = rk_unpack_one<T>(rows[WKV7_A][t][x]) * da[tile][c];
            sh->rhs[1][t][x] = a;
            sh->rhs[0][t][x] = a + rk_unpack_one<T>(rows[WKV7_R][t][x]) * dr[tile][c] - rk_unpack_one<T>(rows[WKV7_B][t][x]) * db[tile][c] -
                               rk_unpack_one<T>(rows[WKV7_K][t][x]) * dk[tile][c];
            dr[tile][c] *= now, da[tile][c] *= sh->power[t][x], db[tile][c] *= back, dk[tile][c] *= back;
        }
        __syncthreads(); /* the rows are dead but for s: results take their place */

        auto put = [&](int f, const float (*sums)[4]) {
            wkv7_each(sums, column, [&](int t, int x, float p, float next) { wkv7_pair(&rows[f][t][x]) = rk_pack<T>(p, next); });
        };
        put(WKV7_R, dr), put(WKV7_K, dk), put(WKV7_V, dv), put(WKV7_A, da), put(WKV7_B, db);
        wkv7_decay_gradient<T, N>(sh, rows);
        __syncthreads();
        if (my_token < tokens) {
            auto result = [&](int f) { return *reinterpret_cast<const uint4 *>(&rows[f][my_token][my_channel]); };
            *mine(o.dr) = wkv7_sum<T>(old_dr, result(WKV7_R));
            *mine(o.dk) = wkv7_sum<T>(old_dk, result(WKV7_K));
            *mine(o.dv) = wkv7_sum<T>(old_dv, result(WKV7_V));
            *mine(o.ds) = result(WKV7_S), *mine(o.da) = result(WKV7_A), *mine(o.db) = result(WKV7_B);
        }
    }
    if (o.ds0.p) wkv7_put_state<N>(place.state(o.ds0), D);
}

static int wkv7_check_alignment(const RkWkv7 *o, bool backward) {
    const RkTensor *all[] = {&o->r, &o->s, &o->k, &o->v, &o->a, &o->b, &o->y, &o->ckpt, &o->dy, &o->dr, &o->dk, &o->dv, &o->ds, &o->da, &o->db};
    for (int i = 0; i < (backward ? 15 : 8); i++)
        RK_CHECK(reinterpret_cast<uintptr_t>(all[i]->p) % 16 == 0, "wkv7: tensor %d of the arguments does not begin at a multiple of 16 bytes", i);
    return RK_OK;
}

#define WKV7_CHUNK_RUN(backward, kernel, Shared)                                                                          \
    do {                                                                                                                  \
        RK_CHECK(!o->ckpt.p || o->ckpt.dtype == o->r.dtype, "wkv7: checkpoints of chunks have the activations' type");     \
        RK_TRY(wkv7_check_alignment(o, backward));                                                                        \
        dim3 blocks(static_cast<unsigned>(o->r.d[0] * o->r.d[2]));                                                        \
        int N = o->r.d[3];                                                                                                \
        if (o->r.dtype == RK_BF16) {                                                                                      \
            if (N == 32) return rk_launch(kernel<__nv_bfloat16, 32>, blocks, 64, sizeof(Shared<32>), stream, *o);         \
            if (N == 64) return rk_launch(kernel<__nv_bfloat16, 64>, blocks, 128, sizeof(Shared<64>), stream, *o);        \
            return rk_launch(kernel<__nv_bfloat16, 128>, blocks, 256, sizeof(Shared<128>), stream, *o);                   \
        }                                                                                                                 \
        if (N == 32) return rk_launch(kernel<__half, 32>, blocks, 64, sizeof(Shared<32>), stream, *o);                    \
        if (N == 64) return rk_launch(kernel<__half, 64>, blocks, 128, sizeof(Shared<64>), stream, *o);                   \
        return rk_launch(kernel<__half, 128>, blocks, 256, sizeof(Shared<128>), stream, *o);                              \
    } while (0)

int rk_wkv7_chunk_fwd(const RkWkv7 *o, cudaStream_t stream) { WKV7_CHUNK_RUN(false, wkv7_chunk_fwd_kernel, Wkv7Forward); }
int rk_wkv7_chunk_bwd(const RkWkv7 *o, cudaStream_t stream) { WKV7_CHUNK_RUN(true, wkv7_chunk_bwd_kernel, Wkv7Backward); }
