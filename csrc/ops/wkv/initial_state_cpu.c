#include "ops/backend_cpu.h"

/* One head of one sequence after another: states are small beside the steps that read them. */
static void transpose(const float *from, float *to, size_t N, int add) {
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j < N; j++) to[j * N + i] = from[i * N + j] + (add ? to[j * N + i] : 0);
}

int rk_cpu_initial_state_fwd(const RkInitialState *o) {
    size_t N = (size_t)o->s.d[2], heads = rk_numel(o->s) / (N * N), H = (size_t)o->s.d[1];
    for (size_t h = 0; h < heads; h++) transpose(rk_f32(o->p) + h % H * N * N, rk_f32(o->s) + h * N * N, N, 0);
    return RK_OK;
}

int rk_cpu_initial_state_bwd(const RkInitialState *o) {
    size_t N = (size_t)o->ds.d[2], heads = rk_numel(o->ds) / (N * N), H = (size_t)o->ds.d[1];
    for (size_t h = 0; h < heads; h++) transpose(rk_f32(o->ds) + h * N * N, rk_f32(o->dp) + h % H * N * N, N, 1);
    return RK_OK;
}
