/* few_rows_cuda.cu - y = x w^T (w stored (M,K), of T, 8 or 4 bits) and y = f(bias + x m) (m stored (K,M), of T) for few rows of x.
 *
 * Reading the weights once is all the time that such a product takes, and a launch costs as much as 10 MB of them: products that do not
 * depend on each other are blocks of one launch. A block has 16 outputs of w or some columns of m; its warps share K out, in an order
 * that depends on the shape alone, and add their sums in shared memory: the same bits for any number of rows and of products beside it.
 *
 * In 16 bits w is the first operand of the tensor cores, 16 outputs by 32 of K at a time, and x the second, 8 rows; which element of K is
 * which column of an operand does not matter as long as both agree, so a lane loads 8 neighbours at once where the fragment wants pairs.
 * 32 of K are also what shares a scale in a quantised row: whole numbers are multiplied, exactly, and their sum by the scale. */
#include "ops/linear/few_rows_cuda.h"

#include "cuda/mma.h"
#include "cuda/quantised.h"
#include "cuda/sigmoid.h"
#include "ops/backend_cuda.h"

namespace {
enum { WARPS = 8, THREADS = 32 * WARPS, OUTPUTS = 16, GROUP = 4 /* rows of x that a block of Sum has */, SHARED = 1024 };

struct Dot {
    const void *x, *w;
    void *y;
    int R, K, M, dtype; /* of w */
    bool wide, aligned; /* y is float32; every row of x and w begins at a multiple of 16 bytes */
};
struct Sum {
    const void *x, *m, *bias;
    void *y;
    int R, K, M, act, lanes; /* of a warp beside each other in a row of m */
    bool aligned;
};

/* What the blocks of a launch work on, one after another. */
struct Work {
    Dot dot[RK_MAX_PRODUCTS];
    Sum sum[RK_MAX_PRODUCTS];
    int n_dots, n_sums, blocks;
    int dot_end[RK_MAX_PRODUCTS], sum_end[RK_MAX_PRODUCTS]; /* the block after the last of each */
};
} // namespace

/* ---- y = x w^T on tensor cores ---- */

/* Elements k .. k + 7 of a row of n as four pairs, zeros beyond it. WHOLE: all are there, at a multiple of 16 bytes; known while
 * compiling, so that no load waits for a branch. */
template <bool WHOLE, typename T> __device__ static inline void few_pairs(const T *row, int k, int n, uint32_t *pair) {
    const uint16_t *from = reinterpret_cast<const uint16_t *>(row) + k;
    if constexpr (WHOLE) {
        uint4 v = *reinterpret_cast<const uint4 *>(from);
        pair[0] = v.x, pair[1] = v.y, pair[2] = v.z, pair[3] = v.w;
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t low = k + 2 * i < n ? from[2 * i] : 0, high = k + 2 * i + 1 < n ? from[2 * i + 1] : 0;
            pair[i] = low | high << 16;
        }
    }
}

/* Eight bytes, which begin at a multiple of 2 at least. */
template <bool WHOLE> __device__ static inline uint2 few_bytes(const unsigned char *p) {
    if constexpr (WHOLE) {
        return *reinterpret_cast<const uint2 *>(p);
    } else {
        const uint16_t *half = reinterpret_cast<const uint16_t *>(p);
        return make_uint2(half[0] | static_cast<uint32_t>(half[1]) << 16, half[2] | static_cast<uint32_t>(half[3]) << 16);
    }
}

/* How a lane holds its part of 32 weights of one row: elements 8q .. 8q + 7. Rows that are not there may be any: their sums go nowhere. */
template <typename T> struct Plain {
    static constexpr int STEP = 4; /* blocks of 32 that are loaded before the first is used: 8 loads of 16 bytes a lane */
    static constexpr bool SCALED = false;
    uint32_t pair[4];
    template <bool WHOLE> __device__ void load(const Dot &o, int m, int block, int q) {
        few_pairs<WHOLE>(static_cast<const T *>(o.w) + static_cast<size_t>(m) * static_cast<size_t>(o.K), 32 * block + 8 * q, o.K, pair);
    }
    __device__ void pairs(int, uint32_t *to) const {
#pragma unroll
        for (int i = 0; i < 4; i++) to[i] = pair[i];
    }
    __device__ float scale() const { return 1; }
};
template <typename T, int BITS> struct Quantised {
    static constexpr int STEP = 8;
    static constexpr bool SCALED = true;
    uint2 bytes;
    __half block_scale;
    /* The two lanes with the halves of the same bytes load both. */
    template <bool WHOLE> __device__ void load(const Dot &o, int m, int block, int q) {
        size_t values = static_cast<size_t>(o.K) * BITS / 8;
        const unsigned char *row = static_cast<const unsigned char *>(o.w) + static_cast<size_t>(m) * (values + static_cast<size_t>(o.K) / 16);
        bytes = few_bytes<WHOLE>(row + block * 4 * BITS + (BITS == 8 ? 8 * q : q % 2 * 8));
        block_scale = reinterpret_cast<const __half *>(row + values)[block];
    }
    __device__ void pairs(int q, uint32_t *to) const {
        uint32_t word[2] = {bytes.x, bytes.y};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (BITS == 8) to[i] = rk_q8_pair<T>(rk_spread(word[i / 2], i % 2));
            else to[i] = rk_q4_pair<T>(rk_spread(word[i / 2] >> (q / 2 * 4), i % 2));
        }
    }
    __device__ float scale() const { return rk_float(block_scale); }
};

/* sum += w x^T of one block: rows g and g + 8 of w, 8 rows of x per tile. */
template <typename T, int TILES, typename Weights>
__device__ static inline void few_multiply(const Weights &low, const Weights &high, const uint32_t (*x)[4], int q, float (*sum)[4]) {
    uint32_t top[4], bottom[4];
    low.pairs(q, top);
    high.pairs(q, bottom);
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        float part[4] = {}, *to = Weights::SCALED ? part : sum[n];
#pragma unroll
        for (int half = 0; half < 4; half += 2) {
            uint32_t a[4] = {top[half], bottom[half], top[half + 1], bottom[half + 1]}, b[2] = {x[n][half], x[n][half + 1]};
            rk_mma<T>(to, a, b);
        }
        if (Weights::SCALED)
#pragma unroll
            for (int i = 0; i < 4; i++) sum[n][i] += (i < 2 ? low : high).scale() * part[i];
    }
}

/* STEP blocks from `first` on: all weights are on their way before the first is used. */
template <bool WHOLE, int STEP, typename T, int TILES, typename Weights> __device__ static inline void few_step(const Dot &o, int m0, int first, float (*sum)[4]) {
    int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
    Weights low[STEP], high[STEP];
#pragma unroll
    for (int s = 0; s < STEP; s++) {
        low[s].template load<WHOLE>(o, min(m0 + g, o.M - 1), first + s, q);
        high[s].template load<WHOLE>(o, min(m0 + g + 8, o.M - 1), first + s, q);
    }
#pragma unroll
    for (int s = 0; s < STEP; s++) {
        uint32_t x[TILES][4];
#pragma unroll
        for (int n = 0; n < TILES; n++)
            few_pairs<WHOLE>(static_cast<const T *>(o.x) + static_cast<size_t>(min(8 * n + g, o.R - 1)) * static_cast<size_t>(o.K), 32 * (first + s) + 8 * q, o.K, x[n]);
        few_multiply<T, TILES>(low[s], high[s], x, q, sum);
    }
}

template <typename T, int TILES, typename Weights> __device__ static inline void few_dot_sums(const Dot &o, int m0, float (*sum)[4]) {
    constexpr int STEP = Weights::STEP;
    int blocks = (o.K + 31) / 32;
    for (int first = static_cast<int>(threadIdx.x) / 32 * STEP; first < blocks; first += WARPS * STEP) {
        if (o.aligned && 32 * (first + STEP) <= o.K) few_step<true, STEP, T, TILES, Weights>(o, m0, first, sum);
        else
            for (int block = first; block < min(first + STEP, blocks); block++) few_step<false, 1, T, TILES, Weights>(o, m0, block, sum);
    }
}

/* The warps' sums are added in their order: thread t has element t % 4 of what lane t / 4 % 32 holds of tile t / 128. */
template <typename T, int TILES> __device__ static inline void few_dot(const Dot &o, int block, float (*shared)[SHARED]) {
    int thread = static_cast<int>(threadIdx.x), m0 = block * OUTPUTS;
    float sum[TILES][4] = {};
    if (o.dtype == RK_Q8) few_dot_sums<T, TILES, Quantised<T, 8>>(o, m0, sum);
    else if (o.dtype == RK_Q4) few_dot_sums<T, TILES, Quantised<T, 4>>(o, m0, sum);
    else few_dot_sums<T, TILES, Plain<T>>(o, m0, sum);
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) shared[thread / 32][128 * n + thread % 32 * 4 + i] = sum[n][i];
    __syncthreads();
    if (thread >= 128 * TILES) return;
    float total = 0;
    for (int w = 0; w < WARPS; w++) total += shared[w][thread];
    int lane = thread / 4 % 32, m = m0 + lane / 4 + thread % 4 / 2 * 8, r = thread / 128 * 8 + lane % 4 * 2 + thread % 2;
    if (m >= o.M || r >= o.R) return;
    size_t at = static_cast<size_t>(r) * static_cast<size_t>(o.M) + static_cast<size_t>(m);
    if (o.wide) static_cast<float *>(o.y)[at] = total;
    else static_cast<T *>(o.y)[at] = rk_element<T>(total);
}

/* ---- y = x w^T in float32: a warp has two outputs of all rows, so that x is loaded from the L1 cache half as often ---- */

template <int ROWS> __device__ static inline void few_dot_f32(const Dot &o, int block) {
    constexpr int OUT = OUTPUTS / WARPS, VEC = RK_VEC<float>;
    int lane = static_cast<int>(threadIdx.x) % 32, m0 = block * OUTPUTS + static_cast<int>(threadIdx.x) / 32 * OUT;
    const float *rows = static_cast<const float *>(o.x), *weights = static_cast<const float *>(o.w);
    float sum[OUT][ROWS] = {};
#pragma unroll 2
    for (int k = lane * VEC; k < o.K; k += 32 * VEC) {
        int n = o.K - k < VEC ? o.K - k : VEC;
        bool whole = o.aligned && n == VEC;
        float w[OUT][VEC], x[VEC];
#pragma unroll
        for (int i = 0; i < OUT; i++) rk_load(weights + static_cast<size_t>(m0 + i < o.M ? m0 + i : 0) * static_cast<size_t>(o.K) + k, n, whole, w[i]);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (r >= o.R) break;
            rk_load(rows + static_cast<size_t>(r) * static_cast<size_t>(o.K) + k, n, whole, x);
#pragma unroll
            for (int i = 0; i < OUT; i++)
#pragma unroll
                for (int e = 0; e < VEC; e++) sum[i][r] += w[i][e] * x[e];
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (r >= o.R) break;
#pragma unroll
        for (int i = 0; i < OUT; i++) {
            float total = rk_warp_sum(sum[i][r]);
            if (lane == 0 && m0 + i < o.M) static_cast<float *>(o.y)[static_cast<size_t>(r) * static_cast<size_t>(o.M) + static_cast<size_t>(m0 + i)] = total;
        }
    }
}

/* ---- y = f(bias + x m): a lane has 16 bytes of a row of m, lanes and warps have different rows ---- */

/* The first n elements of a row from p on, the rest zeros. */
template <bool WHOLE, typename T> __device__ static inline RkVec<T> few_columns(const T *p, int n) {
    if constexpr (WHOLE) {
        return *reinterpret_cast<const RkVec<T> *>(p);
    } else {
        RkVec<T> v;
#pragma unroll
        for (int i = 0; i < RK_VEC<T>; i++) v.e[i] = i < n ? p[i] : rk_element<T>(0);
        return v;
    }
}

/* sum[r] += x[r][k] m[k] over the lane's rows of m; the columns begin at `column`. */
template <bool WHOLE, typename T> __device__ static inline void few_sum_rows(const Sum &o, int first, int rows, int column, float (*sum)[RK_VEC<T>]) {
    constexpr int AHEAD = 4;
    int stride = WARPS * (32 / o.lanes), start = static_cast<int>(threadIdx.x) / o.lanes;
    const T *x = static_cast<const T *>(o.x) + static_cast<size_t>(first) * static_cast<size_t>(o.K), *m = static_cast<const T *>(o.m);
    for (int k0 = start; k0 < o.K; k0 += AHEAD * stride) {
        RkVec<T> v[AHEAD];
#pragma unroll
        for (int u = 0; u < AHEAD; u++) v[u] = few_columns<WHOLE>(m + static_cast<size_t>(min(k0 + u * stride, o.K - 1)) * static_cast<size_t>(o.M) + column, o.M - column);
#pragma unroll
        for (int r = 0; r < GROUP; r++) {
            if (r >= rows) break;
#pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                int k = k0 + u * stride;
                float by = k < o.K ? rk_float(x[static_cast<size_t>(r) * static_cast<size_t>(o.K) + k]) : 0;
#pragma unroll
                for (int i = 0; i < RK_VEC<T>; i++) sum[r][i] += by * rk_float(v[u].e[i]);
            }
        }
    }
}

template <typename T> __device__ static inline void few_sum(const Sum &o, int block, float (*shared)[SHARED]) {
    constexpr int VEC = RK_VEC<T>;
    int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    int width = o.lanes * VEC, tiles = (o.M + width - 1) / width, first = block / tiles * GROUP, rows = min(o.R - first, static_cast<int>(GROUP));
    int column = block % tiles * width + lane % o.lanes * VEC;
    if (column >= o.M) column = 0; /* of a sum that goes nowhere */
    float sum[GROUP][VEC] = {};
    if (o.aligned) few_sum_rows<true, T>(o, first, rows, column, sum);
    else few_sum_rows<false, T>(o, first, rows, column, sum);
#pragma unroll
    for (int r = 0; r < GROUP; r++)
#pragma unroll
        for (int i = 0; i < VEC; i++) {
            for (int offset = o.lanes; offset < 32; offset *= 2) sum[r][i] += __shfl_xor_sync(0xffffffffu, sum[r][i], offset);
            if (lane < o.lanes) shared[warp][r * width + lane * VEC + i] = sum[r][i];
        }
    __syncthreads();
    for (int at = static_cast<int>(threadIdx.x); at < rows * width; at += THREADS) {
        int m = block % tiles * width + at % width;
        if (m >= o.M) continue;
        float total = o.bias ? rk_float(static_cast<const T *>(o.bias)[m]) : 0;
        for (int w = 0; w < WARPS; w++) total += shared[w][at];
        if (o.act == RK_ACT_TANH) total = tanhf(total);
        else if (o.act == RK_ACT_SIGMOID) total = rk_sigmoid(total);
        static_cast<T *>(o.y)[static_cast<size_t>(first + at / width) * static_cast<size_t>(o.M) + static_cast<size_t>(m)] = rk_element<T>(total);
    }
}

/* ---- a launch ---- */

template <typename T, int TILES> __global__ void __launch_bounds__(THREADS, 2) few_rows(const Work work) {
    RK_SHARED(float, shared, [WARPS][SHARED]);
    int block = static_cast<int>(blockIdx.x), before = 0;
    for (int i = 0; i < work.n_dots; before = work.dot_end[i++])
        if (block < work.dot_end[i]) {
            if constexpr (sizeof(T) == 4) few_dot_f32<8 * TILES>(work.dot[i], block - before);
            else few_dot<T, TILES>(work.dot[i], block - before, shared);
            return;
        }
    for (int i = 0; i < work.n_sums; before = work.sum_end[i++])
        if (block < work.sum_end[i]) return few_sum<T>(work.sum[i], block - before, shared);
}

static bool few_row_aligned(RkTensor t, size_t per_row) { return rk_aligned(t.p) && rk_row_bytes(t.dtype, per_row) % 16 == 0; }

static void add_dot(Work *work, const RkLinear *o) {
    size_t K = static_cast<size_t>(rk_cols(o->w)), M = rk_rows(o->w), R = rk_numel(o->x) / K;
    bool aligned = few_row_aligned(o->x, K) && few_row_aligned(o->w, K);
    work->dot[work->n_dots] = {o->x.p, o->w.p, o->y.p, static_cast<int>(R), static_cast<int>(K), static_cast<int>(M), o->w.dtype, o->y.dtype == RK_F32, aligned};
    work->dot_end[work->n_dots++] = work->blocks += static_cast<int>(rk_blocks(M, OUTPUTS));
}

/* Thin matrices in tiles of 32 bytes a row, so that there are more than a few blocks; wide ones in tiles of 512. */
static void add_sum(Work *work, const RkLowrank *o, bool second) {
    RkTensor x = second ? o->h : o->x, m = second ? o->m2 : o->m1, y = second ? o->y : o->h;
    int K = static_cast<int>(rk_rows(m)), M = rk_cols(m), R = static_cast<int>(rk_numel(y)) / M, vec = 16 / static_cast<int>(rk_dtype_size(m.dtype));
    int lanes = M > 512 ? 32 : 2;
    work->sum[work->n_sums] = {x.p, m.p, second ? o->bias.p : nullptr, y.p, R, K, M, second ? RK_ACT_NONE : o->act, lanes, few_row_aligned(m, static_cast<size_t>(M))};
    work->sum_end[work->n_sums++] = work->blocks += static_cast<int>(rk_blocks(static_cast<size_t>(M), static_cast<size_t>(lanes * vec)) * rk_blocks(static_cast<size_t>(R), GROUP));
}

static int run(const Work &work, int dtype) {
    if (!work.blocks) return RK_OK;
    int most = 0;
    for (int i = 0; i < work.n_dots; i++) most = work.dot[i].R > most ? work.dot[i].R : most;
    RK_CUDA_BY_DTYPE(dtype, T, {
        if (most <= 8) return rk_launch(few_rows<T, 1>, work.blocks, THREADS, 0, rk_stream(), work);
        return rk_launch(few_rows<T, 2>, work.blocks, THREADS, 0, rk_stream(), work);
    })
}

bool rk_cuda_few_rows_linear(const RkLinear *o) {
    bool as_it_lies = o->w.dtype == o->x.dtype || (rk_quantised(o->w.dtype) && o->x.dtype != RK_F32);
    return as_it_lies && rk_numel(o->x) / static_cast<size_t>(rk_cols(o->w)) <= RK_CUDA_FEW_ROWS;
}

bool rk_cuda_few_rows_lowrank(const RkLowrank *o) {
    return o->m1.dtype == o->h.dtype && o->m2.dtype == o->h.dtype && rk_numel(o->h) / rk_rows(o->m2) <= RK_CUDA_FEW_ROWS;
}

int rk_cuda_few_rows(const RkProducts *p) {
    Work first = {}, second = {};
    int dtype = RK_F32;
    for (int i = 0; i < RK_MAX_PRODUCTS; i++)
        if (p->linear[i]) add_dot(&first, p->linear[i]), dtype = p->linear[i]->x.dtype;
    for (int i = 0; i < RK_MAX_PRODUCTS; i++) { /* after all dots, as the kernel has them */
        if (!p->lowrank[i]) continue;
        dtype = p->lowrank[i]->h.dtype;
        if (p->lowrank[i]->x.p) add_sum(&first, p->lowrank[i], false); /* without it h is there */
        add_sum(&second, p->lowrank[i], true);
    }
    RK_TRY(run(first, dtype));
    return run(second, dtype);
}
