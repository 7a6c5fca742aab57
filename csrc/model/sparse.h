/* sparse.h - the P_SPARSE matrices of a model by their columns, in the order of its backend, with which a few rows are multiplied.
 *
 * Made the first time that a few rows are read, and again where the weights are new; not for a model that has gradients, nor where
 * others may write the weights unseen. Where the matrices lie in a file its pages are let go of, so that memory holds them once. */
#ifndef RK_MODEL_SPARSE_H
#define RK_MODEL_SPARSE_H

#include "base/tensor.h"

typedef struct RkColumns {
    RkTensor *of; /* (L), absent where a layer has none; NULL: none yet */
    void *memory; /* of all of them; NULL: there is no room for them */
    size_t bytes;
    uint64_t writes; /* to the weights when they were made */
} RkColumns;

struct RkModel;
size_t rk_model_columns_bytes(const struct RkModel *m);
size_t rk_model_columns_beside(const struct RkModel *m); /* of matrices that memory then holds twice, for they lie in no file */
int rk_model_need_columns(struct RkModel *m, size_t rows);
void rk_model_forget_columns(struct RkModel *m);

/* After rows were read without the columns. */
void rk_model_leave_mapped(const struct RkModel *m, int layer);

#endif
