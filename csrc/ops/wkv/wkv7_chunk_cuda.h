/* wkv7_chunk_cuda.h - WKV-7 by chunks on tensor cores, for 16-bit activations; wkv7_cuda.cu chooses. */
#ifndef RK_OPS_WKV7_CHUNK_CUDA_H
#define RK_OPS_WKV7_CHUNK_CUDA_H

#include "cuda/launch.h"
#include "ops/ops.h"

/* Whether a call is one for the chunked kernels. A backward is one whenever its forward was: both have the checkpoints. */
static inline bool rk_wkv7_chunked(const RkWkv7 *o) {
    return rk_wkv7_by_chunks(o->r.dtype, o->r.d[3]) && (o->ckpt.p || o->r.d[1] >= RK_WKV_CHUNK);
}

int rk_wkv7_chunk_fwd(const RkWkv7 *o, cudaStream_t stream);
int rk_wkv7_chunk_bwd(const RkWkv7 *o, cudaStream_t stream);

#endif
