/* linear_cpu.c - products with stored matrices. From RK_FEW_ROWS + 1 rows on they are matrix products; with fewer (decoding)
 * reading the weights once, as they lie, is all that counts, and other kernels do that. */
#include "ops/backend_cpu.h"

#include "kernels/gemm.h"

RkRowsTimesTransposed rk_cpu_few_rows_linear(const RkLinear *o) {
    size_t K = (size_t)rk_cols(o->w);
    return (RkRowsTimesTransposed){.x = rk_f32(o->x), .w = o->w.p, .dtype = o->w.dtype, .y = rk_f32(o->y),
                                   .R = rk_numel(o->x) / K, .K = K, .M = rk_rows(o->w)};
}

int rk_cpu_linear_fwd(const RkLinear *o) {
    size_t K = (size_t)rk_cols(o->w), M = rk_rows(o->w), R = rk_numel(o->x) / K;
    if (R <= RK_FEW_ROWS && o->columns.p) return rk_cpu_columns_linear(o);
    if (R <= RK_FEW_ROWS) return rk_cpu_few_rows_run(&(RkCpuProducts){.dots = {rk_cpu_few_rows_linear(o)}, .n_dots = 1});
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
