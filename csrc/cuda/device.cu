#include "cuda/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mutex>
#include <new>

#include "cuda/blas.h"
#include "cuda/launch.h"

enum { OWN = RK_CUDA_SCRATCH + RK_CUDA_BLAS_WORKSPACE };
enum { RING = 1 << 20 }; /* pinned memory that small writes pass through: ids and targets of a step take 64 KiB at 8192 tokens */

/* Of a workload: what it is known by, how often it came, and from the second time on its graph, NULL where it cannot have one. */
struct Recording { unsigned char key[RK_KEY_MAX]; size_t key_bytes; uint64_t uses, last; cudaGraphExec_t graph; };
enum { RECORDINGS = 32 }; /* sizes of batches in use at a time; a graph of 12 layers takes some 4 MB of the device's memory */

struct RkCuda {
    RkMemory memory; /* first: a pointer to it is a pointer to this */
    std::recursive_mutex mutex; /* threads make, copy and drop states while another runs the model: never into its recording, nor over the ring */
    int device, tf32;
    bool recording, never_record;
    Recording *recordings;
    uint64_t clock;
    cudaStream_t stream;
    void *scratch;
    char *ring;
    size_t ring_used;
    RkCudaBlas *blas;
};

typedef std::lock_guard<std::recursive_mutex> Held;

static thread_local RkCuda *bound;

static RkCuda *cuda_of(RkMemory *m) { return reinterpret_cast<RkCuda *>(m); }

int rk_cuda_check(cudaError_t status, const char *doing) {
    if (status == cudaSuccess) return RK_OK;
    cudaGetLastError(); /* an error that can be recovered from is told once */
    return rk_fail(status == cudaErrorMemoryAllocation ? RK_ENOMEM : RK_EDEVICE, "%s: %s", doing, cudaGetErrorString(status));
}

int rk_cuda_device_count(int *count, const char **reason) {
    *count = 0;
    int driver = 0;
    cudaError_t status = cudaGetDeviceCount(count);
    *reason = status == cudaSuccess ? nullptr : cudaGetErrorString(status);
    if (status == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess && !driver) /* also what CUDA says of none at all */
        *reason = "no NVIDIA driver was found (libcuda.so.1)";
    if (status != cudaSuccess) *count = 0;
    return status == cudaSuccess ? RK_OK : RK_EDEVICE;
}

int rk_cuda_device_memory(int device, size_t *left, size_t *total) {
    if (int rc = rk_cuda_check(cudaSetDevice(device), "choosing the device")) return rc;
    return rk_cuda_check(cudaMemGetInfo(left, total), "asking for the device's memory");
}

/* The compute capabilities that this build has kernels for, times 100, the oldest first; newer devices compile the PTX of the last. */
#ifdef __CUDA_ARCH_LIST__
static const int BUILT_FOR[] = {__CUDA_ARCH_LIST__};
#else
static const int BUILT_FOR[] = {800, 900}; /* on the host, which runs any */
#endif

/* Whether the device runs what was built: of the same generation and not older, or newer than all. */
static int check_capability(int device) {
    int major = 0, minor = 0, newest = 0;
    char list[64] = "";
    if (int rc = rk_cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for the device's capability")) return rc;
    if (int rc = rk_cuda_check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "asking for the device's capability")) return rc;
    for (int built : BUILT_FOR) {
        if (built / 100 == major && built / 10 % 10 <= minor) return RK_OK;
        newest = built > newest ? built : newest;
        size_t n = strlen(list);
        snprintf(list + n, sizeof list - n, "%s%d.%d", n ? ", " : "", built / 100, built / 10 % 10);
    }
    if (major * 100 + minor * 10 >= newest) return RK_OK;
    return rk_fail(RK_EDEVICE, "device \"cuda:%d\" has compute capability %d.%d, and this build has kernels for %s; build it with RWKVTUNE_CUDA_ARCHS=%d%d, "
                   "or use device=\"cpu\"", device, major, minor, list, major, minor);
}

/* ---- the stream of a thread ---- */

static int cuda_bind(RkMemory *m) {
    bound = cuda_of(m);
    return rk_cuda_check(cudaSetDevice(bound->device), "choosing the device");
}

void *rk_cuda_stream(void) { return bound ? bound->stream : nullptr; }
RkCudaBlas *rk_cuda_blas(void) { return bound ? bound->blas : nullptr; }
int rk_cuda_tf32(void) { return bound ? bound->tf32 : 0; }

int rk_cuda_scratch(size_t bytes, void **out) {
    if (!bound) return rk_fail(RK_EDEVICE, "an operation of the cuda backend ran without a device bound to its thread");
    if (bytes > RK_CUDA_SCRATCH) return rk_fail(RK_EDEVICE, "an operation needs %zu bytes of scratch; there are %d", bytes, static_cast<int>(RK_CUDA_SCRATCH));
    *out = bound->scratch;
    return RK_OK;
}

static int time_once(int (*run)(const void *), const void *args, cudaEvent_t from, cudaEvent_t to, float *ms) {
    cudaStream_t stream = rk_stream();
    if (int rc = rk_cuda_check(cudaEventRecord(from, stream), "recording an event")) return rc;
    if (int rc = run(args)) return rc;
    if (int rc = rk_cuda_check(cudaEventRecord(to, stream), "recording an event")) return rc;
    if (int rc = rk_cuda_check(cudaEventSynchronize(to), "waiting for an event")) return rc;
    return rk_cuda_check(cudaEventElapsedTime(ms, from, to), "reading a time");
}

int rk_cuda_time(int (*run)(const void *), const void *args, int n, float *ms) {
    cudaEvent_t from, to;
    if (int rc = rk_cuda_check(cudaEventCreate(&from), "creating an event")) return rc;
    int rc = rk_cuda_check(cudaEventCreate(&to), "creating an event");
    for (int i = 0; !rc && i < n; i++) rc = time_once(run, args, from, to, &ms[i]);
    cudaEventDestroy(from);
    cudaEventDestroy(to);
    return rc;
}

/* ---- memory ---- */

/* Memory belongs to whoever holds it, not to the thread's stream: the thread may have worked on another device. */
static int enter(const RkCuda *c) { return rk_cuda_check(cudaSetDevice(c->device), "choosing the device"); }

static int cuda_zero(RkMemory *m, void *p, size_t bytes) {
    Held held(cuda_of(m)->mutex);
    if (int rc = enter(cuda_of(m))) return rc;
    return rk_cuda_check(cudaMemsetAsync(p, 0, bytes, cuda_of(m)->stream), "zeroing memory");
}

static void *cuda_alloc(RkMemory *m, size_t bytes) {
    void *p = nullptr;
    Held held(cuda_of(m)->mutex);
    if (cuda_of(m)->recording || cuda_bind(m) || cudaMalloc(&p, bytes ? bytes : 1) != cudaSuccess) return cudaGetLastError(), nullptr;
    if (cuda_zero(m, p, bytes)) return cudaFree(p), nullptr;
    m->held += bytes;
    return p;
}

static void cuda_release(RkMemory *m, void *p, size_t bytes) {
    Held held(cuda_of(m)->mutex);
    cudaSetDevice(cuda_of(m)->device);
    m->held -= bytes;
    cudaFree(p); /* waits for what uses it */
}

static int cuda_copy(RkMemory *m, void *to, const void *from, size_t bytes) {
    if (!bytes) return RK_OK;
    Held held(cuda_of(m)->mutex);
    if (int rc = enter(cuda_of(m))) return rc;
    return rk_cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, cuda_of(m)->stream), "copying memory");
}

/* What a recording would do again with the bytes of the first time, or not at all. */
static int check_not_recording(const RkCuda *c, const char *doing) {
    return c->recording ? rk_fail(RK_EDEVICE, "%s is not possible inside work that is recorded", doing) : RK_OK;
}

static int wait(RkCuda *c, const char *doing) {
    c->ring_used = 0;
    return rk_cuda_check(cudaStreamSynchronize(c->stream), doing);
}

static int cuda_write(RkMemory *m, void *to, const void *host, size_t bytes) {
    RkCuda *c = cuda_of(m);
    const void *from = host;
    Held held(c->mutex);
    if (int rc = check_not_recording(c, "writing to the device")) return rc;
    if (int rc = enter(c)) return rc;
    if (bytes <= RING) {
        if (c->ring_used + bytes > RING)
            if (int rc = wait(c, "writing to the device")) return rc;
        from = memcpy(c->ring + c->ring_used, host, bytes);
        c->ring_used += (bytes + 15) & ~static_cast<size_t>(15);
    }
    int rc = rk_cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, c->stream), "writing to the device");
    return rc || bytes <= RING ? rc : wait(c, "writing to the device");
}

static int cuda_read(RkMemory *m, void *host, const void *from, size_t bytes) {
    RkCuda *c = cuda_of(m);
    Held held(c->mutex);
    if (int rc = check_not_recording(c, "reading from the device")) return rc;
    if (int rc = enter(c)) return rc;
    int rc = rk_cuda_check(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, c->stream), "reading from the device");
    return rc ? rc : wait(c, "reading from the device");
}

/* ---- recordings ---- */

static void forget(RkCuda *c, Recording *r) {
    if (r->graph) {
        cudaStreamSynchronize(c->stream); /* it may be running */
        cudaGraphExecDestroy(r->graph);
    }
    memset(r, 0, sizeof *r);
}

/* That of a workload, or the one that was used longest ago, emptied. */
static Recording *recording_of(RkCuda *c, const RkWorkload *w) {
    Recording *oldest = c->recordings;
    for (int i = 0; i < RECORDINGS; i++) {
        Recording *r = &c->recordings[i];
        if (r->uses && r->key_bytes == w->key_bytes && !memcmp(r->key, w->key, w->key_bytes)) return r;
        if (r->last < oldest->last) oldest = r;
    }
    forget(c, oldest);
    memcpy(oldest->key, w->key, w->key_bytes);
    oldest->key_bytes = w->key_bytes;
    return oldest;
}

/* r->graph from what the workload queues, which does not run; no graph where CUDA or an op refuses. */
static void record(RkCuda *c, const RkWorkload *w, Recording *r) {
    cudaGraph_t graph = nullptr;
    if (cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) return;
    c->recording = true;
    int rc = w->run(w->ctx);
    c->recording = false;
    if (cudaStreamEndCapture(c->stream, &graph) != cudaSuccess) rc = RK_EDEVICE;
    if (!rc && cudaGraphInstantiate(&r->graph, graph, 0) != cudaSuccess) r->graph = nullptr;
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError(); /* the workload runs without a graph then, and what is wrong shows there */
}

/* The first time shows what is wrong, and what libraries keep of a shape; most work comes only once. */
static int cuda_repeat(RkMemory *m, const RkWorkload *w) {
    RkCuda *c = cuda_of(m);
    Held held(c->mutex);
    if (c->never_record || w->key_bytes > RK_KEY_MAX) return w->run(w->ctx);
    Recording *r = recording_of(c, w);
    r->last = ++c->clock;
    if (++r->uses == 2) record(c, w, r);
    return r->graph ? rk_cuda_check(cudaGraphLaunch(r->graph, c->stream), "replaying a recording") : w->run(w->ctx);
}

static void cuda_close(RkMemory *m) {
    RkCuda *c = cuda_of(m);
    if (bound == c) bound = nullptr;
    cudaSetDevice(c->device);
    for (int i = 0; c->recordings && i < RECORDINGS; i++) forget(c, &c->recordings[i]);
    delete[] c->recordings;
    rk_cuda_blas_close(c->blas);
    cudaFree(c->scratch);
    if (c->ring) cudaFreeHost(c->ring);
    if (c->stream) cudaStreamDestroy(c->stream);
    delete c;
}

static int start(RkCuda *c) {
    if (int rc = rk_cuda_check(cudaSetDevice(c->device), "choosing the device")) return rc;
    if (int rc = rk_cuda_check(cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking), "creating a stream")) return rc;
    if (int rc = rk_cuda_check(cudaMallocHost(reinterpret_cast<void **>(&c->ring), RING), "allocating pinned memory")) return rc;
    if (int rc = rk_cuda_check(cudaMalloc(&c->scratch, RK_CUDA_SCRATCH), "allocating scratch")) return rc;
    return rk_cuda_blas_open(&c->blas);
}

int rk_cuda_open(int device, int tf32, RkMemory **memory) {
    int count = 0;
    const char *reason = nullptr;
    *memory = nullptr;
    if (rk_cuda_device_count(&count, &reason) || !count)
        return rk_fail(RK_EDEVICE, "device \"cuda\" cannot be used: %s; device=\"cpu\" works everywhere", reason ? reason : "there is no CUDA device");
    if (device < 0 || device >= count) return rk_fail(RK_EDEVICE, "device \"cuda:%d\" does not exist; there are %d, from cuda:0", device, count);
    if (int rc = check_capability(device)) return rc;
    RkCuda *c = new (std::nothrow) RkCuda();
    if (!c) return rk_fail(RK_ENOMEM, "no memory for a device");
    c->memory = {cuda_alloc, cuda_release, cuda_copy, cuda_write, cuda_read, cuda_zero, cuda_bind, cuda_repeat, cuda_close, OWN, OWN};
    c->device = device;
    c->tf32 = tf32;
    const char *blocking = getenv("CUDA_LAUNCH_BLOCKING"); /* somebody looks for the op that fails: a graph would hide it */
    c->never_record = blocking && strcmp(blocking, "0");
    c->recordings = new (std::nothrow) Recording[RECORDINGS]();
    int rc = c->recordings ? start(c) : rk_fail(RK_ENOMEM, "no memory for a device");
    if (rc) return cuda_close(&c->memory), rc;
    *memory = &c->memory;
    return RK_OK;
}
