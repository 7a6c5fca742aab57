// The RWKV-7 recurrence for PyTorch on the CPU: forward and backward, one task per sequence and head.
//
//   z = S a,  S = S diag(d) + z b^T + v k^T,  y = S r          S is (value, key); here a row S[j] is one key, its values contiguous
//
// The forward keeps S before every 16th token and z; the backward runs 16 tokens forward again and then back.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>

constexpr int N = 64, CHUNK = 16;

static void token(float *S, const float *d, const float *k, const float *v, const float *b, const float *z) {
    for (int j = 0; j < N; j++)
        for (int i = 0; i < N; i++) S[j * N + i] = S[j * N + i] * d[j] + z[i] * b[j] + v[i] * k[j];
}

static void times(const float *S, const float *x, float *y) { // y = S x
    for (int i = 0; i < N; i++) y[i] = 0;
    for (int j = 0; j < N; j++)
        for (int i = 0; i < N; i++) y[i] += S[j * N + i] * x[j];
}

static float dot(const float *x, const float *y) {
    float sum = 0;
    for (int i = 0; i < N; i++) sum += x[i] * y[i];
    return sum;
}

using Tensors = std::vector<at::Tensor>;
static float *at_token(const at::Tensor &t, int64_t B_, int64_t T_, int64_t H) { return t.data_ptr<float>() + ((B_ * t.size(1) + T_) * t.size(2) + H) * N; }

// r, d, k, v, a, b (B,T,H,64), T a multiple of 16 -> y, z (B,T,H,64), states (B*H, T/16, 64, 64)
static Tensors forward(at::Tensor r, at::Tensor d, at::Tensor k, at::Tensor v, at::Tensor a, at::Tensor b) {
    const int64_t B = r.size(0), T = r.size(1), H = r.size(2);
    at::Tensor y = at::empty_like(r), z = at::empty_like(r), states = at::empty({B * H, T / CHUNK, N, N}, r.options());
    at::parallel_for(0, B * H, 1, [&](int64_t from, int64_t to) {
        for (int64_t bh = from; bh < to; bh++) {
            alignas(64) float S[N * N] = {0};
            const int64_t n = bh / H, h = bh % H;
            for (int64_t t = 0; t < T; t++) {
                if (t % CHUNK == 0) memcpy(states.data_ptr<float>() + (bh * (T / CHUNK) + t / CHUNK) * N * N, S, sizeof S);
                alignas(64) float zt[N], yt[N];
                times(S, at_token(a, n, t, h), zt);
                token(S, at_token(d, n, t, h), at_token(k, n, t, h), at_token(v, n, t, h), at_token(b, n, t, h), zt);
                times(S, at_token(r, n, t, h), yt);
                memcpy(at_token(z, n, t, h), zt, sizeof zt);
                memcpy(at_token(y, n, t, h), yt, sizeof yt);
            }
        }
    });
    return {y, z, states};
}

struct Token {
    const float *r, *d, *k, *v, *a, *b, *z, *dy;
    float *dr, *dd, *dk, *dv, *da, *db;
};

static void token_back(const Token &o, const float *before, const float *after, float *D) {
    alignas(64) float dv[N] = {0}, dz[N] = {0};
    for (int j = 0; j < N; j++) {
        float *row = D + j * N;
        for (int i = 0; i < N; i++) {
            row[i] += o.dy[i] * o.r[j];
            dv[i] += row[i] * o.k[j];
            dz[i] += row[i] * o.b[j];
        }
        o.dr[j] = dot(after + j * N, o.dy);
        o.dk[j] = dot(row, o.v);
        o.db[j] = dot(row, o.z);
        o.dd[j] = dot(before + j * N, row);
    }
    for (int j = 0; j < N; j++) {
        o.da[j] = dot(before + j * N, dz);
        for (int i = 0; i < N; i++) D[j * N + i] = D[j * N + i] * o.d[j] + dz[i] * o.a[j];
    }
    memcpy(o.dv, dv, sizeof dv);
}

static Tensors backward(at::Tensor r, at::Tensor d, at::Tensor k, at::Tensor v, at::Tensor a, at::Tensor b, at::Tensor z, at::Tensor states, at::Tensor dy) {
    const int64_t B = r.size(0), T = r.size(1), H = r.size(2);
    Tensors grads;
    for (int i = 0; i < 6; i++) grads.push_back(at::empty_like(r));
    at::parallel_for(0, B * H, 1, [&](int64_t from, int64_t to) {
        std::vector<float> kept((CHUNK + 1) * N * N);
        for (int64_t bh = from; bh < to; bh++) {
            alignas(64) float D[N * N] = {0};
            const int64_t n = bh / H, h = bh % H;
            for (int64_t chunk = T / CHUNK - 1; chunk >= 0; chunk--) {
                memcpy(kept.data(), states.data_ptr<float>() + (bh * (T / CHUNK) + chunk) * N * N, sizeof D);
                for (int i = 0; i < CHUNK; i++) {
                    const int64_t t = chunk * CHUNK + i;
                    float *S = kept.data() + (i + 1) * N * N;
                    memcpy(S, S - N * N, sizeof D);
                    token(S, at_token(d, n, t, h), at_token(k, n, t, h), at_token(v, n, t, h), at_token(b, n, t, h), at_token(z, n, t, h));
                }
                for (int i = CHUNK - 1; i >= 0; i--) {
                    const int64_t t = chunk * CHUNK + i;
                    auto p = [&](const at::Tensor &x) { return at_token(x, n, t, h); };
                    Token o = {p(r), p(d), p(k), p(v), p(a), p(b), p(z), p(dy), p(grads[0]), p(grads[1]), p(grads[2]), p(grads[3]), p(grads[4]), p(grads[5])};
                    token_back(o, kept.data() + i * N * N, kept.data() + (i + 1) * N * N, D);
                }
            }
        }
    });
    return grads;
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    m.def("forward", &forward);
    m.def("backward", &backward);
}
