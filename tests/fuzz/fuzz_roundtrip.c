/* Any text through a vocabulary of all bytes and a few longer tokens, against the definition of greedy matching; and the
 * same bytes as a list of integers.
 * Input: number of longer tokens n (u8), then n times length (u8) and bytes, then the text. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer.h"

enum { MAX_LONGER = 40, MAX_TEXT = 4096 };

typedef struct Input {
    const uint8_t *token[256 + MAX_LONGER];
    size_t length[256 + MAX_LONGER];
    int n;
    const uint8_t *text;
    size_t n_text;
} Input;

static uint8_t all_bytes[256];

static void split_input(Input *in, const uint8_t *data, size_t size) {
    *in = (Input){.n = 256};
    for (int i = 0; i < 256; i++) {
        all_bytes[i] = (uint8_t)i;
        in->token[i] = &all_bytes[i];
        in->length[i] = 1;
    }
    int longer = size ? data[0] % MAX_LONGER : 0;
    if (size) data++, size--;
    for (int i = 0; i < longer && size > 1; i++) {
        size_t n = data[0] < size - 1 ? data[0] : size - 1;
        if (n) {
            in->token[in->n] = data + 1;
            in->length[in->n++] = n;
        }
        data += n + 1;
        size -= n + 1;
    }
    in->text = data;
    in->n_text = size < MAX_TEXT ? size : MAX_TEXT;
}

/* The vocabulary file of the tokens: ids from 1 in their order. */
static char *write_vocab(const Input *in, size_t *bytes) {
    size_t room = 1;
    for (int i = 0; i < in->n; i++) room += 32 + 4 * in->length[i];
    char *src = malloc(room), *s = src;
    for (int i = 0; i < in->n; i++) {
        s += sprintf(s, "%d b'", i + 1);
        for (size_t k = 0; k < in->length[i]; k++) s += sprintf(s, "\\x%02x", in->token[i][k]);
        s += sprintf(s, "' %zu\n", in->length[i]);
    }
    *bytes = (size_t)(s - src);
    return src;
}

static int matches(const Input *in, int i, size_t at) {
    return in->token[i][0] == in->text[at] && in->length[i] <= in->n_text - at &&
           !memcmp(in->token[i], in->text + at, in->length[i]);
}

/* The longest token at the place, of equal ones the later. Some token matches: all bytes are tokens. */
static int slow_match(const Input *in, size_t at) {
    int best = in->text[at];
    for (int i = 256; i < in->n; i++)
        if (in->length[i] >= in->length[best] && matches(in, i, at)) best = i;
    return best;
}

static void check_text(const Input *in, const RkVocab *v, const RkTrie *t) {
    uint16_t *ids = malloc(in->n_text * sizeof *ids + 1);
    int32_t *wide = malloc(in->n_text * sizeof *wide + 1);
    size_t count = 0, wide_count = 0, at = 0;
    if (rk_trie_encode(t, in->text, in->n_text, 2, ids, &count)) __builtin_trap();
    if (rk_trie_encode(t, in->text, in->n_text, 4, wide, &wide_count) || count != wide_count) __builtin_trap();
    for (size_t i = 0; i < count; i++) {
        int expected = slow_match(in, at);
        if (ids[i] != expected + 1 || wide[i] != expected + 1) __builtin_trap();
        at += in->length[expected];
    }
    uint8_t *back = malloc(in->n_text + 1);
    if (at != in->n_text || rk_vocab_decoded_bytes(v, (RkIds){ids, count, 2}) != at) __builtin_trap();
    rk_vocab_decode(v, (RkIds){ids, count, 2}, back, at);
    if (memcmp(back, in->text, at)) __builtin_trap();
    free(back);
    free(ids);
    free(wide);
}

static void check_integers(const Input *in) {
    const RkIntegers t = {70000, "Value"};
    int32_t *ids = malloc(in->n_text * sizeof *ids + 1), *again;
    size_t count = 0, bytes = 0, count2 = 0;
    if (!rk_integers_encode(&t, in->text, in->n_text, 4, ids, &count)) {
        char *text = malloc(count * RK_INTEGER_CHARS + 1);
        if (rk_integers_decode(&t, (RkIds){ids, count, 4}, text, &bytes)) __builtin_trap();
        again = malloc(bytes * sizeof *again + 1);
        if (rk_integers_encode(&t, (uint8_t *)text, bytes, 4, again, &count2)) __builtin_trap();
        if (count != count2 || memcmp(ids, again, count * sizeof *ids)) __builtin_trap();
        free(again);
        free(text);
    }
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input in;
    RkVocab v;
    RkTrie t;
    size_t bytes;
    split_input(&in, data, size);
    char *src = write_vocab(&in, &bytes);
    if (rk_vocab_parse(&v, src, bytes, "fuzz") || rk_trie_build(&t, &v)) __builtin_trap();
    check_text(&in, &v, &t);
    check_integers(&in);
    rk_trie_free(&t);
    rk_vocab_free(&v);
    free(src);
    return 0;
}
