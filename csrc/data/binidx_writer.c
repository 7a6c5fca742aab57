/* binidx_writer.c - writes PREFIX.bin and PREFIX.idx (format: binidx.h) of any size in a few buffers of memory.
 *
 * Lengths go straight to their place in the temporary .idx; the document entries wait in a nameless third file, because
 * their place depends on how many sequences will come. Finish computes the offsets from the lengths. */
#include "data/binidx.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/file.h"
#include "base/parallel.h"

enum { CHUNK = 4096, PART = 1 << 18, BUFFER = 1 << 18 }; /* BUFFER: of .bin, so that short documents make few writes */

typedef struct Out {
    FILE *f;
    char *path, *temporary; /* temporary: NULL once it has no name */
} Out;

struct RkBinWriter {
    Out bin, idx, docs;
    int code, width;
    uint64_t n_items, n_docs;
};

static int fail_write(const Out *o) { return rk_fail(RK_EIO, "cannot write %s: %s", o->path, strerror(errno)); }

static int put(const Out *o, const void *p, size_t bytes) {
    return fwrite(p, 1, bytes, o->f) == bytes ? RK_OK : fail_write(o);
}

static int put_i64(const Out *o, int64_t x) { return put(o, &x, sizeof x); }

/* A new file beside PREFIX + ending, created with the usual permissions. */
static int open_out(Out *o, const char *prefix, const char *ending) {
    size_t room = strlen(prefix) + strlen(ending) + 48;
    o->path = malloc(room);
    o->temporary = malloc(room);
    if (!o->path || !o->temporary) return rk_fail(RK_ENOMEM, "no memory to write %s%s", prefix, ending);
    snprintf(o->path, room, "%s%s", prefix, ending);
    struct stat st;
    if (!stat(o->path, &st) && !S_ISREG(st.st_mode))
        return rk_fail(RK_EIO, "cannot write %s: it is not a regular file", o->path);
    int fd = -1;
    for (unsigned i = 0; fd < 0 && i < 10000; i++) {
        snprintf(o->temporary, room, "%s.%ld.%u.tmp", o->path, (long)getpid(), i);
        fd = open(o->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0 && errno != EEXIST) break;
    }
    int rc = fd < 0 ? fail_write(o) : RK_OK;
    if (!rc && !(o->f = fdopen(fd, "w+b"))) {
        rc = fail_write(o);
        close(fd);
        unlink(o->temporary);
    }
    if (rc) {
        free(o->temporary);
        o->temporary = NULL;
    }
    return rc;
}

static void drop_out(Out *o) {
    if (o->f) fclose(o->f);
    if (o->temporary) unlink(o->temporary);
    free(o->temporary);
    free(o->path);
    *o = (Out){0};
}

int rk_binidx_writer_open(RkBinWriter **out, const char *prefix, int code) {
    RK_CHECK(rk_binidx_width(code), "dtype code %d holds no tokens (1 to 5 and 8 do)", code);
    RkBinWriter *w = *out = calloc(1, sizeof *w);
    if (!w) return rk_fail(RK_ENOMEM, "no memory to write %s", prefix);
    w->code = code;
    w->width = rk_binidx_width(code);
    static const char header[RK_BINIDX_HEADER];
    int rc = open_out(&w->bin, prefix, ".bin");
    if (!rc) setvbuf(w->bin.f, NULL, _IOFBF, BUFFER);
    if (!rc) rc = open_out(&w->idx, prefix, ".idx");
    if (!rc) rc = open_out(&w->docs, prefix, ".docs");
    if (!rc) {
        unlink(w->docs.temporary);
        free(w->docs.temporary);
        w->docs.temporary = NULL;
        rc = put(&w->idx, header, sizeof header);
    }
    if (!rc) rc = put_i64(&w->docs, 0);
    w->n_docs = 1;
    if (rc) {
        rk_binidx_writer_close(w);
        *out = NULL;
    }
    return rc;
}

static int end_item(RkBinWriter *w, size_t n) {
    const int32_t size = (int32_t)n;
    RK_TRY(put(&w->idx, &size, sizeof size));
    w->n_items++;
    return RK_OK;
}

static int check_length(size_t n) {
    RK_CHECK(n <= INT32_MAX, "a sequence of %zu tokens is too long for an index (at most %d)", n, INT32_MAX);
    return RK_OK;
}

int rk_binidx_writer_add(RkBinWriter *w, const void *tokens, size_t n) {
    RK_TRY(check_length(n));
    RK_TRY(put(&w->bin, tokens, n * (size_t)w->width));
    return end_item(w, n);
}

int rk_binidx_writer_end_document(RkBinWriter *w) {
    RK_TRY(put_i64(&w->docs, (int64_t)w->n_items));
    w->n_docs++;
    return RK_OK;
}

/* ---- documents from a file: each task writes PART bytes of what they are back to back ---- */

typedef struct Copy {
    const RkBinStock *stock;
    const int64_t *order;
    const uint64_t *at; /* (n + 1): where document order[i] begins in what is appended, in bytes */
    size_t n, width;
    int to;
    uint64_t base; /* where that is in .bin */
    atomic_int read_error, write_error;
} Copy;

/* Bytes [from, to) of what is appended, into p. Documents that follow each other in the stock are read together. */
static int gather(const Copy *c, uint64_t from, uint64_t to, char *p) {
    size_t i = 0;
    for (size_t hi = c->n; i + 1 < hi;) { /* the last i with at[i] <= from */
        const size_t middle = i + (hi - i) / 2;
        if (c->at[middle] <= from)
            i = middle;
        else
            hi = middle;
    }
    while (from < to) {
        const uint64_t start = (uint64_t)c->stock->start[c->order[i]] * c->width + (from - c->at[i]);
        while (i + 1 < c->n && c->order[i + 1] == c->order[i] + 1 && c->at[i + 1] < to) i++;
        const uint64_t stop = c->at[i + 1] < to ? c->at[i + 1] : to;
        const int rc = rk_file_read_at(c->stock->fd, p, (size_t)(stop - from), start);
        if (rc) return rc;
        p += stop - from;
        from = stop;
        i++;
    }
    return 0;
}

static void copy_part(void *ctx, size_t part) {
    Copy *c = ctx;
    const uint64_t from = (uint64_t)part * PART, to = c->at[c->n] - from < PART ? c->at[c->n] : from + PART;
    char *p = rk_thread_scratch(PART);
    const int read_error = p ? gather(c, from, to, p) : ENOMEM;
    if (read_error) {
        atomic_store(&c->read_error, read_error);
        return;
    }
    const int write_error = rk_file_write_at(c->to, p, (size_t)(to - from), c->base + from);
    if (write_error) atomic_store(&c->write_error, write_error);
}

static int copy_bytes(RkBinWriter *w, Copy *c) {
    if (fflush(w->bin.f)) return fail_write(&w->bin);
    const off_t base = ftello(w->bin.f);
    if (base < 0) return fail_write(&w->bin);
    c->base = (uint64_t)base;
    c->to = fileno(w->bin.f);
    rk_parallel((size_t)((c->at[c->n] + PART - 1) / PART), copy_part, c);
    const int failed = atomic_load(&c->read_error);
    if (failed)
        return rk_fail(RK_EIO, "cannot read tokens for %s: %s", w->bin.path, failed > 0 ? strerror(failed) : "end of file");
    errno = atomic_load(&c->write_error);
    if (errno || fseeko(w->bin.f, base + (off_t)c->at[c->n], SEEK_SET)) return fail_write(&w->bin);
    return RK_OK;
}

/* Checks the documents and says where each goes. */
static int place_documents(const Copy *c, uint64_t *at) {
    const RkBinStock *s = c->stock;
    at[0] = 0;
    for (size_t i = 0; i < c->n; i++) {
        const int64_t k = c->order[i];
        RK_CHECK(k >= 0 && (size_t)k < s->n, "order[%zu] is %lld, and there are %zu documents", i, (long long)k, s->n);
        const int64_t from = s->start[k], to = s->start[k + 1];
        RK_CHECK(from >= 0 && from <= to && to <= INT64_MAX / 8, "document %lld lies at tokens %lld to %lld", (long long)k,
                 (long long)from, (long long)to);
        RK_TRY(check_length((size_t)(to - from)));
        at[i + 1] = at[i] + (uint64_t)(to - from) * c->width;
    }
    return RK_OK;
}

int rk_binidx_writer_copy(RkBinWriter *w, const RkBinStock *stock, const int64_t *order, size_t n) {
    uint64_t *at = malloc((n + 1) * sizeof *at);
    if (!at) return rk_fail(RK_ENOMEM, "no memory to copy %zu documents", n);
    Copy c = {.stock = stock, .order = order, .at = at, .n = n, .width = (size_t)w->width};
    int rc = place_documents(&c, at);
    if (!rc && at[n]) rc = copy_bytes(w, &c);
    for (size_t i = 0; !rc && i < n; i++) {
        rc = end_item(w, (size_t)((at[i + 1] - at[i]) / c.width));
        if (!rc) rc = rk_binidx_writer_end_document(w);
    }
    free(at);
    return rc;
}

/* ---- the end ---- */

/* Reads the lengths back, chunk by chunk, and appends the offsets they add up to. */
static int write_offsets(RkBinWriter *w) {
    int32_t size[CHUNK];
    int64_t offset[CHUNK], at = 0;
    int fd = fileno(w->idx.f);
    for (uint64_t i = 0; i < w->n_items;) {
        size_t n = w->n_items - i < CHUNK ? (size_t)(w->n_items - i) : CHUNK;
        if (pread(fd, size, n * sizeof *size, (off_t)(RK_BINIDX_HEADER + 4 * i)) != (ssize_t)(n * sizeof *size))
            return fail_write(&w->idx);
        for (size_t k = 0; k < n; k++) {
            offset[k] = at;
            at += (int64_t)size[k] * w->width;
        }
        RK_TRY(put(&w->idx, offset, n * sizeof *offset));
        i += n;
    }
    return RK_OK;
}

static int write_documents(RkBinWriter *w) {
    char chunk[CHUNK];
    size_t n;
    if (fflush(w->docs.f) || fseeko(w->docs.f, 0, SEEK_SET)) return fail_write(&w->docs);
    while ((n = fread(chunk, 1, sizeof chunk, w->docs.f))) RK_TRY(put(&w->idx, chunk, n));
    return ferror(w->docs.f) ? fail_write(&w->docs) : RK_OK;
}

static int write_header(RkBinWriter *w) {
    uint8_t h[RK_BINIDX_HEADER] = "MMIDIDX";
    const uint64_t version = 1;
    memcpy(h + 9, &version, 8);
    h[17] = (uint8_t)w->code;
    memcpy(h + 18, &w->n_items, 8);
    memcpy(h + 26, &w->n_docs, 8);
    if (fseeko(w->idx.f, 0, SEEK_SET)) return fail_write(&w->idx);
    return put(&w->idx, h, sizeof h);
}

static int sync_out(Out *o) { return fflush(o->f) || fsync(fileno(o->f)) ? fail_write(o) : RK_OK; }

static void release_out(Out *o) {
    free(o->temporary);
    o->temporary = NULL;
}

static int rename_out(Out *o) {
    if (rename(o->temporary, o->path)) return fail_write(o);
    release_out(o);
    return RK_OK;
}

/* So that the new names survive a power cut; a file system that cannot do it is no error. */
static void sync_directory(const char *path) {
    const char *slash = strrchr(path, '/');
    char *dir = slash ? strndup(path, (size_t)(slash - path) + 1) : NULL;
    int fd = open(dir ? dir : ".", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    free(dir);
}

int rk_binidx_writer_seal(RkBinWriter *w, const char **bin, const char **idx) {
    if (fflush(w->idx.f)) return fail_write(&w->idx); /* the lengths are read back from the file */
    RK_TRY(write_offsets(w));
    RK_TRY(write_documents(w));
    RK_TRY(write_header(w));
    RK_TRY(sync_out(&w->bin));
    RK_TRY(sync_out(&w->idx));
    *bin = w->bin.temporary;
    *idx = w->idx.temporary;
    return RK_OK;
}

void rk_binidx_writer_release(RkBinWriter *w) {
    release_out(&w->bin);
    release_out(&w->idx);
}

int rk_binidx_writer_finish(RkBinWriter *w) {
    const char *bin, *idx;
    RK_TRY(rk_binidx_writer_seal(w, &bin, &idx));
    unlink(w->idx.path); /* a kill from here on leaves no pair of a new .bin and an old .idx */
    RK_TRY(rename_out(&w->bin));
    RK_TRY(rename_out(&w->idx));
    sync_directory(w->bin.path);
    return RK_OK;
}

void rk_binidx_writer_close(RkBinWriter *w) {
    if (!w) return;
    drop_out(&w->bin);
    drop_out(&w->idx);
    drop_out(&w->docs);
    free(w);
}
