#include "ops/backend_cuda.h"

#include "cuda/map.h"

/* Phi(x) = erfc(-x / sqrt 2) / 2, which keeps its digits where it is small. */
__device__ static float phi(float x) { return 0.5f * erfcf(-x * 0.70710678118654752440f); }

struct Gelu {
    __device__ void operator()(const float *in, float *out) const { out[0] = in[0] * phi(in[0]); }
};
struct GeluBackward {
    __device__ void operator()(const float *in, float *out) const {
        float density = 0.39894228040143267794f * expf(-0.5f * in[0] * in[0]);
        out[0] = (phi(in[0]) + in[0] * density) * in[1];
    }
};

int rk_cuda_gelu_fwd(const RkGelu *o) { return rk_map<1, 1>(o->x.dtype, rk_numel(o->x), {o->x.p}, {o->y.p}, Gelu{}); }
int rk_cuda_gelu_bwd(const RkGelu *o) { return rk_map<2, 1>(o->x.dtype, rk_numel(o->x), {o->x.p, o->dy.p}, {o->dx.p}, GeluBackward{}); }
