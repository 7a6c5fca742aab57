/* tokenizer.h - text to token ids and back.
 *
 * A vocabulary is a text file, one token per line: `id literal length`, for example
 *     33155 'Hello' 5
 *     129 b'\x80' 1
 * id: decimal. literal: a Python string (its UTF-8 bytes are the token) or bytes literal. length: bytes in the token.
 * Blank lines and lines that start with '#' are skipped. Id 0 is the end of a document: it may be absent, stand as
 * b'\x00', or be empty (''), in which case no text becomes it.
 *
 * Encoding is greedy: at each position the longest token that matches the bytes there; nothing is merged or revised.
 *
 * Ids go in and out as arrays of 2 (unsigned), 4 or 8 byte integers; encoders write 2 or 4. */
#ifndef RK_DATA_TOKENIZER_H
#define RK_DATA_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

enum { RK_MAX_TOKEN_ID = (1 << 22) - 2 };

typedef struct RkIds {
    const void *p;
    size_t n;
    int width; /* bytes per id: 2, 4 or 8 */
} RkIds;

static inline int64_t rk_ids_at(RkIds ids, size_t i) {
    if (ids.width == 2) return ((const uint16_t *)ids.p)[i];
    return ids.width == 4 ? ((const int32_t *)ids.p)[i] : ((const int64_t *)ids.p)[i];
}

static inline void rk_ids_put(void *ids, size_t i, int width, int32_t id) {
    if (width == 2)
        ((uint16_t *)ids)[i] = (uint16_t)id;
    else
        ((int32_t *)ids)[i] = id;
}

/* An encoder: n bytes of text into `ids` of `width` bytes each (room for n of them); *count says how many.
 * RK_EINVAL names the position of what it cannot encode. Safe from any number of threads. */
typedef int (*RkEncodeFn)(const void *tokenizer, const uint8_t *text, size_t n, int width, void *ids, size_t *count);

/* ---- tok_literal.c ---- */

/* Reads one Python string or bytes literal that fills [s, s + n). Its bytes go to `out` (room for n), their number to
 * *bytes. Returns NULL, or the reason why it is not one. */
const char *rk_literal_parse(const char *s, size_t n, uint8_t *out, size_t *bytes);

/* ---- tok_vocab.c ---- */

enum { RK_VOCAB_PAD = 16 }; /* bytes after the texts, so that a short token may be copied as one block */

typedef struct RkVocabLine {
    int32_t id;
    int32_t length; /* bytes */
    size_t start;   /* in RkVocab.text */
    size_t number;  /* line in the file, from 1 */
} RkVocabLine;

typedef struct RkVocab {
    uint8_t *text; /* the tokens' bytes, back to back, then RK_VOCAB_PAD zeros */
    RkVocabLine *line;
    int32_t *of_id; /* (n_ids): index of the line of an id, -1 where there is none */
    size_t n_lines;
    int32_t n_ids; /* largest id + 1 */
} RkVocab;

/* Parses a vocabulary file's contents; `name` is for messages. On an error nothing is left to free. */
int rk_vocab_parse(RkVocab *v, const char *src, size_t n, const char *name);
int rk_vocab_load(RkVocab *v, const char *path);
void rk_vocab_free(RkVocab *v);

/* Decoding: ids without a token, negative ones included, give no bytes. `out` has room for rk_vocab_decoded_bytes. */
size_t rk_vocab_decoded_bytes(const RkVocab *v, RkIds ids);
void rk_vocab_decode(const RkVocab *v, RkIds ids, uint8_t *out, size_t bytes);

/* ---- tok_trie.c ---- */

typedef struct RkTrieNode {
    uint32_t link; /* base of the children << 9 | label (the byte that leads here), see tok_trie.c */
    uint32_t best; /* longest token on the path << 10 | bytes since its end; RK_TRIE_NONE: there is none */
} RkTrieNode;

#define RK_TRIE_NONE UINT32_MAX
enum { RK_TRIE_LABEL_BITS = 9, RK_TRIE_LABEL_MASK = 511, RK_TRIE_PAIRS = 65536 };
enum { RK_TRIE_BACK_BITS = 10, RK_TRIE_BACK_FAR = 1023 }; /* BACK_FAR: further back than the field can say, or NONE */

typedef struct RkTrie {
    RkTrieNode *node; /* (n_nodes): RK_TRIE_PAIRS nodes two bytes down, at first byte | second byte << 8; then the root */
    uint8_t *joined;  /* one bit for every such pair: it occurs inside a token */
    uint32_t n_nodes;
} RkTrie;

int rk_trie_build(RkTrie *t, const RkVocab *v);
void rk_trie_free(RkTrie *t);

static inline const RkTrieNode *rk_trie_child(const RkTrie *t, const RkTrieNode *node, uint32_t byte) {
    const RkTrieNode *next = &t->node[(node->link >> RK_TRIE_LABEL_BITS) + byte];
    return (next->link & RK_TRIE_LABEL_MASK) == byte ? next : NULL;
}

/* ---- tok_encode.c ---- */

int rk_trie_encode(const void *trie, const uint8_t *text, size_t n, int width, void *ids, size_t *count);

/* ---- tok_integer.c: the value v in [0, max_value] is token v + 1; 0 is the end of a document ---- */

typedef struct RkIntegers {
    int32_t max_value;
    const char *noun; /* what messages call a value: "Value", "Angle" */
} RkIntegers;

enum { RK_INTEGER_CHARS = 12 }; /* room for one decoded value and its space */

/* Text: decimal integers between white space (ASCII), each with an optional sign. */
int rk_integers_encode(const void *integers, const uint8_t *text, size_t n, int width, void *ids, size_t *count);
/* Values between single spaces into `out` (room for ids.n * RK_INTEGER_CHARS); zeros are skipped, other ids outside
 * the range are RK_EINVAL. */
int rk_integers_decode(const RkIntegers *t, RkIds ids, char *out, size_t *bytes);

#endif
