/* blas.cu - cuBLASLt by dlopen. Its types are opaque and its numbers part of its ABI, the same in versions 11 to 13, so the package builds
 * without its headers. What the library suggests for a shape is asked once and kept: asking takes tens of microseconds. */
#include "cuda/blas.h"

#include <dlfcn.h>

#include <new>

#include "cuda/launch.h"

/* ---- the library ---- */

enum { R_32F = 0, R_16F = 2, R_16BF = 14, COMPUTE_32F = 68, COMPUTE_32F_FAST_TF32 = 77, OP_N = 0, OP_T = 1 };
enum { DESC_TRANSA = 3, DESC_TRANSB = 4, DESC_EPILOGUE = 7, DESC_BIAS_POINTER = 8, EPILOGUE_BIAS = 4 };
enum { PREF_MAX_WORKSPACE_BYTES = 1, PREF_REDUCTION_SCHEME_MASK = 3, PREF_MIN_ALIGNMENT_A_BYTES = 5, REDUCTION_SCHEME_COMPUTE_TYPE = 2 };

struct Algorithm { uint64_t data[8]; };
struct Suggestion { Algorithm algorithm; size_t workspace; int state; float waves; int reserved[4]; };
typedef void *Opaque;

struct Library {
    void *handle;
    int (*Create)(Opaque *);
    int (*Destroy)(Opaque);
    int (*MatmulDescCreate)(Opaque *, int compute, int scale);
    int (*MatmulDescSetAttribute)(Opaque, int, const void *, size_t);
    int (*MatmulDescDestroy)(Opaque);
    int (*MatrixLayoutCreate)(Opaque *, int type, uint64_t rows, uint64_t cols, int64_t ld);
    int (*MatrixLayoutDestroy)(Opaque);
    int (*MatmulPreferenceCreate)(Opaque *);
    int (*MatmulPreferenceSetAttribute)(Opaque, int, const void *, size_t);
    int (*MatmulPreferenceDestroy)(Opaque);
    int (*MatmulAlgoGetHeuristic)(Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, int, Suggestion *, int *);
    int (*Matmul)(Opaque, Opaque, const void *, const void *, Opaque, const void *, Opaque, const void *, const void *, Opaque, void *, Opaque,
                  const Algorithm *, void *, size_t, cudaStream_t);
};

static const char *const NAMES[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11", "libcublasLt.so"};

static int open_library(Library *l) {
    for (const char *name : NAMES)
        if (!l->handle) l->handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!l->handle)
        return rk_fail(RK_EDEVICE, "cuBLASLt was not found: neither %s nor its versions 12 and 11 in the system's libraries or a wheel; "
                       "install one of them: pip install nvidia-cublas (CUDA 13), pip install nvidia-cublas-cu12", NAMES[0]);
#define FIND(name)                                                                                                          \
    l->name = reinterpret_cast<decltype(l->name)>(dlsym(l->handle, "cublasLt" #name));                                      \
    if (!l->name) return rk_fail(RK_EDEVICE, "this cuBLASLt has no function cublasLt%s", #name)
    FIND(Create);
    FIND(Destroy);
    FIND(MatmulDescCreate);
    FIND(MatmulDescSetAttribute);
    FIND(MatmulDescDestroy);
    FIND(MatrixLayoutCreate);
    FIND(MatrixLayoutDestroy);
    FIND(MatmulPreferenceCreate);
    FIND(MatmulPreferenceSetAttribute);
    FIND(MatmulPreferenceDestroy);
    FIND(MatmulAlgoGetHeuristic);
    FIND(Matmul);
#undef FIND
    return RK_OK;
}

/* ---- products that have been asked for ---- */

/* What a suggestion depends on. */
struct Shape {
    int M, N, K, dtype, c_dtype, lda, ldb, ldc, trans_a, trans_b, accumulate, bias, tf32;
    uint32_t align_a, align_b, align_c;
    bool operator==(const Shape &o) const { return memcmp(this, &o, sizeof o) == 0; }
};

/* Column-major, as the library sees it, the product is C^T = op(B)^T op(A)^T. */
struct Plan { Shape shape; Opaque desc, first, second, out; Algorithm algorithm; size_t workspace; };

enum { PLANS = 1024 };

struct RkCudaBlas {
    Library library;
    Opaque handle;
    void *workspace;
    int n;
    Plan plan[PLANS]; /* open addressing by a hash of the shape */
};

static int check(int status, const char *doing) {
    return status ? rk_fail(RK_EDEVICE, "cuBLASLt: %s failed with status %d", doing, status) : RK_OK;
}

static int type_of(int dtype) { return dtype == RK_F32 ? R_32F : dtype == RK_BF16 ? R_16BF : R_16F; }

/* The power of two that a pointer is a multiple of, 256 at most. */
static uint32_t alignment(const void *p) {
    uint32_t a = 256;
    while (a > 1 && reinterpret_cast<uintptr_t>(p) % a) a /= 2;
    return a;
}

static Shape shape_of(const RkCudaGemm *g) {
    Shape s;
    memset(&s, 0, sizeof s); /* also what may lie between the fields: shapes are compared as bytes */
    s.M = g->M, s.N = g->N, s.K = g->K, s.dtype = g->dtype, s.c_dtype = g->c_dtype, s.lda = g->lda, s.ldb = g->ldb, s.ldc = g->ldc;
    s.trans_a = g->trans_a, s.trans_b = g->trans_b, s.accumulate = g->accumulate, s.bias = g->bias != nullptr, s.tf32 = rk_cuda_tf32();
    s.align_a = alignment(g->A), s.align_b = alignment(g->B), s.align_c = alignment(g->C);
    return s;
}

static size_t hash_of(const Shape &s) {
    const unsigned char *p = reinterpret_cast<const unsigned char *>(&s);
    size_t h = 1469598103934665603u;
    for (size_t i = 0; i < sizeof s; i++) h = (h ^ p[i]) * 1099511628211u;
    return h;
}

/* Split sums may be reduced in float32 in the workspace, never where the result stands: that would round to its type in between. */
static int suggest(RkCudaBlas *b, Plan *p) {
    Library *l = &b->library;
    Opaque preference;
    Suggestion best;
    size_t workspace = RK_CUDA_BLAS_WORKSPACE;
    uint32_t reduction = REDUCTION_SCHEME_COMPUTE_TYPE, align[4] = {p->shape.align_b, p->shape.align_a, p->shape.align_c, p->shape.align_c};
    int found = 0;
    if (int rc = check(l->MatmulPreferenceCreate(&preference), "making a preference")) return rc;
    int rc = l->MatmulPreferenceSetAttribute(preference, PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    if (!rc) rc = l->MatmulPreferenceSetAttribute(preference, PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction);
    for (int i = 0; !rc && i < 4; i++) rc = l->MatmulPreferenceSetAttribute(preference, PREF_MIN_ALIGNMENT_A_BYTES + i, &align[i], sizeof align[i]);
    if (!rc) rc = l->MatmulAlgoGetHeuristic(b->handle, p->desc, p->first, p->second, p->out, p->out, preference, 1, &best, &found);
    l->MatmulPreferenceDestroy(preference);
    if (rc || !found)
        return rk_fail(RK_EDEVICE, "cuBLASLt has no algorithm for a product of %d x %d x %d (status %d)", p->shape.M, p->shape.N, p->shape.K, rc);
    p->algorithm = best.algorithm;
    p->workspace = best.workspace;
    return RK_OK;
}

static int describe(RkCudaBlas *b, Plan *p) {
    const Shape &s = p->shape;
    Library *l = &b->library;
    int first = s.trans_b ? OP_T : OP_N, second = s.trans_a ? OP_T : OP_N, epilogue = EPILOGUE_BIAS, type = type_of(s.dtype);
    int compute = s.tf32 && s.dtype == RK_F32 ? COMPUTE_32F_FAST_TF32 : COMPUTE_32F;
    int rc = l->MatmulDescCreate(&p->desc, compute, R_32F);
    if (!rc) rc = l->MatmulDescSetAttribute(p->desc, DESC_TRANSA, &first, sizeof first);
    if (!rc) rc = l->MatmulDescSetAttribute(p->desc, DESC_TRANSB, &second, sizeof second);
    if (!rc && s.bias) rc = l->MatmulDescSetAttribute(p->desc, DESC_EPILOGUE, &epilogue, sizeof epilogue);
    if (!rc) rc = l->MatrixLayoutCreate(&p->first, type, s.trans_b ? s.K : s.N, s.trans_b ? s.N : s.K, s.ldb);
    if (!rc) rc = l->MatrixLayoutCreate(&p->second, type, s.trans_a ? s.M : s.K, s.trans_a ? s.K : s.M, s.lda);
    if (!rc) rc = l->MatrixLayoutCreate(&p->out, type_of(s.c_dtype), s.N, s.M, s.ldc);
    return check(rc, "describing a product");
}

static void forget(RkCudaBlas *b, Plan *p) {
    if (p->desc) b->library.MatmulDescDestroy(p->desc);
    for (Opaque layout : {p->first, p->second, p->out})
        if (layout) b->library.MatrixLayoutDestroy(layout);
    memset(p, 0, sizeof *p);
}

static int plan_of(RkCudaBlas *b, const RkCudaGemm *g, Plan **out) {
    Shape s = shape_of(g);
    size_t at = hash_of(s) % PLANS;
    while (b->plan[at].desc && !(b->plan[at].shape == s)) at = (at + 1) % PLANS;
    *out = &b->plan[at];
    if ((*out)->desc) return RK_OK;
    if (b->n == PLANS / 2) { /* texts of ever new lengths: begin again */
        for (Plan &p : b->plan) forget(b, &p);
        b->n = 0;
        return plan_of(b, g, out);
    }
    (*out)->shape = s;
    int rc = describe(b, *out);
    if (!rc) rc = suggest(b, *out);
    if (rc) return forget(b, *out), rc;
    b->n++;
    return RK_OK;
}

/* ---- for device.cu and ops ---- */

int rk_cuda_blas_open(RkCudaBlas **blas) {
    RkCudaBlas *b = *blas = new (std::nothrow) RkCudaBlas();
    if (!b) return rk_fail(RK_ENOMEM, "no memory for the matrix library");
    if (int rc = open_library(&b->library)) return rc;
    if (int rc = check(b->library.Create(&b->handle), "starting")) return rc;
    return rk_cuda_check(cudaMalloc(&b->workspace, RK_CUDA_BLAS_WORKSPACE), "allocating the workspace of cuBLASLt");
}

void rk_cuda_blas_close(RkCudaBlas *b) {
    if (!b) return;
    for (Plan &p : b->plan) forget(b, &p);
    if (b->handle) b->library.Destroy(b->handle);
    cudaFree(b->workspace);
    delete b; /* the library stays loaded */
}

int rk_cuda_gemm(const RkCudaGemm *g) {
    RkCudaBlas *b = rk_cuda_blas();
    if (!b) return rk_fail(RK_EDEVICE, "a product of the cuda backend ran without a device bound to its thread");
    Plan *p;
    if (int rc = plan_of(b, g, &p)) return rc;
    if (g->bias)
        if (int rc = check(b->library.MatmulDescSetAttribute(p->desc, DESC_BIAS_POINTER, &g->bias, sizeof g->bias), "giving the bias")) return rc;
    float alpha = 1, beta = g->accumulate ? 1 : 0;
    return check(b->library.Matmul(b->handle, p->desc, &alpha, g->B, p->first, g->A, p->second, &beta, g->C, p->out, g->C, p->out, &p->algorithm,
                                   b->workspace, p->workspace, rk_stream()), "a product");
}
