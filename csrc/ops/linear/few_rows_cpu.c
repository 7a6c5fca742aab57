/* few_rows_cpu.c - the products of a decoding step: reading the weights once, as they lie, is all that counts, and a parallel region
 * costs as much as 30 KB of them, so products that do not depend on each other share one.
 *
 * Every thread reads a share of its own, from its beginning to its end, because it asks for what lies ahead: were neighbouring
 * pieces given to different threads, each would fetch the beginning of a piece that another one multiplies, up to a third of all
 * bytes twice. A thread that is through helps with what is left of other shares. An output's bits do not depend on who makes it. */
#include "ops/backend_cpu.h"

#include <stdatomic.h>

enum { PIECE_WEIGHTS = 1 << 14 /* taken at a time */, COLUMNS_MIN = 64 /* narrower pieces of a row stream slowly */ };

static size_t dots_per_piece(size_t K) {
    size_t n = PIECE_WEIGHTS / K / RK_COLUMN_STEP * RK_COLUMN_STEP;
    return n ? n : RK_COLUMN_STEP;
}

static size_t sums_per_piece(size_t K) {
    size_t n = PIECE_WEIGHTS / K / RK_COLUMN_STEP * RK_COLUMN_STEP;
    return n < COLUMNS_MIN ? COLUMNS_MIN : n < RK_COLUMNS_MAX ? n : RK_COLUMNS_MAX;
}

/* Whether the piece is one of a product's M outputs, and then which; otherwise its number among those of the products after it. */
static int is_of(size_t *piece, size_t M, size_t per_piece, RkCpuRange *out) {
    size_t pieces = rk_cpu_tasks(M, per_piece);
    if (*piece >= pieces) return *piece -= pieces, 0;
    *out = rk_cpu_range(*piece, per_piece, M);
    return 1;
}

static void run_piece(const RkCpuProducts *p, size_t piece) {
    RkCpuRange out;
    for (size_t i = 0; i < p->n_dots; i++)
        if (is_of(&piece, p->dots[i].M, dots_per_piece(p->dots[i].K), &out)) {
            rk_k.rows_times_transposed(&p->dots[i], out.lo, out.hi);
            return;
        }
    for (size_t i = 0; i < p->n_sums; i++)
        if (is_of(&piece, p->sums[i].M, sums_per_piece(p->sums[i].K), &out)) {
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

typedef struct Share { _Alignas(64) atomic_size_t next; } Share; /* its first piece that nobody has taken */
typedef struct Shares { const RkCpuProducts *p; size_t pieces, n; Share share[RK_MAX_THREADS]; } Shares;

static size_t share_start(const Shares *s, size_t i) { return s->pieces * i / s->n; }

static void run_shares(void *ctx, size_t first) {
    Shares *s = ctx;
    for (size_t i = 0; i < s->n; i++) {
        size_t at = (first + i) % s->n, end = share_start(s, at + 1), piece;
        while ((piece = atomic_fetch_add_explicit(&s->share[at].next, 1, memory_order_relaxed)) < end) run_piece(s->p, piece);
    }
}

int rk_cpu_few_rows_run(RkCpuProducts *p) {
    RK_TRY(quantise_inputs(p));
    Shares s;
    s.p = p, s.pieces = 0, s.n = (size_t)rk_num_threads();
    for (size_t i = 0; i < p->n_dots; i++) s.pieces += rk_cpu_tasks(p->dots[i].M, dots_per_piece(p->dots[i].K));
    for (size_t i = 0; i < p->n_sums; i++) s.pieces += rk_cpu_tasks(p->sums[i].M, sums_per_piece(p->sums[i].K));
    if (s.n > s.pieces) s.n = s.pieces;
    for (size_t i = 0; i < s.n; i++) atomic_init(&s.share[i].next, share_start(&s, i));
    rk_parallel(s.n, run_shares, &s);
    return RK_OK;
}
