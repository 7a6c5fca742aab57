#include "ops/backend_cuda.h"

#include "cuda/head_norm.h"

template <typename T> struct OutGate {
    RkHeads heads;
    const T *y, *r, *k, *v, *r_k, *w, *b, *g, *do_;
    T *o, *dy, *dr, *dk, *dv, *dg;
    float eps;
};

template <typename T> __global__ void out_gate_rows(OutGate<T> a) {
    constexpr int VEC = RK_VEC<T>;
    RkHeadLane l = rk_head_lane<T>(a.heads);
    float r_k[VEC], w[VEC], b[VEC], y[VEC], r[VEC], k[VEC], v[VEC], g[VEC];
    rk_load(a.r_k + l.column, l.n, l.whole, r_k);
    rk_load(a.w + l.column, l.n, l.whole, w);
    rk_load(a.b + l.column, l.n, l.whole, b);
    for (int row = l.first; row < l.end; row++) {
        size_t at = static_cast<size_t>(row) * a.heads.H * a.heads.N + l.column;
        rk_load(a.y + at, l.n, l.whole, y);
        rk_load(a.r + at, l.n, l.whole, r);
        rk_load(a.k + at, l.n, l.whole, k);
        rk_load(a.v + at, l.n, l.whole, v);
        rk_load(a.g + at, l.n, l.whole, g);
        RkMoments m = rk_head_moments<T>(y, l, a.heads.N, a.eps);
        float bonus = 0;
        for (int i = 0; i < VEC; i++) bonus += r[i] * k[i] * r_k[i];
        bonus = rk_head_sum(bonus, l.lanes);
        for (int i = 0; i < VEC; i++) y[i] = ((y[i] - m.mean) * m.inverse * w[i] + b[i] + bonus * v[i]) * g[i];
        rk_store(a.o + at, l.n, l.whole, y);
    }
}

template <typename T> __global__ void out_gate_rows_bwd(OutGate<T> a, float *partial) {
    constexpr int VEC = RK_VEC<T>;
    RkHeadLane l = rk_head_lane<T>(a.heads);
    float r_k[VEC], w[VEC], b[VEC], y[VEC], r[VEC], k[VEC], v[VEC], g[VEC], d[VEC], t[VEC], dr_k[VEC] = {}, dw[VEC] = {}, db[VEC] = {};
    rk_load(a.r_k + l.column, l.n, l.whole, r_k);
    rk_load(a.w + l.column, l.n, l.whole, w);
    rk_load(a.b + l.column, l.n, l.whole, b);
    for (int row = l.first; row < l.end; row++) {
        size_t at = static_cast<size_t>(row) * a.heads.H * a.heads.N + l.column;
        rk_load(a.y + at, l.n, l.whole, y);
        rk_load(a.r + at, l.n, l.whole, r);
        rk_load(a.k + at, l.n, l.whole, k);
        rk_load(a.v + at, l.n, l.whole, v);
        rk_load(a.g + at, l.n, l.whole, g);
        rk_load(a.do_ + at, l.n, l.whole, d);
        RkMoments m = rk_head_moments<T>(y, l, a.heads.N, a.eps);
        float bonus = 0, dbonus = 0;
        for (int i = 0; i < VEC; i++) bonus += r[i] * k[i] * r_k[i];
        bonus = rk_head_sum(bonus, l.lanes);
        for (int i = 0; i < VEC; i++) {
            float xhat = (y[i] - m.mean) * m.inverse, d2 = d[i] * g[i];
            g[i] = d[i] * (xhat * w[i] + b[i] + bonus * v[i]);
            dw[i] += i < l.n ? d2 * xhat : 0;
            db[i] += d2;
            dbonus += d2 * v[i];
            v[i] = bonus * d2;
            t[i] = d2 * w[i];
        }
        dbonus = rk_head_sum(dbonus, l.lanes);
        rk_store(a.dg + at, l.n, l.whole, g);
        rk_store(a.dv + at, l.n, l.whole, v);
        for (int i = 0; i < VEC; i++) {
            dr_k[i] += dbonus * r[i] * k[i];
            d[i] = dbonus * k[i] * r_k[i];
            k[i] = dbonus * r[i] * r_k[i];
        }
        rk_store(a.dr + at, l.n, l.whole, d);
        rk_store(a.dk + at, l.n, l.whole, k);
        rk_head_norm_bwd<T>(y, t, l, a.heads.N, m, d);
        rk_store(a.dy + at, l.n, l.whole, d);
    }
    rk_head_partial(partial, a.heads, l, 0, 3, dr_k);
    rk_head_partial(partial, a.heads, l, 1, 3, dw);
    rk_head_partial(partial, a.heads, l, 2, 3, db);
}

template <typename T> static int run(const RkOutGate *o, bool backward) {
    OutGate<T> a = {{}, rk_ptr<T>(o->y), rk_ptr<T>(o->r), rk_ptr<T>(o->k), rk_ptr<T>(o->v), rk_ptr<T>(o->r_k), rk_ptr<T>(o->w), rk_ptr<T>(o->b),
                    rk_ptr<T>(o->g), rk_ptr<T>(o->do_), rk_ptr<T>(o->o), rk_ptr<T>(o->dy), rk_ptr<T>(o->dr), rk_ptr<T>(o->dk), rk_ptr<T>(o->dv),
                    rk_ptr<T>(o->dg), static_cast<float>(o->eps)};
    RK_TRY(rk_heads<T>(o->y, rk_all_aligned({a.y, a.r, a.k, a.v, a.r_k, a.w, a.b, a.g, a.do_, a.o, a.dy, a.dr, a.dk, a.dv, a.dg}), &a.heads));
    if (!backward) return rk_launch(out_gate_rows<T>, rk_head_blocks(a.heads), RK_HEAD_THREADS, 0, rk_stream(), a);
    return rk_head_gradients(out_gate_rows_bwd<T>, a, 3, {{rk_ptr<float>(o->dr_k), rk_ptr<float>(o->dw), rk_ptr<float>(o->db)}});
}

int rk_cuda_out_gate_fwd(const RkOutGate *o) { RK_CUDA_BY_DTYPE(o->y.dtype, T, return run<T>(o, false)) }
int rk_cuda_out_gate_bwd(const RkOutGate *o) { RK_CUDA_BY_DTYPE(o->y.dtype, T, return run<T>(o, true)) }
