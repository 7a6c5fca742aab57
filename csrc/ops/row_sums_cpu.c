/* row_sums_cpu.c - sums over rows: of an array, and of what a pass over rows adds up on its way. */
#include <string.h>

#include "kernels/gemm.h"
#include "ops/backend_cpu.h"

enum { BLOCKS_MAX = 32 };

typedef struct Blocks { const RkCpuRowSums *s; size_t count, rows; float *partial; /* (n, count, C) */ } Blocks;

static float *partial(const Blocks *b, size_t sum, size_t block) { return b->partial + (sum * b->count + block) * b->s->C; }

static void block_task(void *ctx, size_t block) {
    const Blocks *b = ctx;
    float *sums[RK_CPU_ROW_SUMS_MAX];
    for (size_t i = 0; i < b->s->n; i++) sums[i] = memset(partial(b, i, block), 0, b->s->C * sizeof(float));
    b->s->block(b->s->ctx, rk_cpu_range(block, b->rows, b->s->R), sums);
}

static void join_task(void *ctx, size_t sum) {
    const Blocks *b = ctx;
    if (b->s->to[sum]) rk_k.column_sums(partial(b, sum, 0), b->s->to[sum], b->count, b->s->C, 0, b->s->C);
}

/* The room for the sums is what a matrix product may take as well. */
int rk_cpu_row_sums(const RkCpuRowSums *s) {
    size_t bytes = s->n * s->C * sizeof(float), most = RK_GEMM_CALL_SCRATCH / bytes, few = rk_cpu_rows_per_task(s->C);
    most = most < 1 ? 1 : most < BLOCKS_MAX ? most : BLOCKS_MAX;
    Blocks b = {.s = s, .rows = rk_cpu_tasks(s->R, most)};
    if (b.rows < few) b.rows = few;
    b.count = rk_cpu_tasks(s->R, b.rows);
    b.partial = rk_thread_scratch(b.count * bytes);
    if (!b.partial) return rk_fail(RK_ENOMEM, "no memory for %zu sums over rows (%zu bytes)", s->n, b.count * bytes);
    rk_parallel(b.count, block_task, &b);
    rk_parallel(s->n, join_task, &b);
    return RK_OK;
}

typedef struct ColumnSums { const float *src; float *dst; size_t R, C; } ColumnSums;

/* Wide pieces of a row stream faster from memory (256 columns twice as fast as 64), but there should be tasks to share out. */
static size_t columns_per_task(size_t C) {
    size_t cols = C / 6 / 64 * 64;
    return cols < 64 ? 64 : cols < RK_COLUMNS_MAX ? cols : RK_COLUMNS_MAX;
}

static void column_sums_task(void *ctx, size_t task) {
    const ColumnSums *s = ctx;
    RkCpuRange cols = rk_cpu_range(task, columns_per_task(s->C), s->C);
    rk_k.column_sums(s->src, s->dst, s->R, s->C, cols.lo, cols.hi);
}

void rk_cpu_column_sums(const float *src, float *dst, size_t R, size_t C) {
    ColumnSums s = {src, dst, R, C};
    rk_parallel(rk_cpu_tasks(C, columns_per_task(C)), column_sums_task, &s);
}
