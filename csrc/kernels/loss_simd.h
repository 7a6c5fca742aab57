/* loss_simd.h - one row of softmax cross-entropy; formulas in ops/loss/xent.h.
 * The row is walked three times: its maximum, its exponentials (kept in place when the gradient is wanted) with their sum,
 * and the scaling. Sums run in float32 inside a block of XENT_BLOCK and in float64 over the blocks. */

enum { XENT_BLOCK = 1024 };

static inline size_t block_end(size_t lo, size_t n) { return lo + XENT_BLOCK < n ? lo + XENT_BLOCK : n; }

SIMD float block_max(const float *z, size_t n) {
    Vec top = vec_set(-__builtin_inff());
    size_t i = 0;
    for (; i + RK_LANES <= n; i += RK_LANES) top = vec_max(vec_load(z + i), top);
    float m = vec_max_lane(top);
    for (; i < n; i++) m = z[i] > m ? z[i] : m;
    return m;
}

/* The lowest index of the largest value; NaN is never the largest. */
static size_t xent_argmax(const float *z, size_t n) {
    float top = -__builtin_inff();
    size_t block = 0;
    for (size_t lo = 0; lo < n; lo += XENT_BLOCK) {
        float m = block_max(z + lo, block_end(lo, n) - lo);
        if (m > top) top = m, block = lo;
    }
    for (size_t i = block; i < block_end(block, n); i++)
        if (z[i] == top) return i;
    return 0;
}

typedef struct XentExp { float *z; Vec top, sum; int keep; } XentExp;

SIMD void xent_exp_at(XentExp *x, size_t i, size_t n) {
    Vec e = vec_keep_part(vec_exp(vec_load_part(x->z + i, n) - x->top), n);
    x->sum = x->sum + e;
    if (x->keep) vec_store_part(x->z + i, n, e);
}

static double xent_exp_sum(float *z, size_t n, float top, int keep) {
    double sum = 0;
    for (size_t lo = 0; lo < n; lo += XENT_BLOCK) {
        XentExp x = {z, vec_set(top), vec_set(0), keep};
        SWEEP(xent_exp_at, &x, lo, block_end(lo, n));
        sum += (double)vec_sum(x.sum);
    }
    return sum;
}

typedef struct Scaling { float *z; Vec by; } Scaling;
SIMD void scale_at(const Scaling *s, size_t i, size_t n) { vec_store_part(s->z + i, n, vec_load_part(s->z + i, n) * s->by); }

static double k_xent_row(float *z, size_t n, const RkXentRow *a) {
    int counts = a->target >= 0;
    size_t argmax = xent_argmax(z, n);
    float top = z[argmax];
    double loss = 0;
    if (counts) {
        float aim = z[a->target];
        double sum = xent_exp_sum(z, n, top, a->grad);
        loss = __builtin_log(sum) + ((double)top - (double)aim);
        if (!a->grad) return loss;
        Scaling s = {z, vec_set((float)(a->scale / sum))};
        SWEEP(scale_at, &s, 0, n);
        z[a->target] -= (float)a->scale;
    } else if (a->grad) {
        memset(z, 0, n * sizeof *z);
    }
    if (a->grad) z[argmax] += (float)(a->l2 * (double)top);
    return loss;
}
