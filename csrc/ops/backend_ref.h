/* backend_ref.h - the reference backend: every op in plain loops, exactly as its header defines it.
 *
 * This is the definition. Compiled for double it is the oracle of the tests; compiled for float it is a slow fallback
 * a user can choose (backend="ref") when a run looks wrong. It favours the textbook over speed: no SIMD, no blocking;
 * threads only over independent rows. Included once per element type by backend_ref_f32.c and backend_ref_f64.c,
 * which define `real` and the table's name. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/parallel.h"
#include "base/quant.h"
#include "ops/ops.h"

/* The elements of a tensor argument. */
#define P(t) ((real *)(t).p)

/* Element i of row r of a stored weight, whatever its format. */
static inline real weight(RkTensor t, size_t r, size_t i) {
    enum { HALF = RK_QUANT_BLOCK / 2 };
    size_t cols = (size_t)rk_cols(t), block = i / RK_QUANT_BLOCK, at = i % RK_QUANT_BLOCK;
    const void *row = rk_slice_rows(t, r, 1).p;
    switch (t.dtype) {
    case RK_BF16: return (real)rk_bf16_to_f32(((const uint16_t *)row)[i]);
    case RK_F16: return (real)rk_f16_to_f32(((const uint16_t *)row)[i]);
    case RK_Q8: return (real)rk_f16_to_f32(rk_q8_scales(row, cols)[block]) * (real)((const int8_t *)row)[i];
    case RK_Q4: {
        int pair = ((const uint8_t *)row)[block * HALF + at % HALF], q = at < HALF ? pair & 15 : pair >> 4;
        return (real)rk_f16_to_f32(rk_q4_scales(row, cols)[block]) * (real)(q - 8);
    }
    default: return ((const real *)row)[i];
    }
}

static inline real sigmoid(real x) { return 1 / (1 + (real)exp(-x)); }

/* sigma(x) (1 - sigma(x)) without the cancellation of 1 - sigma(x) for large x. */
static inline real sigmoid_slope(real x) {
    real e = (real)exp(-fabs(x));
    return e / ((1 + e) * (1 + e));
}

#include "ops/attn/attention_ref.h"
#include "ops/attn/rope_ref.h"
#include "ops/embed/embed_ref.h"
#include "ops/ffn/gelu_ref.h"
#include "ops/ffn/relu2_ref.h"
#include "ops/gate/key_prep_ref.h"
#include "ops/gate/norm_gate_ref.h"
#include "ops/gate/out_gate_ref.h"
#include "ops/gate/sigmoid_gate_ref.h"
#include "ops/gate/value_residual_ref.h"
#include "ops/linear/linear_ref.h"
#include "ops/linear/lowrank_ref.h"
#include "ops/loss/sum_ref.h"
#include "ops/loss/xent_ref.h"
#include "ops/norm/add_ref.h"
#include "ops/norm/layernorm_ref.h"
#include "ops/optim/adamw_ref.h"
#include "ops/optim/clip_ref.h"
#include "ops/optim/sumsq_ref.h"
#include "ops/shift/ddlerp_ref.h"
#include "ops/shift/shift_lerp_ref.h"
#include "ops/wkv/initial_state_ref.h"
#include "ops/wkv/wkv6_ref.h"
#include "ops/wkv/wkv7_ref.h"

static size_t scratch_bytes(int head_size) { return RK_WKV7_REF_SCRATCH(head_size); /* the largest */ }
