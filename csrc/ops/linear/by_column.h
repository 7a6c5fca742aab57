/* by_column.h - a matrix w (M,K) by its columns, for y = x w^T where most of x is zero, as after relu(k)^2: what meets a zero is not
 * read. The numbers are those of w, also where they are quantised; the memory is as large as that of w. The order:
 *
 *   panels of RK_PANEL outputs (the last may have fewer), each of K / 32 blocks, each of n outputs:
 *     of quantised w   n scales, float16: those of the block in the n rows of w
 *     32 times         n numbers as w holds them; of 4 bits, byte j of each 32 outputs holds output j in its low half and
 *                      output 16 + j in its high half
 */
#ifndef RK_OPS_BY_COLUMN_H
#define RK_OPS_BY_COLUMN_H

#include "base/tensor.h"

/* Whether w can be held so: M and K must be multiples of 32. */
int rk_columns_fit(RkTensor w);

/* to: as many bytes as w. */
int rk_columns_of(RkTensor w, RkTensor to);

/* Of the products with columns so far: columns read, and columns there were. */
typedef struct RkColumnsRead { uint64_t read, all; } RkColumnsRead;
RkColumnsRead rk_cpu_columns_read(void);

#endif
