/* wkv7_cuda.cu - WKV-7 in float32 token by token: the exact kernels, for any T and any head size up to 128.
 *
 * Forward: a thread holds part of a column (one value slot, all keys), so that z = S a and y = S r are sums within a line.
 * Backward: a thread holds part of a row of the state S and of its gradient D (one key slot) and the same of a column of D,
 * because half of the sums run over values and half over keys; the only thing that threads exchange is dz, once per token.
 * States are run forward again from the checkpoints with the saved z, each element by itself; see wkv7.h for the formulas. */
#include "ops/wkv/wkv_cuda.h"

#include "ops/wkv/wkv7_chunk_cuda.h"

static constexpr float KAPPA = 0.60653065971263342360f; /* e^{-1/2} */

__device__ static inline float wkv7_sigmoid(float s) { return 1 / (1 + expf(-s)); }

template <typename T, int P> __global__ void __launch_bounds__(RkWkvThreads<P>::COUNT, 1) wkv7_fwd_kernel(RkWkv7 o) {
    enum { R, DECAY, K, V, A, B, FIELDS };
    RK_SHARED(float, rows, [2][FIELDS][RK_WKV_STAGE][P]);
    const RkWkvThreads<P> me;
    const RkWkvHead head(o.r);
    RkWkvFetch<T, P, FIELDS, RK_WKV_STAGE> fetch;
    auto row_of = [&](int f, int t) -> const T * {
        const RkTensor &x = f == R ? o.r : f == DECAY ? o.s : f == K ? o.k : f == V ? o.v : f == A ? o.a : o.b;
        return static_cast<const T *>(x.p) + head.token(t);
    };
    float S[RK_WKV_EACH];
    rk_wkv_get(me, head.state(o.s0), head.n, true, S);
    auto store = [&](int stage) {
#pragma unroll
        for (float &s : fetch.held[DECAY]) s = expf(-KAPPA * wkv7_sigmoid(s));
        fetch.store(rows[stage]);
    };
    fetch.load(head, 0, row_of);
    store(0);
    for (int t0 = 0, stage = 0; t0 < head.T; t0 += RK_WKV_STAGE, stage ^= 1) {
        __syncthreads(); /* this stage is stored, the other one no longer read */
        fetch.load(head, t0 + RK_WKV_STAGE, row_of);
#pragma unroll 1
        for (int t = t0; t < head.T && t < t0 + RK_WKV_STAGE; t++) {
            auto row = [&](int field) { return rows[stage][field][t - t0]; };
            if (o.ckpt.p && t % RK_WKV_CHUNK == 0) rk_wkv_put(me, head.checkpoint(o.ckpt, t / RK_WKV_CHUNK), head.n, S);
            float z = 0, y = 0, v = row(V)[me.slot];
            me.each([&](int e, float a) { z += S[e] * a; }, row(A));
            z = me.sum(z);
            auto step = [&](int e, float d, float k, float b, float r) {
                S[e] = S[e] * d + z * b + v * k;
                y += S[e] * r;
            };
            me.each(step, row(DECAY), row(K), row(B), row(R));
            y = me.sum(y);
            if (me.part || me.slot >= head.n) continue;
            size_t at = head.token(t) + static_cast<size_t>(me.slot);
            static_cast<T *>(o.y.p)[at] = rk_element<T>(y);
            if (o.z.p) static_cast<T *>(o.z.p)[at] = rk_element<T>(z);
        }
        store(stage ^ 1);
    }
    if (o.sT.p) rk_wkv_put(me, head.state(o.sT), head.n, S);
}

namespace {
enum { R, DECAY, K, V, A, B, Z, DY, SLOPE, WKV7_ROWS, WKV7_INPUTS = SLOPE };

template <int P> struct Wkv7Shared {
    float rows[WKV7_ROWS][RK_WKV_CHUNK][P];
    float dz[2][P];
    RkWkvKept<P> kept;
};
} // namespace

/* One token further, for a row of the state: slot j, elements i. */
template <int P> __device__ static inline void wkv7_row_step(const RkWkvThreads<P> &me, const Wkv7Shared<P> &sh, int t, float *S) {
    float d = sh.rows[DECAY][t][me.slot], b = sh.rows[B][t][me.slot], k = sh.rows[K][t][me.slot];
    me.each([&](int e, float z, float v) { S[e] = S[e] * d + z * b + v * k; }, sh.rows[Z][t], sh.rows[V][t]);
}

/* The rows of tokens t0 .. of a chunk, decays and their slopes made of the logits. */
template <typename T, int P> __device__ static inline void wkv7_stage(const RkWkv7 &o, const RkWkvHead &head, int t0, Wkv7Shared<P> *sh) {
    const RkTensor *from[WKV7_INPUTS] = {&o.r, &o.s, &o.k, &o.v, &o.a, &o.b, &o.z, &o.dy};
#pragma unroll
    for (int f = 0; f < WKV7_INPUTS; f++)
#pragma unroll 2
        for (int i = static_cast<int>(threadIdx.x); i < RK_WKV_CHUNK * P; i += RkWkvThreads<P>::COUNT) {
            int t = i / P, x = i % P;
            bool there = x < head.n && t0 + t < head.T;
            float value = there ? rk_float(static_cast<const T *>(from[f]->p)[head.token(t0 + t) + static_cast<size_t>(x)]) : 0;
            if (f == DECAY) {
                float gate = wkv7_sigmoid(value);
                value = expf(-KAPPA * gate);
                sh->rows[SLOPE][t][x] = -KAPPA * gate * (1 - gate) * value;
            }
            sh->rows[f][t][x] = value;
        }
}

template <typename T, int P> __global__ void __launch_bounds__(RkWkvThreads<P>::COUNT, 1) wkv7_bwd_kernel(RkWkv7 o) {
    RK_DYNAMIC_SHARED(Wkv7Shared<P>, sh);
    const RkWkvThreads<P> me;
    const RkWkvHead head(o.r);
    float S[RK_WKV_EACH], D_row[RK_WKV_EACH], D_column[RK_WKV_EACH];
    rk_wkv_get(me, head.state(o.dsT), head.n, false, D_row);
    rk_wkv_get(me, head.state(o.dsT), head.n, true, D_column);

    for (int chunk = head.chunks - 1; chunk >= 0; chunk--) {
        int t0 = chunk * RK_WKV_CHUNK, tokens = min(head.T - t0, static_cast<int>(RK_WKV_CHUNK));
        __syncthreads(); /* the chunk after this one is done with the rows */
        wkv7_stage<T, P>(o, head, t0, sh);
        __syncthreads();
        rk_wkv_get(me, head.checkpoint(o.ckpt, chunk), head.n, false, S);
        auto step = [&](int t, float *state) { wkv7_row_step(me, *sh, t, state); };
        sh->kept.run(tokens, S, step);
#pragma unroll 1
        for (int t = tokens - 1; t >= 0; t--) {
            float dr = 0, dk = 0, dv = 0, da = 0, db = 0, dd = 0, dz = 0;
            float dy_slot = sh->rows[DY][t][me.slot], r_slot = sh->rows[R][t][me.slot], d_slot = sh->rows[DECAY][t][me.slot], a_slot = sh->rows[A][t][me.slot];
            auto by_key = [&](int e, float r, float k, float b) {
                D_column[e] += dy_slot * r;
                dv += D_column[e] * k;
                dz += D_column[e] * b;
            };
            me.each(by_key, sh->rows[R][t], sh->rows[K][t], sh->rows[B][t]);
            dz = me.sum(dz), dv = me.sum(dv);
            if (me.part == 0) sh->dz[t & 1][me.slot] = dz;
            auto by_value = [&](int e, float dy, float v, float z) {
                dr += S[e] * dy;
                D_row[e] += dy * r_slot;
                dk += D_row[e] * v;
                db += D_row[e] * z;
            };
            me.each(by_value, sh->rows[DY][t], sh->rows[V][t], sh->rows[Z][t]);
            sh->kept.before(t, S, step);
            __syncthreads(); /* dz of all slots; its other copy may be written after the next */
            me.each([&](int e, float d, float a) { D_column[e] = D_column[e] * d + dz * a; }, sh->rows[DECAY][t], sh->rows[A][t]);
            auto before = [&](int e, float dz_e) {
                da += S[e] * dz_e;
                dd += S[e] * D_row[e];
                D_row[e] = D_row[e] * d_slot + dz_e * a_slot;
            };
            me.each(before, sh->dz[t & 1]);
            dr = me.sum(dr), dk = me.sum(dk), da = me.sum(da), db = me.sum(db), dd = me.sum(dd);
            if (me.part || me.slot >= head.n) continue;
            size_t at = head.token(t0 + t) + static_cast<size_t>(me.slot);
            auto add = [&](const RkTensor &to, float x) { T &sum = static_cast<T *>(to.p)[at]; sum = rk_element<T>(rk_float(sum) + x); };
            add(o.dr, dr), add(o.dk, dk), add(o.dv, dv);
            static_cast<T *>(o.ds.p)[at] = rk_element<T>(sh->rows[SLOPE][t][me.slot] * dd);
            static_cast<T *>(o.da.p)[at] = rk_element<T>(da);
            static_cast<T *>(o.db.p)[at] = rk_element<T>(db);
        }
    }
    if (o.ds0.p) rk_wkv_put(me, head.state(o.ds0), head.n, D_column);
}

static dim3 wkv7_blocks(const RkWkv7 *o) { return dim3(static_cast<unsigned>(o->r.d[0] * o->r.d[2])); }

extern "C" int rk_cuda_wkv7_fwd(const RkWkv7 *o) {
    if (rk_wkv7_chunked(o)) return rk_wkv7_chunk_fwd(o, rk_stream());
    RK_CUDA_BY_DTYPE(o->r.dtype, T, RK_WKV_BY_SIZE(o->r.d[3], P, {
        return rk_launch(wkv7_fwd_kernel<T, P>, wkv7_blocks(o), RkWkvThreads<P>::COUNT, 0, rk_stream(), *o);
    }));
}

extern "C" int rk_cuda_wkv7_bwd(const RkWkv7 *o) {
    if (rk_wkv7_chunked(o)) return rk_wkv7_chunk_bwd(o, rk_stream());
    RK_CUDA_BY_DTYPE(o->r.dtype, T, RK_WKV_BY_SIZE(o->r.d[3], P, {
        return rk_launch(wkv7_bwd_kernel<T, P>, wkv7_blocks(o), RkWkvThreads<P>::COUNT, sizeof(Wkv7Shared<P>), rk_stream(), *o);
    }));
}
