/* backend_cuda.h - the function names of the cuda backend: rk_cuda_<op>_fwd and rk_cuda_<op>_bwd. */
#ifndef RK_OPS_BACKEND_CUDA_H
#define RK_OPS_BACKEND_CUDA_H

#include "ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

#define X(op, Args, FIELDS) int rk_cuda_##op##_fwd(const Args *o); int rk_cuda_##op##_bwd(const Args *o);
RK_OPS(X)
#undef X
int rk_cuda_products_fwd(const RkProducts *p);
int rk_cuda_columns_fit(RkTensor w);
int rk_cuda_columns(RkTensor w, RkTensor to); /* w transposed */
int rk_cuda_draw(const RkDraw *o);

#ifdef __cplusplus
}
#endif

#endif
