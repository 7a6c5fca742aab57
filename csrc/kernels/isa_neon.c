/* isa_neon.c - the kernels for AArch64 NEON, which every AArch64 processor has: no flags needed. */
#if defined __aarch64__

#define RK_ISA_NEON
#include "kernels/isa_all.h"

extern const RkKernels rk_kernels_neon;
RK_KERNELS_TABLE(neon);

#else
typedef int rk_no_neon_here; /* a translation unit may not be empty */
#endif
