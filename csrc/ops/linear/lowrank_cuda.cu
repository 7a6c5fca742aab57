#include "ops/backend_cuda.h"

#include "cuda/blas.h"
#include "cuda/column_sum.h"
#include "cuda/map.h"
#include "cuda/sigmoid.h"
#include "ops/linear/few_rows_cuda.h"

struct Activation {
    int act;
    __device__ void operator()(const float *in, float *out) const { out[0] = act == RK_ACT_TANH ? tanhf(in[0]) : rk_sigmoid(in[0]); }
};

/* dh times the derivative, from the activation's value. */
struct Slope {
    int act;
    __device__ void operator()(const float *in, float *out) const { out[0] = in[0] * (act == RK_ACT_TANH ? 1 - in[1] * in[1] : in[1] * (1 - in[1])); }
};

struct Sizes { int R, C, D, O, dtype; };
static Sizes sizes(const RkLowrank *o) {
    int C = static_cast<int>(rk_rows(o->m1)), D = static_cast<int>(rk_rows(o->m2));
    return {static_cast<int>(rk_numel(o->h) / D), C, D, rk_cols(o->m2), o->h.dtype};
}

int rk_cuda_products_fwd(const RkProducts *p) {
    bool few = true;
    for (int i = 0; i < RK_MAX_PRODUCTS; i++)
        few = few && (!p->linear[i] || rk_cuda_few_rows_linear(p->linear[i])) && (!p->lowrank[i] || rk_cuda_few_rows_lowrank(p->lowrank[i]));
    if (few) return rk_cuda_few_rows(p);
    for (int i = 0; i < RK_MAX_PRODUCTS; i++) {
        if (p->linear[i]) RK_TRY(rk_cuda_linear_fwd(p->linear[i]));
        if (p->lowrank[i]) RK_TRY(rk_cuda_lowrank_fwd(p->lowrank[i]));
    }
    return RK_OK;
}

int rk_cuda_lowrank_fwd(const RkLowrank *o) {
    if (rk_cuda_few_rows_lowrank(o)) {
        RkProducts one = {{}, {o}};
        return rk_cuda_few_rows(&one);
    }
    RK_TRY(rk_same_type("lowrank", o->m1, o->h));
    RK_TRY(rk_same_type("lowrank", o->m2, o->h));
    Sizes s = sizes(o);
    RkCudaGemm inner = {s.R, s.D, s.C, s.dtype, s.dtype, o->x.p, o->m1.p, nullptr, o->h.p, s.C, s.D, s.D, 0, 0, 0};
    RkCudaGemm outer = {s.R, s.O, s.D, s.dtype, s.dtype, o->h.p, o->m2.p, o->bias.p, o->y.p, s.D, s.O, s.O, 0, 0, 0};
    if (o->x.p) { /* without it h is there */
        RK_TRY(rk_cuda_gemm(&inner));
        if (o->act != RK_ACT_NONE) RK_TRY((rk_map<1, 1>(s.dtype, rk_numel(o->h), {o->h.p}, {o->h.p}, Activation{o->act})));
    }
    return rk_cuda_gemm(&outer);
}

int rk_cuda_lowrank_bwd(const RkLowrank *o) {
    Sizes s = sizes(o);
    RkCudaGemm dh = {s.R, s.D, s.O, s.dtype, s.dtype, o->dy.p, o->m2.p, nullptr, o->dh.p, s.O, s.O, s.D, 0, 1, 0};
    RkCudaGemm dm2 = {s.D, s.O, s.R, s.dtype, RK_F32, o->h.p, o->dy.p, nullptr, o->dm2.p, s.D, s.O, s.O, 1, 0, 1};
    RkCudaGemm dm1 = {s.C, s.D, s.R, s.dtype, RK_F32, o->x.p, o->dh.p, nullptr, o->dm1.p, s.C, s.D, s.D, 1, 0, 1};
    RkCudaGemm dx = {s.R, s.C, s.D, s.dtype, s.dtype, o->dh.p, o->m1.p, nullptr, o->dx.p, s.D, s.D, s.C, 0, 1, 0};
    RK_TRY(rk_cuda_gemm(&dh));
    if (o->act != RK_ACT_NONE) RK_TRY((rk_map<2, 1>(s.dtype, rk_numel(o->dh), {o->dh.p, o->h.p}, {o->dh.p}, Slope{o->act})));
    RK_TRY(rk_cuda_gemm(&dm2));
    if (o->dbias.p) RK_CUDA_BY_DTYPE(s.dtype, T, RK_TRY(rk_column_sum(rk_ptr<T>(o->dy), s.R, s.O, rk_ptr<float>(o->dbias))))
    RK_TRY(rk_cuda_gemm(&dm1));
    return rk_cuda_gemm(&dx);
}
