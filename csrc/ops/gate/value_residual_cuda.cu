#include "ops/backend_cuda.h"

#include "cuda/map.h"
#include "cuda/sigmoid.h"

struct ValueResidual { /* v0, v_first, nu -> v */
    __device__ void operator()(const float *in, float *out) const { out[0] = in[0] + (in[1] - in[0]) * rk_sigmoid(in[2]); }
};
struct ValueResidualBackward { /* v0, v_first, nu, dv, dv_first -> dv0, dnu, dv_first */
    __device__ void operator()(const float *in, float *out) const {
        float gate = rk_sigmoid(in[2]), dv = in[3];
        out[0] = dv * (1 - gate);
        out[1] = dv * (in[1] - in[0]) * rk_sigmoid_slope(in[2]);
        out[2] = in[4] + dv * gate;
    }
};

int rk_cuda_value_residual_fwd(const RkValueResidual *o) {
    return rk_map<3, 1>(o->v0.dtype, rk_numel(o->v0), {o->v0.p, o->v_first.p, o->nu.p}, {o->v.p}, ValueResidual{});
}
int rk_cuda_value_residual_bwd(const RkValueResidual *o) {
    return rk_map<5, 3>(o->v0.dtype, rk_numel(o->v0), {o->v0.p, o->v_first.p, o->nu.p, o->dv.p, o->dv_first.p},
                        {o->dv0.p, o->dnu.p, o->dv_first.p}, ValueResidualBackward{});
}
