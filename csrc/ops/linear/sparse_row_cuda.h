/* sparse_row_cuda.h - y = x w^T for one row x of which much is zero, with w transposed: rows of wt (K,M) whose x is 0 are not read. */
#ifndef RK_OPS_SPARSE_ROW_CUDA_H
#define RK_OPS_SPARSE_ROW_CUDA_H

#include "ops/ops.h"

bool rk_cuda_sparse_row_takes(const RkLinear *o);
int rk_cuda_sparse_row(const RkLinear *o);

#endif
