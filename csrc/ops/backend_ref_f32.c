#include "ops/ops.h"

typedef float real;
#include "ops/backend_ref.h"

const RkBackend rk_backend_ref_f32 = {
    .name = "ref", .dtype = RK_F32, .sum_dtype = RK_F32, .scratch_bytes = scratch_bytes,
#define X(op, Args, FIELDS) .op##_fwd = op##_fwd, .op##_bwd = op##_bwd,
    RK_OPS(X)
#undef X
};
