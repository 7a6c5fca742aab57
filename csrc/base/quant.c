#include "base/quant.h"

#include <stdatomic.h>

#include "base/err.h"
#include "base/parallel.h"

static const char *const format_names[] = {
    [RK_F32] = "fp32", [RK_F64] = "fp64", [RK_BF16] = "bf16", [RK_F16] = "fp16", [RK_Q8] = "int8", [RK_Q4] = "int4",
};

const char *rk_format_name(int dtype) { return format_names[dtype]; }

int rk_format_find(const char *name) {
    for (int i = 0; i < (int)(sizeof format_names / sizeof *format_names); i++)
        if (i != RK_F64 && !strcmp(format_names[i], name)) return i;
    rk_fail(RK_EINVAL, "format '%s' does not exist; choose fp32, bf16, fp16, int8 or int4", name);
    return -1;
}

/* ---- the quantised values of one block ---- */

typedef struct Grid { float lowest, highest; } Grid; /* of the values: the range of q, or of q - 8 */
static const Grid grid8 = {-127, 127}, grid4 = {-8, 7};

/* The value w / scale of the grid, nearest with ties to even: adding 1.5 * 2^23 leaves no bits for a fraction. */
static inline float on_grid(float w, float inverse, Grid g) {
    float x = w * inverse;
    x = x < g.lowest ? g.lowest : x > g.highest ? g.highest : x;
    return (x + 12582912.0f) - 12582912.0f;
}

/* With the values that a scale gives, the best scale is wq / qq, and it takes wq^2 / qq off the squared error; all sums are
 * weighted. */
typedef struct Fit { float wq, qq; } Fit;

static Fit fit(const float *w, const float *weight, float scale, Grid g) {
    float inverse = 1 / scale;
    Fit f = {0, 0};
    for (int i = 0; i < RK_QUANT_BLOCK; i++) {
        float q = on_grid(w[i], inverse, g), weighted = weight[i] * q;
        f.wq += w[i] * weighted;
        f.qq += q * weighted;
    }
    return f;
}

/* The scale that a block is stored with: of the float16 below and above the best one that which fits better. Far below 1
 * float16 has few bits, and the nearest could cut off the largest weight. */
static uint16_t stored_scale(const float *w, float scale, Grid g) {
    uint16_t first = rk_f32_to_f16(scale), best = first;
    float least = INFINITY;
    for (int step = -1; step <= 1; step++) {
        uint16_t h = (uint16_t)(first + step);
        if ((h & 0x7fff) == 0 || (h & 0x7fff) >= 0x7c00) continue;
        float s = rk_f16_to_f32(h), inverse = 1 / s, error = 0;
        for (int i = 0; i < RK_QUANT_BLOCK; i++) {
            float d = w[i] - s * on_grid(w[i], inverse, g);
            error += d * d;
        }
        if (error < least) least = error, best = h;
    }
    return best;
}

/* The weight farthest from zero, with its sign; NaN when any is not finite. */
static float extreme(const float *w) {
    float most = 0, not_finite = 0;
    for (int i = 0; i < RK_QUANT_BLOCK; i++) {
        not_finite += w[i] - w[i];
        if (fabsf(w[i]) > fabsf(most)) most = w[i];
    }
    return most + not_finite;
}

enum { TRIES = 10 };

/* A large weight costs one block its precision: scales that cut it off a little, or leave room, are tried, each with the
 * long side of the grid (-8) on the side of the largest weight and on the other; -8 and 7, the plain rules, are among them.
 * Errors count by the square root of the weight's size: predictions of trained models then diverge up to a tenth less than with
 * errors that count alike. */
static float best_scale4(const float *w, float most) {
    float best = most / -8, gain = -1, weight[RK_QUANT_BLOCK];
    for (int i = 0; i < RK_QUANT_BLOCK; i++) weight[i] = sqrtf(fabsf(w[i]));
    for (int side = 0; side < 2; side++)
        for (int i = 0; i < TRIES; i++) {
            float s = most / (side ? 5.5f + 0.25f * (float)i : -6.5f - 0.25f * (float)i);
            if (s == 0 || !isfinite(1 / s)) continue;
            Fit f = fit(w, weight, s, grid4);
            float g = f.qq > 0 ? f.wq * f.wq / f.qq : 0;
            if (g > gain) gain = g, best = f.qq > 0 ? f.wq / f.qq : s;
        }
    return best;
}

/* 0, or -1 when the block cannot be stored: a number that is not finite, or a scale beyond float16. */
static int block_from_f32(int dtype, const float *w, uint8_t *q, uint16_t *scale) {
    enum { HALF = RK_QUANT_BLOCK / 2 };
    float most = extreme(w);
    if (!isfinite(most)) return -1;
    Grid g = dtype == RK_Q8 ? grid8 : grid4;
    float s = dtype == RK_Q8 ? fabsf(most) / 127 : best_scale4(w, most);
    if (fabsf(s) >= 65520) return -1;
    *scale = stored_scale(w, s, g);
    s = rk_f16_to_f32(*scale);
    float inverse = (*scale & 0x7fff) ? 1 / s : 0; /* 0: all of the block rounds to zero */
    if (dtype == RK_Q8)
        for (int i = 0; i < RK_QUANT_BLOCK; i++) q[i] = (uint8_t)(int8_t)on_grid(w[i], inverse, g);
    else
        for (int j = 0; j < HALF; j++)
            q[j] = (uint8_t)((int)on_grid(w[j], inverse, g) + 8 + (((int)on_grid(w[HALF + j], inverse, g) + 8) << 4));
    return 0;
}

static int quantised_row(int dtype, const float *w, void *row, size_t K) {
    uint8_t *q = row;
    uint16_t *scale = (uint16_t *)(void *)(q + (dtype == RK_Q8 ? K : K / 2));
    for (size_t b = 0; b < K / RK_QUANT_BLOCK; b++) {
        if (block_from_f32(dtype, w + b * RK_QUANT_BLOCK, q, &scale[b])) return -1;
        q += dtype == RK_Q8 ? RK_QUANT_BLOCK : RK_QUANT_BLOCK / 2;
    }
    return 0;
}

static int half_row(const float *w, uint16_t *row, size_t K) {
    int bad = 0;
    for (size_t i = 0; i < K; i++) {
        row[i] = rk_f32_to_f16(w[i]);
        bad |= (row[i] & 0x7fff) == 0x7c00 && isfinite(w[i]);
    }
    return bad ? -1 : 0;
}

int rk_row_from_f32(int dtype, const float *w, void *row, size_t K) {
    uint16_t *half = row;
    if (rk_quantised(dtype)) return quantised_row(dtype, w, row, K);
    if (dtype == RK_F16) return half_row(w, half, K);
    if (dtype == RK_BF16) for (size_t i = 0; i < K; i++) half[i] = rk_f32_to_bf16(w[i]);
    else memcpy(row, w, K * sizeof *w);
    return 0;
}

/* ---- whole tensors ---- */

enum { PIECE = 1 << 15 /* weights of one task */ };
typedef struct Convert { RkTensor from, to; size_t rows, cols, rows_per_task; _Atomic int failed; } Convert;

/* A row by way of float32; `room` takes it where neither side is. */
static int convert_row(const Convert *c, size_t r, float *room) {
    const void *from = rk_slice_rows(c->from, r, 1).p;
    void *to = rk_slice_rows(c->to, r, 1).p;
    if (c->from.dtype == RK_F32) return rk_row_from_f32(c->to.dtype, from, to, c->cols);
    if (c->to.dtype == RK_F32) room = to;
    rk_row_to_f32(c->from.dtype, from, room, c->cols);
    return room == to ? 0 : rk_row_from_f32(c->to.dtype, room, to, c->cols);
}

static void convert_task(void *ctx, size_t task) {
    Convert *c = ctx;
    float *room = rk_thread_scratch(c->cols * sizeof *room);
    if (!room) {
        atomic_store(&c->failed, RK_ENOMEM);
        return;
    }
    size_t lo = task * c->rows_per_task, hi = lo + c->rows_per_task < c->rows ? lo + c->rows_per_task : c->rows;
    for (size_t r = lo; r < hi; r++)
        if (convert_row(c, r, room)) atomic_store(&c->failed, RK_EINVAL);
}

int rk_convert(RkTensor from, RkTensor to) {
    Convert c = {.from = from, .to = to, .rows = rk_rows(from), .cols = (size_t)rk_cols(from)};
    c.rows_per_task = c.cols < PIECE ? PIECE / c.cols : 1;
    rk_parallel((c.rows + c.rows_per_task - 1) / c.rows_per_task, convert_task, &c);
    int failed = atomic_load(&c.failed);
    if (failed == RK_ENOMEM) return rk_fail(failed, "no memory for a row of %zu weights", c.cols);
    if (failed) return rk_fail(failed, "holds numbers that are not finite, or too large for %s", rk_format_name(to.dtype));
    return RK_OK;
}
