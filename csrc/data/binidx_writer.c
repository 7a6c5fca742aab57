/* binidx_writer.c - writes PREFIX.bin and PREFIX.idx (format: binidx.h) of any size in a few buffers of memory.
 *
 * Lengths go straight to their place in the temporary .idx; the document entries wait in a nameless third file, because
 * their place depends on how many sequences will come. Finish computes the offsets from the lengths. */
#include "data/binidx.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"

enum { CHUNK = 4096, COPY = 1 << 16, BUFFER = 1 << 18 }; /* BUFFER: of .bin, so that short documents make few writes */

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

int rk_binidx_writer_copy(RkBinWriter *w, int fd, uint64_t start, size_t n) {
    RK_TRY(check_length(n));
    char chunk[COPY];
    off_t at = (off_t)(start * (uint64_t)w->width);
    for (size_t left = n * (size_t)w->width; left;) {
        const ssize_t got = pread(fd, chunk, left < sizeof chunk ? left : sizeof chunk, at);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0)
            return rk_fail(RK_EIO, "cannot read tokens for %s: %s", w->bin.path, got ? strerror(errno) : "end of file");
        RK_TRY(put(&w->bin, chunk, (size_t)got));
        at += got;
        left -= (size_t)got;
    }
    return end_item(w, n);
}

int rk_binidx_writer_end_document(RkBinWriter *w) {
    RK_TRY(put_i64(&w->docs, (int64_t)w->n_items));
    w->n_docs++;
    return RK_OK;
}

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

static int rename_out(Out *o) {
    if (rename(o->temporary, o->path)) return fail_write(o);
    free(o->temporary);
    o->temporary = NULL;
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

int rk_binidx_writer_finish(RkBinWriter *w) {
    if (fflush(w->idx.f)) return fail_write(&w->idx); /* the lengths are read back from the file */
    RK_TRY(write_offsets(w));
    RK_TRY(write_documents(w));
    RK_TRY(write_header(w));
    RK_TRY(sync_out(&w->bin));
    RK_TRY(sync_out(&w->idx));
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
