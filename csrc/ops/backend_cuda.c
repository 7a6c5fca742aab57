#include "ops/backend_cuda.h"

#ifdef RK_HAVE_CUDA
#include <stdio.h>
#include <string.h>

#include "cuda/device.h"

/* Puts what was called, and the shape of a tensor of its arguments, before what is said of its failure. */
static int told(int rc, const char *called, const char *name, RkTensor t) {
    char why[400], shape[48] = "";
    snprintf(why, sizeof why, "%s", rk_error());
    for (int k = 0, n = 0; k < rk_rank(t); k++) n += snprintf(shape + n, sizeof shape - (size_t)n, "%s%d", k ? ", " : "", t.d[k]);
    return rk_fail(rc, "%s, %s (%s): %s", called, name, shape, why);
}

/* The same of an op, with the first tensor that is there. */
static int told_op(int rc, const char *op, const char *direction, const void *args) {
    if (rc != RK_EDEVICE) return rc;
    char called[64];
    snprintf(called, sizeof called, "%s %s", op, direction);
    const RkOpInfo *info = rk_op_info;
    while (strcmp(info->name, op)) info++;
    for (const RkField *f = info->fields; f < info->fields + info->n_fields; f++) {
        const RkTensor *t = (const RkTensor *)((const char *)args + f->offset);
        if (f->kind == RK_FIELD_T && t->p) return told(rc, called, f->name, *t);
    }
    return rc;
}

static int products_fwd(const RkProducts *p) {
    int rc = rk_cuda_products_fwd(p);
    for (int i = 0; rc == RK_EDEVICE && i < RK_MAX_PRODUCTS; i++) {
        if (p->linear[i]) return told(rc, "products that run together", "x of one", p->linear[i]->x);
        if (p->lowrank[i]) return told(rc, "products that run together", "y of one", p->lowrank[i]->y);
    }
    return rc;
}

static int draw(const RkDraw *o) {
    int rc = rk_cuda_draw(o);
    return rc == RK_EDEVICE ? told(rc, "drawing", "logits", (RkTensor){o->logits, RK_F32, {o->n, o->V}}) : rc;
}

#define X(op, Args, FIELDS) static int op##_fwd(const Args *o) { return told_op(rk_cuda_##op##_fwd(o), #op, "forward", o); }
RK_OPS(X)
#undef X

#define BACKWARD(op, Args) static int op##_bwd(const Args *o) { return told_op(rk_cuda_##op##_bwd(o), #op, "backward", o); }
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
    FORWARD(xent), FORWARD(sum), FORWARD(adamw), FORWARD(sumsq), FORWARD(clip), .draw = draw

static int open_exact(int device, RkMemory **memory) { return rk_cuda_open(device, 0, memory); }
static int open_tf32(int device, RkMemory **memory) { return rk_cuda_open(device, 1, memory); }
static size_t scratch_bytes(int head_size) { return (void)head_size, 0; /* of the host's threads */ }

#define CUDA_BACKEND(symbol, called, type, opened, ...)                                                        \
    const RkBackend symbol = {.name = called, .dtype = type, .sum_dtype = RK_F32, .open = opened, .scratch_bytes = scratch_bytes,        \
                              .products_fwd = products_fwd, CUDA_OPS, __VA_ARGS__}

CUDA_BACKEND(rk_backend_cuda_f32, "cuda-fp32", RK_F32, open_exact);
CUDA_BACKEND(rk_backend_cuda_tf32, "cuda-tf32", RK_F32, open_tf32);
CUDA_BACKEND(rk_backend_cuda_bf16, "cuda-bf16", RK_BF16, open_exact, .columns_rows = 1, .columns_fit = rk_cuda_columns_fit, .columns = rk_cuda_columns);
CUDA_BACKEND(rk_backend_cuda_f16, "cuda-fp16", RK_F16, open_exact, .columns_rows = 1, .columns_fit = rk_cuda_columns_fit, .columns = rk_cuda_columns);
#endif
