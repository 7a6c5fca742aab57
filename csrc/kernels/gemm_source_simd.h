/* gemm_source_simd.h - what matrix products of vectors and of tiles share: operands on their way from memory. */
#ifndef RK_KERNELS_GEMM_SOURCE_SIMD_H
#define RK_KERNELS_GEMM_SOURCE_SIMD_H

#include "base/quant.h"

/* ---- weights of other formats ---- */

/* As rk_q8_row_to_f32 and rk_q4_row_to_f32, to the same bits. */
SIMD void quantised_to_f32(const int four, const void *row, size_t K, size_t lo, size_t hi, float *out) {
    enum { HALF = RK_QUANT_BLOCK / 2 };
    const int8_t *q = row;
    const uint8_t *halves = row;
    const uint16_t *stored = four ? rk_q4_scales(row, K) : rk_q8_scales(row, K);
    const size_t end = hi / RK_QUANT_BLOCK;
    float scale[RK_LANES];
    for (size_t first = lo / RK_QUANT_BLOCK; first < end; first += RK_LANES) {
        vec_store(scale, vec_load_f16_part(stored + first, end - first));
        for (size_t b = first; b < end && b < first + RK_LANES; b++, out += RK_QUANT_BLOCK)
            for (size_t i = 0; i < RK_QUANT_BLOCK; i += RK_LANES) {
                Vec v;
                if (four) v = vec_load_u4(halves + b * HALF + i % HALF, i >= HALF) - vec_set(8);
                else v = vec_load_i8(q + b * RK_QUANT_BLOCK + i);
                vec_store(out + i, vec_set(scale[b - first]) * v);
            }
    }
}

static void k_row_to_f32(int dtype, const void *row, size_t K, size_t lo, size_t hi, float *out) {
    const uint16_t *half = row;
    if (dtype == RK_Q8) quantised_to_f32(0, row, K, lo, hi, out);
    else if (dtype == RK_Q4) quantised_to_f32(1, row, K, lo, hi, out);
    else if (dtype == RK_F32) memcpy(out, (const float *)row + lo, (hi - lo) * sizeof *out);
    else
        for (size_t i = lo; i < hi; i += RK_LANES)
            vec_store_part(out + i - lo, hi - i, dtype == RK_BF16 ? vec_load_bf16_part(half + i, hi - i) : vec_load_f16_part(half + i, hi - i));
}

/* ---- what comes next ---- */

/* The share of one of `tiles` tiles. */
SIMD void fetch_ahead(const RkGemmBlock *g, size_t tile, size_t tiles) {
    for (size_t piece = g->next_pieces * tile / tiles; piece < g->next_pieces * (tile + 1) / tiles; piece++)
        for (size_t at = 0; at < g->next_bytes; at += LINE * sizeof(float)) __builtin_prefetch(g->next + piece * g->next_stride + at, 0, 2);
}

#endif
