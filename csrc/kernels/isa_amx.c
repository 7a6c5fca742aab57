/* isa_amx.c - the kernels for AVX-512 with matrix products in AMX tiles; compile with the flags of isa_avx512vnni.c. */
#include "kernels/kernels.h"

#if defined RK_HAVE_AMX

#define RK_ISA_AVX512
#define RK_ISA_AMX
#include "kernels/isa_all.h"

extern const RkKernels rk_kernels_amx;
RK_KERNELS_TABLE(amx);

#else
typedef int rk_no_amx_here; /* a translation unit may not be empty */
#endif
