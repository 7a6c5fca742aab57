/* config.h - the shape of a model: what cannot change once its parameters exist. */
#ifndef RK_MODEL_CONFIG_H
#define RK_MODEL_CONFIG_H

#include "mixers/mixer.h"

enum { RK_MAX_LAYERS = 512 };

/* One block: x += time_mix(ln1(x)); x += channel_mix(ln2(x)). Any recipe of blocks makes a model. */
typedef struct RkBlockConfig {
    const RkMixer *time_mix, *channel_mix;
    int N, F;           /* head size, channel-mix width */
    int Dw, Da, Dv, Dg, Dm; /* low-rank widths; unused where the mixer has none */
    int G;                  /* attention: heads of keys and values */
} RkBlockConfig;

typedef struct RkConfig {
    int V, C, L;
    int ln0;        /* a layer norm of the embedding, before block 0 */
    int time_state; /* initial states are parameters */
    int head_size_divisor; /* see RkDims */
    int rope;       /* attention has rotary positions */
    RkBlockConfig block[RK_MAX_LAYERS];
} RkConfig;

/* RK_OK, or which size is impossible and why. */
int rk_config_check(const RkConfig *cfg);

/* Whether states grow with the tokens they have read, as those of attention do. */
int rk_config_grows(const RkConfig *cfg);

/* The sizes of layer l for B sequences of T tokens. */
RkDims rk_config_dims(const RkConfig *cfg, int layer, int B, int T);

#endif
