/* tensor.h - a tensor is a view: pointer, element type, shape. It owns nothing and is copied by value.
 * Elements are dense and row-major. Unused trailing dimensions are 0. p == NULL means "absent". */
#ifndef RK_BASE_TENSOR_H
#define RK_BASE_TENSOR_H

#include <stddef.h>
#include <stdint.h>

typedef enum {
    RK_F32, RK_F64, RK_BF16, RK_F16,
    RK_Q8, RK_Q4 /* weights only, in blocks of 32 along a row: base/quant.h */
} RkDtype;

typedef struct RkTensor {
    void *p;
    int32_t dtype;
    int32_t d[4];
} RkTensor;

enum { RK_QUANT_BLOCK = 32 /* weights that share a scale; a quantised row is a whole number of blocks */ };

static inline int rk_quantised(int dtype) { return dtype == RK_Q8 || dtype == RK_Q4; }

/* Bytes of one element; not of a quantised one, which has none of its own. */
static inline size_t rk_dtype_size(int dtype) { return dtype == RK_F64 ? 8 : dtype == RK_F32 ? 4 : 2; }

/* Bytes of a row of n elements. */
static inline size_t rk_row_bytes(int dtype, size_t n) {
    if (dtype == RK_Q8) return n + n / RK_QUANT_BLOCK * 2;
    if (dtype == RK_Q4) return n / 2 + n / RK_QUANT_BLOCK * 2;
    return n * rk_dtype_size(dtype);
}

static inline size_t rk_numel(RkTensor t) {
    size_t n = 1;
    for (int i = 0; i < 4; i++)
        if (t.d[i]) n *= (size_t)t.d[i];
    return n;
}

static inline int rk_rank(RkTensor t) {
    int n = 0;
    while (n < 4 && t.d[n]) n++;
    return n;
}

/* The last dimension, and the number of rows of that length. */
static inline int rk_cols(RkTensor t) { return t.d[rk_rank(t) ? rk_rank(t) - 1 : 0]; }
static inline size_t rk_rows(RkTensor t) { return rk_numel(t) / (size_t)rk_cols(t); }
static inline size_t rk_bytes(RkTensor t) { return rk_rows(t) * rk_row_bytes(t.dtype, (size_t)rk_cols(t)); }

static inline float *rk_f32(RkTensor t) { return (float *)t.p; }

/* Rows [row, row + n) of a tensor seen as (rows, cols). */
static inline RkTensor rk_slice_rows(RkTensor t, size_t row, size_t n) {
    RkTensor s = {t.p, t.dtype, {(int32_t)n, rk_cols(t)}};
    if (t.p) s.p = (char *)t.p + row * rk_row_bytes(t.dtype, (size_t)rk_cols(t));
    return s;
}

#endif
