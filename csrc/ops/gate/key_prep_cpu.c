#include "ops/backend_cpu.h"

static RkKeyPrepRows key_prep_rows(const RkKeyPrep *o) {
    return (RkKeyPrepRows){
        .k0 = rk_f32(o->k0), .a = rk_f32(o->a), .k_k = rk_f32(o->k_k), .k_a = rk_f32(o->k_a), .dk = rk_f32(o->dk),
        .dalpha = rk_f32(o->dalpha), .dbeta = rk_f32(o->dbeta), .k = rk_f32(o->k), .alpha = rk_f32(o->alpha),
        .beta = rk_f32(o->beta), .dk0 = rk_f32(o->dk0), .da = rk_f32(o->da), .dk_k = rk_f32(o->dk_k), .dk_a = rk_f32(o->dk_a),
        .R = (size_t)o->k0.d[0] * (size_t)o->k0.d[1], .H = (size_t)o->k0.d[2], .N = (size_t)o->k0.d[3]};
}

RK_CPU_HEADS_OP(key_prep, RkKeyPrep, RkKeyPrepRows, &a.dk_k, &a.dk_a)
