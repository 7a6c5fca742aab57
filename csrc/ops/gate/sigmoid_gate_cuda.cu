#include "ops/backend_cuda.h"

#include "cuda/map.h"
#include "cuda/sigmoid.h"

struct SigmoidGate {
    __device__ void operator()(const float *in, float *out) const { out[0] = rk_sigmoid(in[0]) * in[1]; }
};
struct SigmoidGateBackward { /* q, v, dy -> dq, dv */
    __device__ void operator()(const float *in, float *out) const {
        out[0] = in[2] * in[1] * rk_sigmoid_slope(in[0]);
        out[1] = in[2] * rk_sigmoid(in[0]);
    }
};

int rk_cuda_sigmoid_gate_fwd(const RkSigmoidGate *o) {
    return rk_map<2, 1>(o->q.dtype, rk_numel(o->q), {o->q.p, o->v.p}, {o->y.p}, SigmoidGate{});
}
int rk_cuda_sigmoid_gate_bwd(const RkSigmoidGate *o) {
    return rk_map<3, 2>(o->q.dtype, rk_numel(o->q), {o->q.p, o->v.p, o->dy.p}, {o->dq.p, o->dv.p}, SigmoidGateBackward{});
}
