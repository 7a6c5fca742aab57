/* isa_scalar.c - the kernels in plain C, compiled with the baseline flags of the machine. */
#define RK_ISA_SCALAR
#include "kernels/isa_all.h"

extern const RkKernels rk_kernels_scalar;
RK_KERNELS_TABLE(scalar);
