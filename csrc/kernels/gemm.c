#include "kernels/gemm.h"

#include <stddef.h>
#include <string.h>

#include "base/err.h"
#include "base/parallel.h"
#include "base/tensor.h"
#include "kernels/kernels.h"

/* K is cut into slices of at most RK_GEMM_SLICE: a panel of B that long stays in L1 (32 KiB on AVX-512, 16 on AVX2). M is cut into
 * parts, as many of which at a time as give at most RK_GEMM_CHUNK rows: their slice of A, at most 1 MiB, stays in L2. All threads pack it
 * into the caller's scratch. Then a task takes some panels of B and one part: it packs a panel and multiplies it by all rows
 * while it is in L1. So A is packed once, B once for each part. */
enum { SLICE_STEP = 32, PART_MIN = 256, MIN_TASKS = 8, WIDE_TASKS = 12, TASK_OPS = 1 << 19, PACK_ELEMENTS = 1 << 14 };

typedef struct Cut { size_t slice, part, panels_per_pack, panels_per_task; } Cut;

typedef struct Slice {
    const RkGemm *g;
    Cut cut;
    size_t k, K, row, rows; /* of this slice and chunk */
    size_t pack_tasks, column_tasks; /* of a part */
    float *a;
    int failed;
} Slice;

static size_t parts(size_t n, size_t most) { return (n + most - 1) / most; }
static size_t least(size_t a, size_t b) { return a < b ? a : b; }
static size_t up_to(size_t n, size_t step) { return parts(n, step) * step; }

/* A function of the shape alone. */
static Cut cut_of(const RkGemm *g) {
    size_t M = (size_t)g->M, N = (size_t)g->N, K = (size_t)g->K, W = (size_t)rk_k.gemm_columns;
    Cut cut = {.slice = up_to(parts(K, parts(K, RK_GEMM_SLICE)), SLICE_STEP)};
    size_t n = parts(M, RK_GEMM_CHUNK), panels = parts(N, W);
    while (n * panels < MIN_TASKS && M / n >= 2 * PART_MIN) n *= 2;
    cut.part = parts(M, n);
    cut.panels_per_pack = parts(PACK_ELEMENTS, (size_t)rk_k.gemm_rows * least(K, cut.slice));
    cut.panels_per_task = parts(TASK_OPS, cut.part * least(K, cut.slice) * W);
    if (cut.panels_per_task < panels / WIDE_TASKS) cut.panels_per_task = panels / WIDE_TASKS;
    return cut;
}

/* Some panels of one part of A. */
static void pack_a_task(void *ctx, size_t task) {
    const Slice *s = ctx;
    const RkGemm *g = s->g;
    size_t lda = (size_t)g->lda, most = (size_t)rk_k.gemm_rows;
    size_t first = task / s->pack_tasks * s->cut.part, rows = least(s->cut.part, s->rows - first);
    size_t panel = task % s->pack_tasks * s->cut.panels_per_pack, end = least(panel + s->cut.panels_per_pack, rk_gemm_panels(rows, most));
    RkGemmPack p = {.src = g->A + (g->trans_a ? s->k * lda : s->k), .stride = lda, .along_k = !g->trans_a, .lines = (size_t)g->M, .K = s->K};
    for (; panel < end; panel++) {
        size_t i = first + rk_gemm_panel_start(rows, most, panel);
        p.width = rk_gemm_panel_rows(rows, most, panel);
        rk_k.gemm_pack(&p, s->row + i, p.width, s->a + i * s->K);
    }
}

/* Lines of B's slice as float32: where they lie when they are that, else turned into it at `room`. */
static RkGemmPack lines_of_b(const Slice *s, size_t j, size_t n, float *room) {
    const RkGemm *g = s->g;
    size_t ldb = (size_t)g->ldb;
    RkGemmPack p = {.src = g->B, .stride = ldb, .along_k = g->trans_b, .lines = n, .K = s->K, .width = up_to(n, (size_t)rk_k.lanes)};
    if (g->B_dtype == RK_F32) {
        p.src += g->trans_b ? j * ldb + s->k : s->k * ldb + j;
        return p;
    }
    size_t rows = g->trans_b ? n : s->K, row = g->trans_b ? j : s->k, lo = g->trans_b ? s->k : j;
    p.src = room;
    p.stride = g->trans_b ? s->K : n;
    for (size_t r = 0; r < rows; r++)
        rk_k.row_to_f32(g->B_dtype, (const char *)g->B + (row + r) * rk_row_bytes(g->B_dtype, ldb), ldb, lo, lo + p.stride, room + r * p.stride);
    return p;
}

/* The next panel's bytes of B, to be fetched meanwhile. */
static void announce(const Slice *s, size_t j, size_t n, RkGemmBlock *block) {
    const RkGemm *g = s->g;
    size_t row = g->trans_b ? j : s->k, lo = g->trans_b ? s->k : j, bytes = rk_row_bytes(g->B_dtype, (size_t)g->ldb);
    block->next = (const char *)g->B + row * bytes + lo * bytes / (size_t)g->ldb;
    block->next_pieces = g->trans_b || !n ? n : s->K;
    block->next_bytes = (g->trans_b ? s->K : n) * bytes / (size_t)g->ldb;
    block->next_stride = bytes;
}

static void multiply_task(void *ctx, size_t task) {
    Slice *s = ctx;
    const RkGemm *g = s->g;
    size_t W = (size_t)rk_k.gemm_columns, N = (size_t)g->N, ldc = (size_t)g->ldc;
    float *b = rk_thread_scratch(2 * W * s->K * sizeof(float));
    if (!b) { s->failed = 1; return; }
    size_t first = task / s->column_tasks * s->cut.part, rows = least(s->cut.part, s->rows - first);
    size_t j = task % s->column_tasks * s->cut.panels_per_task * W, end = least(j + s->cut.panels_per_task * W, N);
    RkGemmBlock block = {.a = s->a + first * s->K, .b = b, .K = s->K, .rows = rows, .ldc = ldc, .add = g->accumulate || s->k};
    for (; j < end; j += W) {
        block.cols = least(W, N - j);
        block.c = g->C + (s->row + first) * ldc + j;
        RkGemmPack p = lines_of_b(s, j, block.cols, b + W * s->K);
        rk_k.gemm_pack(&p, 0, block.cols, b);
        announce(s, j + W, j + W < end ? least(W, end - j - W) : 0, &block);
        rk_k.gemm_block(&block);
    }
}

int rk_gemm(const RkGemm *g) {
    if (g->M < 1 || g->N < 1) return RK_OK;
    if (g->K < 1) {
        for (int i = 0; i < g->M && !g->accumulate; i++)
            memset(g->C + (size_t)i * (size_t)g->ldc, 0, (size_t)g->N * sizeof(float));
        return RK_OK;
    }
    size_t M = (size_t)g->M, K = (size_t)g->K;
    Slice s = {.g = g, .cut = cut_of(g)};
    size_t chunk = least(M, RK_GEMM_CHUNK / s.cut.part * s.cut.part), bytes = chunk * least(s.cut.slice, K) * sizeof(float);
    s.a = rk_thread_scratch(bytes);
    if (!s.a) return rk_fail(RK_ENOMEM, "no memory for the panels of a matrix product (%zu bytes)", bytes);
    s.pack_tasks = parts(rk_gemm_panels(s.cut.part, (size_t)rk_k.gemm_rows), s.cut.panels_per_pack);
    s.column_tasks = parts((size_t)g->N, s.cut.panels_per_task * (size_t)rk_k.gemm_columns);
    for (s.row = 0; s.row < M; s.row += chunk)
        for (s.k = 0; s.k < K; s.k += s.cut.slice) {
            s.rows = least(chunk, M - s.row), s.K = least(s.cut.slice, K - s.k);
            size_t n = parts(s.rows, s.cut.part);
            rk_parallel(n * s.pack_tasks, pack_a_task, &s);
            rk_parallel(n * s.column_tasks, multiply_task, &s);
        }
    return s.failed ? rk_fail(RK_ENOMEM, "no memory for the panels of a matrix product") : RK_OK;
}
