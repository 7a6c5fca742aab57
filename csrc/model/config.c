#include "model/config.h"

/* No tensor of a real model comes near this; sums and byte counts of such tensors cannot overflow 64 bits. */
static const int64_t MAX_ELEMENTS = (int64_t)1 << 40;

static int check_product(const char *what, int a, int b) {
    RK_CHECK((int64_t)a * b <= MAX_ELEMENTS, "%s of %d x %d numbers is larger than any model this can run", what, a, b);
    return RK_OK;
}

int rk_config_check(const RkConfig *cfg) {
    RK_CHECK(cfg->V >= 1, "vocab_size must be at least 1, not %d", cfg->V);
    RK_CHECK(cfg->C >= 1, "n_embd must be at least 1, not %d", cfg->C);
    RK_CHECK(cfg->L >= 1 && cfg->L <= RK_MAX_LAYERS, "n_layer must be 1 to %d, not %d", RK_MAX_LAYERS, cfg->L);
    RK_TRY(check_product("an embedding", cfg->V, cfg->C));
    RK_TRY(check_product("a projection", cfg->C, cfg->C));
    for (int l = 0; l < cfg->L; l++) {
        const RkBlockConfig *b = &cfg->block[l];
        RK_TRY(check_product("a channel mix", cfg->C, b->F));
        RK_TRY(check_product("a low-rank matrix", cfg->C, b->Dw > b->Da ? b->Dw : b->Da));
        RK_TRY(check_product("a low-rank matrix", cfg->C, b->Dv > b->Dg ? b->Dv : b->Dg));
        RK_CHECK(b->N >= 1 && cfg->C % b->N == 0, "layer %d: head size %d does not divide n_embd %d", l, b->N, cfg->C);
        RK_CHECK(b->F >= 1, "layer %d: dim_ffn must be at least 1, not %d", l, b->F);
        RK_CHECK(b->Dw >= 1 && b->Da >= 1 && b->Dv >= 1 && b->Dg >= 1,
                 "layer %d: low-rank widths must be at least 1, not %d %d %d %d", l, b->Dw, b->Da, b->Dv, b->Dg);
    }
    return RK_OK;
}

RkDims rk_config_dims(const RkConfig *cfg, int layer, int B, int T) {
    const RkBlockConfig *b = &cfg->block[layer];
    return (RkDims){.B = B, .T = T, .C = cfg->C, .H = cfg->C / b->N, .N = b->N, .F = b->F, .V = cfg->V,
                    .Dw = b->Dw, .Da = b->Da, .Dv = b->Dv, .Dg = b->Dg};
}
