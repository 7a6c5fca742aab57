/* backward.c - the block loop downwards. The norms are computed again (one pass over memory each) instead of saved;
 * with grad_cp so is the whole block, from the same inputs by the same code, hence to the same bits. */
#include "model/model.h"

static void bind_dstate(RkCall *call, const RkBackward *b, int layer, int channel_mix) {
    if (b->dafter) call->dstate_out = channel_mix ? b->dafter->channel_mix[layer] : b->dafter->time_mix[layer];
    if (b->dbefore) call->dstate = channel_mix ? b->dbefore->channel_mix[layer] : b->dbefore->time_mix[layer];
}

/* w->dx holds the gradient of the half's output and receives that of its input. */
static int half_backward(RkModel *m, const RkBackward *b, const RkState *before, int layer, int half) {
    const RkBackend *be = m->be;
    RkWork *w = &m->work;
    RkBlockWork *block = &w->block[layer];
    const RkLayerParams *p = &m->man.layer[layer];
    RkTensor in = half ? block->mid : block->x;
    RkLayerNorm norm = rk_norm_call(m, half ? p->ln2 : p->ln1, in, w->xn, half ? block->stats2 : block->stats1);
    RK_TRY(be->layernorm_fwd(&norm));
    RkCall call = rk_block_call(m, layer, half, before, NULL);
    call.dy = w->dx;
    call.dx = w->dxn;
    bind_dstate(&call, b, layer, half);
    RK_TRY((half ? m->cfg.block[layer].channel_mix : m->cfg.block[layer].time_mix)->bwd(&call));
    norm.dy = w->dxn;
    norm.dres = norm.dx = w->dx;
    return be->layernorm_bwd(&norm);
}

int rk_blocks_backward(RkModel *m, const RkBackward *b, const RkState *before) {
    RkTensor dv = m->work.carry.dv_first;
    if (dv.p) RK_TRY(m->store.memory->zero(m->store.memory, dv.p, rk_numel(dv) * rk_dtype_size(dv.dtype)));
    for (int l = m->cfg.L - 1; l >= 0; l--) {
        if (b->grad_cp && l < m->cfg.L - 1) RK_TRY(rk_block_forward(m, l, before, NULL));
        RK_TRY(half_backward(m, b, before, l, 1));
        RK_TRY(half_backward(m, b, before, l, 0));
    }
    return RK_OK;
}
