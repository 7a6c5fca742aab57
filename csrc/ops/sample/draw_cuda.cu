/* One block is one row. A pass over it reads 4 V bytes, which stay in the second-level cache, and takes some 10 us for 65536 tokens:
 * one for the likeliest, one for the sum, three for each edge, two for the draw. */
#include "ops/backend_cuda.h"

#include "cuda/launch.h"

enum { THREADS = 512, WARPS = THREADS / 32, DIGIT = 10, BINS = 1 << DIGIT };
typedef unsigned long long Share;

/* What is kept: tokens of at least `least`; above `edge`, or equal to it and up to the id `last`; typical ones. p = exp(z - top). */
struct Row {
    const float *z;
    int V, last;
    float top, least, edge, typical_edge;
    double sum, entropy;
    Share *shares; /* (BINS) each, shared */
    int *counts;
};

__device__ static Share share(float p) { return static_cast<Share>(p * 0x1p40f); }
__device__ static float probability(const Row &r, int i) { return expf(r.z[i] - r.top); }

/* Largest where the surprise is nearest to the entropy; in [0,1]. */
__device__ static float typical_key(const Row &r, float p) {
    return static_cast<float>(exp(-fabs(-log(static_cast<double>(p) / r.sum) - r.entropy)));
}

__device__ static bool kept(const Row &r, int i, float p) {
    if (!(p > 0 && p >= r.least && (p > r.edge || (p == r.edge && i <= r.last)))) return false;
    return r.typical_edge <= 0 || typical_key(r, p) >= r.typical_edge;
}

/* ---- sums over the block ---- */

/* For all threads, in an order that depends on nothing. */
template <typename T> __device__ static T block_sum(T x) {
    RK_SHARED(T, part, [WARPS]);
    int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    for (int offset = 16; offset; offset >>= 1) x += __shfl_xor_sync(0xffffffffu, x, offset);
    __syncthreads(); /* the sum before has been read */
    if (lane == 0) part[warp] = x;
    __syncthreads();
    T sum = 0;
    for (int i = 0; i < WARPS; i++) sum += part[i];
    return sum;
}

/* The sum of f(i, p of i) over all tokens. */
template <typename T, typename F> __device__ static T sum_over(const Row &r, F f) {
    T sum = 0;
    for (int i = static_cast<int>(threadIdx.x); i < r.V; i += THREADS) sum += f(i, probability(r, i));
    return block_sum(sum);
}

/* The lowest id at which the running sum of f over ids exceeds `target`, which the whole sum does. A warp has a stretch of ids. */
template <typename F> __device__ static int locate(int V, Share target, F f) {
    RK_SHARED(Share, stretch, [WARPS]);
    RK_SHARED(int, found, );
    int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32, size = (V + THREADS - 1) / THREADS * 32;
    int first = warp * size, end = first + size < V ? first + size : V;
    Share sum = 0;
    for (int i = first + lane; i < end; i += 32) sum += f(i);
    for (int offset = 16; offset; offset >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (lane == 0) stretch[warp] = sum;
    __syncthreads();
    Share before = 0;
    for (int i = 0; i < warp; i++) before += stretch[i];
    if (before <= target && before + sum > target)
        for (int i = first; i < end; i += 32) {
            Share running = i + lane < end ? f(i + lane) : 0;
            for (int offset = 1; offset < 32; offset <<= 1) {
                Share below = __shfl_up_sync(0xffffffffu, running, offset);
                if (lane >= offset) running += below;
            }
            unsigned past = __ballot_sync(0xffffffffu, before + running > target);
            before += __shfl_sync(0xffffffffu, running, 31);
            if (!past) continue;
            if (lane == 0) found = i + __ffs(static_cast<int>(past)) - 1;
            break;
        }
    __syncthreads();
    int at = found;
    __syncthreads();
    return at;
}

/* ---- selection ---- */

/* Of the bins from the last to the first, by one warp: that at which the running share exceeds `mass` or the running count reaches k, with
 * what was before it added to both; -1 where none is. */
__device__ static int crossing(const Share *shares, const int *counts, Share mass, int k, Share *share_before, int *count_before) {
    constexpr int EACH = BINS / 32;
    int lane = static_cast<int>(threadIdx.x) % 32, high = BINS - 1 - lane * EACH, n = 0;
    Share s = 0;
    for (int i = 0; i < EACH; i++) s += shares[high - i], n += counts[high - i];
    Share s_up = s;
    int n_up = n;
    for (int offset = 1; offset < 32; offset <<= 1) {
        Share s_below = __shfl_up_sync(0xffffffffu, s_up, offset);
        int n_below = __shfl_up_sync(0xffffffffu, n_up, offset);
        if (lane >= offset) s_up += s_below, n_up += n_below;
    }
    unsigned past = __ballot_sync(0xffffffffu, *share_before + s_up > mass || *count_before + n_up >= k);
    if (!past) return -1;
    int owner = __ffs(static_cast<int>(past)) - 1, at = BINS - 1 - owner * EACH;
    *share_before += __shfl_sync(0xffffffffu, s_up - s, owner);
    *count_before += __shfl_sync(0xffffffffu, n_up - n, owner);
    while (*share_before + shares[at] <= mass && *count_before + counts[at] < k) {
        *share_before += shares[at];
        *count_before += counts[at];
        at--;
    }
    return at;
}

/* The key, in descending order of keys, at which the running share first exceeds `mass` or the running count reaches k; 0 when neither
 * happens. Ten of its thirty bits at a time; key(i, p) is in [0,1], negative for tokens that are not looked at. */
template <typename Key> __device__ static float edge_of(const Row &r, Share mass, int k, Key key) {
    RK_SHARED(unsigned, found, );
    Share share_before = 0;
    int count_before = 0;
    unsigned prefix = 0;
    for (int shift = 2 * DIGIT; shift >= 0; shift -= DIGIT) {
        for (int i = static_cast<int>(threadIdx.x); i < BINS; i += THREADS) r.shares[i] = 0, r.counts[i] = 0;
        __syncthreads();
        for (int i = static_cast<int>(threadIdx.x); i < r.V; i += THREADS) {
            float p = probability(r, i), x = key(i, p);
            unsigned bits = __float_as_uint(x);
            if (x < 0 || (shift < 2 * DIGIT && bits >> (shift + DIGIT) != prefix)) continue;
            atomicAdd(&r.shares[bits >> shift & (BINS - 1)], share(p));
            atomicAdd(&r.counts[bits >> shift & (BINS - 1)], 1);
        }
        __syncthreads();
        if (threadIdx.x < 32) {
            int at = crossing(r.shares, r.counts, mass, k, &share_before, &count_before);
            if (threadIdx.x == 0) found = static_cast<unsigned>(at);
        }
        __syncthreads();
        if (static_cast<int>(found) < 0) return 0;
        prefix = prefix << DIGIT | found;
    }
    return __uint_as_float(prefix);
}

__device__ static Share part_of(double fraction, Share whole) { return static_cast<Share>(fraction * static_cast<double>(whole)); }

__device__ static void keep_most_likely(Row *r, int k) {
    int n = sum_over<int>(*r, [&](int i, float p) { return kept(*r, i, p) ? 1 : 0; });
    if (k >= n) return;
    float edge = edge_of(*r, ~static_cast<Share>(0), k, [&](int i, float p) { return kept(*r, i, p) ? p : -1.0f; });
    int above = sum_over<int>(*r, [&](int i, float p) { return kept(*r, i, p) && p > edge ? 1 : 0; });
    int last = locate(r->V, static_cast<Share>(k - above - 1), [&](int i) {
        float p = probability(*r, i);
        return static_cast<Share>(kept(*r, i, p) && p == edge);
    });
    r->edge = edge;
    r->last = last;
}

__device__ static void keep_typical(Row *r, double mass) {
    Share whole = sum_over<Share>(*r, [&](int i, float p) { return kept(*r, i, p) ? share(p) : 0; });
    r->sum = static_cast<double>(whole) * 0x1p-40;
    r->entropy = sum_over<double>(*r, [&](int i, float p) {
        double q = static_cast<double>(p) / r->sum;
        return kept(*r, i, p) ? -q * log(q) : 0.0;
    });
    r->typical_edge = edge_of(*r, part_of(mass, whole), INT_MAX, [&](int i, float p) { return kept(*r, i, p) ? typical_key(*r, p) : -1.0f; });
}

/* Tokens below (1 - top_p) / V of the sum hold less than 1 - top_p of it together: top_p is passed without them. */
__device__ static void select_tokens(Row *r, const RkDrawRow &how) {
    r->least = static_cast<float>(how.min_p);
    if (how.top_p < 1) {
        Share whole = sum_over<Share>(*r, [](int, float p) { return share(p); });
        float few = static_cast<float>(0.5 * (1 - how.top_p) * (static_cast<double>(whole) * 0x1p-40) / r->V);
        float least = few > r->least ? few : r->least;
        float edge = edge_of(*r, part_of(how.top_p, whole), INT_MAX, [&](int, float p) { return p > 0 && p >= least ? p : -1.0f; });
        if (edge > r->least) r->least = edge;
        else if (edge == 0 && least > r->least) r->least = least;
    }
    if (how.top_k > 0) keep_most_likely(r, how.top_k);
    if (how.typical_p < 1) keep_typical(r, how.typical_p);
}

/* ---- the row ---- */

/* The lowest id of the largest logit; -1 where one is not a number or the largest is infinite. */
__device__ static int likeliest(const float *z, int V) {
    RK_SHARED(float, tops, [WARPS]);
    RK_SHARED(int, places, [WARPS]);
    float top = -INFINITY;
    int at = INT_MAX, bad = 0, lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    for (int i = static_cast<int>(threadIdx.x); i < V; i += THREADS) {
        bad |= !(z[i] == z[i]);
        if (z[i] > top) top = z[i], at = i;
    }
    bad = __syncthreads_or(bad);
    for (int offset = 16; offset; offset >>= 1) {
        float other = __shfl_xor_sync(0xffffffffu, top, offset);
        int there = __shfl_xor_sync(0xffffffffu, at, offset);
        if (other > top || (other == top && there < at)) top = other, at = there;
    }
    if (lane == 0) tops[warp] = top, places[warp] = at;
    __syncthreads();
    for (int i = 0; i < WARPS; i++)
        if (tops[i] > top || (tops[i] == top && places[i] < at)) top = tops[i], at = places[i];
    return bad || at == INT_MAX || isinf(top) ? -1 : at;
}

__device__ static void change(float *z, const RkDrawChange *c, int n) {
    for (int i = static_cast<int>(threadIdx.x); i < n; i += THREADS) {
        float x = z[c[i].token];
        x = x > 0 ? __fdiv_rn(x, c[i].factor) : __fmul_rn(x, c[i].factor); /* no product and sum in one: the host rounds both */
        z[c[i].token] = __fadd_rn(__fadd_rn(x, -c[i].minus), c[i].plus);
    }
    __syncthreads();
}

static __global__ void __launch_bounds__(THREADS) draw_rows(RkDraw a) {
    RK_SHARED(Share, shares, [BINS]);
    RK_SHARED(int, counts, [BINS]);
    const RkDrawRow &how = a.rows[blockIdx.x];
    float *z = a.logits + static_cast<size_t>(blockIdx.x) * a.V;
    change(z, a.changes + how.first, how.seen);
    change(z, a.changes + how.first + how.seen, how.biases);
    int token = likeliest(z, a.V);
    if (token >= 0 && how.temperature != 0 && how.top_k != 1) {
        Row r = {z, a.V, INT_MAX, z[token], 0, -1, 0, 0, 0, shares, counts};
        double sharper = 1 / how.temperature;
        float sharpened = sharper < 3.4028234663852886e38 ? static_cast<float>(sharper) : 3.4028234663852886e38f;
        select_tokens(&r, how);
        auto weight = [&](int i) { return kept(r, i, probability(r, i)) ? share(expf((r.z[i] - r.top) * sharpened)) : 0; };
        Share whole = 0;
        for (int i = static_cast<int>(threadIdx.x); i < a.V; i += THREADS) whole += weight(i);
        whole = block_sum(whole);
        Share target = part_of(how.uniform, whole);
        token = locate(a.V, target < whole ? target : whole - 1, weight);
    }
    if (threadIdx.x == 0) a.tokens[blockIdx.x] = token;
}

int rk_cuda_draw(const RkDraw *o) { return rk_launch(draw_rows, static_cast<unsigned>(o->n), THREADS, 0, rk_stream(), *o); }
