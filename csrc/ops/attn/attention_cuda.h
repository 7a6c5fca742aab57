/* attention_cuda.h - where the rows of one sequence and head are. Activations are of type T; caches and their gradients float32. */
#ifndef RK_OPS_ATTENTION_CUDA_H
#define RK_OPS_ATTENTION_CUDA_H

#include <initializer_list>

#include "cuda/launch.h"
#include "ops/ops.h"

template <typename T> struct RkAttentionHead {
    int tokens, H, G, N, past, h, b;
    float scale;

    __device__ RkAttentionHead(const RkAttention &o, int head, int sequence)
        : tokens(o.q.d[1]), H(o.q.d[2]), G(o.k.d[2]), N(o.q.d[3]), past(o.past), h(head), b(sequence), scale(1 / sqrtf(static_cast<float>(N))) {}

    /* The first element of query t in (B,T,H,N), and its place in lse (B,H,T). */
    __device__ size_t query_at(int t) const {
        return ((static_cast<size_t>(b) * static_cast<size_t>(tokens) + static_cast<size_t>(t)) * static_cast<size_t>(H) + static_cast<size_t>(h)) * static_cast<size_t>(N);
    }
    __device__ size_t lse_at(int t) const {
        return (static_cast<size_t>(b) * static_cast<size_t>(H) + static_cast<size_t>(h)) * static_cast<size_t>(tokens) + static_cast<size_t>(t);
    }
    __device__ float query(const RkTensor &q, int t, int x) const { return rk_float(static_cast<const T *>(q.p)[query_at(t) + static_cast<size_t>(x)]); }

    /* Key j, counted from the start of the stream: of this call's tokens (B,T,G,N), and in a cache (B,room,G,N). */
    __device__ T *now(const RkTensor &k, int j) const {
        size_t row = static_cast<size_t>(b) * static_cast<size_t>(tokens) + static_cast<size_t>(j - past);
        return static_cast<T *>(k.p) + (row * static_cast<size_t>(G) + static_cast<size_t>(h / (H / G))) * static_cast<size_t>(N);
    }
    __device__ float *cache(const RkTensor &k, int j) const {
        size_t row = static_cast<size_t>(b) * static_cast<size_t>(k.d[1]) + static_cast<size_t>(j);
        return static_cast<float *>(k.p) + (row * static_cast<size_t>(G) + static_cast<size_t>(h / (H / G))) * static_cast<size_t>(N);
    }
    __device__ float key(const RkTensor &before, const RkTensor &k, int j, int x) const { return j < past ? cache(before, j)[x] : rk_float(now(k, j)[x]); }
    __device__ void write(const RkTensor &before, const RkTensor &k, int j, int x, float value) const {
        if (j >= past) now(k, j)[x] = rk_element<T>(value);
        else if (before.p) cache(before, j)[x] = value;
    }
};

/* Sequences of a backward that share the scratch: D, one number per query, of `sequences` from b0 on, and how many keys want gradients. */
struct RkAttentionSlice { float *D; int b0, keys; unsigned sequences; };

/* On tensor cores, for 16-bit activations and these head sizes; attention_cuda.cu chooses. */
static inline bool rk_attention_mma(const RkAttention *o) {
    int N = o->q.d[3];
    bool aligned = true;
    for (const RkTensor *x : {&o->q, &o->k, &o->v, &o->y, &o->dy, &o->dq, &o->dk, &o->dv}) aligned = aligned && reinterpret_cast<uintptr_t>(x->p) % 16 == 0;
    return aligned && o->q.dtype != RK_F32 && (N == 32 || N == 64 || N == 128);
}
int rk_attention_mma_fwd(const RkAttention *o, cudaStream_t stream);
int rk_attention_mma_bwd(const RkAttention *o, const RkAttentionSlice &slice, cudaStream_t stream);

/* Few queries after many tokens (attention_split_cuda.cu). */
bool rk_attention_split(const RkAttention *o);
int rk_attention_split_fwd(const RkAttention *o, cudaStream_t stream);

#endif
