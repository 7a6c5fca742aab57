/* Any bytes as a vocabulary file: it is refused with its name and a line, or it works as a vocabulary. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "data/tokenizer.h"

/* Encoding then decoding, where the vocabulary can encode it at all. */
static void round_trip(const RkVocab *v, const RkTrie *t, const uint8_t *text, size_t n) {
    int32_t *ids = malloc(n * sizeof *ids + 1);
    size_t count = 0;
    if (!rk_trie_encode(t, text, n, 4, ids, &count)) {
        RkIds view = {ids, count, 4};
        size_t bytes = rk_vocab_decoded_bytes(v, view);
        uint8_t *back = malloc(bytes + 1);
        rk_vocab_decode(v, view, back, bytes);
        if (count > n || bytes != n || memcmp(back, text, n)) __builtin_trap();
        free(back);
    }
    free(ids);
}

/* Each token written as a bytes literal reads back as itself. */
static void literal_round_trip(const uint8_t *token, size_t n) {
    char *literal = malloc(4 * n + 4);
    uint8_t *back = malloc(4 * n + 4);
    size_t k = (size_t)sprintf(literal, "b'"), bytes = 0;
    for (size_t i = 0; i < n; i++) k += (size_t)sprintf(literal + k, "\\x%02x", token[i]);
    literal[k++] = '\'';
    if (rk_literal_parse(literal, k, back, &bytes) || bytes != n || memcmp(back, token, n)) __builtin_trap();
    free(literal);
    free(back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    RkVocab v;
    RkTrie t;
    char *src = malloc(size ? size : 1);
    memcpy(src, data, size);
    if (rk_vocab_parse(&v, src, size, "fuzz")) {
        if (strncmp(rk_error(), "fuzz", 4)) __builtin_trap();
        free(src);
        return 0;
    }
    if (!rk_trie_build(&t, &v)) {
        for (size_t i = 0; i < v.n_lines; i++) {
            literal_round_trip(v.text + v.line[i].start, (size_t)v.line[i].length);
            round_trip(&v, &t, v.text + v.line[i].start, (size_t)v.line[i].length);
        }
        round_trip(&v, &t, data, size);
        rk_trie_free(&t);
    }
    rk_vocab_free(&v);
    free(src);
    return 0;
}
