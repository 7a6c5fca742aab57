/* isa_all.h - every kernel for one instruction set: included once by each isa_*.c after it has chosen the tier.
 * All functions are static; the object exports nothing but its table, so the linker can never mix tiers. */
#include "kernels/kernels.h"
#include "kernels/simd.h"

#include "kernels/attn_simd.h"
#include "kernels/elementwise_simd.h"
#include "kernels/gate_simd.h"
#include "kernels/gelu_simd.h"
#include "kernels/gemm_simd.h"
#include "kernels/loss_simd.h"
#include "kernels/quant_simd.h"
#include "kernels/matvec_simd.h"
#include "kernels/norm_simd.h"
#include "kernels/optim_simd.h"
#include "kernels/sample_simd.h"
#include "kernels/shift_simd.h"
#include "kernels/wkv_simd.h"
#include "kernels/wkv6_simd.h"
#include "kernels/wkv7_simd.h"

#define X(result, name, arguments) .name = k_##name,
#define RK_KERNELS_TABLE(tier) const RkKernels rk_kernels_##tier = {.isa = #tier, .lanes = RK_LANES, .gemm_rows = RK_GEMM_ROWS, \
    .gemm_columns = RK_GEMM_VECTORS * RK_LANES, RK_KERNELS(X)}
