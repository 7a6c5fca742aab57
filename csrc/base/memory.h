/* memory.h - where tensors live: the host's memory, or that of a device with the queue its work goes to.
 *
 * Code that only passes tensors on to ops needs none of this. What makes, moves or looks at tensors goes through here, so that
 * it is the same for a host, where every call is done when it returns, and for a device, where all but `read` are queued. */
#ifndef RK_BASE_MEMORY_H
#define RK_BASE_MEMORY_H

#include "base/err.h"
#include "base/tensor.h"

typedef struct RkMemory RkMemory;

/* Work that may come again: run(ctx) queues it, by copies inside the memory, zeroing and ops alone, and does nothing else that lasts.
 * All that these depend on besides the contents of memory is in `key`: sizes, addresses, and no numbers that change from call to call. */
typedef struct RkWorkload {
    int (*run)(void *ctx);
    void *ctx;
    const void *key;
    size_t key_bytes; /* RK_KEY_MAX at most */
} RkWorkload;
enum { RK_KEY_MAX = 256 };

struct RkMemory {
    void *(*alloc)(RkMemory *m, size_t bytes); /* zeros, aligned to 64 bytes at least; NULL when there is no more */
    void (*release)(RkMemory *m, void *p, size_t bytes);
    int (*copy)(RkMemory *m, void *to, const void *from, size_t bytes);  /* both here */
    int (*write)(RkMemory *m, void *to, const void *host, size_t bytes); /* `host` may be used again at once */
    int (*read)(RkMemory *m, void *host, const void *from, size_t bytes); /* waits for all that was queued */
    int (*zero)(RkMemory *m, void *p, size_t bytes);
    int (*bind)(RkMemory *m);   /* the ops that this thread calls from now on work here */
    int (*repeat)(RkMemory *m, const RkWorkload *w); /* runs it; a device may record it, and queue the recording when its key comes again */
    void (*close)(RkMemory *m); /* after everything in it has been released */
    size_t own, held; /* of a device: bytes that its ops take once and for all, and all that is taken from it now, those included */
};

extern RkMemory rk_host_memory;

static inline int rk_on_host(const RkMemory *m) { return m == &rk_host_memory; }

/* What a model's tensors are made of, and where. */
typedef struct RkStore {
    int dtype;     /* of parameters and activations */
    int sum_dtype; /* of what adds up over tokens, layers or steps: states, gradients of parameters, moments, statistics */
    RkMemory *memory;
} RkStore;

/* All numbers of a tensor to or from the host, where they are float64 if the tensor's are, else float32; writing rounds to
 * nearest even. Reading waits. */
int rk_tensor_read(RkMemory *m, RkTensor t, void *numbers);
int rk_tensor_write(RkMemory *m, RkTensor t, const void *numbers);

#endif
