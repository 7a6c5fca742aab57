/* ops.h - the list of operations, and what a backend is.
 *
 * An op has one argument struct, shared by forward, backward and every backend. A backend is a table of functions;
 * NULL means "not on this backend". Rules every implementation keeps:
 *   - parameter gradients are added to (+=), activation gradients are written (=) unless the header says otherwise;
 *   - destinations may hold anything before the call (tests fill them with NaN);
 *   - results are the same bits for any number of threads;
 *   - an optional tensor is absent when its pointer is NULL.
 * Every header in ops/<family>/ lists the fields as a macro, so the struct, the table that lets tests call any op by
 * name, and the documentation are the same lines. */
#ifndef RK_OPS_OPS_H
#define RK_OPS_OPS_H

#include "base/err.h"
#include "base/memory.h"
#include "base/tensor.h"

enum { RK_MAX_MIX = 6 };

/* How a field list becomes struct members: tensor, up to six tensors, integer, real number, token ids. */
#define RK_MEMBER_T(name) RkTensor name;
#define RK_MEMBER_T6(name) RkTensor name[RK_MAX_MIX];
#define RK_MEMBER_I(name) int name;
#define RK_MEMBER_F(name) double name;
#define RK_MEMBER_IDS(name) const int32_t *name;
#define RK_ARGS_STRUCT(Name, FIELDS) \
    typedef struct Name { FIELDS(RK_MEMBER_T, RK_MEMBER_T6, RK_MEMBER_I, RK_MEMBER_F, RK_MEMBER_IDS) } Name;

#include "ops/attn/attention.h"
#include "ops/attn/rope.h"
#include "ops/embed/embed.h"
#include "ops/ffn/gelu.h"
#include "ops/ffn/relu2.h"
#include "ops/gate/key_prep.h"
#include "ops/gate/norm_gate.h"
#include "ops/gate/out_gate.h"
#include "ops/gate/sigmoid_gate.h"
#include "ops/gate/value_residual.h"
#include "ops/linear/linear.h"
#include "ops/linear/lowrank.h"
#include "ops/loss/sum.h"
#include "ops/loss/xent.h"
#include "ops/norm/add.h"
#include "ops/norm/layernorm.h"
#include "ops/optim/adamw.h"
#include "ops/optim/clip.h"
#include "ops/optim/sumsq.h"
#include "ops/sample/draw.h"
#include "ops/shift/ddlerp.h"
#include "ops/shift/shift_lerp.h"
#include "ops/wkv/initial_state.h"
#include "ops/wkv/wkv6.h"
#include "ops/wkv/wkv7.h"

/* X(name, Args, FIELDS) */
#define RK_OPS(X)                                             \
    X(embed, RkEmbed, RK_EMBED_FIELDS)                        \
    X(add, RkAdd, RK_ADD_FIELDS)                              \
    X(layernorm, RkLayerNorm, RK_LAYERNORM_FIELDS)            \
    X(linear, RkLinear, RK_LINEAR_FIELDS)                     \
    X(lowrank, RkLowrank, RK_LOWRANK_FIELDS)                  \
    X(shift_lerp, RkShiftLerp, RK_SHIFT_LERP_FIELDS)          \
    X(ddlerp, RkDdlerp, RK_DDLERP_FIELDS)                     \
    X(value_residual, RkValueResidual, RK_VALUE_RESIDUAL_FIELDS) \
    X(key_prep, RkKeyPrep, RK_KEY_PREP_FIELDS)                \
    X(out_gate, RkOutGate, RK_OUT_GATE_FIELDS)                \
    X(norm_gate, RkNormGate, RK_NORM_GATE_FIELDS)             \
    X(sigmoid_gate, RkSigmoidGate, RK_SIGMOID_GATE_FIELDS)    \
    X(initial_state, RkInitialState, RK_INITIAL_STATE_FIELDS) \
    X(wkv5, RkWkv6, RK_WKV6_FIELDS)                           \
    X(wkv6, RkWkv6, RK_WKV6_FIELDS)                           \
    X(wkv7, RkWkv7, RK_WKV7_FIELDS)                           \
    X(relu2, RkRelu2, RK_RELU2_FIELDS)                        \
    X(gelu, RkGelu, RK_GELU_FIELDS)                           \
    X(rope, RkRope, RK_ROPE_FIELDS)                           \
    X(attention, RkAttention, RK_ATTENTION_FIELDS)            \
    X(xent, RkXent, RK_XENT_FIELDS)                           \
    X(sum, RkSum, RK_SUM_FIELDS)                              \
    X(adamw, RkAdamW, RK_ADAMW_FIELDS)                        \
    X(sumsq, RkSumsq, RK_SUMSQ_FIELDS)                        \
    X(clip, RkClip, RK_CLIP_FIELDS)

/* Products of one layer that do not depend on each other; absent ones are NULL. */
enum { RK_MAX_PRODUCTS = 4 };
typedef struct RkProducts {
    const RkLinear *linear[RK_MAX_PRODUCTS];
    const RkLowrank *lowrank[RK_MAX_PRODUCTS];
} RkProducts;

typedef struct RkBackend {
    const char *name;
    int dtype, sum_dtype; /* as in RkStore */
    int (*open)(int device, RkMemory **memory); /* a device's memory; NULL: the host's */
    size_t (*scratch_bytes)(int head_size); /* per thread, beyond the arenas: part of the plan */
    size_t call_scratch_bytes;              /* of the thread that calls, besides */
#define X(op, Args, FIELDS)          \
    int (*op##_fwd)(const Args *);   \
    int (*op##_bwd)(const Args *);
    RK_OPS(X)
#undef X
    int columns_rows; /* linear_fwd of up to so many rows reads columns instead of w; 0: it never does */
    int (*columns_fit)(RkTensor w);           /* whether w has columns */
    int (*columns)(RkTensor w, RkTensor to);  /* writes them, as many bytes */
    int (*products_fwd)(const RkProducts *); /* NULL: nothing is gained by running them together */
    int (*draw)(const RkDraw *); /* NULL: the host draws */
} RkBackend;

/* The forward of each, with the same results as one by one. */
int rk_products_fwd(const RkBackend *be, const RkProducts *p);

extern const RkBackend rk_backend_cpu, rk_backend_ref_f32, rk_backend_ref_f64;
extern const RkBackend rk_backend_cuda_f32, rk_backend_cuda_tf32, rk_backend_cuda_bf16, rk_backend_cuda_f16; /* with RK_HAVE_CUDA */

/* The memory and element types of a new model; rk_store_close ends them. */
int rk_store_open(const RkBackend *be, int device, RkStore *store);
void rk_store_close(RkStore *store);

/* "cpu", "ref" (float32), "ref64", "cuda-fp32", "cuda-tf32", "cuda-bf16" or "cuda-fp16"; NULL with a message when there is no such
 * backend in this build. */
const RkBackend *rk_backend_find(const char *name);

/* ---- the same lists as data, so that one test harness can call every op of every backend ---- */

typedef enum { RK_FIELD_T, RK_FIELD_T6, RK_FIELD_I, RK_FIELD_F, RK_FIELD_IDS } RkFieldKind;
typedef struct RkField { const char *name; RkFieldKind kind; size_t offset; } RkField;
typedef struct RkOpInfo {
    const char *name;
    size_t size; /* of the argument struct */
    const RkField *fields;
    int n_fields;
    size_t fwd_offset, bwd_offset; /* of the function pointers in RkBackend */
} RkOpInfo;
extern const RkOpInfo rk_op_info[];
extern const int rk_op_count;

/* Every function pointer above has this shape once its argument type is forgotten. */
typedef int (*RkOpFn)(const void *args);
static inline RkOpFn rk_op_fn(const RkBackend *be, size_t offset) {
    union { const char *bytes; const RkOpFn *fn; } at = {(const char *)be + offset};
    return *at.fn;
}

#endif
