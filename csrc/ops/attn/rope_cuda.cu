#include "ops/backend_cuda.h"

#include "cuda/launch.h"

enum { THREADS = 256 };

/* One thread turns one pair of all heads of a token, whose angle is the same. */
template <typename T> __global__ void rope_turn(const T *from, T *to, size_t pairs, int4 d, int past, double direction) {
    size_t e = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    int H = d.z, N = d.w, half = N / 2, i = static_cast<int>(e % half);
    if (e >= pairs) return;
    size_t token = e / half;
    double angle = direction * (past + static_cast<double>(token % d.y)) * pow(RK_ROPE_BASE, -2.0 * i / N);
    float c = static_cast<float>(cos(angle)), s = static_cast<float>(sin(angle));
    for (int h = 0; h < H; h++) {
        size_t at = (token * H + h) * N + i;
        float low = rk_float(from[at]), high = rk_float(from[at + half]);
        to[at] = rk_element<T>(low * c - high * s);
        to[at + half] = rk_element<T>(high * c + low * s);
    }
}

static int turn(RkTensor from, RkTensor to, int past, double direction) {
    size_t pairs = rk_numel(from) / from.d[2] / 2;
    int4 d = make_int4(from.d[0], from.d[1], from.d[2], from.d[3]);
    RK_CUDA_BY_DTYPE(from.dtype, T, return rk_launch(rope_turn<T>, rk_blocks(pairs, THREADS), THREADS, 0, rk_stream(), rk_ptr<T>(from), rk_ptr<T>(to), pairs, d,
                                                     past, direction))
}

int rk_cuda_rope_fwd(const RkRope *o) { return turn(o->x, o->y, o->past, 1); }
int rk_cuda_rope_bwd(const RkRope *o) { return turn(o->dy, o->dx, o->past, -1); }
