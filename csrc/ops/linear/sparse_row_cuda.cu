/* sparse_row_cuda.cu - one row times a matrix, without what is multiplied by zero; and the transposed copies that this reads.
 *
 * After relu^2 most of a row is zero. A block has COLUMNS outputs. First it lists the k whose x is not zero, in their order, in shared memory:
 * every warp looks at a part of x, once to count and once to write. Then it walks the list, 128 rows of wt at a time, 64 bytes of each. The sums
 * depend on the values of x alone. */
#include "ops/linear/sparse_row_cuda.h"

#include "cuda/mma.h"
#include "ops/backend_cuda.h"

namespace {
enum { WARPS = 16, THREADS = 32 * WARPS, LANES = 4 /* beside each other in a row */, VEC = 8, COLUMNS = LANES * VEC, AT_ONCE = THREADS / LANES, AHEAD = 8 };
enum { MOST = 48 << 10 /* inputs, 4 bytes of shared memory each; and their number in 16 bits */, TILE = 32 };
} // namespace

/* Which of elements k .. k + 7 of x are not zero, as bits, and their bit patterns. */
template <typename T> __device__ static inline unsigned sparse_some(const T *x, int k, int K, bool aligned, uint16_t *bits) {
    unsigned some = 0;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (aligned && k + VEC <= K) {
        v = *reinterpret_cast<const uint4 *>(x + k);
        memcpy(bits, &v, sizeof v);
    } else {
        memcpy(bits, &v, sizeof v);
        for (int i = 0; i < VEC && k + i < K; i++) bits[i] = reinterpret_cast<const uint16_t *>(x)[k + i];
    }
#pragma unroll
    for (int i = 0; i < VEC; i++) some |= ((bits[i] & 0x7fffu) != 0 ? 1u : 0u) << i;
    return some;
}

/* active[i] = k | x[k] << 16 of the i-th k whose x is not zero; returns how many there are. */
template <typename T> __device__ static inline int sparse_list(const T *x, int K, bool aligned, uint32_t *active) {
    RK_SHARED(int, counts, [WARPS]);
    int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    int per_warp = (K + WARPS * 32 * VEC - 1) / (WARPS * 32 * VEC) * 32 * VEC, begin = warp * per_warp, end = min(begin + per_warp, K);
    uint16_t bits[VEC];
    unsigned mine = 0;
    for (int k = begin + lane * VEC; k < end; k += 32 * VEC) mine += static_cast<unsigned>(__popc(sparse_some(x, k, K, aligned, bits)));
    mine = __reduce_add_sync(0xffffffffu, mine);
    if (lane == 0) counts[warp] = static_cast<int>(mine);
    __syncthreads();
    int at = 0, all = 0;
    for (int w = 0; w < WARPS; w++) {
        if (w == warp) at = all;
        all += counts[w];
    }
    for (int k0 = begin; k0 < end; k0 += 32 * VEC) {
        int k = k0 + lane * VEC;
        unsigned some = sparse_some(x, k, k < end ? K : k, aligned, bits);
        int count = __popc(some), before = count;
        for (int offset = 1; offset < 32; offset *= 2) {
            int other = __shfl_up_sync(0xffffffffu, before, static_cast<unsigned>(offset));
            if (lane >= offset) before += other;
        }
        int total = __shfl_sync(0xffffffffu, before, 31);
        uint32_t *to = active + at + before - count;
#pragma unroll
        for (int i = 0; i < VEC; i++)
            if (some >> i & 1) *to++ = static_cast<uint32_t>(k + i) | static_cast<uint32_t>(bits[i]) << 16;
        at += total;
    }
    __syncthreads();
    return all;
}

template <typename T> struct SparseRow { const T *x, *wt; void *y; int K, M; bool wide, aligned_x, aligned_wt; };

/* sum += x[k] wt[k] over this thread's share of the list. */
template <bool WHOLE, typename T> __device__ static inline void sparse_sums(const SparseRow<T> &o, const uint32_t *active, int n, int column, float *sum) {
    for (int first = static_cast<int>(threadIdx.x) / LANES; first < n; first += AHEAD * AT_ONCE) {
        RkVec<T> v[AHEAD];
        float by[AHEAD];
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            int i = first + u * AT_ONCE;
            uint32_t entry = active[min(i, n - 1)];
            const T *row = o.wt + static_cast<size_t>(entry & 0xffffu) * static_cast<size_t>(o.M) + column;
            by[u] = i < n ? rk_unpack_one<T>(static_cast<uint16_t>(entry >> 16)) : 0;
            if constexpr (WHOLE) {
                v[u] = *reinterpret_cast<const RkVec<T> *>(row);
            } else {
#pragma unroll
                for (int e = 0; e < VEC; e++) v[u].e[e] = column + e < o.M ? row[e] : rk_element<T>(0);
            }
        }
#pragma unroll
        for (int u = 0; u < AHEAD; u++)
#pragma unroll
            for (int e = 0; e < VEC; e++) sum[e] += by[u] * rk_float(v[u].e[e]);
    }
}

template <typename T> __global__ void __launch_bounds__(THREADS, 1) sparse_row_kernel(SparseRow<T> o) {
    RK_DYNAMIC_SHARED(uint32_t, active);
    RK_SHARED(float, part, [WARPS][COLUMNS]);
    int thread = static_cast<int>(threadIdx.x), lane = thread % 32, n = sparse_list(o.x, o.K, o.aligned_x, active);
    int first = static_cast<int>(blockIdx.x) * COLUMNS, column = first + lane % LANES * VEC;
    if (column >= o.M) column = 0; /* of a sum that goes nowhere */
    float sum[VEC] = {};
    if (o.aligned_wt) sparse_sums<true>(o, active, n, column, sum);
    else sparse_sums<false>(o, active, n, column, sum);
#pragma unroll
    for (int e = 0; e < VEC; e++) {
        for (int offset = LANES; offset < 32; offset *= 2) sum[e] += __shfl_xor_sync(0xffffffffu, sum[e], offset);
        if (lane < LANES) part[thread / 32][lane * VEC + e] = sum[e];
    }
    __syncthreads();
    int m = first + thread;
    if (thread >= COLUMNS || m >= o.M) return;
    float total = 0;
    for (int w = 0; w < WARPS; w++) total += part[w][thread];
    if (o.wide) static_cast<float *>(o.y)[m] = total;
    else static_cast<T *>(o.y)[m] = rk_element<T>(total);
}

bool rk_cuda_sparse_row_takes(const RkLinear *o) {
    int K = rk_cols(o->w);
    return o->columns.p && o->x.dtype != RK_F32 && o->columns.dtype == o->x.dtype && K <= MOST && rk_numel(o->x) == static_cast<size_t>(K);
}

template <typename T> static int sparse_row(const RkLinear *o) {
    int K = rk_cols(o->w), M = static_cast<int>(rk_rows(o->w));
    SparseRow<T> row = {rk_ptr<T>(o->x), rk_ptr<T>(o->columns), o->y.p, K, M, o->y.dtype == RK_F32, rk_aligned(o->x.p), rk_aligned(o->columns.p) && M % VEC == 0};
    return rk_launch(sparse_row_kernel<T>, rk_blocks(static_cast<size_t>(M), COLUMNS), THREADS, static_cast<size_t>(K) * sizeof(uint32_t), rk_stream(), row);
}

int rk_cuda_sparse_row(const RkLinear *o) { return o->x.dtype == RK_BF16 ? sparse_row<__nv_bfloat16>(o) : sparse_row<__half>(o); }

/* ---- transposed copies of 16-bit matrices ---- */

__global__ static void transpose_kernel(const uint16_t *from, uint16_t *to, int rows, int cols) {
    RK_SHARED(uint16_t, tile, [TILE][TILE + 2]);
    int x = static_cast<int>(threadIdx.x) % TILE, y0 = static_cast<int>(threadIdx.x) / TILE, row0 = static_cast<int>(blockIdx.y) * TILE, col0 = static_cast<int>(blockIdx.x) * TILE;
    for (int y = y0; y < TILE; y += THREADS / TILE)
        if (row0 + y < rows && col0 + x < cols) tile[y][x] = from[static_cast<size_t>(row0 + y) * static_cast<size_t>(cols) + static_cast<size_t>(col0 + x)];
    __syncthreads();
    for (int y = y0; y < TILE; y += THREADS / TILE)
        if (col0 + y < cols && row0 + x < rows) to[static_cast<size_t>(col0 + y) * static_cast<size_t>(rows) + static_cast<size_t>(row0 + x)] = tile[x][y];
}

int rk_cuda_columns_fit(RkTensor w) { return w.dtype == RK_BF16 || w.dtype == RK_F16; }

int rk_cuda_columns(RkTensor from, RkTensor to) {
    int rows = static_cast<int>(rk_rows(from)), cols = rk_cols(from);
    dim3 grid(rk_blocks(static_cast<size_t>(cols), TILE), rk_blocks(static_cast<size_t>(rows), TILE));
    return rk_launch(transpose_kernel, grid, THREADS, 0, rk_stream(), static_cast<const uint16_t *>(from.p), rk_ptr<uint16_t>(to), rows, cols);
}
