/* few_rows_cpu.c - the products of a decoding step: reading the weights once, as they lie, is all that counts, and a parallel region
 * costs as much as 30 KB of them, so products that do not depend on each other share one. */
#include "ops/backend_cpu.h"

enum { TASK_WEIGHTS = 1 << 15 /* read by one task */, COLUMNS_MIN = 64 /* narrower pieces of a row stream slowly */ };

static size_t dots_per_task(size_t K) {
    size_t n = TASK_WEIGHTS / K / RK_COLUMN_STEP * RK_COLUMN_STEP;
    return n ? n : RK_COLUMN_STEP;
}

static size_t sums_per_task(size_t K) {
    size_t n = TASK_WEIGHTS / K / RK_COLUMN_STEP * RK_COLUMN_STEP;
    return n < COLUMNS_MIN ? COLUMNS_MIN : n < RK_COLUMNS_MAX ? n : RK_COLUMNS_MAX;
}

/* Whether the task is one of a product's M outputs, and then which; otherwise its number among those of the products after it. */
static int is_of(size_t *task, size_t M, size_t per_task, RkCpuRange *out) {
    size_t tasks = rk_cpu_tasks(M, per_task);
    if (*task >= tasks) return *task -= tasks, 0;
    *out = rk_cpu_range(*task, per_task, M);
    return 1;
}

static void run_task(void *ctx, size_t task) {
    const RkCpuProducts *p = ctx;
    RkCpuRange out;
    for (size_t i = 0; i < p->n_dots; i++)
        if (is_of(&task, p->dots[i].M, dots_per_task(p->dots[i].K), &out)) {
            rk_k.rows_times_transposed(&p->dots[i], out.lo, out.hi);
            return;
        }
    for (size_t i = 0; i < p->n_sums; i++)
        if (is_of(&task, p->sums[i].M, sums_per_task(p->sums[i].K), &out)) {
            rk_k.rows_times_matrix(&p->sums[i], out.lo, out.hi);
            return;
        }
}

static void quantise_task(void *ctx, size_t r) {
    const RkRowsTimesTransposed *a = ctx;
    rk_k.quantise_rows(a->x + r * a->K, 1, a->K, a->dtype, (char *)(uintptr_t)a->xq + r * rk_quantised_row_bytes(a->K));
}

/* x of every product whose w is quantised, into the caller's scratch. */
static int quantise_inputs(RkCpuProducts *p) {
    size_t bytes = 0;
    for (size_t i = 0; i < p->n_dots; i++)
        if (rk_quantised(p->dots[i].dtype)) bytes += p->dots[i].R * rk_quantised_row_bytes(p->dots[i].K);
    if (!bytes) return RK_OK;
    char *xq = rk_thread_scratch(bytes);
    if (!xq) return rk_fail(RK_ENOMEM, "linear: no memory for %zu bytes of quantised inputs", bytes);
    for (size_t i = 0; i < p->n_dots; i++) {
        if (!rk_quantised(p->dots[i].dtype)) continue;
        p->dots[i].xq = xq;
        xq += p->dots[i].R * rk_quantised_row_bytes(p->dots[i].K);
        rk_parallel(p->dots[i].R, quantise_task, &p->dots[i]);
    }
    return RK_OK;
}

int rk_cpu_few_rows_run(RkCpuProducts *p) {
    RK_TRY(quantise_inputs(p));
    size_t tasks = 0;
    for (size_t i = 0; i < p->n_dots; i++) tasks += rk_cpu_tasks(p->dots[i].M, dots_per_task(p->dots[i].K));
    for (size_t i = 0; i < p->n_sums; i++) tasks += rk_cpu_tasks(p->sums[i].M, sums_per_task(p->sums[i].K));
    rk_parallel(tasks, run_task, p);
    return RK_OK;
}
