/* draw.h - the next token of every sequence, from rows of logits in the memory of a device: what model/sample.h defines, so that only
 * ids leave it. Not one of the ops that tests call by name: its inputs are no tensors.
 *
 * Shares of probability are summed as integers of 2^-40 of the likeliest token's share: in any order they give the same bits. */
#ifndef RK_OPS_DRAW_H
#define RK_OPS_DRAW_H

/* Of one row, as in RkSampling; uniform in [0,1). Its changes of logits are `changes` from `first` on: first those of tokens seen, each
 * token once, then the biases, each token once. */
typedef struct RkDrawRow {
    double temperature, top_p, min_p, typical_p, uniform;
    int32_t top_k, first, seen, biases;
} RkDrawRow;

/* z becomes (z / factor if z > 0, else z * factor) - minus + plus. */
typedef struct RkDrawChange {
    int32_t token;
    float factor, minus, plus;
} RkDrawChange;

typedef struct RkDraw {
    float *logits; /* (n, V), changed as rows say */
    const RkDrawRow *rows;
    const RkDrawChange *changes;
    int32_t *tokens; /* (n): -1 where a logit is not a number or the largest is infinite */
    int n, V;        /* V at most RK_DRAW_MOST: the sum of a row's shares has 63 bits */
} RkDraw;

enum { RK_DRAW_MOST = 1 << 23 };

#endif
