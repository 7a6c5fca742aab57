/* gemm_tiles_simd.h - a matrix product C (M,N) = or += A (M,K) B (K,N) of float32 from products of bf16 tiles; kernels/gemm.c cuts it.
 *
 * Every element is written as a sum of numbers of 8 significant bits, a = a1 + a2 + a3, each the nearest to what is left: exactly, for
 * the second is at most 2^-8 of the first, the third 2^-9 of that, and 24 bits are then used up. Of the nine products of parts
 *     a3 b1, a2 b1, a2 b2, a1 b2, a1 b3, a1 b1
 * are made, in this order, which exchanges one operand at a time and has the large one last; the others are at most 2^-24 |a b|
 * together. Weights of fewer bits have fewer parts; as the products of zeros that fall away add nothing, the result is the same.
 *
 * A tile of C starts as zero or as C and takes, for every 32 steps of k in turn, those products: so an element is one chain of sums
 * over k, each of two times 16 terms, wherever K is cut and whatever tile it falls into. Errors: (K + 2) 2^-24 sum |a b| as of
 * float32, 2 x 2^-24 for the products left out and the sums of the small ones, and what lies below 2^-126: such a number is taken
 * as zero by the tiles, a part as well as a product.
 * An infinity or NaN in A or B gives one of the two; every finite number has finite parts.
 *
 * Panels: for 32 steps, then for each part, then for each 16 lines a tile. Row i of a tile of A is line i, column j of a tile of B
 * line j, as pairs of the steps k and k + 16. */

#include "kernels/gemm_source_simd.h"
#include "kernels/simd_tiles.h"

#define GEMM_LAYOUT {.rows = 2 * TILE, .columns = 2 * TILE, .row_unit = TILE, .column_unit = TILE, .step_unit = TILE_STEPS, \
    .slice = RK_GEMM_SLICE, .task_panels = 8, .element_bytes = PARTS * sizeof(uint16_t)}

enum { PARTS = RK_GEMM_PARTS };

/* ---- panels ---- */

/* TILE pairs of the first n of `first` and the first m of `second`, zeros beyond; out: the first part, the others `distance` apart. */
SIMD void split_pairs(const float *first, size_t n, const float *second, size_t m, const int parts, size_t distance, float *out) {
    for (size_t i = 0; i < TILE; i += RK_LANES, out += RK_LANES) {
        Vec x = vec_load_part(first + i, n > i ? n - i : 0), y = vec_load_part(second + i, m > i ? m - i : 0);
        for (int part = 0; part < parts - 1; part++) {
            Vec x1 = vec_round_bf16(x), y1 = vec_round_bf16(y);
            vec_store(out + (size_t)part * distance, vec_pair_bf16(x1, y1));
            x = x - x1, y = y - y1;
        }
        vec_store(out + (size_t)(parts - 1) * distance, vec_pair_bf16(x, y)); /* unrounded: exact, or not finite and so to stay */
    }
}

SIMD void turn_tile(const float *tile, float *out) {
    for (size_t i = 0; i < TILE; i += RK_LANES)
        for (size_t j = 0; j < TILE; j += RK_LANES) {
            Vec column[RK_LANES];
            vec_transpose(tile + i * TILE + j, TILE, column);
            for (size_t c = 0; c < RK_LANES; c++) vec_store(out + (j + c) * TILE + i, column[c]);
        }
}

/* `lines` lines and `steps` steps from src on, into one tile of each part. */
SIMD void pack_tile(const RkGemmPack *p, const float *src, size_t lines, size_t steps, const int parts, size_t distance, float *out) {
    _Alignas(64) float turned[PARTS * TILE_FLOATS];
    const size_t stride = p->stride, later = steps > TILE ? steps - TILE : 0;
    const int turn = p->along_k != p->left;
    float *rows = turn ? turned : out;
    size_t apart = turn ? TILE_FLOATS : distance;
    for (size_t row = 0; row < TILE; row++, src += stride, rows += TILE) {
        if (p->along_k) split_pairs(src, row < lines ? steps : 0, src + TILE, row < lines ? later : 0, parts, apart, rows);
        else split_pairs(src, row < steps ? lines : 0, src + TILE * stride, row < later ? lines : 0, parts, apart, rows);
    }
    for (int part = 0; turn && part < parts; part++) turn_tile(turned + part * TILE_FLOATS, out + (size_t)part * distance);
}

SIMD void pack_parts(const RkGemmPack *p, size_t i, size_t lines, const int parts, float *out) {
    size_t distance = p->width * TILE;
    for (size_t k = 0; k < p->K; k += TILE_STEPS, out += (size_t)(parts - 1) * distance)
        for (size_t w = 0; w < p->width; w += TILE, out += TILE_FLOATS) {
            size_t n = lines - w, steps = p->K - k;
            const float *src = p->src + (i + w) * (p->along_k ? p->stride : 1) + k * (p->along_k ? 1 : p->stride);
            if (n >= TILE && steps >= TILE_STEPS) pack_tile(p, src, TILE, TILE_STEPS, parts, distance, out);
            else pack_tile(p, src, n < TILE ? n : TILE, steps < TILE_STEPS ? steps : TILE_STEPS, parts, distance, out);
        }
}

static void k_gemm_pack(const RkGemmPack *p, size_t i, size_t lines, void *panel) {
    if (p->parts == 1) pack_parts(p, i, lines, 1, panel);
    else if (p->parts == 2) pack_parts(p, i, lines, 2, panel);
    else pack_parts(p, i, lines, PARTS, panel);
}

/* ---- tiles: 0 to 3 are sums, two by two, 4 and 5 of A, 6 and 7 of B ---- */

#define EACH_SUM(DO)                        \
    do {                                    \
        DO(0, 0, 0);                        \
        if (cols > 1) DO(1, 0, 1);          \
        if (rows > 1) DO(2, 1, 0);          \
        if (rows > 1 && cols > 1) DO(3, 1, 1); \
    } while (0)

typedef struct SumTiles { float *c; size_t ldc, rows, cols; int add; } SumTiles; /* rows, cols: how many of those to touch */

SIMD size_t of_tile(size_t n, size_t tile) { return n < tile * TILE ? 0 : n - tile * TILE; }

SIMD void copy_edge(const float *from, size_t from_stride, size_t rows, size_t cols, float *to, size_t to_stride) {
    for (size_t r = 0; r < TILE && r < rows; r++)
        for (size_t i = 0; i < TILE && i < cols; i += RK_LANES) vec_store_part(to + r * to_stride + i, cols - i, vec_load_part(from + r * from_stride + i, cols - i));
}

SIMD void sums_begin(const SumTiles *s, const int rows, const int cols) {
    _Alignas(64) float edge[TILE_FLOATS] = {0};
#define BEGIN(t, r, u)                                                                                       \
    do {                                                                                                     \
        size_t n = of_tile(s->rows, r), m = of_tile(s->cols, u);                                             \
        float *at = s->c + (r) * TILE * s->ldc + (u) * TILE;                                                 \
        if (!s->add) tile_zero(t);                                                                           \
        else if (n >= TILE && m >= TILE) tile_load(t, at, s->ldc);                                           \
        else {                                                                                               \
            copy_edge(at, s->ldc, n, m, edge, TILE);                                                         \
            tile_load(t, edge, TILE);                                                                        \
        }                                                                                                    \
    } while (0)
    EACH_SUM(BEGIN);
}

SIMD void sums_end(const SumTiles *s, const int rows, const int cols) {
    _Alignas(64) float edge[TILE_FLOATS];
#define END(t, r, u)                                                                                         \
    do {                                                                                                     \
        size_t n = of_tile(s->rows, r), m = of_tile(s->cols, u);                                             \
        float *at = s->c + (r) * TILE * s->ldc + (u) * TILE;                                                 \
        if (n >= TILE && m >= TILE) tile_store(t, at, s->ldc);                                               \
        else {                                                                                               \
            tile_store(t, edge, TILE);                                                                       \
            copy_edge(edge, TILE, n, m, at, s->ldc);                                                         \
        }                                                                                                    \
    } while (0)
    EACH_SUM(END);
}

SIMD void load_left(const float *a, const int rows) {
    tile_load(4, a, TILE);
    if (rows > 1) tile_load(5, a + TILE_FLOATS, TILE);
}
SIMD void load_right(const float *b, const int cols) {
    tile_load(6, b, TILE);
    if (cols > 1) tile_load(7, b + TILE_FLOATS, TILE);
}
SIMD void add_products(const int rows, const int cols) {
    tile_dot(0, 4, 6);
    if (cols > 1) tile_dot(1, 4, 7);
    if (rows > 1) tile_dot(2, 5, 6);
    if (rows > 1 && cols > 1) tile_dot(3, 5, 7);
}

/* A step's share of the tiles of C below these, wanted next; in the cache of the second level they are, or on their way, by then. */
SIMD void fetch_below(const SumTiles *s, size_t k, size_t K, const int rows) {
    size_t step = k / TILE_STEPS, steps = (K + TILE_STEPS - 1) / TILE_STEPS, most = 2 * TILE;
    if (s->rows <= (size_t)rows * TILE) return;
    for (size_t r = most * step / steps; r < most * (step + 1) / steps; r++) {
        const float *at = s->c + ((size_t)rows * TILE + r) * s->ldc;
        __builtin_prefetch(at, 1);
        __builtin_prefetch(at + TILE, 1);
        __builtin_prefetch(at + 2 * TILE - 1, 1);
    }
}

/* rows x cols tiles of C. */
SIMD void sum_tiles(const SumTiles *s, size_t K, const float *a, const float *b, const int rows, const int cols, const int parts) {
    const size_t next_a = (size_t)rows * TILE_FLOATS, next_b = (size_t)cols * TILE_FLOATS;
    sums_begin(s, rows, cols);
    for (size_t k = 0; k < K; k += TILE_STEPS, a += PARTS * next_a, b += (size_t)parts * next_b) {
        load_right(b, cols), load_left(a + 2 * next_a, rows), add_products(rows, cols);
        fetch_below(s, k, K, rows);
        load_left(a + next_a, rows), add_products(rows, cols);
        if (parts > 1) load_right(b + next_b, cols), add_products(rows, cols);
        load_left(a, rows), add_products(rows, cols);
        if (parts > 2) load_right(b + 2 * next_b, cols), add_products(rows, cols);
        if (parts > 1) load_right(b, cols), add_products(rows, cols);
    }
    sums_end(s, rows, cols);
}

/* All rows of one panel of B. */
SIMD void block_of_tiles(const RkGemmBlock *g, const int cols, const int parts) {
    const float *a = g->a, *b = g->b;
    SumTiles s = {.c = g->c, .ldc = g->ldc, .rows = g->rows, .cols = g->cols, .add = g->add};
    size_t units = (g->rows + TILE - 1) / TILE, steps = (g->K + TILE_STEPS - 1) / TILE_STEPS, panels = rk_gemm_panels(units, 2);
    for (size_t panel = 0; panel < panels; panel++) {
        size_t tiles = rk_gemm_panel_rows(units, 2, panel);
        fetch_ahead(g, panel, panels);
        if (tiles > 1) sum_tiles(&s, g->K, a, b, 2, cols, parts);
        else sum_tiles(&s, g->K, a, b, 1, cols, parts);
        a += steps * PARTS * tiles * TILE_FLOATS;
        s.c += tiles * TILE * s.ldc, s.rows -= tiles * TILE; /* the last panel may take it below zero: unused then */
    }
}

static void k_gemm_block(const RkGemmBlock *g) {
    tiles_open();
    switch (2 * g->parts + (g->cols > TILE)) {
        case 2: block_of_tiles(g, 1, 1); break;
        case 3: block_of_tiles(g, 2, 1); break;
        case 4: block_of_tiles(g, 1, 2); break;
        case 5: block_of_tiles(g, 2, 2); break;
        case 6: block_of_tiles(g, 1, PARTS); break;
        default: block_of_tiles(g, 2, PARTS); break;
    }
    tiles_close();
}
