#include "ops/backend_cpu.h"

static RkOutGateRows out_gate_rows(const RkOutGate *o) {
    return (RkOutGateRows){
        .y = rk_f32(o->y), .r = rk_f32(o->r), .k = rk_f32(o->k), .v = rk_f32(o->v), .r_k = rk_f32(o->r_k), .w = rk_f32(o->w),
        .b = rk_f32(o->b), .g = rk_f32(o->g), .do_ = rk_f32(o->do_), .o = rk_f32(o->o), .dy = rk_f32(o->dy), .dr = rk_f32(o->dr),
        .dk = rk_f32(o->dk), .dv = rk_f32(o->dv), .dg = rk_f32(o->dg), .dr_k = rk_f32(o->dr_k), .dw = rk_f32(o->dw),
        .db = rk_f32(o->db), .R = (size_t)o->y.d[0] * (size_t)o->y.d[1], .H = (size_t)o->y.d[2], .N = (size_t)o->y.d[3],
        .eps = (float)o->eps};
}

RK_CPU_HEADS_OP(out_gate, RkOutGate, RkOutGateRows, &a.dr_k, &a.dw, &a.db)
