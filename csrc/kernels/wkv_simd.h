/* wkv_simd.h - what the kernels of the recurrences share: how a row of a state is cut into tiles of vectors. */

/* Walks a row of N values in tiles of `tile` vectors: i is the tile's first value, n how many there are left from it on
 * (the whole tile, and so a constant, where tiles divide the row). */
#define WKV_TILES(i, n, N, tile) for (size_t i = 0, n; n = tile_values(N, i, tile), i < (N); i += (size_t)(tile) * RK_LANES)
SIMD size_t tile_values(size_t N, size_t i, int tile) {
    size_t whole = (size_t)tile * RK_LANES;
    return N % whole ? N - i : whole;
}

/* What is left from vector u of a tile on. */
#define LEFT(n, u) ((n) - (size_t)(u) * RK_LANES)

/* Vectors of a tile for head size N, `most` at most. */
#define WKV_TILE(N, most) ((N) / RK_LANES < (most) ? (N) / RK_LANES : (most))
