#include "ops/backend_cuda.h"

#include "cuda/double_sum.h"

static __global__ void clip(const double *squares, int n, const double *loss, double *factor, double *norm, double max_norm, double scale) {
    double sum = rk_double_sum(squares, n);
    if (threadIdx.x) return;
    sum = sqrt(sum) / scale;
    double ratio = max_norm > 0 ? (sum + 1e-6) / max_norm : 0;
    *norm = sum;
    *factor = isfinite(sum) && isfinite(*loss) ? (ratio > 1 ? 1 / ratio : 1) / scale : 0;
}

int rk_cuda_clip_fwd(const RkClip *o) {
    return rk_launch(clip, 1, RK_DOUBLE_SUM_THREADS, 0, rk_stream(), rk_ptr<double>(o->squares), static_cast<int>(rk_numel(o->squares)),
                     rk_ptr<double>(o->loss), rk_ptr<double>(o->factor), rk_ptr<double>(o->norm), o->max_norm, o->scale);
}
