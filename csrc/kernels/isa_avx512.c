/* isa_avx512.c - the kernels for AVX-512; compile with -mavx512f -mavx512vl -mavx512bw -mavx512dq -mfma -mf16c -mavx2. */
#if defined __x86_64__

#define RK_ISA_AVX512
#include "kernels/isa_all.h"

extern const RkKernels rk_kernels_avx512;
RK_KERNELS_TABLE(avx512);

#else
typedef int rk_no_avx512_here; /* a translation unit may not be empty */
#endif
