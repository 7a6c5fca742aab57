#include "ops/backend_cpu.h"

#include "kernels/gemm.h"

#define BOTH(op) .op##_fwd = rk_cpu_##op##_fwd, .op##_bwd = rk_cpu_##op##_bwd
#define FORWARD(op) .op##_fwd = rk_cpu_##op##_fwd

/* The most any op takes for heads of this size. */
static size_t scratch_bytes(int head_size) {
    size_t (*const ops[])(int) = {rk_cpu_wkv6_scratch_bytes, rk_cpu_wkv7_scratch_bytes, rk_cpu_attention_scratch_bytes};
    size_t most = RK_GEMM_TASK_SCRATCH;
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (ops[i](head_size) > most) most = ops[i](head_size);
    return most;
}

/* The fast backend: SIMD kernels, float32. */
const RkBackend rk_backend_cpu = {
    .name = "cpu",
    .dtype = RK_F32,
    .sum_dtype = RK_F32,
    .scratch_bytes = scratch_bytes,
    .call_scratch_bytes = RK_GEMM_CALL_SCRATCH,
    BOTH(embed),
    FORWARD(add),
    BOTH(layernorm),
    BOTH(linear),
    BOTH(lowrank),
    BOTH(shift_lerp),
    BOTH(ddlerp),
    BOTH(value_residual),
    BOTH(key_prep),
    BOTH(out_gate),
    BOTH(norm_gate),
    BOTH(sigmoid_gate),
    BOTH(initial_state),
    BOTH(wkv5),
    BOTH(wkv6),
    BOTH(wkv7),
    BOTH(relu2),
    BOTH(gelu),
    BOTH(rope),
    BOTH(attention),
    FORWARD(xent),
    FORWARD(adamw),
    FORWARD(sumsq),
    FORWARD(sum),
    FORWARD(clip),
    .columns_rows = RK_FEW_ROWS,
    .columns_fit = rk_columns_fit,
    .columns = rk_columns_of,
    .products_fwd = rk_cpu_products_fwd,
};
