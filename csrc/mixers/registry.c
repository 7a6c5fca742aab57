#include "mixers/mixer.h"

#include <string.h>

extern const RkMixer rk_x052_tmix, rk_x052_cmix, rk_x060_tmix, rk_x060_cmix, rk_x070_tmix, rk_x070_cmix;
extern const RkMixer rk_attention_tmix, rk_mlp_cmix;

const RkMixer *const rk_mixers[] = {&rk_x052_tmix, &rk_x052_cmix, &rk_x060_tmix, &rk_x060_cmix, &rk_x070_tmix, &rk_x070_cmix,
                                    &rk_attention_tmix, &rk_mlp_cmix, NULL};

const RkMixer *rk_mixer_find(const char *name) {
    char known[256] = "";
    for (const RkMixer *const *m = rk_mixers; *m; m++) {
        if (!strcmp((*m)->name, name)) return *m;
        strncat(known, " ", sizeof known - strlen(known) - 1);
        strncat(known, (*m)->name, sizeof known - strlen(known) - 1);
    }
    rk_fail(RK_EUNSUP, "no mixer implements '%s'; this build has:%s", name, known);
    return NULL;
}

static int resolve(int d, const RkDims *s) {
    switch (d) {
    case D_B: return s->B;
    case D_T: return s->T;
    case D_C: return s->C;
    case D_H: return s->H;
    case D_N: return s->N;
    case D_F: return s->F;
    case D_V: return s->V;
    case D_DW: return s->Dw;
    case D_DA: return s->Da;
    case D_DV: return s->Dv;
    case D_DG: return s->Dg;
    case D_DM: return s->Dm;
    case D_5DM: return 5 * s->Dm;
    case D_BH: return s->B * s->H;
    case D_CHUNKS: return (s->T + RK_WKV_CHUNK - 1) / RK_WKV_CHUNK;
    case D_G: return s->G;
    case D_GN: return s->G * s->N;
    case D_P: return s->P;
    default: return d;
    }
}

RkTensor rk_shape_resolve(RkShape shape, int dtype, const RkDims *dims) {
    RkTensor t = {NULL, dtype, {0}};
    for (int i = 0; i < 4; i++) t.d[i] = resolve(shape.d[i], dims);
    return t;
}
