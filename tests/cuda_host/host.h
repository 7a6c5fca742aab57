/* host.h - what the two halves of the host runtime share. */
#ifndef CUDA_HOST_HOST_H
#define CUDA_HOST_HOST_H

#include <cuda_runtime.h>

namespace cuda_host {

/* Runs a whole launch; NULL, or what was wrong with it. */
const char *run(const Shape &shape, std::function<void()> *body);
void allow_dynamic(const void *kernel, size_t bytes);

} // namespace cuda_host

#endif
