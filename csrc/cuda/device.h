/* device.h - CUDA devices as plain C sees them: what there is, and the memory and queue of one. No CUDA types.
 * Only builds with RK_HAVE_CUDA have these functions. */
#ifndef RK_CUDA_DEVICE_H
#define RK_CUDA_DEVICE_H

#include "base/memory.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Counts the devices. Returns 0 and *reason == NULL; without a driver or a device returns RK_EDEVICE with *count == 0
 * and the runtime's own explanation in *reason (static text). */
int rk_cuda_device_count(int *count, const char **reason);

/* Bytes of a device's memory: those that can still be had, and all. */
int rk_cuda_device_memory(int device, size_t *left, size_t *total);

/* A stream of its own on the device, with the scratch and the matrix library that its ops use. Ops go to the stream that is bound to
 * the thread: arguments of ops say what to compute, not where, so that they are the same on every backend.
 * tf32: products of float32 matrices may use TF32. */
int rk_cuda_open(int device, int tf32, RkMemory **memory);

/* Of the stream bound to this thread: itself, as a cudaStream_t, and whether it may use TF32. */
void *rk_cuda_stream(void);
int rk_cuda_tf32(void);

/* Memory for partial sums inside one op: valid until the next op of this stream asks. Never allocates: at most RK_CUDA_SCRATCH bytes. */
enum { RK_CUDA_SCRATCH = 64 << 20 };
int rk_cuda_scratch(size_t bytes, void **out);

/* Milliseconds of each of n runs of an op on the bound stream, by events around it. */
int rk_cuda_time(int (*run)(const void *), const void *args, int n, float *ms);

#ifdef __cplusplus
}
#endif

#endif
