#include "ops/backend_cuda.h"

#include "cuda/map.h"

struct Add {
    __device__ void operator()(const float *in, float *out) const { out[0] = in[0] + in[1]; }
};

int rk_cuda_add_fwd(const RkAdd *o) { return rk_map<2, 1>(o->y.dtype, rk_numel(o->y), {o->a.p, o->b.p}, {o->y.p}, Add{}); }
