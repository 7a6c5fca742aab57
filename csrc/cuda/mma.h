/* mma.h - the tensor cores as functions of a warp: all 32 lanes call together, each with its part of the matrices.
 *
 *   rk_mma<T>(c, a, b)   C += A B with A (16,16), B (16,8) of T, __nv_bfloat16 or __half, and C (16,8) of float32;
 *                        mma.sync.m16n8k16 of sm_80 and later
 *
 * Who holds what (PTX ISA, "Matrix Fragments for mma.m16n8k16"), for lane l, g = l / 4, q = l % 4; a register is a pair of
 * neighbours, the lower index in the lower half:
 *   a[0] = A[g][2q..]  a[1] = A[g+8][2q..]  a[2] = A[g][2q+8..]  a[3] = A[g+8][2q+8..]
 *   b[0] = B[2q..][g]  b[1] = B[2q+8..][g]
 *   c[0..1] = C[g][2q..]  c[2..3] = C[g+8][2q..]
 * So the sums C of one product, rounded and packed, are the operand of a next one without leaving their lanes: two neighbouring
 * tiles of C make an A, or (transposed, C[n][k]) two B.
 *
 *   rk_ldmatrix(r, row)        four 8x8 matrices of 16-bit elements from shared memory: lane l names the address of row l % 8 of
 *                              matrix l / 8, a multiple of 16 bytes, and gets in r[m] elements [g][2q..] of matrix m
 *   rk_ldmatrix_transposed     the same of the transposed matrices: elements [2q..][g]
 *   rk_load_a, rk_load_b and their transposed forms: fragments of a 16x16 corner of a matrix in shared memory, by these
 *   rk_copy_async(to, from, bytes)   16 bytes into shared memory behind the warp's back; those after the first `bytes` become zero
 *   rk_copy_commit(), rk_copy_wait<n>()   close a group of copies; wait until at most n groups of this thread are under way
 *
 * On the host the same fragments are exchanged between the lanes of the emulated warp and multiplied in float32. */
#ifndef RK_CUDA_MMA_H
#define RK_CUDA_MMA_H

#include "cuda/launch.h"

#ifndef __CUDACC__
#include <deque>
#endif

/* Two neighbours in one register, rounded to T; and as floats again. */
template <typename T> __device__ inline uint32_t rk_pack(float low, float high);
template <> __device__ inline uint32_t rk_pack<__nv_bfloat16>(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}
template <> __device__ inline uint32_t rk_pack<__half>(float low, float high) {
    __half2 pair = __floats2half2_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}
template <typename T> __device__ inline float2 rk_unpack(uint32_t pair);
template <> __device__ inline float2 rk_unpack<__nv_bfloat16>(uint32_t pair) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}
template <> __device__ inline float2 rk_unpack<__half>(uint32_t pair) {
    __half2 halves;
    memcpy(&halves, &pair, sizeof pair);
    return __half22float2(halves);
}
template <typename T> __device__ inline float rk_unpack_one(uint16_t bits) { return rk_unpack<T>(bits).x; }

#ifdef __CUDACC__

template <typename T> __device__ inline void rk_mma(float c[4], const uint32_t a[4], const uint32_t b[2]);
#define RK_MMA(T, type)                                                                                                                 \
    template <> __device__ inline void rk_mma<T>(float c[4], const uint32_t a[4], const uint32_t b[2]) {                                \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                                   \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                               \
    }
RK_MMA(__nv_bfloat16, "bf16")
RK_MMA(__half, "f16")
#undef RK_MMA

__device__ inline uint32_t rk_shared_address(const void *p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ inline void rk_ldmatrix(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(rk_shared_address(row))
                 : "memory");
}
__device__ inline void rk_ldmatrix_transposed(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(rk_shared_address(row))
                 : "memory");
}

__device__ inline void rk_copy_async(void *to, const void *from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(rk_shared_address(to)), "l"(from), "r"(bytes) : "memory");
}
__device__ inline void rk_copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ inline void rk_copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

#else

template <typename T> inline void rk_mma(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    struct Parts { uint32_t a[4], b[2]; } mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    const char *all = cuda_host::exchange(0xffffffffu, &mine, sizeof mine, {__FILE__, __LINE__});
    int g = cuda_host::lane_id() / 4, q = cuda_host::lane_id() % 4;
    for (int k = 0; k < 16; k++) {
        int half = k / 8, holder = k % 8 / 2;
        auto element = [k](uint32_t pair) { return k % 2 ? rk_unpack<T>(pair).y : rk_unpack<T>(pair).x; };
        Parts row = cuda_host::from_lane<Parts>(all, 4 * g + holder);
        for (int n = 0; n < 2; n++) {
            float x = element(cuda_host::from_lane<Parts>(all, 4 * (2 * q + n) + holder).b[half]);
            c[n] += element(row.a[2 * half]) * x;
            c[2 + n] += element(row.a[2 * half + 1]) * x;
        }
    }
}

inline void rk_ldmatrix_any(uint32_t r[4], const void *row, bool transposed) {
    if (reinterpret_cast<uintptr_t>(row) % 16) cuda_host::fail("ldmatrix: a row is not at a multiple of 16 bytes");
    const char *all = cuda_host::exchange(0xffffffffu, &row, sizeof row, {__FILE__, __LINE__});
    int g = cuda_host::lane_id() / 4, q = cuda_host::lane_id() % 4;
    for (int m = 0; m < 4; m++) {
        uint16_t pair[2];
        for (int i = 0; i < 2; i++) {
            int at = transposed ? 2 * q + i : g, column = transposed ? g : 2 * q + i;
            pair[i] = cuda_host::from_lane<const uint16_t *>(all, 8 * m + at)[column];
        }
        r[m] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
    }
    __syncwarp();
}
inline void rk_ldmatrix(uint32_t r[4], const void *row) { rk_ldmatrix_any(r, row, false); }
inline void rk_ldmatrix_transposed(uint32_t r[4], const void *row) { rk_ldmatrix_any(r, row, true); }

/* A copy happens when its thread waits for it and not before, so that reading without waiting finds what was there. */
struct RkHostCopy { void *to; const void *from; int bytes, group; };
struct RkHostCopies { std::deque<RkHostCopy> waiting; int group = 0; };
inline RkHostCopies &rk_host_copies() {
    static RkHostCopies of_thread[1024];
    return of_thread[threadIdx.x];
}

inline void rk_copy_async(void *to, const void *from, int bytes) {
    if (reinterpret_cast<uintptr_t>(to) % 16 || (bytes && reinterpret_cast<uintptr_t>(from) % 16))
        cuda_host::fail("cp.async: an address is not a multiple of 16 bytes");
    rk_host_copies().waiting.push_back({to, from, bytes, rk_host_copies().group});
}
inline void rk_copy_commit() { rk_host_copies().group++; }
template <int N> inline void rk_copy_wait() {
    RkHostCopies &copies = rk_host_copies();
    while (!copies.waiting.empty() && copies.waiting.front().group < copies.group - N) {
        RkHostCopy copy = copies.waiting.front();
        copies.waiting.pop_front();
        memset(copy.to, 0, 16);
        if (copy.bytes) memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
    }
}

#endif

/* Fragments of the 16x16 elements of `m` from (row, column) on, of lines of LINE elements (an odd multiple of 8, lest rows meet
 * in their banks). An A is stored (m,k) or, transposed, (k,m); two neighbouring B, in b[0..1] and b[2..3], (n,k) or (k,n). */
template <int LINE> __device__ inline void rk_load_a(uint32_t a[4], const uint16_t (*m)[LINE], int row, int column) {
    int lane = static_cast<int>(threadIdx.x) % 32;
    rk_ldmatrix(a, &m[row + lane % 16][column + lane / 16 * 8]);
}
template <int LINE> __device__ inline void rk_load_a_transposed(uint32_t a[4], const uint16_t (*m)[LINE], int row, int column) {
    int lane = static_cast<int>(threadIdx.x) % 32;
    rk_ldmatrix_transposed(a, &m[row + lane / 16 * 8 + lane % 8][column + lane / 8 % 2 * 8]);
}
template <int LINE> __device__ inline void rk_load_b(uint32_t b[4], const uint16_t (*m)[LINE], int row, int column) {
    int lane = static_cast<int>(threadIdx.x) % 32;
    rk_ldmatrix(b, &m[row + lane / 16 * 8 + lane % 8][column + lane / 8 % 2 * 8]);
}
template <int LINE> __device__ inline void rk_load_b_transposed(uint32_t b[4], const uint16_t (*m)[LINE], int row, int column) {
    int lane = static_cast<int>(threadIdx.x) % 32;
    rk_ldmatrix_transposed(b, &m[row + lane % 16][column + lane / 16 * 8]);
}

#endif
