/* linear_cpu.c - products with stored matrices. From RK_FEW_ROWS + 1 rows on they are matrix products; with fewer (decoding)
 * reading the weights once, as they lie, is all that counts, and other kernels do that. */
#include "ops/backend_cpu.h"

#include "kernels/gemm.h"

enum { FEW_ROWS_WEIGHTS = 1 << 15 /* weights one task reads */ };

static size_t outputs_per_task(size_t K) {
    size_t n = FEW_ROWS_WEIGHTS / K / RK_COLUMN_STEP * RK_COLUMN_STEP;
    return n ? n : RK_COLUMN_STEP;
}

static void few_rows_task(void *ctx, size_t task) {
    const RkRowsTimesTransposed *a = ctx;
    RkCpuRange out = rk_cpu_range(task, outputs_per_task(a->K), a->M);
    rk_k.rows_times_transposed(a, out.lo, out.hi);
}

static void quantise_task(void *ctx, size_t r) {
    const RkRowsTimesTransposed *a = ctx;
    rk_k.quantise_rows(a->x + r * a->K, 1, a->K, a->dtype, (char *)(uintptr_t)a->xq + r * rk_quantised_row_bytes(a->K));
}

static int few_rows(const RkLinear *o, size_t R, size_t K, size_t M) {
    RkRowsTimesTransposed a = {.x = rk_f32(o->x), .w = o->w.p, .dtype = o->w.dtype, .y = rk_f32(o->y), .R = R, .K = K, .M = M};
    if (rk_quantised(a.dtype)) {
        size_t bytes = R * rk_quantised_row_bytes(K);
        a.xq = rk_thread_scratch(bytes);
        if (!a.xq) return rk_fail(RK_ENOMEM, "linear: no memory for %zu rows of %zu quantised inputs (%zu bytes)", R, K, bytes);
        rk_parallel(R, quantise_task, &a);
    }
    rk_parallel(rk_cpu_tasks(M, outputs_per_task(K)), few_rows_task, &a);
    return RK_OK;
}

int rk_cpu_linear_fwd(const RkLinear *o) {
    size_t K = (size_t)rk_cols(o->w), M = rk_rows(o->w), R = rk_numel(o->x) / K;
    if (R <= RK_FEW_ROWS) return few_rows(o, R, K, M);
    return rk_gemm(&(RkGemm){.M = (int)R, .N = (int)M, .K = (int)K,
                             .A = rk_f32(o->x), .lda = (int)K,
                             .B = o->w.p, .B_dtype = o->w.dtype, .ldb = (int)K, .trans_b = 1,
                             .C = rk_f32(o->y), .ldc = (int)M});
}

int rk_cpu_linear_bwd(const RkLinear *o) {
    int K = rk_cols(o->w), M = (int)rk_rows(o->w), R = (int)(rk_numel(o->dy) / (size_t)M);
    if (o->dw.p)
        RK_TRY(rk_gemm(&(RkGemm){.M = M, .N = K, .K = R,
                                 .A = rk_f32(o->dy), .lda = M, .trans_a = 1,
                                 .B = rk_f32(o->x), .ldb = K,
                                 .C = rk_f32(o->dw), .ldc = K, .accumulate = !o->fresh}));
    if (o->dx.p)
        RK_TRY(rk_gemm(&(RkGemm){.M = R, .N = K, .K = M,
                                 .A = rk_f32(o->dy), .lda = M,
                                 .B = rk_f32(o->w), .ldb = K,
                                 .C = rk_f32(o->dx), .ldc = K}));
    return RK_OK;
}
