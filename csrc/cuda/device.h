/* device.h - what the CUDA runtime says about this machine; no CUDA types, so plain C may include it. */
#ifndef RK_CUDA_DEVICE_H
#define RK_CUDA_DEVICE_H

#ifdef __cplusplus
extern "C" {
#endif

/* Counts the devices. Returns 0 and *reason == NULL; without a driver or a device returns RK_EDEVICE with *count == 0
 * and the runtime's own explanation in *reason (static text). Only builds with RK_HAVE_CUDA have this function. */
int rk_cuda_device_count(int *count, const char **reason);

#ifdef __cplusplus
}
#endif

#endif
