/* wkv_cuda.h - what the exact float32 kernels of the state recurrences share.
 *
 * A block is one sequence and head, of n <= P channels; P is 32, 64 or 128 and slots from n on are zeros. The (P,P) state lies
 * in registers, 32 elements of one row or column per thread: P / 32 neighbouring threads, the parts, share a line. A part
 * holds groups of four neighbours in turn with the other parts, so that shared rows are read by float4 without conflicts.
 * A sum over a line is one of 32 terms per part and then one over the parts. */
#ifndef RK_OPS_WKV_CUDA_H
#define RK_OPS_WKV_CUDA_H

#include "cuda/launch.h"
#include "ops/ops.h"

constexpr int RK_WKV_EACH = 32; /* elements of a state per thread */
constexpr int RK_WKV_STAGE = 8; /* tokens that are fetched together in the forward */

struct alignas(16) RkWkvFour { float x[4]; };

template <int P> struct RkWkvThreads {
    static constexpr int PARTS = P / RK_WKV_EACH, COUNT = P * PARTS;
    int slot = static_cast<int>(threadIdx.x) / PARTS, part = static_cast<int>(threadIdx.x) % PARTS;

    /* Where along the line this thread's element e is. */
    __device__ int at(int e) const { return 4 * (e / 4 * PARTS + part) + e % 4; }

    __device__ float sum(float x) const {
#pragma unroll
        for (int bit = 1; bit < PARTS; bit *= 2) x += __shfl_xor_sync(0xffffffffu, x, bit);
        return x;
    }

    /* f(e, x...) for each of this thread's elements e, x what the shared rows have there. Rows are read as they are used: all at
     * once they would take more registers than there are. */
    template <typename F, typename... Rows> __device__ void each(F f, const Rows *...rows) const {
#pragma unroll
        for (int e = 0; e < RK_WKV_EACH; e += 4) four(f, e, *reinterpret_cast<const RkWkvFour *>(rows + at(e))...);
    }

  private:
    template <typename F, typename... Fours> __device__ static void four(F f, int e, Fours... fours) {
#pragma unroll
        for (int i = 0; i < 4; i++) f(e + i, fours.x[i]...);
    }
};

/* The place of a block: which of the B H heads, and where its tokens are in (B,T,H,n). */
struct RkWkvHead {
    size_t bh, first, stride; /* the first token's first element; from one token to the next */
    int head, n, T, chunks;

    __device__ explicit RkWkvHead(const RkTensor &r) {
        size_t H = static_cast<size_t>(r.d[2]);
        n = r.d[3], T = r.d[1], bh = blockIdx.x;
        head = static_cast<int>(bh % H), stride = H * static_cast<size_t>(n);
        first = bh / H * static_cast<size_t>(T) * stride + bh % H * static_cast<size_t>(n);
        chunks = (T + RK_WKV_CHUNK - 1) / RK_WKV_CHUNK;
    }
    __device__ size_t token(int t) const { return first + static_cast<size_t>(t) * stride; }
    __device__ size_t squared() const { return static_cast<size_t>(n) * static_cast<size_t>(n); }

    /* This head's matrix in (B,H,n,n); NULL where the tensor is absent. */
    __device__ float *state(const RkTensor &s) const { return s.p ? static_cast<float *>(s.p) + bh * squared() : nullptr; }
    __device__ float *checkpoint(const RkTensor &ckpt, int chunk) const {
        return static_cast<float *>(ckpt.p) + (bh * static_cast<size_t>(chunks) + static_cast<size_t>(chunk)) * squared();
    }
};

/* The same number, of which the compiler knows nothing: what is computed from it is not kept in registers from one token to the next. */
__device__ inline int rk_wkv_anew(int n) {
    asm volatile("" : "+r"(n));
    return n;
}

/* Registers from and to an (n,n) matrix in memory; `column`: the thread's slot is the column, its elements are rows. */
template <int P> __device__ void rk_wkv_get(const RkWkvThreads<P> &me, const float *m, int n, bool column, float *S) {
    n = rk_wkv_anew(n);
#pragma unroll
    for (int e = 0; e < RK_WKV_EACH; e++) {
        int x = me.at(e);
        S[e] = m && x < n && me.slot < n ? m[column ? x * n + me.slot : me.slot * n + x] : 0;
    }
}
template <int P> __device__ void rk_wkv_put(const RkWkvThreads<P> &me, float *m, int n, const float *S) {
    n = rk_wkv_anew(n);
#pragma unroll
    for (int e = 0; e < RK_WKV_EACH; e++) {
        int x = me.at(e);
        if (x < n && me.slot < n) m[x * n + me.slot] = S[e];
    }
}

/* The states of a chunk for its backward. One in EVERY lies in shared memory, as it was before that token; the others are run again
 * from these. step(t, S) takes S, the thread's row of the state, past token t. */
template <int P> struct RkWkvKept {
    static constexpr int EVERY = P == 128 ? 8 : 4;
    float states[RK_WKV_CHUNK / EVERY][RK_WKV_EACH][RkWkvThreads<P>::COUNT];

    template <typename Step> __device__ void run(int tokens, float *S, Step step) {
#pragma unroll 1
        for (int t = 0; t < tokens; t++) {
            if (t % EVERY == 0)
#pragma unroll
                for (int e = 0; e < RK_WKV_EACH; e++) states[t / EVERY][e][threadIdx.x] = S[e];
            step(t, S);
        }
    }

    /* The state before token t. */
    template <typename Step> __device__ void before(int t, float *S, Step step) const {
        int kept = t / EVERY;
#pragma unroll
        for (int e = 0; e < RK_WKV_EACH; e++) S[e] = states[kept][e][threadIdx.x];
#pragma unroll 1
        for (int at = kept * EVERY; at < t; at++) step(at, S);
    }
};

/* Rows of FIELDS tensors on their way through registers to shared memory, TOKENS of them: fetched while the tokens before are
 * worked on, stored after. row(f, t) is where tensor f has token t. */
template <typename T, int P, int FIELDS, int TOKENS> struct RkWkvFetch {
    static constexpr int PARTS = RkWkvThreads<P>::PARTS, EACH = TOKENS / PARTS;
    float held[FIELDS][EACH];

    template <typename Row> __device__ void load(const RkWkvHead &head, int t0, Row row) {
        int x = static_cast<int>(threadIdx.x) % P, first = static_cast<int>(threadIdx.x) / P;
#pragma unroll
        for (int f = 0; f < FIELDS; f++)
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                int t = t0 + first + i * PARTS;
                held[f][i] = x < head.n && t < head.T ? rk_float(static_cast<const T *>(row(f, t))[x]) : 0;
            }
    }
    __device__ void store(float (*rows)[TOKENS][P]) const {
        int x = static_cast<int>(threadIdx.x) % P, first = static_cast<int>(threadIdx.x) / P;
#pragma unroll
        for (int f = 0; f < FIELDS; f++)
#pragma unroll
            for (int i = 0; i < EACH; i++) rows[f][first + i * PARTS][x] = held[f][i];
    }
};

/* The padded head size for n channels, as a constant, in `statement`. */
#define RK_WKV_BY_SIZE(n, P, ...)                                                                        \
    do {                                                                                                 \
        if ((n) <= 32) { constexpr int P = 32; __VA_ARGS__; }                                            \
        else if ((n) <= 64) { constexpr int P = 64; __VA_ARGS__; }                                       \
        else if ((n) <= 128) { constexpr int P = 128; __VA_ARGS__; }                                     \
        else return rk_fail(RK_EUNSUP, "wkv: a head size of %d on cuda; at most 128 is possible", (n));  \
    } while (0)

#endif
