#include "ops/ops.h"

typedef double real;
#include "ops/backend_ref.h"

const RkBackend rk_backend_ref_f64 = {
    .name = "ref64", .dtype = RK_F64, .sum_dtype = RK_F64, .scratch_bytes = scratch_bytes,
#define X(op, Args, FIELDS) .op##_fwd = op##_fwd, .op##_bwd = op##_bwd,
    RK_OPS(X)
#undef X
};
