/* isa_avx512vnni.c - the kernels for AVX-512 with byte dot products; as isa_avx512.c and -mavx512vnni. */
#if defined __x86_64__

#define RK_ISA_AVX512
#include "kernels/isa_all.h"

extern const RkKernels rk_kernels_avx512vnni;
RK_KERNELS_TABLE(avx512vnni);

#else
typedef int rk_no_avx512vnni_here; /* a translation unit may not be empty */
#endif
