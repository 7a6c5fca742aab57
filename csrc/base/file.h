/* file.h - read-only views of files by mmap, and reads and writes at a place. */
#ifndef RK_BASE_FILE_H
#define RK_BASE_FILE_H

#include <stddef.h>
#include <stdint.h>

typedef struct RkFile { const void *p; size_t bytes; } RkFile;

/* Maps a regular file; an empty file gives {NULL, 0}. Errors: RK_EIO with the path and the system's reason. */
int rk_file_map(const char *path, RkFile *out);
void rk_file_unmap(RkFile *f);

/* All n bytes at place `at` of a file, safe from several threads at once. 0, the error number, or -1: the file ends. */
int rk_file_read_at(int fd, void *p, size_t n, uint64_t at);
int rk_file_write_at(int fd, const void *p, size_t n, uint64_t at);

#endif
