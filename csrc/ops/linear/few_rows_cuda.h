/* few_rows_cuda.h - products of up to RK_CUDA_FEW_ROWS rows, those of decoding. */
#ifndef RK_OPS_FEW_ROWS_CUDA_H
#define RK_OPS_FEW_ROWS_CUDA_H

#include "ops/ops.h"

enum { RK_CUDA_FEW_ROWS = 16 };

/* Whether rk_cuda_few_rows takes this one: its rows are few and its weights in a format that is multiplied as it lies. */
bool rk_cuda_few_rows_linear(const RkLinear *o);
bool rk_cuda_few_rows_lowrank(const RkLowrank *o);

/* The forward of all, in one launch, and one more where there are low-rank products. */
int rk_cuda_few_rows(const RkProducts *p);

#endif
