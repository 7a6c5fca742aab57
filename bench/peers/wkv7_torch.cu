// The RWKV-7 recurrence for PyTorch on a GPU in the form of the usual kernels: a block per sequence and head, a thread per value (forward) with its
// row of the state in registers, and backwards a thread per value and key with a row and a column of its gradient, and a column of the state, which is
// taken back token by token from a copy at every 16th.
//
//   z = S a,  S = S diag(d) + z b^T + v k^T,  y = S r          S is (value, key)
#include <cuda_bf16.h>
#include <torch/extension.h>

constexpr int N = 64, CHUNK = 16;
typedef __nv_bfloat16 T;
__device__ static float wide(T x) { return __bfloat162float(x); }

struct Rows { const T *r, *d, *k, *v, *a, *b; };

__global__ void __launch_bounds__(N) forward_kernel(int tokens, int H, Rows o, T *y, float *z, float *states) {
    __shared__ float r[N], d[N], k[N], a[N], b[N];
    int head = blockIdx.x, sequence = blockIdx.y, i = threadIdx.x;
    float S[N];
    for (int j = 0; j < N; j++) S[j] = 0;
    for (int t = 0; t < tokens; t++) {
        size_t at = ((size_t)(sequence * (size_t)tokens + t) * H + head) * N + i;
        __syncthreads();
        r[i] = wide(o.r[at]), d[i] = wide(o.d[at]), k[i] = wide(o.k[at]), a[i] = wide(o.a[at]), b[i] = wide(o.b[at]);
        __syncthreads();
        float v = wide(o.v[at]), sum = 0, out = 0;
#pragma unroll
        for (int j = 0; j < N; j++) sum += S[j] * a[j];
#pragma unroll
        for (int j = 0; j < N; j++) {
            S[j] = S[j] * d[j] + sum * b[j] + v * k[j];
            out += S[j] * r[j];
        }
        y[at] = __float2bfloat16(out), z[at] = sum;
        if ((t + 1) % CHUNK == 0) {
            float *to = states + (((size_t)(sequence * H + head) * (tokens / CHUNK) + t / CHUNK) * N) * N + i;
#pragma unroll
            for (int j = 0; j < N; j++) to[j * N] = S[j]; // (key, value)
        }
    }
}

struct Gradients { T *r, *d, *k, *v, *a, *b; };

__global__ void __launch_bounds__(N) backward_kernel(int tokens, int H, Rows o, const float *z, const float *states, const T *dy, Gradients g) {
    __shared__ float r[N], d[N], k[N], v[N], a[N], b[N], zs[N], dys[N], dzs[N];
    int head = blockIdx.x, sequence = blockIdx.y, i = threadIdx.x;
    float column[N], row[N], back[N]; // S[.][i], dS[i][.], dS[.][i]
    for (int j = 0; j < N; j++) column[j] = row[j] = back[j] = 0;
    for (int t = tokens - 1; t >= 0; t--) {
        size_t at = ((size_t)(sequence * (size_t)tokens + t) * H + head) * N + i;
        if ((t + 1) % CHUNK == 0) {
            const float *from = states + (((size_t)(sequence * H + head) * (tokens / CHUNK) + t / CHUNK) * N + i) * N;
#pragma unroll
            for (int j = 0; j < N; j++) column[j] = from[j];
        }
        __syncthreads();
        r[i] = wide(o.r[at]), d[i] = wide(o.d[at]), k[i] = wide(o.k[at]), v[i] = wide(o.v[at]), a[i] = wide(o.a[at]), b[i] = wide(o.b[at]);
        zs[i] = z[at], dys[i] = wide(dy[at]);
        __syncthreads();
        float dr = 0, dd = 0, dk = 0, dv = 0, da = 0, db = 0, dz = 0, inverse = 1 / d[i];
#pragma unroll
        for (int j = 0; j < N; j++) {
            row[j] += dys[i] * r[j], back[j] += dys[j] * r[i];
            dv += row[j] * k[j], dz += row[j] * b[j];
            dr += column[j] * dys[j];
            dk += back[j] * v[j], db += back[j] * zs[j];
            column[j] = (column[j] - k[i] * v[j] - b[i] * zs[j]) * inverse; // before the token
            dd += back[j] * column[j];
        }
        dzs[i] = dz;
        __syncthreads();
#pragma unroll
        for (int j = 0; j < N; j++) {
            da += column[j] * dzs[j];
            row[j] = row[j] * d[j] + dz * a[j], back[j] = back[j] * d[i] + dzs[j] * a[i];
        }
        g.r[at] = __float2bfloat16(dr), g.d[at] = __float2bfloat16(dd), g.k[at] = __float2bfloat16(dk);
        g.v[at] = __float2bfloat16(dv), g.a[at] = __float2bfloat16(da), g.b[at] = __float2bfloat16(db);
    }
}

typedef std::vector<at::Tensor> Tensors;
static T *elements(const at::Tensor &t) { return reinterpret_cast<T *>(t.data_ptr<at::BFloat16>()); }
static Rows rows_of(const Tensors &t) { return {elements(t[0]), elements(t[1]), elements(t[2]), elements(t[3]), elements(t[4]), elements(t[5])}; }

static Tensors forward(at::Tensor r, at::Tensor d, at::Tensor k, at::Tensor v, at::Tensor a, at::Tensor b) {
    int B = r.size(0), tokens = r.size(1), H = r.size(2);
    TORCH_CHECK(r.size(3) == N && tokens % CHUNK == 0, "heads of 64 and multiples of 16 tokens only");
    at::Tensor y = at::empty_like(r), z = at::empty(r.sizes(), r.options().dtype(at::kFloat));
    at::Tensor states = at::empty({B * H, tokens / CHUNK, N, N}, z.options());
    forward_kernel<<<dim3(H, B), N>>>(tokens, H, rows_of({r, d, k, v, a, b}), elements(y), z.data_ptr<float>(), states.data_ptr<float>());
    return {y, z, states};
}

static Tensors backward(at::Tensor r, at::Tensor d, at::Tensor k, at::Tensor v, at::Tensor a, at::Tensor b, at::Tensor z, at::Tensor states, at::Tensor dy) {
    int B = r.size(0), tokens = r.size(1), H = r.size(2);
    Tensors g;
    for (int i = 0; i < 6; i++) g.push_back(at::empty_like(r));
    Rows out = rows_of(g);
    Gradients to = {const_cast<T *>(out.r), const_cast<T *>(out.d), const_cast<T *>(out.k), const_cast<T *>(out.v), const_cast<T *>(out.a), const_cast<T *>(out.b)};
    backward_kernel<<<dim3(H, B), N>>>(tokens, H, rows_of({r, d, k, v, a, b}), z.data_ptr<float>(), states.data_ptr<float>(), elements(dy), to);
    return g;
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    m.def("forward", &forward);
    m.def("backward", &backward);
}
