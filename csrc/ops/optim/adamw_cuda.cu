#include "ops/backend_cuda.h"

#include "cuda/launch.h"

/* clip and rates: as in the arguments, NULL for those of `number`, which has the step's rates in their order. */
struct AdamW { const double *clip, *rates; double gscale, lr, wd, number[RK_RATES]; float beta1, one_minus_beta1, beta2, one_minus_beta2, eps; };

/* Four elements a thread: 16 bytes of each float32 array. */
template <typename T> __global__ void adamw_range(T *p, float *master, const float *g, float *m, float *v, size_t n, AdamW a) {
    size_t first = (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    double clip = a.clip ? *a.clip : 1;
    const double *rates = a.rates ? a.rates : a.number;
    if (clip == 0) return;
    float gscale = static_cast<float>(a.gscale * clip), lr = static_cast<float>(a.lr * rates[RK_RATE_LR]);
    float wd = static_cast<float>(a.wd < 0 ? rates[RK_RATE_WD] : a.wd);
    float inverse_bias1 = static_cast<float>(rates[RK_RATE_INVERSE_BIAS1]), inverse_bias2 = static_cast<float>(rates[RK_RATE_INVERSE_BIAS2]);
#pragma unroll
    for (int k = 0; k < 4; k++) {
        size_t i = first + k;
        if (i >= n) return;
        float gi = g[i] * gscale, mi = a.beta1 * m[i] + a.one_minus_beta1 * gi, vi = a.beta2 * v[i] + a.one_minus_beta2 * gi * gi;
        float pi = master ? master[i] : rk_float(p[i]);
        m[i] = mi;
        v[i] = vi;
        pi -= lr * (mi * inverse_bias1 / (sqrtf(vi * inverse_bias2) + a.eps) + wd * pi);
        if (master) master[i] = pi;
        p[i] = rk_element<T>(pi);
    }
}

int rk_cuda_adamw_fwd(const RkAdamW *o) {
    AdamW a = {rk_ptr<double>(o->clip), rk_ptr<double>(o->rates), o->gscale, o->lr, o->wd, {1, o->wd, 1 / o->bias1, 1 / o->bias2},
               static_cast<float>(o->beta1), static_cast<float>(1 - o->beta1), static_cast<float>(o->beta2), static_cast<float>(1 - o->beta2),
               static_cast<float>(o->eps)};
    size_t n = rk_numel(o->p);
    RK_CUDA_BY_DTYPE(o->p.dtype, T, return rk_launch(adamw_range<T>, rk_blocks(n, 1024), 256, 0, rk_stream(), rk_ptr<T>(o->p), rk_ptr<float>(o->master),
                                                     rk_ptr<float>(o->g), rk_ptr<float>(o->m), rk_ptr<float>(o->v), n, a))
}
