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
