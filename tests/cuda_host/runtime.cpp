/* runtime.cpp - memory, streams, graphs and events of the host runtime. Work runs when it is queued, or is recorded while its stream
 * is being captured. Device memory begins as NaN and is guarded on both sides; the guards are looked at whenever somebody waits. */
#include <stdio.h>
#include <stdlib.h>

#include <chrono>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "host.h"

struct CUgraph_st { std::vector<std::function<const char *()>> work; };
struct CUstream_st { int device; CUgraph_st *capturing; };
struct CUevent_st { std::chrono::steady_clock::time_point at; };

namespace {

constexpr size_t GUARD = 4096;
constexpr unsigned char GUARD_BYTE = 0xc5;
constexpr size_t FILLED = 4 << 20; /* of an allocation: scratch is large, and ops use its beginning */

std::mutex lock;
struct Allocation { char *block; size_t bytes; };
std::map<char *, Allocation> allocations; /* by the address the caller has */
constexpr int DEVICES = 2;
thread_local int captures, current_device; /* captures are of the mode in which only their own thread may not allocate and wait */
struct Counts { long allocations, waits, launches, captures, replays; } counts;
int refuse_launches, refuse_captures, capture_ms, capability = 90, driverless;
thread_local std::string failure;
thread_local cudaError_t last;

cudaError_t failed(cudaError_t code, const std::string &why) {
    failure = why;
    return last = code;
}

cudaError_t queue_work(cudaStream_t stream, std::function<const char *()> work) {
    if (stream && stream->device != current_device) return failed(cudaErrorInvalidValue, "the stream is not of the current device");
    if (stream && stream->capturing) {
        stream->capturing->work.push_back(std::move(work));
        return cudaSuccess;
    }
    const char *problem = work();
    return problem ? failed(cudaErrorLaunchFailure, problem) : cudaSuccess;
}

bool intact(const char *guard) {
    for (size_t i = 0; i < GUARD; i++)
        if (static_cast<unsigned char>(guard[i]) != GUARD_BYTE) return false;
    return true;
}

cudaError_t check_guards() {
    std::lock_guard<std::mutex> held(lock);
    for (const auto &a : allocations) {
        std::string name = "an allocation of " + std::to_string(a.second.bytes) + " bytes was written ";
        if (!intact(a.first - GUARD)) return failed(cudaErrorLaunchFailure, name + "before its start");
        if (!intact(a.first + a.second.bytes)) return failed(cudaErrorLaunchFailure, name + "past its end");
    }
    return cudaSuccess;
}

cudaError_t refuse_in_capture(const char *what) {
    if (!captures) return cudaSuccess;
    return failed(cudaErrorStreamCaptureInvalidated, std::string(what) + " while a stream is being captured");
}

} // namespace

namespace cuda_host {
cudaError_t queue_call(cudaStream_t stream, std::function<const char *()> work) {
    return queue_work(stream, [work] {
        counts.launches++;
        return work();
    });
}
cudaError_t queue(cudaStream_t stream, const Shape &shape, std::function<void()> thread) {
    if (refuse_launches) return failed(cudaErrorInvalidValue, "launches are refused");
    return queue_work(stream, [shape, thread]() mutable {
        counts.launches++;
        return run(shape, &thread);
    });
}
} // namespace cuda_host

cudaError_t cuda_host_malloc(void **p, size_t bytes) {
    if (cudaError_t rc = refuse_in_capture("an allocation")) return rc;
    counts.allocations++;
    if (bytes > static_cast<size_t>(1) << 40) return failed(cudaErrorMemoryAllocation, "out of memory");
    char *block = static_cast<char *>(malloc(bytes + 2 * GUARD + 256));
    if (!block) return failed(cudaErrorMemoryAllocation, "out of memory");
    char *at = reinterpret_cast<char *>((reinterpret_cast<size_t>(block) + GUARD + 255) & ~static_cast<size_t>(255));
    memset(at - GUARD, GUARD_BYTE, GUARD);
    memset(at, 0xff, bytes < FILLED ? bytes : FILLED);
    memset(at + bytes, GUARD_BYTE, GUARD);
    std::lock_guard<std::mutex> held(lock);
    allocations[at] = {block, bytes};
    *p = at;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p) {
    if (!p) return cudaSuccess;
    cudaError_t rc = check_guards();
    counts.waits++;
    std::lock_guard<std::mutex> held(lock);
    auto found = allocations.find(static_cast<char *>(p));
    if (found == allocations.end()) return failed(cudaErrorInvalidValue, "freeing what was not allocated");
    free(found->second.block);
    allocations.erase(found);
    return rc;
}

const char *cudaGetErrorString(cudaError_t code) {
    return code == cudaSuccess ? "no error" : failure.empty() ? "an error" : failure.c_str();
}
cudaError_t cudaGetLastError() { cudaError_t code = last; last = cudaSuccess; return code; }
cudaError_t cudaPeekAtLastError() { return last; }
cudaError_t cudaGetDeviceCount(int *n) {
    if (driverless) return failed(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version");
    *n = DEVICES;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) { *version = 0; return cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= DEVICES) return failed(cudaErrorInvalidValue, "invalid device ordinal");
    current_device = device;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) { *device = current_device; return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr which, int) {
    *value = which == cudaDevAttrMultiProcessorCount ? 4 : which == cudaDevAttrMaxSharedMemoryPerBlockOptin ? 227 << 10 : which == cudaDevAttrComputeCapabilityMajor ? capability / 10 : which == cudaDevAttrComputeCapabilityMinor ? capability % 10 : 0;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return check_guards(); }

/* ---- copies ---- */

cudaError_t cudaMallocHost(void **p, size_t bytes) { return (*p = malloc(bytes)) ? cudaSuccess : failed(cudaErrorMemoryAllocation, "out of memory"); }
cudaError_t cudaFreeHost(void *p) { free(p); return cudaSuccess; }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    if (kind != cudaMemcpyDeviceToDevice && stream && stream->capturing) /* CUDA would: and every replay would copy what the host has there then */
        return failed(cudaErrorStreamCaptureInvalidated, "a copy from or to the host while its stream is being captured");
    return queue_work(stream, [=]() -> const char * { memmove(to, from, bytes); return nullptr; });
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    if (cudaError_t rc = refuse_in_capture("a copy that waits")) return rc;
    return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, cudaMemcpyKind, cudaStream_t stream) {
    return queue_work(stream, [=]() -> const char * {
        for (size_t i = 0; i < height; i++) memmove(static_cast<char *>(to) + i * to_pitch, static_cast<const char *>(from) + i * from_pitch, width);
        return nullptr;
    });
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream) {
    return queue_work(stream, [=]() -> const char * { memset(p, value, bytes); return nullptr; });
}
cudaError_t cudaMemset(void *p, int value, size_t bytes) { return cudaMemsetAsync(p, value, bytes, nullptr); }
cudaError_t cudaMemGetInfo(size_t *left, size_t *total) { *left = *total = static_cast<size_t>(1) << 34; return cudaSuccess; }

/* ---- streams, graphs, events ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) { *stream = new CUstream_st{current_device, nullptr}; return cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { delete stream; return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) {
    if (cudaError_t rc = refuse_in_capture("waiting")) return rc;
    counts.waits++;
    return check_guards();
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (!stream || stream->capturing) return failed(cudaErrorInvalidValue, "this stream cannot be captured");
    stream->capturing = new CUgraph_st;
    captures++;
    counts.captures++;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    std::this_thread::sleep_for(std::chrono::milliseconds(capture_ms));
    *graph = stream->capturing;
    stream->capturing = nullptr;
    captures--;
    return refuse_captures ? failed(cudaErrorStreamCaptureInvalidated, "captures are refused") : cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) { *exec = new CUgraph_st(*graph); return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    counts.replays++;
    for (auto &work : exec->work)
        if (cudaError_t rc = queue_work(stream, work)) return rc;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { delete graph; return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { delete exec; return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *event) { *event = new CUevent_st; return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) { return cudaEventCreate(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { delete event; return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) { event->at = std::chrono::steady_clock::now(); return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return check_guards(); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    *ms = std::chrono::duration<float, std::milli>(to->at - from->at).count();
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute which, int value) {
    if (which == cudaFuncAttributeMaxDynamicSharedMemorySize) cuda_host::allow_dynamic(kernel, static_cast<size_t>(value));
    return cudaSuccess;
}

/* For tests: allocations, waits for a stream or by freeing memory, kernels and products that ran, captures and replays since the program began. */
extern "C" __attribute__((visibility("default"))) void cuda_host_counts(long out[5]) {
    const long all[5] = {counts.allocations, counts.waits, counts.launches, counts.captures, counts.replays};
    memcpy(out, all, sizeof all);
}

/* For tests of what comes after: launches and the ends of captures fail until both are 0. */
extern "C" __attribute__((visibility("default"))) void cuda_host_refuse(int launches, int ends_of_captures) {
    refuse_launches = launches;
    refuse_captures = ends_of_captures;
}

/* For tests: how long a capture takes, for what other threads do meanwhile. */
extern "C" __attribute__((visibility("default"))) void cuda_host_capture_ms(int ms) { capture_ms = ms; }

/* For tests: the compute capability of the devices, times 10; 0: there is no driver. */
extern "C" __attribute__((visibility("default"))) void cuda_host_capability(int times_ten) {
    capability = times_ten;
    driverless = !times_ten;
}
