/* file.h - read-only views of files by mmap. */
#ifndef RK_BASE_FILE_H
#define RK_BASE_FILE_H

#include <stddef.h>

typedef struct RkFile { const void *p; size_t bytes; } RkFile;

/* Maps a regular file; an empty file gives {NULL, 0}. Errors: RK_EIO with the path and the system's reason. */
int rk_file_map(const char *path, RkFile *out);
void rk_file_unmap(RkFile *f);

#endif
