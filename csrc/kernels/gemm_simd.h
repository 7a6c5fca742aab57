/* gemm_simd.h - the inner loops of a matrix product C (M,N) = or += A (M,K) B (K,N); kernels/gemm.c cuts it into blocks.
 *
 * Both operands are first packed into panels, the elements in the order in which they are used: panel of A: k by k, up to
 * RK_GEMM_ROWS rows each; panel of B: k by k, up to RK_GEMM_VECTORS vectors of columns. A tile of C, one panel by the other,
 * is summed in registers: per k, one load for every row and every vector against rows x vectors multiply-adds, so the loads
 * (two a cycle) never are the limit. Any number of rows up to the most has its own code, so no work is done on padding there.
 * An element of C is one chain of multiply-adds over k, whatever tile it falls into. */

#include "kernels/gemm_source_simd.h"

#define GEMM_LAYOUT {.rows = RK_GEMM_ROWS, .columns = RK_GEMM_VECTORS * RK_LANES, .row_unit = 1, .column_unit = RK_LANES, .step_unit = 1, \
    .slice = 256, .task_panels = 4, .element_bytes = sizeof(float)}

/* ---- panels ---- */

/* Lane by lane into the panel at out, `room` of them; a narrow panel lets the vector spill into its next steps, written after it, but not
 * past its end, where another task writes. */
SIMD void pack_store(const RkGemmPack *p, size_t k, size_t room, float *out, Vec v) {
    if (room >= RK_LANES || (room == p->width && (p->K - k) * p->width >= RK_LANES)) vec_store(out + k * p->width, v);
    else vec_store_part(out + k * p->width, room, v);
}

/* `n` lines from src on, of which RK_LANES may be read when `whole`, turned around into out; zeros for the lines from n on. */
SIMD void pack_turned(const RkGemmPack *p, const float *src, size_t n, int whole, size_t room, float *out) {
    float edge[RK_LANES * RK_LANES];
    for (size_t k = 0; k < p->K; k += RK_LANES) {
        size_t steps = p->K - k < RK_LANES ? p->K - k : RK_LANES, stride = p->stride;
        const float *rows = src + k;
        if (!whole || steps < RK_LANES) {
            for (size_t i = 0; i < RK_LANES; i++)
                vec_store(edge + i * RK_LANES, i < n ? vec_load_part(rows + i * stride, steps) : vec_set(0));
            rows = edge, stride = RK_LANES;
        }
        Vec column[RK_LANES];
        vec_transpose(rows, stride, column);
        for (size_t s = 0; s < steps; s++) pack_store(p, k + s, room, out, column[s]);
    }
}

static void k_gemm_pack(const RkGemmPack *p, size_t i, size_t lines, void *panel) {
    float *out = panel;
    for (size_t w = 0; w < p->width; w += RK_LANES) {
        size_t n = lines <= w ? 0 : lines - w, room = p->width - w;
        if (p->along_k) {
            int whole = n >= RK_LANES || (p->width < RK_LANES && p->lines - i >= RK_LANES);
            pack_turned(p, p->src + (i + w) * p->stride, n, whole, room, out + w);
        } else {
            const float *src = p->src + i + w;
            for (size_t k = 0; k < p->K; k++, src += p->stride) pack_store(p, k, room, out + w, vec_load_part(src, n));
        }
    }
}

/* ---- tiles ---- */

/* c (rows, n) = or += a b; n > (vectors - 1) RK_LANES. */
SIMD void gemm_tile(const RkGemmBlock *g, const float *a, const float *b, float *c, size_t n, const int rows, const int vectors) {
    Vec sum[RK_GEMM_ROWS][RK_GEMM_VECTORS];
    for (int r = 0; r < rows; r++) {
        for (int u = 0; u < vectors; u++) {
            sum[r][u] = vec_set(0);
            if (u * RK_LANES % LINE == 0) __builtin_prefetch(c + (size_t)r * g->ldc + u * RK_LANES, 1);
        }
        __builtin_prefetch(c + (size_t)r * g->ldc + n - 1, 1);
    }
    for (size_t k = g->K; k; k--, a += rows, b += vectors * RK_LANES) {
        Vec column[RK_GEMM_VECTORS];
        for (int u = 0; u < vectors; u++) column[u] = vec_load(b + u * RK_LANES);
        for (int r = 0; r < rows; r++) {
            Vec x = vec_set(a[r]);
            for (int u = 0; u < vectors; u++) sum[r][u] = vec_fma(x, column[u], sum[r][u]);
        }
    }
    for (int r = 0; r < rows; r++, c += g->ldc)
        for (int u = 0; u < vectors; u++) {
            size_t left = n - (size_t)u * RK_LANES;
            Vec old = g->add ? vec_load_part(c + u * RK_LANES, left) : vec_set(0);
            vec_store_part(c + u * RK_LANES, left, sum[r][u] + old);
        }
}

#define GEMM_ROWS(r) case r: if (r <= RK_GEMM_ROWS) gemm_tile(g, a, b, c, n, r <= RK_GEMM_ROWS ? r : 1, vectors); break;

/* All rows of one panel of B. */
SIMD void gemm_panel(const RkGemmBlock *g, const float *b, float *c, size_t n, const int vectors) {
    const float *a = g->a;
    size_t panels = rk_gemm_panels(g->rows, RK_GEMM_ROWS), longer = g->rows % panels;
    for (size_t panel = 0; panel < panels; panel++) {
        size_t rows = g->rows / panels + (panel < longer);
        fetch_ahead(g, panel, panels);
        switch (rows) {
            GEMM_ROWS(1) GEMM_ROWS(2) GEMM_ROWS(3) GEMM_ROWS(4) GEMM_ROWS(5) GEMM_ROWS(6) GEMM_ROWS(7)
            GEMM_ROWS(8) GEMM_ROWS(9) GEMM_ROWS(10) GEMM_ROWS(11) GEMM_ROWS(12) GEMM_ROWS(13) GEMM_ROWS(14)
        }
        a += rows * g->K, c += rows * g->ldc;
    }
}

#define GEMM_VECTORS(v) case v: if (v <= RK_GEMM_VECTORS) gemm_panel(g, b, c, n, v <= RK_GEMM_VECTORS ? v : 1); break;

static void k_gemm_block(const RkGemmBlock *g) {
    enum { WHOLE = RK_GEMM_VECTORS * RK_LANES };
    const float *b = g->b;
    float *c = g->c;
    for (size_t j = 0; j < g->cols; j += WHOLE, c += WHOLE, b += WHOLE * g->K) {
        size_t n = g->cols - j < WHOLE ? g->cols - j : WHOLE;
        switch ((n + RK_LANES - 1) / RK_LANES) {
            GEMM_VECTORS(1) GEMM_VECTORS(2) GEMM_VECTORS(3) GEMM_VECTORS(4)
        }
    }
}
