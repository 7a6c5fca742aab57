#include "base/arena.h"

#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ALIGN = 64, HUGE_PAGE = 2 << 20 };

RkTensor rk_arena_take(RkArena *a, int dtype, const int32_t d[4]) {
    RkTensor t = {NULL, dtype, {d[0], d[1], d[2], d[3]}};
    size_t bytes = rk_quantised(dtype) ? rk_bytes(t) : rk_numel(t) * rk_dtype_size(dtype);
    bytes = (bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    if (a->base && a->used + bytes <= a->capacity) t.p = a->base + a->used;
    a->used += bytes;
    return t;
}

void *rk_pages_alloc(size_t bytes) {
    if (!bytes) bytes = ALIGN;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
    if (bytes >= HUGE_PAGE) madvise(p, bytes, MADV_HUGEPAGE);
#endif
    return p;
}

/* Of the pages that lie wholly in the memory; a system that does not take the advice keeps them as they are. */
static void advise(void *p, size_t bytes, int advice) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = ((uintptr_t)p + page - 1) & ~(page - 1);
    uintptr_t end = ((uintptr_t)p + bytes) & ~(page - 1);
    if (end > first) madvise((void *)first, end - first, advice);
}

void rk_pages_sparse(void *p, size_t bytes) {
#ifdef MADV_NOHUGEPAGE
    advise(p, bytes, MADV_NOHUGEPAGE);
#else
    (void)p, (void)bytes;
#endif
}

void rk_pages_leave(void *p, size_t bytes) { advise(p, bytes, MADV_DONTNEED); }

void rk_pages_free(void *p, size_t bytes) {
    if (p) munmap(p, bytes ? bytes : ALIGN);
}
