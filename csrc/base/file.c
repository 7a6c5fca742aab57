#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"

static int fail_errno(const char *doing, const char *path) {
    return rk_fail(RK_EIO, "cannot %s %s: %s", doing, path, strerror(errno));
}

static int map_open_file(int fd, const char *path, RkFile *out) {
    struct stat st;
    if (fstat(fd, &st)) return fail_errno("examine", path);
    if (!S_ISREG(st.st_mode)) return rk_fail(RK_EIO, "cannot map %s: it is not a regular file", path);
    if (st.st_size == 0) return RK_OK;
    void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) return fail_errno("map", path);
    *out = (RkFile){p, (size_t)st.st_size};
    return RK_OK;
}

int rk_file_map(const char *path, RkFile *out) {
    *out = (RkFile){NULL, 0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe without a writer would block */
    if (fd < 0) return fail_errno("open", path);
    int rc = map_open_file(fd, path, out);
    close(fd);
    return rc;
}

void rk_file_unmap(RkFile *f) {
    if (f->p) munmap((void *)f->p, f->bytes);
    *f = (RkFile){NULL, 0};
}

int rk_file_read_at(int fd, void *p, size_t n, uint64_t at) {
    for (char *s = p; n;) {
        const ssize_t got = pread(fd, s, n, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return got ? errno : -1;
        s += got;
        at += (uint64_t)got;
        n -= (size_t)got;
    }
    return 0;
}

int rk_file_write_at(int fd, const void *p, size_t n, uint64_t at) {
    for (const char *s = p; n;) {
        const ssize_t put = pwrite(fd, s, n, (off_t)at);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return put ? errno : EIO;
        s += put;
        at += (uint64_t)put;
        n -= (size_t)put;
    }
    return 0;
}
