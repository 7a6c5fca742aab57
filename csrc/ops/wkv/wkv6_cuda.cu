/* wkv6_cuda.cu - WKV-5.2 and WKV-6 in float32 token by token, for any T and any head size up to 128.
 *
 * Forward: a thread holds part of a column of the state (one value slot, all keys). Backward: part of a row of the state S and of
 * its gradient D (one key slot) and the same of a column of D, for the sums over keys. Nothing is exchanged between tokens, so a
 * block only meets at the borders of chunks. States are run forward again from the checkpoints; see wkv6.h for the formulas.
 * wkv5 is the same with one row of decays for all tokens. */
#include "ops/wkv/wkv_cuda.h"

namespace {
enum { R, K, V, DECAY, WKV6_FORWARD, DY = WKV6_FORWARD, SLOPE, WKV6_ROWS };

template <int P> struct Wkv6Shared {
    float rows[WKV6_ROWS][RK_WKV_CHUNK][P], u[P];
    RkWkvKept<P> kept;
};
} // namespace

template <typename T> __device__ static inline const T *wkv6_row(const RkWkv6 &o, const RkWkvHead &head, int f, int t, bool constant) {
    if (f == DECAY && constant) return static_cast<const T *>(o.w.p) + head.head * head.n;
    const RkTensor &x = f == R ? o.r : f == K ? o.k : f == V ? o.v : f == DECAY ? o.w : o.dy;
    return static_cast<const T *>(x.p) + head.token(t);
}

template <typename T> __device__ static inline void wkv6_load_u(const RkWkv6 &o, const RkWkvHead &head, int P, float *u) {
    for (int x = static_cast<int>(threadIdx.x); x < P; x += static_cast<int>(blockDim.x))
        u[x] = x < head.n ? rk_float(static_cast<const T *>(o.u.p)[head.head * head.n + x]) : 0;
}

template <typename T, int P> __global__ void __launch_bounds__(RkWkvThreads<P>::COUNT, 1) wkv6_fwd_kernel(RkWkv6 o, bool constant) {
    RK_SHARED(float, rows, [2][WKV6_FORWARD][RK_WKV_STAGE][P]);
    RK_SHARED(float, shared_u, [P]);
    const RkWkvThreads<P> me;
    const RkWkvHead head(o.r);
    RkWkvFetch<T, P, WKV6_FORWARD, RK_WKV_STAGE> fetch;
    auto row_of = [&](int f, int t) { return wkv6_row<T>(o, head, f, t, constant); };
    auto store = [&](int stage) {
#pragma unroll
        for (float &w : fetch.held[DECAY]) w = expf(-expf(w));
        fetch.store(rows[stage]);
    };
    float S[RK_WKV_EACH];
    rk_wkv_get(me, head.state(o.s0), head.n, true, S);
    wkv6_load_u<T>(o, head, P, shared_u);
    fetch.load(head, 0, row_of);
    store(0);
    for (int t0 = 0, stage = 0; t0 < head.T; t0 += RK_WKV_STAGE, stage ^= 1) {
        __syncthreads(); /* this stage is stored, the other one no longer read */
        fetch.load(head, t0 + RK_WKV_STAGE, row_of);
#pragma unroll 1
        for (int t = t0; t < head.T && t < t0 + RK_WKV_STAGE; t++) {
            auto row = [&](int field) { return rows[stage][field][t - t0]; };
            if (o.ckpt.p && t % RK_WKV_CHUNK == 0) rk_wkv_put(me, head.checkpoint(o.ckpt, t / RK_WKV_CHUNK), head.n, S);
            float y = 0, v = row(V)[me.slot];
            auto step = [&](int e, float r, float k, float d, float u) {
                float kv = k * v;
                y += r * (S[e] + u * kv);
                S[e] = S[e] * d + kv;
            };
            me.each(step, row(R), row(K), row(DECAY), shared_u);
            y = me.sum(y);
            if (me.part == 0 && me.slot < head.n) static_cast<T *>(o.y.p)[head.token(t) + static_cast<size_t>(me.slot)] = rk_element<T>(y);
        }
        store(stage ^ 1);
    }
    if (o.sT.p) rk_wkv_put(me, head.state(o.sT), head.n, S);
}

/* One token further, for a row of the state: slot j, elements i. */
template <int P> __device__ static inline void wkv6_row_step(const RkWkvThreads<P> &me, const Wkv6Shared<P> &sh, int t, float *S) {
    float d = sh.rows[DECAY][t][me.slot], k = sh.rows[K][t][me.slot];
    me.each([&](int e, float v) { S[e] = S[e] * d + v * k; }, sh.rows[V][t]);
}

/* The rows of a chunk's tokens t0 .. , decays and their slopes made of the logits. */
template <typename T, int P>
__device__ static inline void wkv6_stage(const RkWkv6 &o, const RkWkvHead &head, int t0, bool constant, Wkv6Shared<P> *sh) {
#pragma unroll
    for (int f = 0; f < SLOPE; f++)
#pragma unroll 2
        for (int i = static_cast<int>(threadIdx.x); i < RK_WKV_CHUNK * P; i += RkWkvThreads<P>::COUNT) {
            int t = i / P, x = i % P;
            bool there = x < head.n && t0 + t < head.T;
            float value = there ? rk_float(wkv6_row<T>(o, head, f, t0 + t, constant)[x]) : 0;
            if (f == DECAY) {
                float rate = expf(value);
                sh->rows[SLOPE][t][x] = -expf(value - rate);
                value = expf(-rate);
            }
            sh->rows[f][t][x] = value;
        }
}

template <typename T, int P> __global__ void __launch_bounds__(RkWkvThreads<P>::COUNT, 1) wkv6_bwd_kernel(RkWkv6 o, bool constant) {
    RK_DYNAMIC_SHARED(Wkv6Shared<P>, sh);
    const RkWkvThreads<P> me;
    const RkWkvHead head(o.r);
    float S[RK_WKV_EACH], D_row[RK_WKV_EACH], D_column[RK_WKV_EACH], sum_du = 0, sum_dw = 0;
    rk_wkv_get(me, head.state(o.dsT), head.n, false, D_row);
    rk_wkv_get(me, head.state(o.dsT), head.n, true, D_column);
    wkv6_load_u<T>(o, head, P, sh->u);

    for (int chunk = head.chunks - 1; chunk >= 0; chunk--) {
        int t0 = chunk * RK_WKV_CHUNK, tokens = min(head.T - t0, static_cast<int>(RK_WKV_CHUNK));
        __syncthreads(); /* the chunk after this one is done with the rows */
        wkv6_stage<T, P>(o, head, t0, constant, sh);
        __syncthreads();
        rk_wkv_get(me, head.checkpoint(o.ckpt, chunk), head.n, false, S);
        auto step = [&](int t, float *state) { wkv6_row_step(me, *sh, t, state); };
        sh->kept.run(tokens, S, step);
#pragma unroll 1
        for (int t = tokens - 1; t >= 0; t--) {
            float dv = 0, dr = 0, dk = 0, dd = 0, eta = 0;
            float r = sh->rows[R][t][me.slot], k = sh->rows[K][t][me.slot], d = sh->rows[DECAY][t][me.slot], dy = sh->rows[DY][t][me.slot], u = sh->u[me.slot];
            auto by_key = [&](int e, float r_e, float k_e, float d_e, float u_e) {
                float now = r_e * dy;
                dv += k_e * (D_column[e] + u_e * now);
                D_column[e] = D_column[e] * d_e + now;
            };
            me.each(by_key, sh->rows[R][t], sh->rows[K][t], sh->rows[DECAY][t], sh->u);
            sh->kept.before(t, S, step);
            auto by_value = [&](int e, float v_e, float dy_e) {
                dr += S[e] * dy_e;
                dk += D_row[e] * v_e;
                dd += S[e] * D_row[e];
                eta += v_e * dy_e;
                D_row[e] = D_row[e] * d + dy_e * r;
            };
            me.each(by_value, sh->rows[V][t], sh->rows[DY][t]);
            dv = me.sum(dv), dr = me.sum(dr), dk = me.sum(dk), dd = me.sum(dd) * sh->rows[SLOPE][t][me.slot], eta = me.sum(eta);
            sum_du += r * k * eta;
            sum_dw += dd;
            if (me.part || me.slot >= head.n) continue;
            size_t at = head.token(t0 + t) + static_cast<size_t>(me.slot);
            static_cast<T *>(o.dr.p)[at] = rk_element<T>(dr + u * k * eta);
            static_cast<T *>(o.dk.p)[at] = rk_element<T>(dk + u * r * eta);
            static_cast<T *>(o.dv.p)[at] = rk_element<T>(dv);
            if (!constant) static_cast<T *>(o.dw.p)[at] = rk_element<T>(dd);
        }
    }
    if (o.ds0.p) rk_wkv_put(me, head.state(o.ds0), head.n, D_column);
    if (me.part || me.slot >= head.n) return;
    float *sums = static_cast<float *>(o.sums.p) + head.bh * 2 * static_cast<size_t>(head.n) + me.slot;
    sums[0] = sum_du;
    sums[head.n] = sum_dw;
}

/* The sequences' shares of du, and in wkv5 of dw, added up in order: one thread per channel. */
__global__ static void wkv6_add_sums_kernel(RkWkv6 o, bool constant) {
    size_t N = static_cast<size_t>(o.r.d[3]), C = static_cast<size_t>(o.r.d[2]) * N, c = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (c >= C) return;
    float *du = static_cast<float *>(o.du.p) + c, *dw = static_cast<float *>(o.dw.p) + c;
    for (size_t b = 0; b < static_cast<size_t>(o.r.d[0]); b++) {
        const float *share = static_cast<const float *>(o.sums.p) + (b * C / N + c / N) * 2 * N + c % N;
        *du += share[0];
        if (constant) *dw += share[N];
    }
}

static int wkv6_fwd(const RkWkv6 *o, bool constant) {
    cudaStream_t stream = rk_stream();
    dim3 blocks(static_cast<unsigned>(o->r.d[0] * o->r.d[2]));
    RK_CUDA_BY_DTYPE(o->r.dtype, T, RK_WKV_BY_SIZE(o->r.d[3], P, {
        return rk_launch(wkv6_fwd_kernel<T, P>, blocks, RkWkvThreads<P>::COUNT, 0, stream, *o, constant);
    }));
}

static int wkv6_bwd(const RkWkv6 *o, bool constant) {
    cudaStream_t stream = rk_stream();
    dim3 blocks(static_cast<unsigned>(o->r.d[0] * o->r.d[2]));
    RK_CUDA_BY_DTYPE(o->r.dtype, T, RK_WKV_BY_SIZE(o->r.d[3], P, {
        RK_TRY(rk_launch(wkv6_bwd_kernel<T, P>, blocks, RkWkvThreads<P>::COUNT, sizeof(Wkv6Shared<P>), stream, *o, constant));
    }));
    unsigned channels = static_cast<unsigned>(o->r.d[2] * o->r.d[3]);
    return rk_launch(wkv6_add_sums_kernel, dim3((channels + 127) / 128), 128, 0, stream, *o, constant);
}

extern "C" int rk_cuda_wkv5_fwd(const RkWkv6 *o) { return wkv6_fwd(o, true); }
extern "C" int rk_cuda_wkv5_bwd(const RkWkv6 *o) { return wkv6_bwd(o, true); }
extern "C" int rk_cuda_wkv6_fwd(const RkWkv6 *o) { return wkv6_fwd(o, false); }
extern "C" int rk_cuda_wkv6_bwd(const RkWkv6 *o) { return wkv6_bwd(o, false); }
