/* gemm_tiles_simd.h - a matrix product C (M,N) = or += A (M,K) B (K,N) of float32 from products of bf16 tiles; kernels/gemm.c cuts it.
 *
 * Every element is written as a sum of numbers of 8 significant bits, a = a1 + a2 + a3, each the nearest to what is left: exactly, for
 * with 2^e <= |a| the second is at most 2^(e-8), the third 2^(e-17), and a has no bit below 2^(e-23). Of the nine products of parts
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

/* The parts of a vector of pairs, `distance` apart; the last unrounded: it is exact, or not finite and so to stay. */
SIMD void split_pairs(Vec first, Vec second, const int parts, size_t distance, float *out) {
    for (int part = 0; part < parts - 1; part++, out += distance) {
        Vec x = vec_round_bf16(first), y = vec_round_bf16(second);
        vec_store(out, vec_pair_bf16(x, y));
        first = first - x, second = second - y;
    }
    vec_store(out, vec_pair_bf16(first, second));
}

/* Half of a tile: TILE x TILE floats. */
typedef struct HalfTile { const float *at; size_t stride; } HalfTile;

/* A tile of each part from the earlier and the later steps; turned: a row of `out` is a column of both. */
SIMD void pack_tile(HalfTile first, HalfTile second, const int turned, const int parts, size_t distance, float *out) {
    for (size_t i = 0; i < TILE; i += RK_LANES)
        for (size_t j = 0; j < TILE; j += RK_LANES) {
            Vec x[RK_LANES], y[RK_LANES];
            if (turned) {
                vec_transpose(first.at + i * first.stride + j, first.stride, x);
                vec_transpose(second.at + i * second.stride + j, second.stride, y);
            }
            for (size_t c = 0; c < RK_LANES; c++) {
                if (!turned) x[c] = vec_load(first.at + (i + c) * first.stride + j), y[c] = vec_load(second.at + (i + c) * second.stride + j);
                split_pairs(x[c], y[c], parts, distance, out + (turned ? (j + c) * TILE + i : (i + c) * TILE + j));
            }
        }
}

/* The same numbers where there are fewer, with zeros for the others. */
SIMD HalfTile filled_up(HalfTile h, size_t rows, size_t cols, float *room) {
    for (size_t r = 0; r < TILE; r++)
        for (size_t i = 0; i < TILE; i += RK_LANES)
            vec_store(room + r * TILE + i, r < rows && i < cols ? vec_load_part(h.at + r * h.stride + i, cols - i) : vec_set(0));
    return (HalfTile){room, TILE};
}

SIMD void pack_parts(const RkGemmPack *p, size_t i, size_t lines, const int turned, const int parts, float *out) {
    _Alignas(64) float room[2][TILE_FLOATS];
    size_t distance = p->width * TILE, stride = p->stride, line = p->along_k ? stride : 1, step = p->along_k ? 1 : stride;
    for (size_t k = 0; k < p->K; k += TILE_STEPS, out += (size_t)(parts - 1) * distance)
        for (size_t w = 0; w < p->width; w += TILE, out += TILE_FLOATS) {
            HalfTile first = {p->src + (i + w) * line + k * step, stride}, second = {first.at + TILE * step, stride};
            size_t n = lines - w, m = p->K - k, later = m > TILE ? m - TILE : 0;
            if (n < TILE || later < TILE) {
                first = filled_up(first, p->along_k ? n : m, p->along_k ? m : n, room[0]);
                second = filled_up(second, p->along_k ? n : later, p->along_k ? later : n, room[1]);
            }
            pack_tile(first, second, turned, parts, distance, out);
        }
}

static void k_gemm_pack(const RkGemmPack *p, size_t i, size_t lines, void *panel) {
    switch (2 * p->parts + (p->along_k != p->left)) {
        case 2: pack_parts(p, i, lines, 0, 1, panel); break;
        case 3: pack_parts(p, i, lines, 1, 1, panel); break;
        case 4: pack_parts(p, i, lines, 0, 2, panel); break;
        case 5: pack_parts(p, i, lines, 1, 2, panel); break;
        case 6: pack_parts(p, i, lines, 0, PARTS, panel); break;
        default: pack_parts(p, i, lines, 1, PARTS, panel); break;
    }
}

/* ---- tiles: 0 to 3 are sums, two by two, 4 and 5 of A, 6 and 7 of B ---- */

#define EACH_SUM(DO)                        \
    do {                                    \
        DO(0, 0, 0);                        \
        if (cols > 1) DO(1, 0, 1);          \
        if (rows > 1) DO(2, 1, 0);          \
        if (rows > 1 && cols > 1) DO(3, 1, 1); \
    } while (0)

typedef struct SumTiles { float *c; size_t ldc, rows, cols, K; int add; } SumTiles; /* rows, cols: of C from here on, of which some are touched */

SIMD size_t of_tile(size_t n, size_t tile) { return n < tile * TILE ? 0 : n - tile * TILE; }

SIMD void copy_edge(const float *from, size_t from_stride, size_t rows, size_t cols, float *to, size_t to_stride) {
    for (size_t r = 0; r < TILE && r < rows; r++)
        for (size_t i = 0; i < TILE && i < cols; i += RK_LANES)
            vec_store_part(to + r * to_stride + i, cols - i, vec_load_part(from + r * from_stride + i, cols - i));
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
SIMD void fetch_below(const SumTiles *s, size_t k, const int rows) {
    size_t step = k / TILE_STEPS, steps = (s->K + TILE_STEPS - 1) / TILE_STEPS, most = 2 * TILE;
    if (s->rows <= (size_t)rows * TILE) return;
    for (size_t r = most * step / steps; r < most * (step + 1) / steps; r++) {
        const float *at = s->c + ((size_t)rows * TILE + r) * s->ldc;
        __builtin_prefetch(at, 1);
        __builtin_prefetch(at + TILE, 1);
        __builtin_prefetch(at + 2 * TILE - 1, 1);
    }
}

/* rows x cols tiles of C. */
SIMD void sum_tiles(const SumTiles *s, const float *a, const float *b, const int rows, const int cols, const int parts) {
    const size_t next_a = (size_t)rows * TILE_FLOATS, next_b = (size_t)cols * TILE_FLOATS;
    sums_begin(s, rows, cols);
    for (size_t k = 0; k < s->K; k += TILE_STEPS, a += PARTS * next_a, b += (size_t)parts * next_b) {
        load_right(b, cols), load_left(a + 2 * next_a, rows), add_products(rows, cols);
        fetch_below(s, k, rows);
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
    SumTiles s = {.c = g->c, .ldc = g->ldc, .rows = g->rows, .cols = g->cols, .K = g->K, .add = g->add};
    size_t units = (g->rows + TILE - 1) / TILE, steps = (g->K + TILE_STEPS - 1) / TILE_STEPS, panels = rk_gemm_panels(units, 2);
    for (size_t panel = 0; panel < panels; panel++) {
        size_t tiles = rk_gemm_panel_rows(units, 2, panel);
        fetch_ahead(g, panel, panels);
        if (tiles > 1) sum_tiles(&s, a, b, 2, cols, parts);
        else sum_tiles(&s, a, b, 1, cols, parts);
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
