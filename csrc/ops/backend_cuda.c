#include "ops/backend_cuda.h"

#ifdef RK_HAVE_CUDA
#include <stdio.h>
#include <string.h>

#include "cuda/device.h"

static const RkTensor *tensor_of(const RkField *f, const void *args) {
    const RkTensor *t = (const RkTensor *)((const char *)args + f->offset);
    return f->kind == RK_FIELD_T && t->p ? t : NULL;
}

/* Puts an op's name, and the shape of the first tensor it was called on, before what is said of its failure. */
static int told(int rc, const char *name, const char *direction, const void *args) {
    if (rc != RK_EDEVICE) return rc;
    char why[400], shape[48] = "";
    snprintf(why, sizeof why, "%s", rk_error());
    const RkOpInfo *op = rk_op_info;
    while (strcmp(op->name, name)) op++;
    const RkField *f = op->fields, *end = f + op->n_fields;
    while (f < end && !tensor_of(f, args)) f++;
    if (f == end) return rk_fail(rc, "%s %s: %s", name, direction, why);
    const RkTensor *t = tensor_of(f, args);
    for (int k = 0, n = 0; k < rk_rank(*t); k++) n += snprintf(shape + n, sizeof shape - (size_t)n, "%s%d", k ? ", " : "", t->d[k]);
    return rk_fail(rc, "%s %s, %s (%s): %s", name, direction, f->name, shape, why);
}

#define X(op, Args, FIELDS) static int op##_fwd(const Args *o) { return told(rk_cuda_##op##_fwd(o), #op, "forward", o); }
RK_OPS(X)
#undef X

#define BACKWARD(op, Args) static int op##_bwd(const Args *o) { return told(rk_cuda_##op##_bwd(o), #op, "backward", o); }
BACKWARD(embed, RkEmbed)
BACKWARD(layernorm, RkLayerNorm)
BACKWARD(linear, RkLinear)
BACKWARD(lowrank, RkLowrank)
BACKWARD(shift_lerp, RkShiftLerp)
BACKWARD(ddlerp, RkDdlerp)
BACKWARD(value_residual, RkValueResidual)
BACKWARD(key_prep, RkKeyPrep)
BACKWARD(out_gate, RkOutGate)
BACKWARD(norm_gate, RkNormGate)
BACKWARD(sigmoid_gate, RkSigmoidGate)
BACKWARD(initial_state, RkInitialState)
BACKWARD(wkv5, RkWkv6)
BACKWARD(wkv6, RkWkv6)
BACKWARD(wkv7, RkWkv7)
BACKWARD(relu2, RkRelu2)
BACKWARD(gelu, RkGelu)
BACKWARD(rope, RkRope)
BACKWARD(attention, RkAttention)

#define BOTH(op) .op##_fwd = op##_fwd, .op##_bwd = op##_bwd
#define FORWARD(op) .op##_fwd = op##_fwd

/* Ops look at the element types of their arguments, so that the backends differ in what a model's tensors are. */
#define CUDA_OPS                                                                                         \
    BOTH(embed), FORWARD(add), BOTH(layernorm), BOTH(linear), BOTH(lowrank), BOTH(shift_lerp), BOTH(ddlerp), \
    BOTH(value_residual), BOTH(key_prep), BOTH(out_gate), BOTH(norm_gate), BOTH(sigmoid_gate),           \
    BOTH(initial_state), BOTH(wkv5), BOTH(wkv6), BOTH(wkv7), BOTH(relu2), BOTH(gelu), BOTH(rope), BOTH(attention),      \
    FORWARD(xent), FORWARD(sum), FORWARD(adamw), FORWARD(sumsq), FORWARD(clip), .draw = rk_cuda_draw

static int open_exact(int device, RkMemory **memory) { return rk_cuda_open(device, 0, memory); }
static int open_tf32(int device, RkMemory **memory) { return rk_cuda_open(device, 1, memory); }
static size_t scratch_bytes(int head_size) { return (void)head_size, 0; /* of the host's threads */ }

#define CUDA_BACKEND(symbol, called, type, opened, ...)                                                        \
    const RkBackend symbol = {.name = called, .dtype = type, .sum_dtype = RK_F32, .open = opened, .scratch_bytes = scratch_bytes,        \
                              .products_fwd = rk_cuda_products_fwd, CUDA_OPS, __VA_ARGS__}

CUDA_BACKEND(rk_backend_cuda_f32, "cuda-fp32", RK_F32, open_exact);
CUDA_BACKEND(rk_backend_cuda_tf32, "cuda-tf32", RK_F32, open_tf32);
CUDA_BACKEND(rk_backend_cuda_bf16, "cuda-bf16", RK_BF16, open_exact, .columns_rows = 1, .columns_fit = rk_cuda_columns_fit, .columns = rk_cuda_columns);
CUDA_BACKEND(rk_backend_cuda_f16, "cuda-fp16", RK_F16, open_exact, .columns_rows = 1, .columns_fit = rk_cuda_columns_fit, .columns = rk_cuda_columns);
#endif
