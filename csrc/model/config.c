#include "model/config.h"

/* No tensor of a real model comes near this; sums and byte counts of such tensors cannot overflow 64 bits. */
static const int64_t MAX_ELEMENTS = (int64_t)1 << 40;

static int check_product(const char *what, int64_t a, int64_t b) {
    RK_CHECK(a * b <= MAX_ELEMENTS && b <= INT32_MAX, "%s of %lld x %lld numbers is larger than any model this can run", what, (long long)a,
             (long long)b);
    return RK_OK;
}

int rk_config_check(const RkConfig *cfg) {
    RK_CHECK(cfg->V >= 1, "vocab_size must be at least 1, not %d", cfg->V);
    RK_CHECK(cfg->C >= 1, "n_embd must be at least 1, not %d", cfg->C);
    RK_CHECK(cfg->L >= 1 && cfg->L <= RK_MAX_LAYERS, "n_layer must be 1 to %d, not %d", RK_MAX_LAYERS, cfg->L);
    RK_TRY(check_product("an embedding", cfg->V, cfg->C));
    RK_TRY(check_product("a projection", cfg->C, cfg->C));
    RK_CHECK(cfg->head_size_divisor >= 1 && cfg->head_size_divisor <= 1 << 15, "head_size_divisor must be 1 to %d, not %d", 1 << 15,
             cfg->head_size_divisor);
    for (int l = 0; l < cfg->L; l++) {
        const RkBlockConfig *b = &cfg->block[l];
        RK_TRY(check_product("a channel mix", cfg->C, b->F));
        RK_TRY(check_product("a low-rank matrix", cfg->C, b->Dw > b->Da ? b->Dw : b->Da));
        RK_TRY(check_product("a low-rank matrix", cfg->C, b->Dv > b->Dg ? b->Dv : b->Dg));
        RK_CHECK(b->N >= 1 && cfg->C % b->N == 0, "layer %d: head size %d does not divide n_embd %d", l, b->N, cfg->C);
        RK_CHECK(b->F >= 1, "layer %d: dim_ffn must be at least 1, not %d", l, b->F);
        RK_TRY(check_product("a low-rank matrix", cfg->C, 5 * (int64_t)b->Dm));
        RK_CHECK(b->Dw >= 1 && b->Da >= 1 && b->Dv >= 1 && b->Dg >= 1 && b->Dm >= 1,
                 "layer %d: low-rank widths must be at least 1, not %d %d %d %d %d", l, b->Dw, b->Da, b->Dv, b->Dg, b->Dm);
        RkDims dims = rk_config_dims(cfg, l, 1, 1);
        if (b->time_mix->check) RK_TRY(b->time_mix->check(&dims));
        if (b->channel_mix->check) RK_TRY(b->channel_mix->check(&dims));
    }
    return RK_OK;
}

int rk_config_grows(const RkConfig *cfg) {
    for (int l = 0; l < cfg->L; l++)
        for (int i = 0; i < cfg->block[l].time_mix->n_state; i++)
            if (cfg->block[l].time_mix->state[i].shape.d[1] == D_P) return 1;
    return 0;
}

RkDims rk_config_dims(const RkConfig *cfg, int layer, int B, int T) {
    const RkBlockConfig *b = &cfg->block[layer];
    return (RkDims){.B = B, .T = T, .C = cfg->C, .H = cfg->C / b->N, .N = b->N, .F = b->F, .V = cfg->V,
                    .Dw = b->Dw, .Da = b->Da, .Dv = b->Dv, .Dg = b->Dg, .Dm = b->Dm, .divisor = cfg->head_size_divisor,
                    .G = b->G, .rope = cfg->rope};
}
