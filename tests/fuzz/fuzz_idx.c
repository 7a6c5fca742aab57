/* Any bytes as an index: it is refused, or everything it describes lies inside .bin.
 * Input: size of .bin in bytes (u16), then the bytes of .idx. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "data/binidx.h"
#include "data/sampler.h"

static void use_index(RkBinIdx *d) {
    uint64_t total = 0;
    for (uint64_t i = 0; i < d->n_items; i++) {
        uint64_t start = rk_binidx_start(d, i), size = (uint64_t)rk_binidx_size(d, i);
        int32_t *tokens = malloc(size * sizeof *tokens + 1);
        if (start != total || start + size > d->n_tokens) __builtin_trap();
        if (!rk_binidx_read(d, start, size, 0, tokens))
            for (uint64_t k = 0; k < size; k++)
                if (tokens[k] < 0) __builtin_trap();
        free(tokens);
        total += size;
    }
    if (total != d->n_tokens) __builtin_trap();
    for (uint64_t i = 0; i < d->n_docs; i++)
        if ((uint64_t)rk_binidx_document(d, i) > d->n_items) __builtin_trap();
}

static void use_sampler(const RkBinIdx *d) {
    for (uint64_t T = 1; T < 40; T += 6) {
        RkSampler s;
        if (rk_sampler_init(&s, d->n_tokens, T, 0, 1, 0)) continue;
        int32_t *ids = malloc(4 * T * sizeof *ids), *targets = malloc(4 * T * sizeof *targets);
        rk_sampler_fill(&s, d,
                        &(RkBatch){.epoch = T, .idx0 = 3, .B = 4, .vocab_size = 300, .ids = ids, .targets = targets});
        free(ids);
        free(targets);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    size_t bytes = data[0] | (size_t)data[1] << 8;
    uint8_t *idx = malloc(size - 2 + 1), *bin = malloc(bytes + 1);
    memcpy(idx, data + 2, size - 2);
    for (size_t i = 0; i < bytes; i++) bin[i] = (uint8_t)(i * i >> 3);
    /* Copies that end where the allocation ends, so that a sanitizer sees the first byte too many. */
    idx = realloc(idx, size - 2 ? size - 2 : 1);
    bin = realloc(bin, bytes ? bytes : 1);
    RkBinIdx d = {.idx = {idx, size - 2}, .bin = {bin, bytes}};
    if (!rk_binidx_check(&d)) {
        use_index(&d);
        use_sampler(&d);
    }
    free(idx);
    free(bin);
    return 0;
}
