#include "ops/backend_cpu.h"

#define BOTH(op) .op##_fwd = rk_cpu_##op##_fwd, .op##_bwd = rk_cpu_##op##_bwd
#define FORWARD(op) .op##_fwd = rk_cpu_##op##_fwd

/* The fast backend: SIMD kernels and BLAS, float32. */
const RkBackend rk_backend_cpu = {
    .name = "cpu",
    .dtype = RK_F32,
    .scratch_bytes = rk_cpu_wkv7_scratch_bytes,
    BOTH(embed),
    FORWARD(add),
    BOTH(layernorm),
    BOTH(linear),
    BOTH(lowrank),
    BOTH(shift_lerp),
    BOTH(value_residual),
    BOTH(key_prep),
    BOTH(out_gate),
    BOTH(wkv7),
    BOTH(relu2),
    FORWARD(xent),
    FORWARD(adamw),
    FORWARD(sumsq),
};
