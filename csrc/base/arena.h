/* arena.h - memory is measured first, then placed: one allocation per kind of lifetime.
 * An arena without memory only counts, so a plan and the real layout are the same code. */
#ifndef RK_BASE_ARENA_H
#define RK_BASE_ARENA_H

#include "base/tensor.h"

typedef struct RkArena {
    char *base;            /* NULL: measure only */
    size_t used, capacity; /* bytes */
} RkArena;

/* Takes a tensor from the arena; it starts on a 64-byte boundary. */
RkTensor rk_arena_take(RkArena *a, int dtype, const int32_t d[4]);

/* Page-aligned zeroed memory in huge pages where the system grants them: first touch of 4 KiB pages runs at
 * about 1 GB/s, of huge pages at 6. Returns NULL when the system refuses. */
void *rk_pages_alloc(size_t bytes);

/* For a part of such memory of which little may ever be written: it is granted in small pages, so that what stays zero stays
 * unallocated. Before anything is written there. */
void rk_pages_sparse(void *p, size_t bytes);

/* Lets go of the pages of a mapped file that lie wholly in this memory; the next use reads them again. */
void rk_pages_leave(void *p, size_t bytes);

void rk_pages_free(void *p, size_t bytes);

#endif
