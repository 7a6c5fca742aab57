#include "ops/ops.h"

#include <string.h>

#define FIELD_T(f) {#f, RK_FIELD_T, offsetof(OP, f)},
#define FIELD_T6(f) {#f, RK_FIELD_T6, offsetof(OP, f)},
#define FIELD_I(f) {#f, RK_FIELD_I, offsetof(OP, f)},
#define FIELD_F(f) {#f, RK_FIELD_F, offsetof(OP, f)},
#define FIELD_IDS(f) {#f, RK_FIELD_IDS, offsetof(OP, f)},
#define ROWS(FIELDS) {FIELDS(FIELD_T, FIELD_T6, FIELD_I, FIELD_F, FIELD_IDS)}

#define OP RkEmbed
static const RkField embed_fields[] = ROWS(RK_EMBED_FIELDS);
#undef OP
#define OP RkAdd
static const RkField add_fields[] = ROWS(RK_ADD_FIELDS);
#undef OP
#define OP RkLayerNorm
static const RkField layernorm_fields[] = ROWS(RK_LAYERNORM_FIELDS);
#undef OP
#define OP RkLinear
static const RkField linear_fields[] = ROWS(RK_LINEAR_FIELDS);
#undef OP
#define OP RkLowrank
static const RkField lowrank_fields[] = ROWS(RK_LOWRANK_FIELDS);
#undef OP
#define OP RkShiftLerp
static const RkField shift_lerp_fields[] = ROWS(RK_SHIFT_LERP_FIELDS);
#undef OP
#define OP RkDdlerp
static const RkField ddlerp_fields[] = ROWS(RK_DDLERP_FIELDS);
#undef OP
#define OP RkValueResidual
static const RkField value_residual_fields[] = ROWS(RK_VALUE_RESIDUAL_FIELDS);
#undef OP
#define OP RkKeyPrep
static const RkField key_prep_fields[] = ROWS(RK_KEY_PREP_FIELDS);
#undef OP
#define OP RkOutGate
static const RkField out_gate_fields[] = ROWS(RK_OUT_GATE_FIELDS);
#undef OP
#define OP RkNormGate
static const RkField norm_gate_fields[] = ROWS(RK_NORM_GATE_FIELDS);
#undef OP
#define OP RkSigmoidGate
static const RkField sigmoid_gate_fields[] = ROWS(RK_SIGMOID_GATE_FIELDS);
#undef OP
#define OP RkInitialState
static const RkField initial_state_fields[] = ROWS(RK_INITIAL_STATE_FIELDS);
#undef OP
#define OP RkWkv6
static const RkField wkv5_fields[] = ROWS(RK_WKV6_FIELDS), wkv6_fields[] = ROWS(RK_WKV6_FIELDS);
#undef OP
#define OP RkWkv7
static const RkField wkv7_fields[] = ROWS(RK_WKV7_FIELDS);
#undef OP
#define OP RkRelu2
static const RkField relu2_fields[] = ROWS(RK_RELU2_FIELDS);
#undef OP
#define OP RkGelu
static const RkField gelu_fields[] = ROWS(RK_GELU_FIELDS);
#undef OP
#define OP RkRope
static const RkField rope_fields[] = ROWS(RK_ROPE_FIELDS);
#undef OP
#define OP RkAttention
static const RkField attention_fields[] = ROWS(RK_ATTENTION_FIELDS);
#undef OP
#define OP RkXent
static const RkField xent_fields[] = ROWS(RK_XENT_FIELDS);
#undef OP
#define OP RkAdamW
static const RkField adamw_fields[] = ROWS(RK_ADAMW_FIELDS);
#undef OP
#define OP RkSumsq
static const RkField sumsq_fields[] = ROWS(RK_SUMSQ_FIELDS);
#undef OP
#define OP RkClip
static const RkField clip_fields[] = ROWS(RK_CLIP_FIELDS);
#undef OP
#define OP RkSum
static const RkField sum_fields[] = ROWS(RK_SUM_FIELDS);
#undef OP

const RkOpInfo rk_op_info[] = {
#define X(op, Args, FIELDS)                                                                            \
    {#op, sizeof(Args), op##_fields, (int)(sizeof op##_fields / sizeof *op##_fields),                  \
     offsetof(RkBackend, op##_fwd), offsetof(RkBackend, op##_bwd)},
    RK_OPS(X)
#undef X
};
const int rk_op_count = (int)(sizeof rk_op_info / sizeof *rk_op_info);

static const RkBackend *const backends[] = {
    &rk_backend_cpu, &rk_backend_ref_f32, &rk_backend_ref_f64,
#ifdef RK_HAVE_CUDA
    &rk_backend_cuda_f32, &rk_backend_cuda_tf32, &rk_backend_cuda_bf16, &rk_backend_cuda_f16,
#endif
};

int rk_store_open(const RkBackend *be, int device, RkStore *store) {
    *store = (RkStore){be->dtype, be->sum_dtype, &rk_host_memory};
    return be->open ? be->open(device, &store->memory) : RK_OK;
}

void rk_store_close(RkStore *store) {
    if (store->memory) store->memory->close(store->memory);
    store->memory = NULL;
}

const RkBackend *rk_backend_find(const char *name) {
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++)
        if (!strcmp(backends[i]->name, name)) return backends[i];
    if (!strncmp(name, "cuda", 4)) rk_fail(RK_EDEVICE, "backend '%s' is not in this build, which was made without CUDA", name);
    else rk_fail(RK_EINVAL, "backend '%s' does not exist; choose cpu, ref or ref64", name);
    return NULL;
}

int rk_products_fwd(const RkBackend *be, const RkProducts *p) {
    if (be->products_fwd) return be->products_fwd(p);
    for (int i = 0; i < RK_MAX_PRODUCTS; i++) {
        if (p->linear[i]) RK_TRY(be->linear_fwd(p->linear[i]));
        if (p->lowrank[i]) RK_TRY(be->lowrank_fwd(p->lowrank[i]));
    }
    return RK_OK;
}
