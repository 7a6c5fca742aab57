#include "ops/backend_cuda.h"

#ifdef RK_HAVE_CUDA
#include "cuda/device.h"

#define BOTH(op) .op##_fwd = rk_cuda_##op##_fwd, .op##_bwd = rk_cuda_##op##_bwd
#define FORWARD(op) .op##_fwd = rk_cuda_##op##_fwd

/* Ops look at the element types of their arguments, so that the backends differ in what a model's tensors are. */
#define CUDA_OPS                                                                                         \
    BOTH(embed), FORWARD(add), BOTH(layernorm), BOTH(linear), BOTH(lowrank), BOTH(shift_lerp), BOTH(ddlerp), \
    BOTH(value_residual), BOTH(key_prep), BOTH(out_gate), BOTH(norm_gate), BOTH(sigmoid_gate),           \
    BOTH(initial_state), BOTH(wkv5), BOTH(wkv6), BOTH(wkv7), BOTH(relu2), BOTH(gelu), BOTH(rope), BOTH(attention),      \
    FORWARD(xent), FORWARD(adamw), FORWARD(sumsq)

static int open_exact(int device, RkMemory **memory) { return rk_cuda_open(device, 0, memory); }
static int open_tf32(int device, RkMemory **memory) { return rk_cuda_open(device, 1, memory); }
static size_t scratch_bytes(int head_size) { return (void)head_size, 0; /* of the host's threads */ }

#define CUDA_BACKEND(symbol, called, type, opened)                                                        \
    const RkBackend symbol = {.name = called, .dtype = type, .sum_dtype = RK_F32, .open = opened, .scratch_bytes = scratch_bytes, CUDA_OPS}

CUDA_BACKEND(rk_backend_cuda_f32, "cuda-fp32", RK_F32, open_exact);
CUDA_BACKEND(rk_backend_cuda_tf32, "cuda-tf32", RK_F32, open_tf32);
CUDA_BACKEND(rk_backend_cuda_bf16, "cuda-bf16", RK_BF16, open_exact);
CUDA_BACKEND(rk_backend_cuda_f16, "cuda-fp16", RK_F16, open_exact);
#endif
