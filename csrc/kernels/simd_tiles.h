/* simd_tiles.h - words for matrix products in tiles: eight registers, each of TILE rows of TILE floats, or of TILE pairs of bf16.
 *
 * AMX instructions for the tier that defines RK_ISA_AMX besides RK_ISA_AVX512; with RK_ISA_SCALAR plain C of the same order of
 * sums, for machines without them. The instructions are written as text: no compiler flag is needed, only an assembler that knows them.
 *   tiles_open, tiles_close       around their use, by each thread
 *   tile_zero, tile_load, tile_store   register t (a digit); rows of floats `stride` apart
 *   tile_dot                      sum += a b: row i of a and column j of b, TILE pairs each, all first ones summed, all second ones,
 *                                 and the two sums added; bf16 products are exact in float32; subnormal numbers are zero
 *   vec_round_bf16                a float32 of 8 significant bits, nearest; finite stays finite
 *   vec_pair_bf16                 the upper 16 bits of `first` and of `second`, as a pair */
#ifndef RK_KERNELS_SIMD_TILES_H
#define RK_KERNELS_SIMD_TILES_H

enum { TILE = 16, TILE_FLOATS = TILE * TILE, TILE_STEPS = 2 * TILE };

#define BF16_LARGEST 3.3895314e38f

#if defined RK_ISA_AMX

typedef struct TileConfiguration { uint8_t palette, start_row, unused[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } TileConfiguration;

SIMD void tiles_open(void) {
    static const TileConfiguration whole = {.palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    __asm__ volatile("ldtilecfg %0" : : "m"(whole));
}
SIMD void tiles_close(void) { __asm__ volatile("tilerelease"); }

#define tile_zero(t) __asm__ volatile("tilezero %%tmm" #t : :)
#define tile_load(t, p, stride) \
    __asm__ volatile("tileloadd (%0,%1,4), %%tmm" #t : : "r"((const float *)(p)), "r"((size_t)(stride)) : "memory")
#define tile_store(t, p, stride) \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,4)" : : "r"((float *)(p)), "r"((size_t)(stride)) : "memory")
#define tile_dot(sum, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum : :)

SIMD Vec vec_round_bf16(Vec x) {
    Vec within = _mm512_range_ps(x, vec_set(BF16_LARGEST), 2); /* the smaller size, the sign of x */
    __m512i up = _mm512_add_epi32(_mm512_castps_si512(within), _mm512_set1_epi32(0x8000));
    return _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32((int)0xffff0000)));
}
SIMD Vec vec_pair_bf16(Vec first, Vec second) {
    return _mm512_castsi512_ps(_mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(_mm512_castps_si512(first), 16), _mm512_castps_si512(second)));
}

#else

static _Thread_local float tile_register[8][TILE_FLOATS];

SIMD void tiles_open(void) {}
SIMD void tiles_close(void) {}

#define tile_zero(t) memset(tile_register[t], 0, sizeof tile_register[t])
SIMD void tile_load(int t, const float *p, size_t stride) {
    for (size_t r = 0; r < TILE; r++) memcpy(tile_register[t] + r * TILE, p + r * stride, TILE * sizeof *p);
}
SIMD void tile_store(int t, float *p, size_t stride) {
    for (size_t r = 0; r < TILE; r++) memcpy(p + r * stride, tile_register[t] + r * TILE, TILE * sizeof *p);
}

SIMD float bf16_first(float pair) { return rk_float_of(rk_bits_of(pair) << 16); }
SIMD float bf16_second(float pair) { return rk_float_of(rk_bits_of(pair) & 0xffff0000u); }
static void tile_dot(int sum, int a, int b) {
    for (int i = 0; i < TILE; i++)
        for (int j = 0; j < TILE; j++) {
            float first = 0, second = 0;
            for (int k = 0; k < TILE; k++) {
                float x = tile_register[a][i * TILE + k], y = tile_register[b][k * TILE + j];
                first += bf16_first(x) * bf16_first(y);
                second += bf16_second(x) * bf16_second(y);
            }
            tile_register[sum][i * TILE + j] += first + second;
        }
}

SIMD Vec vec_round_bf16(Vec x) {
    float within = __builtin_fabsf(x) < BF16_LARGEST ? x : __builtin_copysignf(BF16_LARGEST, x);
    return rk_float_of((rk_bits_of(within) + 0x8000u) & 0xffff0000u);
}
SIMD Vec vec_pair_bf16(Vec first, Vec second) { return rk_float_of(rk_bits_of(first) >> 16 | (rk_bits_of(second) & 0xffff0000u)); }

#endif
#endif
