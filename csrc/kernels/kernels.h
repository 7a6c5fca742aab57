/* kernels.h - the SIMD kernels: single-threaded work over raw float pointers and ranges, written once and compiled once per
 * instruction set. ops/ cuts an op into tasks and calls these through the table `rk_k`.
 *
 * Ranges of columns start at multiples of RK_COLUMN_STEP, so an element's lane, and with it its bits, do not depend on how
 * the work was cut. Sizes: R rows, C columns of a row, H heads of N columns, B sequences of T tokens. */
#ifndef RK_KERNELS_KERNELS_H
#define RK_KERNELS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* AMX instructions need nothing but an assembler as old as this header. */
#if defined __x86_64__ && defined __has_include
#if __has_include(<amxbf16intrin.h>)
#define RK_HAVE_AMX
#endif
#endif

enum { RK_COLUMN_STEP = 16, RK_COLUMNS_MAX = 256 /* of one call that owns columns */, RK_FEW_ROWS = 16,
       RK_PANEL = 128 /* outputs of a panel of columns */ };

typedef struct RkValueResidualRows {
    const float *v0, *v_first, *nu, *dv; /* (n) */
    float *v, *dv0, *dnu, *dv_first;
} RkValueResidualRows;

typedef struct RkLayerNormRows {
    const float *x, *w, *b, *dy, *dres; /* (R,C), (C), (C), (R,C), (R,C) or NULL */
    float *y, *stats, *dx, *dw, *db;    /* (R,C), (R,2) (forward: or NULL), (R,C), (C), (C) */
    size_t R, C;
    float eps;
} RkLayerNormRows;

/* y (R,M) = x (R,K) w^T, w (M,K) of any dtype of weights. */
typedef struct RkRowsTimesTransposed {
    const float *x;
    const void *w;
    float *y;
    size_t R, K, M;
    int dtype;      /* of w */
    const void *xq; /* quantised w: x as quantise_rows leaves it, R rows of rk_quantised_row_bytes(K), 64-byte aligned */
} RkRowsTimesTransposed;

/* The same with w by its columns (ops/linear/by_column.h), for x that is mostly zero. */
typedef struct RkRowsTimesColumns {
    const float *x;
    const void *columns;
    float *y;
    const uint32_t *used; /* (n_used) ascending: every k for which a row of x is not zero */
    size_t n_used, R, K, M;
    int dtype; /* of w */
} RkRowsTimesColumns;

/* A row of x beside quantised weights: a byte per element, K rounded up to whole vectors, two floats per block and one
 * per lane of four bytes. */
static inline size_t rk_quantised_columns(size_t K) { return (K + 127) / 128 * 128; }
static inline size_t rk_quantised_row_bytes(size_t K) { return (rk_quantised_columns(K) / 4 * 9 + 63) / 64 * 64; }

/* y (R,M) = bias + x (R,K) m, m (K,M) float32, bf16 or f16; bias (M) or NULL. */
typedef struct RkRowsTimesMatrix {
    const float *x;
    const void *m;
    const float *bias;
    float *y;
    size_t R, K, M, ldx; /* ldx: from one row of x to the next */
    int dtype;           /* of m */
} RkRowsTimesMatrix;

typedef struct RkShiftLerpRow {
    const float *x, *before; /* (C), the token and the one before it or NULL for zeros */
    const float *mu[6];
    float *y[6];
    size_t C;
    int n, keep; /* keep: mu is the share of the token itself */
} RkShiftLerpRow;

typedef struct RkShiftLerpGrad {
    const float *x, *prev, *dlast; /* (B,T,C), (B,C) or NULL, (B,C) or NULL */
    const float *mu[6], *dy[6];
    float *dx, *dprev, *dmu[6], *carry; /* (B,T,C), (B,C) or NULL, (C), (C) for the kernel */
    size_t B, T, C;
    int n, keep;
} RkShiftLerpGrad;

/* One lerp of one token with coefficients mu + m. */
typedef struct RkDdlerpGrad {
    const float *x, *before, *mu, *dy; /* (C); before as above; dy may be m */
    float *m;                          /* (C) coefficients in, their gradients out; with no_m only written */
    float *e, *dx;                     /* (C) added to: what goes to the token before, what stays */
    size_t C;
    int no_m;
} RkDdlerpGrad;

typedef struct RkKeyPrepRows {
    const float *k0, *a, *k_k, *k_a, *dk, *dalpha, *dbeta;
    float *k, *alpha, *beta, *dk0, *da, *dk_k, *dk_a;
    size_t R, H, N;
} RkKeyPrepRows;

typedef struct RkNormGateRows {
    const float *y, *w, *b, *g, *do_;
    float *o, *dy, *dg, *dw, *db;
    size_t R, H, N;
    float eps;
} RkNormGateRows;

typedef struct RkSigmoidGateRows {
    const float *q, *v, *dy; /* (n) */
    float *y, *dq, *dv;
} RkSigmoidGateRows;

typedef struct RkOutGateRows {
    const float *y, *r, *k, *v, *r_k, *w, *b, *g, *do_;
    float *o, *dy, *dr, *dk, *dv, *dg, *dr_k, *dw, *db;
    size_t R, H, N;
    float eps;
} RkOutGateRows;

/* One head of one sequence; token t of a row starts at t * stride. Fields as in ops/wkv/wkv7.h. */
typedef struct RkWkv7Head {
    const float *r, *s, *k, *v, *a, *b, *dy;
    float *y, *z, *dr, *dk, *dv, *ds, *da, *db; /* forward: z may be NULL */
    float *state;   /* (N,N): forward: updated in place; backward: its gradient, updated in place */
    float *ckpt;    /* (ceil(T/chunk),N,N), forward: written, may be NULL; backward: read */
    float *scratch; /* rk_wkv7_*_scratch(N) floats, 64-byte aligned */
    size_t T, N, stride;
} RkWkv7Head;

enum { RK_WKV_TOKENS = 16 /* between two checkpoints */, RK_LANES_MAX = 16, RK_WKV6_ROW_MAX = 64 };
static inline size_t rk_wkv7_fwd_scratch(size_t N) { return (RK_WKV_TOKENS + 2) * (N + RK_LANES_MAX); }
static inline size_t rk_wkv7_bwd_scratch(size_t N) {
    return N * N + (11 * RK_WKV_TOKENS + 8) * (N + RK_LANES_MAX) + (RK_WKV_TOKENS + RK_WKV_TOKENS / 4) * RK_LANES_MAX * RK_LANES_MAX;
}

/* The same for ops/wkv/wkv6.h. */
typedef struct RkWkv6Head {
    const float *r, *k, *v, *w, *u, *dy; /* w: token t at t * w_stride, 0 = one row for all; u (N) */
    float *y, *dr, *dk, *dv, *dw, *du;   /* dw as w, added to when it is one row; du (N) added to */
    float *state, *ckpt, *scratch;       /* as above, rk_wkv6_*_scratch(N) floats */
    size_t T, N, stride, w_stride;
} RkWkv6Head;

static inline size_t rk_wkv6_fwd_scratch(size_t N) { return RK_WKV_TOKENS * N + RK_LANES_MAX; }
static inline size_t rk_wkv6_bwd_scratch(size_t N) {
    return RK_WKV_TOKENS * (10 * N + 6 * RK_LANES_MAX + RK_WKV6_ROW_MAX) + RK_LANES_MAX;
}

/* One head of one sequence: queries and, `past` tokens and this call's, the keys and values they may see. Token t of q, y,
 * dq, dy starts at t * q_stride, of k, v, dk, dv and their past at t * kv_stride. Fields as in ops/attn/attention.h. */
typedef struct RkAttnHead {
    const float *q, *k, *v, *k_past, *v_past, *dy;
    float *y, *lse, *dq;                 /* lse (T); forward: may be NULL */
    float *dk, *dv, *dk_past, *dv_past;  /* added to; the past's may be NULL */
    float *scratch;                      /* rk_attn_*_scratch(N) floats, 64-byte aligned */
    size_t T, past, N, q_stride, kv_stride;
    float scale;                         /* 1 / sqrt(N) */
} RkAttnHead;

enum { RK_ATTN_BLOCK = 64 /* queries, and keys, of a block: four blocks of scores and operands fit the L2 cache */ };
static inline size_t rk_attn_fwd_scratch(size_t N) { return RK_ATTN_BLOCK * (4 * N + RK_ATTN_BLOCK + 3); }
static inline size_t rk_attn_bwd_scratch(size_t N) { return RK_ATTN_BLOCK * (6 * N + 2 * RK_ATTN_BLOCK + 2); }

typedef struct RkXentRow {
    int target; /* negative: the row does not count */
    int grad;
    double scale, l2;
} RkXentRow;

/* A row of logits on the way to a token: p = exp((z - top) * scale), summed and its largest taken block by block. */
enum { RK_SAMPLE_BLOCK = 64 };
typedef struct RkSampleRow {
    const float *z; /* (n) */
    float *p;       /* (n) */
    float *sum, *max; /* one per block */
    size_t n;
    float top, scale;
} RkSampleRow;

typedef struct RkAdamWRange {
    float *p, *m, *v; /* (n) */
    const float *g;
    float gscale, lr, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, wd, inverse_bias1, inverse_bias2;
} RkAdamWRange;

/* Lines of an operand of a matrix product, a slice of K steps long: element k of line i is src[i * stride + k] (along_k) or
 * src[k * stride + i]. */
enum { RK_GEMM_SLICE = 768, RK_GEMM_PARTS = 3 /* bf16 numbers whose sum a float32 is */ };
typedef struct RkGemmPack {
    const float *src;
    size_t stride, lines, K, width; /* width: lines of the panel to write */
    int along_k, left, parts;       /* left: of A; parts: of which every element can be made, for tiers that do so */
} RkGemmPack;

typedef struct RkGemmBlock {
    const void *a, *b; /* packed panels */
    float *c;          /* (rows, cols) at distance ldc; add: added to */
    size_t K, rows, cols, ldc;
    int add, parts;    /* parts: of B */
    const char *next; /* what to fetch from memory meanwhile: so many pieces of so many bytes at a distance of `next_stride` */
    size_t next_pieces, next_bytes, next_stride;
} RkGemmBlock;

/* Rows are cut into as many panels of at most `most` as are needed, of almost equal size. */
static inline size_t rk_gemm_panels(size_t rows, size_t most) { return (rows + most - 1) / most; }
static inline size_t rk_gemm_panel_start(size_t rows, size_t most, size_t panel) {
    size_t panels = rk_gemm_panels(rows, most), longer = rows % panels;
    return rows / panels * panel + (panel < longer ? panel : longer);
}
static inline size_t rk_gemm_panel_rows(size_t rows, size_t most, size_t panel) {
    return rk_gemm_panel_start(rows, most, panel + 1) - rk_gemm_panel_start(rows, most, panel);
}

/* X(result, name, arguments); what each computes stands in the ops header of the same name. "lo, hi" are rows, columns,
 * heads or elements as named. */
#define RK_KERNELS(X)                                                                                       \
    /* elementwise, in place: the vocabulary's own functions */                                             \
    X(void, exp, (float *x, size_t n))                                                                      \
    X(void, tanh, (float *x, size_t n))                                                                     \
    X(void, sigmoid, (float *x, size_t n))                                                                  \
    /* dh *= f'(h) from the value h of the activation */                                                    \
    X(void, tanh_slope, (const float *h, float *dh, size_t n))                                              \
    X(void, sigmoid_slope, (const float *h, float *dh, size_t n))                                           \
    X(void, add, (const float *a, const float *b, float *y, size_t n))                                      \
    X(void, relu2_fwd, (const float *x, float *y, size_t n))                                                \
    X(void, relu2_bwd, (const float *x, const float *dy, float *dx, size_t n))                              \
    X(void, gelu_fwd, (const float *x, float *y, size_t n))                                                 \
    X(void, gelu_bwd, (const float *x, const float *dy, float *dx, size_t n))                               \
    X(void, value_residual_fwd, (const RkValueResidualRows *a, size_t lo, size_t hi))                       \
    X(void, value_residual_bwd, (const RkValueResidualRows *a, size_t lo, size_t hi))                       \
    X(void, sigmoid_gate_fwd, (const RkSigmoidGateRows *a, size_t lo, size_t hi))                           \
    X(void, sigmoid_gate_bwd, (const RkSigmoidGateRows *a, size_t lo, size_t hi))                           \
    /* dst[c] += sum over R rows of src[r * C + c], for columns [lo, hi) */                                 \
    X(void, column_sums, (const float *src, float *dst, size_t R, size_t C, size_t lo, size_t hi))          \
    X(void, layernorm_fwd, (const RkLayerNormRows *a, size_t row_lo, size_t row_hi))                        \
    X(void, layernorm_bwd, (const RkLayerNormRows *a, size_t row_lo, size_t row_hi))                        \
    /* output columns [lo, hi) of y */                                                                      \
    X(void, rows_times_transposed, (const RkRowsTimesTransposed *a, size_t lo, size_t hi))                  \
    X(void, quantise_rows, (const float *x, size_t rows, size_t K, int dtype /* of w */, void *xq))         \
    /* all outputs of one panel; M and K are multiples of 32 */                                             \
    X(void, rows_times_columns, (const RkRowsTimesColumns *a, size_t panel))                                \
    X(void, rows_times_matrix, (const RkRowsTimesMatrix *a, size_t lo, size_t hi))                          \
    X(void, shift_lerp_fwd, (const RkShiftLerpRow *a))                                                      \
    X(void, shift_lerp_bwd, (const RkShiftLerpGrad *a, size_t row_lo, size_t row_hi))                       \
    X(void, ddlerp_fwd, (const RkShiftLerpRow *a)) /* y holds the dynamic part of the coefficients */      \
    X(void, ddlerp_bwd, (const RkDdlerpGrad *a))                                                            \
    X(void, key_prep_fwd, (const RkKeyPrepRows *a, size_t row_lo, size_t row_hi))                           \
    X(void, key_prep_bwd, (const RkKeyPrepRows *a, size_t row_lo, size_t row_hi))                           \
    X(void, out_gate_fwd, (const RkOutGateRows *a, size_t row_lo, size_t row_hi))                           \
    X(void, out_gate_bwd, (const RkOutGateRows *a, size_t row_lo, size_t row_hi))                           \
    X(void, norm_gate_fwd, (const RkNormGateRows *a, size_t row_lo, size_t row_hi))                         \
    X(void, norm_gate_bwd, (const RkNormGateRows *a, size_t row_lo, size_t row_hi))                         \
    X(void, wkv6_fwd, (const RkWkv6Head *a))                                                                \
    X(void, wkv6_bwd, (const RkWkv6Head *a))                                                                \
    X(void, wkv7_fwd, (const RkWkv7Head *a))                                                                \
    X(void, wkv7_bwd, (const RkWkv7Head *a))                                                                \
    /* one token: H heads of N channels, c and s the cosines and sines of its N/2 angles */                 \
    X(void, rope, (const float *x, float *y, const float *c, const float *s, size_t H, size_t N))           \
    /* queries [lo, hi), at most RK_ATTN_BLOCK */                                                           \
    X(void, attention_fwd, (const RkAttnHead *a, size_t lo, size_t hi))                                     \
    X(void, attention_bwd, (const RkAttnHead *a))                                                           \
    /* elements [lo, hi) of a row of K weights of any format; of a quantised one in whole blocks */         \
    X(void, row_to_f32, (int dtype, const void *row, size_t K, size_t lo, size_t hi, float *out))           \
    /* lines [i, i + n) into one panel, zeros from n to its width */                                        \
    X(void, gemm_pack, (const RkGemmPack *a, size_t i, size_t n, void *panel))                              \
    X(void, gemm_block, (const RkGemmBlock *a))                                                             \
    X(double, xent_row, (float *z, size_t n, const RkXentRow *a))                                           \
    X(size_t, sample_top, (const float *z, size_t n))                                                       \
    X(double, sample_exp, (const RkSampleRow *a))                                                           \
    X(void, adamw, (const RkAdamWRange *a, size_t lo, size_t hi))                                           \
    X(void, adamw_asleep, (const RkAdamWRange *a, size_t lo, size_t hi))                                    \
    X(double, sumsq, (const float *x, size_t n))

/* Of the matrix products of a tier. */
typedef struct RkGemmLayout {
    size_t rows, columns;                    /* of a block of C whose sums are in registers */
    size_t row_unit, column_unit, step_unit; /* to which panels of A and B, and the steps of k of both, are filled up */
    size_t slice;                            /* steps of a panel, at most RK_GEMM_SLICE */
    size_t task_panels;                      /* of B, at most but where tasks would be tiny */
    size_t element_bytes;                    /* of a packed panel, per element */
} RkGemmLayout;

typedef struct RkKernels {
    const char *isa;     /* "scalar", "avx2", "avx512", "avx512vnni", "amx" or "neon" */
    int lanes;           /* of a vector */
    RkGemmLayout gemm;
#define X(result, name, arguments) result(*name) arguments;
    RK_KERNELS(X)
#undef X
} RkKernels;

extern RkKernels rk_k; /* the tier in use */

/* Picks the best tier this machine runs; the environment variable RWKVTUNE_ISA may only lower it. Once, at import.
 * Error: RK_EINVAL for a name that is no tier; the best tier is in use then. */
int rk_kernels_init(void);

/* Takes the tier of that name; RK_EINVAL when it is unknown, not in this build or not on this machine. Not while ops run. */
int rk_kernels_select(const char *isa);

#endif
