#include "ops/backend_cpu.h"

static RkNormGateRows norm_gate_rows(const RkNormGate *o) {
    return (RkNormGateRows){
        .y = rk_f32(o->y), .w = rk_f32(o->w), .b = rk_f32(o->b), .g = rk_f32(o->g), .do_ = rk_f32(o->do_), .o = rk_f32(o->o),
        .dy = rk_f32(o->dy), .dg = rk_f32(o->dg), .dw = rk_f32(o->dw), .db = rk_f32(o->db),
        .R = (size_t)o->y.d[0] * (size_t)o->y.d[1], .H = (size_t)o->y.d[2], .N = (size_t)o->y.d[3], .eps = (float)o->eps};
}

RK_CPU_HEADS_OP(norm_gate, RkNormGate, RkNormGateRows, &a.dw, &a.db)
