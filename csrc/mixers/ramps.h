/* ramps.h - initial values that more than one version of RWKV uses; i = element, layers count from 0. */
#ifndef RK_MIXERS_RAMPS_H
#define RK_MIXERS_RAMPS_H

#include <math.h>

#include "mixers/mixer.h"

/* From 1 in the first layer towards 0, from 0 in the first layer to 1 in the last, and from 0 to 1 along the channels. */
static inline double depth_left(const RkInitAt *at) { return 1 - (double)at->layer / at->n_layer; }
static inline double depth_done(const RkInitAt *at) { return at->n_layer > 1 ? (double)at->layer / (at->n_layer - 1) : 0; }
static inline double along(const RkInitAt *at, int i) { return at->C > 1 ? (double)i / (at->C - 1) : 0; }

/* The group norm's weight. */
static inline double ramp_ln_x(const RkInitAt *at, int i) {
    (void)i;
    return pow((1.0 + at->layer) / at->n_layer, 0.7);
}

/* RWKV-5 and 6: the share of the token itself in a mixed input. */
static inline double share(const RkInitAt *at, int i, double power) { return pow((double)i / at->C, power); }

static inline double ramp_time_decay(const RkInitAt *at, int i) { return -6 + 5 * pow(along(at, i), 0.7 + 1.3 * depth_done(at)); }
static inline double ramp_time_faaaa(const RkInitAt *at, int i) {
    return depth_done(at) * (1 - along(at, i)) + 0.1 * ((i + 1) % 3 - 1);
}

#endif
