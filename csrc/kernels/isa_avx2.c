/* isa_avx2.c - the kernels for AVX2 with FMA; compile with -mavx2 -mfma -mf16c. */
#if defined __x86_64__

#define RK_ISA_AVX2
#include "kernels/isa_all.h"

extern const RkKernels rk_kernels_avx2;
RK_KERNELS_TABLE(avx2);

#else
typedef int rk_no_avx2_here; /* a translation unit may not be empty */
#endif
