#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/half.h"
#include "base/parallel.h"

/* ---- the host ---- */

static void *host_alloc(RkMemory *m, size_t bytes) {
    (void)m;
    return rk_pages_alloc(bytes);
}

static void host_release(RkMemory *m, void *p, size_t bytes) {
    (void)m;
    rk_pages_free(p, bytes);
}

static int host_copy(RkMemory *m, void *to, const void *from, size_t bytes) {
    (void)m;
    if (bytes) memmove(to, from, bytes); /* a sequence of a state may be copied to its own place */
    return RK_OK;
}

typedef struct { char *p; size_t bytes; } Zero;
enum { ZERO_BLOCK = 1 << 20 };

static void zero_block(void *ctx, size_t task) {
    Zero *z = ctx;
    size_t at = task * ZERO_BLOCK, n = z->bytes - at < ZERO_BLOCK ? z->bytes - at : ZERO_BLOCK;
    memset(z->p + at, 0, n);
}

static int host_zero(RkMemory *m, void *p, size_t bytes) {
    (void)m;
    rk_parallel((bytes + ZERO_BLOCK - 1) / ZERO_BLOCK, zero_block, &(Zero){p, bytes});
    return RK_OK;
}

static int host_bind(RkMemory *m) {
    (void)m;
    return RK_OK;
}

static int host_repeat(RkMemory *m, const RkWorkload *w) {
    (void)m;
    return w->run(w->ctx);
}

static void host_close(RkMemory *m) { (void)m; }

RkMemory rk_host_memory = {host_alloc, host_release, host_copy, host_copy, host_copy, host_zero, host_bind, host_repeat, host_close, 0, 0};

/* ---- numbers ---- */

enum { CONVERT_BLOCK = 1 << 16 };
typedef struct { float *wide; uint16_t *narrow; size_t n; int f16, widen; } Convert;

static void convert_block(void *ctx, size_t task) {
    const Convert *c = ctx;
    size_t end = (task + 1) * CONVERT_BLOCK < c->n ? (task + 1) * CONVERT_BLOCK : c->n;
    for (size_t i = task * CONVERT_BLOCK; i < end; i++) {
        if (c->widen) c->wide[i] = c->f16 ? rk_f16_to_f32(c->narrow[i]) : rk_bf16_to_f32(c->narrow[i]);
        else c->narrow[i] = c->f16 ? rk_f32_to_f16(c->wide[i]) : rk_f32_to_bf16(c->wide[i]);
    }
}

static void convert(Convert c) { rk_parallel((c.n + CONVERT_BLOCK - 1) / CONVERT_BLOCK, convert_block, &c); }

/* Whether the host's numbers have the tensor's own type. */
static int same(RkTensor t) { return t.dtype == RK_F32 || t.dtype == RK_F64; }

int rk_tensor_read(RkMemory *m, RkTensor t, void *numbers) {
    size_t n = rk_numel(t), bytes = n * rk_dtype_size(t.dtype);
    if (same(t)) return m->read(m, numbers, t.p, bytes);
    uint16_t *narrow = malloc(bytes);
    if (!narrow) return rk_fail(RK_ENOMEM, "no memory to read %zu numbers", n);
    int rc = m->read(m, narrow, t.p, bytes);
    if (!rc) convert((Convert){numbers, narrow, n, t.dtype == RK_F16, 1});
    free(narrow);
    return rc;
}

int rk_tensor_write(RkMemory *m, RkTensor t, const void *numbers) {
    size_t n = rk_numel(t), bytes = n * rk_dtype_size(t.dtype);
    if (same(t)) return m->write(m, t.p, numbers, bytes);
    uint16_t *narrow = malloc(bytes);
    if (!narrow) return rk_fail(RK_ENOMEM, "no memory to write %zu numbers", n);
    convert((Convert){(float *)numbers, narrow, n, t.dtype == RK_F16, 0});
    int rc = m->write(m, t.p, narrow, bytes);
    free(narrow);
    return rc;
}
