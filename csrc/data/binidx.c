#include "data/binidx.h"

#include <stdlib.h>
#include <string.h>

#include "base/err.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "token files are little-endian and are read in place; this machine is not"
#endif

int rk_binidx_width(int code) {
    static const uint8_t width[9] = {0, 1, 1, 2, 4, 8, 0, 0, 2};
    return code >= 0 && code <= 8 ? width[code] : 0;
}

static uint64_t load_u64(const uint8_t *p) {
    uint64_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

int32_t rk_binidx_size(const RkBinIdx *d, uint64_t item) {
    int32_t x;
    memcpy(&x, d->sizes + 4 * item, sizeof x);
    return x;
}

uint64_t rk_binidx_start(const RkBinIdx *d, uint64_t item) {
    return load_u64(d->offsets + 8 * item) / (uint64_t)d->width;
}

int64_t rk_binidx_document(const RkBinIdx *d, uint64_t i) { return (int64_t)load_u64(d->docs + 8 * i); }

static const char *name_of(const RkBinIdx *d) { return d->name ? d->name : "data"; }

static int check_header(RkBinIdx *d) {
    const uint8_t *h = d->idx.p;
    const char *name = name_of(d);
    if (d->idx.bytes < RK_BINIDX_HEADER)
        return rk_fail(RK_EFORMAT, "%s.idx is cut short: %zu bytes, and its header alone has %d", name, d->idx.bytes,
                       RK_BINIDX_HEADER);
    if (memcmp(h, "MMIDIDX\0\0", 9))
        return rk_fail(RK_EFORMAT, "%s.idx is not an index: it does not begin with MMIDIDX", name);
    if (load_u64(h + 9) != 1)
        return rk_fail(RK_EFORMAT, "%s.idx: version %llu at byte 9, only 1 is known", name,
                       (unsigned long long)load_u64(h + 9));
    d->code = h[17];
    d->width = rk_binidx_width(d->code);
    if (d->code == 6 || d->code == 7)
        return rk_fail(RK_EFORMAT, "%s.idx: dtype code %d at byte 17 is float64, which holds no tokens", name, d->code);
    if (!d->width)
        return rk_fail(RK_EFORMAT, "%s.idx: dtype code %d at byte 17 is not known (1 to 5 and 8 are)", name, d->code);
    d->n_items = load_u64(h + 18);
    d->n_docs = load_u64(h + 26);
    /* Divided, not multiplied: the counts may be anything. */
    uint64_t rest = d->idx.bytes - RK_BINIDX_HEADER;
    if (d->n_items > rest / 12 || d->n_docs != (rest - 12 * d->n_items) / 8 || (rest - 12 * d->n_items) % 8)
        return rk_fail(
            RK_EFORMAT,
            "%s.idx has %zu bytes, which does not fit its %llu sequences and %llu document entries (34 + 12 n + 8 m)",
            name, d->idx.bytes, (unsigned long long)d->n_items, (unsigned long long)d->n_docs);
    d->sizes = h + RK_BINIDX_HEADER;
    d->offsets = d->sizes + 4 * d->n_items;
    d->docs = d->offsets + 8 * d->n_items;
    return RK_OK;
}

static int check_items(const RkBinIdx *d) {
    uint64_t at = 0; /* cannot overflow: it is checked against the size of .bin at every step */
    for (uint64_t i = 0; i < d->n_items; i++) {
        int32_t size = rk_binidx_size(d, i);
        uint64_t offset = load_u64(d->offsets + 8 * i);
        if (size < 0)
            return rk_fail(RK_EFORMAT, "%s.idx: sequence %llu has length %d", name_of(d), (unsigned long long)i, size);
        if (offset != at)
            return rk_fail(
                RK_EFORMAT,
                "%s.idx: sequence %llu starts at byte %lld of .bin, but the lengths before it add up to %llu",
                name_of(d), (unsigned long long)i, (long long)offset, (unsigned long long)at);
        at += (uint64_t)size * (uint64_t)d->width;
        if (at > d->bin.bytes)
            return rk_fail(RK_EFORMAT, "%s.bin has %zu bytes, but sequence %llu ends at byte %llu", name_of(d),
                           d->bin.bytes, (unsigned long long)i, (unsigned long long)at);
    }
    if (at != d->bin.bytes)
        return rk_fail(RK_EFORMAT, "%s.bin has %zu bytes, but %s.idx describes %llu: the two are not of one pair",
                       name_of(d), d->bin.bytes, name_of(d), (unsigned long long)at);
    return RK_OK;
}

static int check_documents(const RkBinIdx *d) {
    int64_t last = 0;
    for (uint64_t i = 0; i < d->n_docs; i++) {
        int64_t doc = rk_binidx_document(d, i);
        if (doc < last || (uint64_t)doc > d->n_items)
            return rk_fail(
                RK_EFORMAT, "%s.idx: document entry %llu is %lld, not from %lld (the one before) to %llu (sequences)",
                name_of(d), (unsigned long long)i, (long long)doc, (long long)last, (unsigned long long)d->n_items);
        last = doc;
    }
    return RK_OK;
}

int rk_binidx_check(RkBinIdx *d) {
    RK_TRY(check_header(d));
    RK_TRY(check_items(d));
    RK_TRY(check_documents(d));
    d->n_tokens = d->bin.bytes / (uint64_t)d->width;
    return RK_OK;
}

static int map_both(RkBinIdx *d, const char *prefix) {
    size_t n = strlen(prefix);
    char *path = malloc(n + 5);
    d->name = malloc(n + 1);
    if (!path || !d->name) {
        free(path);
        return rk_fail(RK_ENOMEM, "no memory to open %s", prefix);
    }
    memcpy(d->name, prefix, n + 1);
    memcpy(path, prefix, n);
    memcpy(path + n, ".idx", 5);
    int rc = rk_file_map(path, &d->idx);
    memcpy(path + n, ".bin", 5);
    if (!rc) rc = rk_file_map(path, &d->bin);
    free(path);
    return rc;
}

int rk_binidx_open(RkBinIdx *d, const char *prefix) {
    *d = (RkBinIdx){0};
    int rc = map_both(d, prefix);
    if (!rc) rc = rk_binidx_check(d);
    if (rc) rk_binidx_close(d);
    return rc;
}

void rk_binidx_close(RkBinIdx *d) {
    rk_file_unmap(&d->idx);
    rk_file_unmap(&d->bin);
    free(d->name);
    *d = (RkBinIdx){0};
}

static int64_t token_at(const RkBinIdx *d, uint64_t i) {
    const uint8_t *p = (const uint8_t *)d->bin.p + i * (uint64_t)d->width;
    int64_t x = 0;
    memcpy(&x, p, (size_t)d->width);
    switch (d->code) {
    case 2: return (int8_t)x;
    case 3: return (int16_t)x;
    case 4: return (int32_t)x;
    default: return x;
    }
}

/* A negative token becomes a huge unsigned one, so one comparison finds both kinds of bad ones. */
#define WIDEN(type)                             \
    for (size_t i = 0; i < n; i++) {            \
        type x;                                 \
        memcpy(&x, p + i * sizeof x, sizeof x); \
        bad |= (uint64_t)(int64_t)x >= limit;   \
        out[i] = (int32_t)x;                    \
    }                                           \
    break

int rk_binidx_read(const RkBinIdx *d, uint64_t start, size_t n, int32_t vocab_size, int32_t *out) {
    if (start > d->n_tokens || n > d->n_tokens - start)
        return rk_fail(RK_EINVAL, "%zu tokens from %llu on are not all in %s.bin, which has %llu", n,
                       (unsigned long long)start, name_of(d), (unsigned long long)d->n_tokens);
    if (!n) return RK_OK;
    const uint8_t *p = (const uint8_t *)d->bin.p + start * (uint64_t)d->width;
    const uint64_t limit = vocab_size > 0 ? (uint64_t)vocab_size : (uint64_t)INT32_MAX + 1;
    int bad = 0;
    switch (d->code) {
    case 1: WIDEN(uint8_t);
    case 2: WIDEN(int8_t);
    case 3: WIDEN(int16_t);
    case 4: WIDEN(int32_t);
    case 5: WIDEN(int64_t);
    default: WIDEN(uint16_t);
    }
    if (!bad) return RK_OK;
    while ((uint64_t)token_at(d, start) < limit) start++;
    return rk_fail(RK_EFORMAT, "%s.bin: token %lld at position %llu is not from 0 to %llu, the range of the vocabulary",
                   name_of(d), (long long)token_at(d, start), (unsigned long long)start, (unsigned long long)limit - 1);
}
