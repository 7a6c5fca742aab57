#include "cuda/device.h"

#include <cuda_runtime.h>

#include "base/err.h"

extern "C" int rk_cuda_device_count(int *count, const char **reason) {
    *count = 0;
    cudaError_t status = cudaGetDeviceCount(count);
    *reason = status == cudaSuccess ? nullptr : cudaGetErrorString(status);
    if (status != cudaSuccess) *count = 0;
    return status == cudaSuccess ? RK_OK : RK_EDEVICE;
}
