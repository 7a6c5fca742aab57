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

/* The longest token at the beginning of a text, of two alike the one on the later line; NULL if there is none. */
static const RkVocabLine *longest(const RkVocab *v, const uint8_t *text, size_t n) {
    const RkVocabLine *best = NULL;
    for (size_t i = 0; i < v->n_lines; i++) {
        const RkVocabLine *l = &v->line[i];
        if (!l->length || (size_t)l->length > n || memcmp(v->text + l->start, text, (size_t)l->length)) continue;
        if (!best || l->length >= best->length) best = l;
    }
    return best;
}

/* A text long enough to be walked at several places at once, against the definition. */
static void long_text(const RkVocab *v, const RkTrie *t, const uint8_t *data, size_t size) {
    enum { LONG = 600 };
    uint8_t text[LONG];
    int32_t ids[LONG];
    size_t count = 0, at = 0, k = 0, n_text = 0;
    for (size_t i = 0; i < v->n_lines; i++) n_text += (size_t)v->line[i].length;
    if (!size || !n_text || v->n_lines > 100) return;
    for (size_t i = 0; i < LONG; i++) text[i] = v->n_lines % 2 ? data[i % size] : v->text[i * 7 / 5 % n_text];
    const int rc = rk_trie_encode(t, text, LONG, 4, ids, &count);
    while (at < LONG) {
        const RkVocabLine *l = longest(v, text + at, LONG - at);
        if (!l) break;
        if (!rc && (k >= count || ids[k] != l->id)) __builtin_trap();
        at += (size_t)l->length;
        k++;
    }
    if (rc != (at < LONG ? RK_EINVAL : RK_OK) || (!rc && k != count)) __builtin_trap();
    char place[64];
    snprintf(place, sizeof place, "at position %zu: ", at);
    if (rc && !strstr(rk_error(), place)) __builtin_trap();
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
        long_text(&v, &t, data, size);
        rk_trie_free(&t);
    }
    rk_vocab_free(&v);
    free(src);
    return 0;
}
