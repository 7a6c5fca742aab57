#include "ops/backend_cpu.h"

typedef struct AdamW { RkAdamWRange a; const int32_t *rows; size_t n, R, C; } AdamW;

static void adamw_task(void *ctx, size_t task) {
    const AdamW *s = ctx;
    RkCpuRange e = rk_cpu_range(task, RK_CPU_GRAIN, s->n);
    rk_k.adamw(&s->a, e.lo, e.hi);
}

/* Elements [lo, hi), whose gradient is zero: the same arithmetic with zeros that stay in the cache. */
static void adamw_idle(const AdamW *s, size_t lo, size_t hi) {
    static const float zeros[1 << 10];
    for (size_t i = lo, n; i < hi; i += n) {
        n = hi - i < sizeof zeros / sizeof *zeros ? hi - i : sizeof zeros / sizeof *zeros;
        RkAdamWRange piece = s->a;
        piece.p += i, piece.m += i, piece.v += i, piece.g = zeros;
        rk_k.adamw(&piece, 0, n);
    }
}

static void adamw_rows_task(void *ctx, size_t task) {
    const AdamW *s = ctx;
    RkCpuRange rows = rk_cpu_range(task, rk_cpu_rows_per_task(s->C), s->R);
    for (size_t r = rows.lo; r < rows.hi; r++) {
        size_t lo = r * s->C, hi = lo + s->C;
        if (s->rows[r] == RK_ROW_LIVE) rk_k.adamw(&s->a, lo, hi);
        else if (s->rows[r] == RK_ROW_IDLE) adamw_idle(s, lo, hi);
        else if (s->a.wd != 0) rk_k.adamw_asleep(&s->a, lo, hi);
    }
}

int rk_cpu_adamw_fwd(const RkAdamW *o) {
    double clip = o->clip.p ? *(const double *)o->clip.p : 1;
    const double numbers[] = {1, o->wd, 1 / o->bias1, 1 / o->bias2}, *rates = o->rates.p ? o->rates.p : numbers;
    if (clip == 0) return RK_OK;
    AdamW s = {{.p = rk_f32(o->p), .g = rk_f32(o->g), .m = rk_f32(o->m), .v = rk_f32(o->v), .gscale = (float)(o->gscale * clip),
                .lr = (float)(o->lr * rates[RK_RATE_LR]), .beta1 = (float)o->beta1, .one_minus_beta1 = (float)(1 - o->beta1), .beta2 = (float)o->beta2,
                .one_minus_beta2 = (float)(1 - o->beta2), .eps = (float)o->eps, .wd = (float)(o->wd < 0 ? rates[RK_RATE_WD] : o->wd),
                .inverse_bias1 = (float)rates[RK_RATE_INVERSE_BIAS1], .inverse_bias2 = (float)rates[RK_RATE_INVERSE_BIAS2]},
               o->rows, rk_numel(o->p), rk_rows(o->p), (size_t)rk_cols(o->p)};
    if (o->rows) rk_parallel(rk_cpu_tasks(s.R, rk_cpu_rows_per_task(s.C)), adamw_rows_task, &s);
    else rk_parallel(rk_cpu_tasks(s.n, RK_CPU_GRAIN), adamw_task, &s);
    return RK_OK;
}
