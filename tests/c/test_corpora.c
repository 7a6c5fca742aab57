/* Replays tests/corpora through the fuzz targets of tests/fuzz. What goes wrong stops the process (a trap or a sanitizer).
 * Usage: test_corpora [folder of the corpora]; by default the one beside this source file. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "test.h"

#define LLVMFuzzerTestOneInput fuzz_idx
#include "../fuzz/fuzz_idx.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_vocab
#include "../fuzz/fuzz_vocab.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_roundtrip
#include "../fuzz/fuzz_roundtrip.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_jsonl
#include "../fuzz/fuzz_jsonl.c"

typedef int (*Target)(const uint8_t *data, size_t size);

static int replay_file(const char *path, Target target) {
    FILE *f = fopen(path, "rb");
    if (!f) return 0;
    fseek(f, 0, SEEK_END);
    long size = ftell(f);
    rewind(f);
    uint8_t *data = malloc(size > 0 ? (size_t)size : 1);
    int whole = data && size >= 0 && fread(data, 1, (size_t)size, f) == (size_t)size;
    fclose(f);
    if (whole) target(data, (size_t)size);
    free(data);
    return whole;
}

static void replay_folder(const char *root, const char *name, Target target) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", root, name);
    DIR *folder = opendir(path);
    int files = 0;
    if (!CHECK(folder != NULL)) {
        printf("    no folder %s\n", path);
        return;
    }
    for (struct dirent *entry; (entry = readdir(folder));) {
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s/%s", root, name, entry->d_name);
        files += CHECK(replay_file(path, target));
    }
    closedir(folder);
    CHECK(files > 10);
}

int main(int argc, char **argv) {
    char root[4096];
    snprintf(root, sizeof root, "%s", __FILE__);
    char *slash = strrchr(root, '/');
    snprintf(slash ? slash + 1 : root, 64, "%s", "../corpora");
    if (argc > 1) snprintf(root, sizeof root, "%s", argv[1]);
    replay_folder(root, "idx", fuzz_idx);
    replay_folder(root, "vocab", fuzz_vocab);
    replay_folder(root, "roundtrip", fuzz_roundtrip);
    replay_folder(root, "jsonl", fuzz_jsonl);
    return test_summary();
}
