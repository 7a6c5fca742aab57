/* isa_all.h - every kernel for one instruction set: included once by each isa_*.c after it has chosen the tier.
 * All functions are static; the object exports nothing but its table, so the linker can never mix tiers. */
#include "kernels/kernels.h"
#include "kernels/simd.h"

#include "kernels/attn_simd.h"
#include "kernels/elementwise_simd.h"
#include "kernels/gate_simd.h"
#include "kernels/gelu_simd.h"
#if defined RK_ISA_AMX || defined RK_TILES_IN_C
#include "kernels/gemm_tiles_simd.h"
#else
#include "kernels/gemm_simd.h"
#endif
#include "kernels/loss_simd.h"
#include "kernels/quant_simd.h"
#include "kernels/matvec_simd.h"
#include "kernels/columns_simd.h"
#include "kernels/norm_simd.h"
#include "kernels/optim_simd.h"
#include "kernels/sample_simd.h"
#include "kernels/shift_simd.h"
#include "kernels/wkv_simd.h"
#include "kernels/wkv6_simd.h"
#include "kernels/wkv7_simd.h"

#define X(result, name, arguments) .name = k_##name,
#define RK_KERNELS_TABLE(tier) const RkKernels rk_kernels_##tier = {.isa = #tier, .lanes = RK_LANES, .gemm = GEMM_LAYOUT, RK_KERNELS(X)}
