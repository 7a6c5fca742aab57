#include "ops/backend_cuda.h"

#include "cuda/head_norm.h"
#include "cuda/sigmoid.h"

template <typename T> struct NormGate {
    RkHeads heads;
    const T *y, *w, *b, *g, *do_;
    T *o, *dy, *dg;
    float eps;
};

template <typename T> __global__ void norm_gate_rows(NormGate<T> a) {
    constexpr int VEC = RK_VEC<T>;
    RkHeadLane l = rk_head_lane<T>(a.heads);
    float w[VEC], b[VEC], y[VEC], g[VEC];
    rk_load(a.w + l.column, l.n, l.whole, w);
    rk_load(a.b + l.column, l.n, l.whole, b);
    for (int row = l.first; row < l.end; row++) {
        size_t at = static_cast<size_t>(row) * a.heads.H * a.heads.N + l.column;
        rk_load(a.y + at, l.n, l.whole, y);
        rk_load(a.g + at, l.n, l.whole, g);
        RkMoments m = rk_head_moments<T>(y, l, a.heads.N, a.eps);
        for (int i = 0; i < VEC; i++) y[i] = ((y[i] - m.mean) * m.inverse * w[i] + b[i]) * g[i] * rk_sigmoid(g[i]);
        rk_store(a.o + at, l.n, l.whole, y);
    }
}

template <typename T> __global__ void norm_gate_rows_bwd(NormGate<T> a, float *partial) {
    constexpr int VEC = RK_VEC<T>;
    RkHeadLane l = rk_head_lane<T>(a.heads);
    float w[VEC], b[VEC], y[VEC], g[VEC], d[VEC], t[VEC], dw[VEC] = {}, db[VEC] = {};
    rk_load(a.w + l.column, l.n, l.whole, w);
    rk_load(a.b + l.column, l.n, l.whole, b);
    for (int row = l.first; row < l.end; row++) {
        size_t at = static_cast<size_t>(row) * a.heads.H * a.heads.N + l.column;
        rk_load(a.y + at, l.n, l.whole, y);
        rk_load(a.g + at, l.n, l.whole, g);
        rk_load(a.do_ + at, l.n, l.whole, d);
        RkMoments m = rk_head_moments<T>(y, l, a.heads.N, a.eps);
        for (int i = 0; i < VEC; i++) {
            float xhat = (y[i] - m.mean) * m.inverse, gate = rk_sigmoid(g[i]), dnormed = d[i] * g[i] * gate;
            dw[i] += i < l.n ? dnormed * xhat : 0;
            db[i] += dnormed;
            t[i] = dnormed * w[i];
            g[i] = d[i] * (xhat * w[i] + b[i]) * gate * (1 + g[i] * rk_sigmoid(-g[i]));
        }
        rk_store(a.dg + at, l.n, l.whole, g);
        rk_head_norm_bwd<T>(y, t, l, a.heads.N, m, d);
        rk_store(a.dy + at, l.n, l.whole, d);
    }
    rk_head_partial(partial, a.heads, l, 0, 2, dw);
    rk_head_partial(partial, a.heads, l, 1, 2, db);
}

template <typename T> static int run(const RkNormGate *o, bool backward) {
    NormGate<T> a = {{}, rk_ptr<T>(o->y), rk_ptr<T>(o->w), rk_ptr<T>(o->b), rk_ptr<T>(o->g), rk_ptr<T>(o->do_), rk_ptr<T>(o->o), rk_ptr<T>(o->dy),
                     rk_ptr<T>(o->dg), static_cast<float>(o->eps)};
    RK_TRY(rk_heads<T>(o->y, rk_all_aligned({a.y, a.w, a.b, a.g, a.do_, a.o, a.dy, a.dg}), &a.heads));
    if (!backward) return rk_launch(norm_gate_rows<T>, rk_head_blocks(a.heads), RK_HEAD_THREADS, 0, rk_stream(), a);
    return rk_head_gradients(norm_gate_rows_bwd<T>, a, 2, {{rk_ptr<float>(o->dw), rk_ptr<float>(o->db)}});
}

int rk_cuda_norm_gate_fwd(const RkNormGate *o) { RK_CUDA_BY_DTYPE(o->y.dtype, T, return run<T>(o, false)) }
int rk_cuda_norm_gate_bwd(const RkNormGate *o) { RK_CUDA_BY_DTYPE(o->y.dtype, T, return run<T>(o, true)) }
