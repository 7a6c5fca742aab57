#include "kernels/gemm.h"

#include <stddef.h>
#include <string.h>

#include "base/err.h"
#include "base/parallel.h"
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

static void multiply_task(void *ctx, size_t task) {
    Slice *s = ctx;
    const RkGemm *g = s->g;
    size_t W = (size_t)rk_k.gemm_columns, N = (size_t)g->N, ldb = (size_t)g->ldb, ldc = (size_t)g->ldc;
    float *b = rk_thread_scratch((W * s->K) * sizeof(float));
    if (!b) { s->failed = 1; return; }
    size_t first = task / s->column_tasks * s->cut.part, rows = least(s->cut.part, s->rows - first);
    size_t j = task % s->column_tasks * s->cut.panels_per_task * W, end = least(j + s->cut.panels_per_task * W, N);
    RkGemmPack p = {.src = g->B + (g->trans_b ? s->k : s->k * ldb), .stride = ldb, .along_k = g->trans_b, .lines = N, .K = s->K};
    RkGemmBlock block = {.a = s->a + first * s->K, .b = b, .K = s->K, .rows = rows, .ldc = ldc, .add = g->accumulate || s->k};
    for (; j < end; j += W) {
        size_t follow = j + W < end ? least(W, N - j - W) : 0;
        block.next = (const char *)(p.src + (j + W) * (g->trans_b ? ldb : 1));
        block.next_pieces = g->trans_b || !follow ? follow : s->K;
        block.next_bytes = (g->trans_b ? s->K : follow) * sizeof(float);
        block.next_stride = ldb * sizeof(float);
        block.cols = least(W, N - j);
        block.c = g->C + (s->row + first) * ldc + j;
        p.width = up_to(block.cols, (size_t)rk_k.lanes);
        rk_k.gemm_pack(&p, j, block.cols, b);
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
