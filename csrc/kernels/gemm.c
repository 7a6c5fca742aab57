#include "kernels/gemm.h"

#include <stddef.h>
#include <string.h>

#include "base/err.h"
#include "base/parallel.h"
#include "base/tensor.h"
#include "kernels/kernels.h"

/* K is cut into slices: a panel of B that long stays in L1 (32 KiB on AVX-512, 16 on AVX2; in tiles, in L2). M is cut into
 * parts of at most PART_MAX rows, whose slice of A stays in L2. A chunk, as many parts and slices of A as RK_GEMM_PACKED holds, is
 * packed by all threads into the caller's scratch. Then a task takes one part and a few panels of B and goes through the chunk's
 * slices: it packs a panel and multiplies it by all rows while it is in L1, and those columns of C stay in L2 from slice to slice. So
 * A is packed once and B once for each part, memory sees A and C once, and most products are two regions of tasks. */
enum { SLICE_STEP = 32, PART_MAX = 512, PART_MIN = 256, MIN_TASKS = 8, TASK_OPS = 1 << 19, PACK_ELEMENTS = 1 << 15,
       PACK_STEPS = 16 };

typedef struct Cut { size_t slice, part, rows, depth, panels_per_pack, panels_per_task; } Cut; /* rows, depth: of a chunk */

typedef struct Chunk {
    const RkGemm *g;
    Cut cut;
    size_t row, rows, k, K;
    size_t pack_tasks, column_tasks; /* of a slice of a part; of a part */
    char *a;
    int failed;
} Chunk;

/* A task's place in a chunk: `rows` rows from `row` on, and its slice of A. */
typedef struct Place { size_t row, rows, k, K; char *a; } Place;

static size_t parts(size_t n, size_t most) { return (n + most - 1) / most; }
static size_t least(size_t a, size_t b) { return a < b ? a : b; }
static size_t up_to(size_t n, size_t step) { return parts(n, step) * step; }

/* A function of the shape alone. */
static Cut cut_of(const RkGemm *g) {
    const RkGemmLayout *layout = &rk_k.gemm;
    size_t M = (size_t)g->M, K = (size_t)g->K, W = layout->columns, panels = parts((size_t)g->N, W), n = parts(M, PART_MAX);
    while (n * parts(panels, layout->task_panels) < MIN_TASKS && M / n >= 2 * PART_MIN) n *= 2;
    Cut cut = {.slice = up_to(parts(K, parts(K, layout->slice)), SLICE_STEP), .part = up_to(parts(M, n), layout->row_unit)};
    cut.depth = least(up_to(K, cut.slice), RK_GEMM_PACKED / cut.part / cut.slice * cut.slice);
    cut.rows = RK_GEMM_PACKED / (cut.part * cut.depth) * cut.part;
    cut.panels_per_pack = parts(PACK_ELEMENTS, layout->rows * cut.slice);
    size_t few = parts(panels, parts(MIN_TASKS, n)), enough = parts(TASK_OPS, cut.part * least(K, cut.depth) * W);
    cut.panels_per_task = least(few > enough ? few : enough, layout->task_panels > enough ? layout->task_panels : enough);
    return cut;
}

static Place place(const Chunk *c, size_t part, size_t slice) {
    Place p = {.row = part * c->cut.part, .k = slice * c->cut.slice};
    p.rows = least(c->cut.part, c->rows - p.row);
    p.K = least(c->cut.slice, c->K - p.k);
    size_t packed_rows = up_to(p.rows, rk_k.gemm.row_unit), packed_K = up_to(c->K, rk_k.gemm.step_unit);
    p.a = c->a + (p.row * packed_K + packed_rows * p.k) * rk_k.gemm.element_bytes;
    return p;
}

/* A part's rows are cut into panels in whole units, of almost equal size. */
static size_t panels_of(size_t rows) { return rk_gemm_panels(parts(rows, rk_k.gemm.row_unit), rk_k.gemm.rows / rk_k.gemm.row_unit); }
static size_t panel_start(size_t rows, size_t panel) {
    return rk_gemm_panel_start(parts(rows, rk_k.gemm.row_unit), rk_k.gemm.rows / rk_k.gemm.row_unit, panel) * rk_k.gemm.row_unit;
}

/* Some panels of one slice of one part of A; transposed, a few steps of k for all panels at a time, which read on along the same rows. */
static void pack_a_task(void *ctx, size_t task) {
    const Chunk *c = ctx;
    const RkGemm *g = c->g;
    size_t lda = (size_t)g->lda, slices = parts(c->K, c->cut.slice);
    Place at = place(c, task / c->pack_tasks / slices, task / c->pack_tasks % slices);
    size_t first = task % c->pack_tasks * c->cut.panels_per_pack, steps = g->trans_a ? up_to(PACK_STEPS, rk_k.gemm.step_unit) : at.K;
    size_t end = least(first + c->cut.panels_per_pack, panels_of(at.rows)), packed_K = up_to(at.K, rk_k.gemm.step_unit);
    for (size_t k = 0; k < at.K; k += steps) {
        const float *src = g->A + (c->k + at.k + k) * (g->trans_a ? lda : 1);
        RkGemmPack p = {.src = src, .stride = lda, .along_k = !g->trans_a, .lines = (size_t)g->M, .K = least(steps, at.K - k),
                        .left = 1, .parts = RK_GEMM_PARTS};
        for (size_t panel = first; panel < end; panel++) {
            size_t i = panel_start(at.rows, panel);
            p.width = panel_start(at.rows, panel + 1) - i;
            rk_k.gemm_pack(&p, c->row + at.row + i, least(p.width, at.rows - i), at.a + (i * packed_K + k * p.width) * rk_k.gemm.element_bytes);
        }
    }
}

/* The bf16 numbers whose sum an element can be: f16 has 11 significant bits, times 4 bits of RK_Q4 14, times 8 of RK_Q8 19. */
static int parts_of(int dtype) { return dtype == RK_BF16 ? 1 : dtype == RK_F16 || dtype == RK_Q4 ? 2 : RK_GEMM_PARTS; }

/* Columns [j, j + n) of a slice of B, from where they lie when they are float32, else turned into it at `room`. */
static RkGemmPack columns_of_b(const RkGemm *g, size_t k, size_t K, size_t j, size_t n, float *room) {
    size_t ldb = (size_t)g->ldb, rows = g->trans_b ? n : K, row = g->trans_b ? j : k, lo = g->trans_b ? k : j;
    RkGemmPack p = {.stride = ldb, .along_k = g->trans_b, .lines = n, .K = K, .width = up_to(n, rk_k.gemm.column_unit),
                    .parts = parts_of(g->B_dtype)};
    if (g->B_dtype == RK_F32) {
        p.src = (const float *)g->B + row * ldb + lo;
        return p;
    }
    p.src = room;
    p.stride = g->trans_b ? K : n;
    const char *from = (const char *)g->B + row * rk_row_bytes(g->B_dtype, ldb);
    for (size_t r = 0; r < rows; r++)
        rk_k.row_to_f32(g->B_dtype, from + r * rk_row_bytes(g->B_dtype, ldb), ldb, lo, lo + p.stride, room + r * p.stride);
    return p;
}

/* What the block's tiles fetch meanwhile: the same of B as it lies in memory. */
static void announce(const RkGemm *g, size_t k, size_t K, size_t j, size_t n, RkGemmBlock *block) {
    size_t row = g->trans_b ? j : k, lo = g->trans_b ? k : j, bytes = rk_row_bytes(g->B_dtype, (size_t)g->ldb);
    block->next = (const char *)g->B + row * bytes + lo * bytes / (size_t)g->ldb;
    block->next_pieces = g->trans_b ? n : K;
    block->next_bytes = (g->trans_b ? K : n) * bytes / (size_t)g->ldb;
    block->next_stride = bytes;
}

static void multiply_task(void *ctx, size_t task) {
    Chunk *c = ctx;
    const RkGemm *g = c->g;
    size_t W = rk_k.gemm.columns, N = (size_t)g->N, ldc = (size_t)g->ldc, slices = parts(c->K, c->cut.slice);
    size_t bytes = W * c->cut.slice * rk_k.gemm.element_bytes;
    char *b = rk_thread_scratch(bytes + W * c->cut.slice * sizeof(float));
    if (!b) { c->failed = 1; return; }
    size_t first = task % c->column_tasks * c->cut.panels_per_task * W, end = least(first + c->cut.panels_per_task * W, N);
    for (size_t slice = 0; slice < slices; slice++) {
        Place at = place(c, task / c->column_tasks, slice);
        size_t k = c->k + at.k;
        RkGemmBlock block = {.a = at.a, .b = b, .K = at.K, .rows = at.rows, .ldc = ldc, .add = g->accumulate || k,
                             .parts = parts_of(g->B_dtype)};
        for (size_t j = first; j < end; j += W) {
            block.cols = least(W, N - j);
            block.c = g->C + (c->row + at.row) * ldc + j;
            RkGemmPack p = columns_of_b(g, k, at.K, j, block.cols, (float *)(void *)(b + bytes));
            rk_k.gemm_pack(&p, 0, block.cols, b);
            if (j + W < end) announce(g, k, at.K, j + W, least(W, N - j - W), &block);
            else if (slice + 1 < slices) announce(g, k + at.K, least(c->cut.slice, c->K - at.k - at.K), first, least(W, N - first), &block);
            else block.next_pieces = 0;
            rk_k.gemm_block(&block);
        }
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
    Chunk c = {.g = g, .cut = cut_of(g)};
    size_t bytes = least(c.cut.rows, up_to(M, rk_k.gemm.row_unit)) * least(c.cut.depth, up_to(K, rk_k.gemm.step_unit)) * rk_k.gemm.element_bytes;
    c.a = rk_thread_scratch(bytes);
    if (!c.a) return rk_fail(RK_ENOMEM, "no memory for the panels of a matrix product (%zu bytes)", bytes);
    c.pack_tasks = parts(panels_of(c.cut.part), c.cut.panels_per_pack);
    c.column_tasks = parts((size_t)g->N, c.cut.panels_per_task * rk_k.gemm.columns);
    for (c.row = 0; c.row < M; c.row += c.cut.rows)
        for (c.k = 0; c.k < K; c.k += c.cut.depth) {
            c.rows = least(c.cut.rows, M - c.row), c.K = least(c.cut.depth, K - c.k);
            size_t n = parts(c.rows, c.cut.part);
            rk_parallel(n * parts(c.K, c.cut.slice) * c.pack_tasks, pack_a_task, &c);
            rk_parallel(n * c.column_tasks, multiply_task, &c);
        }
    return c.failed ? rk_fail(RK_ENOMEM, "no memory for the panels of a matrix product") : RK_OK;
}
