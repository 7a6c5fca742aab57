/* quant.h - weights of 8 and of 4 bits to and from float32; the scalar definition.
 *
 * A row of K elements (K a multiple of RK_QUANT_BLOCK = 32) is its quantised values followed by one float16 scale per block:
 *   RK_Q8   K bytes, signed, -127 to 127:      w[i] = scale[i / 32] q[i]             8.5 bits per weight
 *   RK_Q4   K/2 bytes, two values 0 to 15 each: w[i] = scale[i / 32] (q[i] - 8)       4.5 bits per weight
 * Byte j of a 4-bit block (16 bytes) holds element j in its low half and element 16 + j in its high half, so that a mask and
 * a shift give 16 consecutive elements each. Values and scales of a row lie together: a slice of rows is a pointer, and a
 * matrix is one range of a file. A scale may be negative.
 * The scale of a block: 8 bits by its largest weight, 4 bits by a search for the least squared error. */
#ifndef RK_BASE_QUANT_H
#define RK_BASE_QUANT_H

#include <math.h>

#include "base/half.h"
#include "base/tensor.h"

static inline const uint16_t *rk_q8_scales(const void *row, size_t K) {
    return (const uint16_t *)(const void *)((const char *)row + K);
}
static inline const uint16_t *rk_q4_scales(const void *row, size_t K) {
    return (const uint16_t *)(const void *)((const char *)row + K / 2);
}

static inline void rk_q8_row_to_f32(const void *row, float *w, size_t K) {
    const int8_t *q = row;
    const uint16_t *scale = rk_q8_scales(row, K);
    for (size_t i = 0; i < K; i++) w[i] = rk_f16_to_f32(scale[i / RK_QUANT_BLOCK]) * (float)q[i];
}

static inline void rk_q4_row_to_f32(const void *row, float *w, size_t K) {
    enum { HALF = RK_QUANT_BLOCK / 2 };
    const uint8_t *q = row;
    const uint16_t *scale = rk_q4_scales(row, K);
    for (size_t b = 0; b < K / RK_QUANT_BLOCK; b++, q += HALF, w += RK_QUANT_BLOCK)
        for (int j = 0; j < HALF; j++) {
            w[j] = rk_f16_to_f32(scale[b]) * (float)((q[j] & 15) - 8);
            w[HALF + j] = rk_f16_to_f32(scale[b]) * (float)((q[j] >> 4) - 8);
        }
}

/* A row of any format of weights; float64 is not one. */
static inline void rk_row_to_f32(int dtype, const void *row, float *w, size_t K) {
    const uint16_t *half = row;
    if (dtype == RK_Q8) rk_q8_row_to_f32(row, w, K);
    else if (dtype == RK_Q4) rk_q4_row_to_f32(row, w, K);
    else if (dtype == RK_BF16) for (size_t i = 0; i < K; i++) w[i] = rk_bf16_to_f32(half[i]);
    else if (dtype == RK_F16) for (size_t i = 0; i < K; i++) w[i] = rk_f16_to_f32(half[i]);
    else memcpy(w, row, K * sizeof *w);
}

/* ---- quant.c ---- */

/* "fp32", "bf16", "fp16", "int8", "int4", and back; -1 with a message for another name. */
const char *rk_format_name(int dtype);
int rk_format_find(const char *name);

/* The inverse of rk_row_to_f32, to nearest. -1: a number is not finite (of quantised rows) or too large; fp16 keeps infinities. */
int rk_row_from_f32(int dtype, const float *w, void *row, size_t K);

/* All of a tensor to another format; both have one shape, of quantised ones a row is a whole number of blocks. */
int rk_convert(RkTensor from, RkTensor to);

#endif
