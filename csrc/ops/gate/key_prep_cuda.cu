#include "ops/backend_cuda.h"

#include "cuda/heads.h"
#include "cuda/sigmoid.h"

template <typename T> struct KeyPrep {
    RkHeads heads;
    const T *k0, *a, *k_k, *k_a, *dk, *dalpha, *dbeta;
    T *k, *alpha, *beta, *dk0, *da;
};

/* 1 / max(|q|, 1e-12) of the head; *tiny tells that the floor was used. Squares are taken of numbers near 1: those of numbers below
 * 1e-19 would vanish in float32. */
template <typename T> __device__ float head_inverse(const float *q, int lanes, bool *tiny) {
    float top = 0, sum = 0;
    for (int i = 0; i < RK_VEC<T>; i++) top = fmaxf(top, fabsf(q[i]));
    for (int offset = lanes / 2; offset; offset >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
    float scale = top > 0 ? 1 / top : 1;
    if (!(scale < 3e38f)) scale = 3e38f; /* 1 / top overflows where top is subnormal */
    for (int i = 0; i < RK_VEC<T>; i++) sum += q[i] * scale * (q[i] * scale);
    float norm = sqrtf(rk_head_sum(sum, lanes)) / scale;
    *tiny = norm < 1e-12f;
    return *tiny ? 1e12f : 1 / norm;
}

template <typename T> __global__ void key_prep_rows(KeyPrep<T> a) {
    constexpr int VEC = RK_VEC<T>;
    RkHeadLane l = rk_head_lane<T>(a.heads);
    float k_k[VEC], k_a[VEC], k0[VEC], rate[VEC], q[VEC], k[VEC], alpha[VEC], beta[VEC];
    rk_load(a.k_k + l.column, l.n, l.whole, k_k);
    rk_load(a.k_a + l.column, l.n, l.whole, k_a);
    for (int r = l.first; r < l.end; r++) {
        size_t at = static_cast<size_t>(r) * a.heads.H * a.heads.N + l.column;
        bool tiny;
        rk_load(a.k0 + at, l.n, l.whole, k0);
        rk_load(a.a + at, l.n, l.whole, rate);
        for (int i = 0; i < VEC; i++) q[i] = k0[i] * k_k[i];
        float inverse = head_inverse<T>(q, l.lanes, &tiny);
        for (int i = 0; i < VEC; i++) {
            float khat = q[i] * inverse, ar = rk_sigmoid(rate[i]);
            k[i] = k0[i] * (1 + (ar - 1) * k_a[i]);
            alpha[i] = -khat;
            beta[i] = khat * ar;
        }
        rk_store(a.k + at, l.n, l.whole, k);
        rk_store(a.alpha + at, l.n, l.whole, alpha);
        rk_store(a.beta + at, l.n, l.whole, beta);
    }
}

template <typename T> __global__ void key_prep_rows_bwd(KeyPrep<T> a, float *partial) {
    constexpr int VEC = RK_VEC<T>;
    RkHeadLane l = rk_head_lane<T>(a.heads);
    float k_k[VEC], k_a[VEC], k0[VEC], ra[VEC], dk[VEC], dalpha[VEC], dbeta[VEC], q[VEC], dk_k[VEC] = {}, dk_a[VEC] = {};
    rk_load(a.k_k + l.column, l.n, l.whole, k_k);
    rk_load(a.k_a + l.column, l.n, l.whole, k_a);
    for (int r = l.first; r < l.end; r++) {
        size_t at = static_cast<size_t>(r) * a.heads.H * a.heads.N + l.column;
        bool tiny;
        rk_load(a.k0 + at, l.n, l.whole, k0);
        rk_load(a.a + at, l.n, l.whole, ra);
        rk_load(a.dk + at, l.n, l.whole, dk);
        rk_load(a.dalpha + at, l.n, l.whole, dalpha);
        rk_load(a.dbeta + at, l.n, l.whole, dbeta);
        for (int i = 0; i < VEC; i++) q[i] = k0[i] * k_k[i];
        float inverse = head_inverse<T>(q, l.lanes, &tiny), dot = 0;
        for (int i = 0; i < VEC; i++) dot += q[i] * inverse * (dbeta[i] * rk_sigmoid(ra[i]) - dalpha[i]);
        dot = rk_head_sum(dot, l.lanes);
        if (tiny) dot = 0;
        for (int i = 0; i < VEC; i++) {
            float ar = rk_sigmoid(ra[i]), khat = q[i] * inverse, dq = (dbeta[i] * ar - dalpha[i] - khat * dot) * inverse;
            float drate = dbeta[i] * khat + dk[i] * k0[i] * k_a[i];
            dk_k[i] += dq * k0[i];
            dk_a[i] += dk[i] * k0[i] * (ar - 1);
            dk[i] = dk[i] * (1 + (ar - 1) * k_a[i]) + dq * k_k[i];
            ra[i] = drate * rk_sigmoid_slope(ra[i]);
        }
        rk_store(a.da + at, l.n, l.whole, ra);
        rk_store(a.dk0 + at, l.n, l.whole, dk);
    }
    rk_head_partial(partial, a.heads, l, 0, 2, dk_k);
    rk_head_partial(partial, a.heads, l, 1, 2, dk_a);
}

template <typename T> static int run(const RkKeyPrep *o, bool backward) {
    KeyPrep<T> a = {{}, rk_ptr<T>(o->k0), rk_ptr<T>(o->a), rk_ptr<T>(o->k_k), rk_ptr<T>(o->k_a), rk_ptr<T>(o->dk), rk_ptr<T>(o->dalpha),
                    rk_ptr<T>(o->dbeta), rk_ptr<T>(o->k), rk_ptr<T>(o->alpha), rk_ptr<T>(o->beta), rk_ptr<T>(o->dk0), rk_ptr<T>(o->da)};
    RK_TRY(rk_heads<T>(o->k0, rk_all_aligned({a.k0, a.a, a.k_k, a.k_a, a.dk, a.dalpha, a.dbeta, a.k, a.alpha, a.beta, a.dk0, a.da}), &a.heads));
    if (!backward) return rk_launch(key_prep_rows<T>, rk_head_blocks(a.heads), RK_HEAD_THREADS, 0, rk_stream(), a);
    return rk_head_gradients(key_prep_rows_bwd<T>, a, 2, {{rk_ptr<float>(o->dk_k), rk_ptr<float>(o->dk_a)}});
}

int rk_cuda_key_prep_fwd(const RkKeyPrep *o) { RK_CUDA_BY_DTYPE(o->k0.dtype, T, return run<T>(o, false)) }
int rk_cuda_key_prep_bwd(const RkKeyPrep *o) { RK_CUDA_BY_DTYPE(o->k0.dtype, T, return run<T>(o, true)) }
