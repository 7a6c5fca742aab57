/* Any bytes as JSON lines: cut into blocks of any size they give the same documents as in one block; the texts, written
 * as JSON again, read back as they were.
 * Input: bytes of a block less one (u8), then the file. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "data/jsonl.h"

typedef struct Found { /* the documents of a file: line (8 bytes), bytes of the text (8), text */
    uint8_t *p;
    size_t n;
    uint64_t n_bad;
} Found;

/* Every byte is an id: as many as an encoder may give. */
static int encode_bytes(const void *unused, const uint8_t *text, size_t n, int width, void *ids, size_t *count) {
    (void)unused;
    for (size_t i = 0; i < n; i++) rk_ids_put(ids, i, width, text[i]);
    *count = n;
    return RK_OK;
}

static void collect(Found *found, const RkJsonl *r) {
    for (int i = 0; i < r->n_pieces; i++) {
        const RkJsonlPiece *p = &r->piece[i];
        for (size_t k = 0; k < p->n_documents; k++) {
            const RkJsonlDocument *d = &p->document[k];
            if (d->n_ids != d->text.n + 1) __builtin_trap();
            const uint64_t head[2] = {d->line, d->text.n};
            memcpy(found->p + found->n, head, sizeof head);
            memcpy(found->p + found->n + sizeof head, d->text.p, d->text.n);
            found->n += sizeof head + d->text.n;
        }
    }
}

static Found read_all(const uint8_t *data, size_t size, size_t block) {
    Found found = {.p = malloc(3 * size + 64)};
    const RkJsonlTask task = {encode_bytes, NULL, 4, 1};
    RkJsonl r;
    if (rk_jsonl_open(&r, block)) __builtin_trap();
    do {
        do {
            uint8_t *p;
            size_t n;
            if (rk_jsonl_space(&r, &p, &n) || !n) __builtin_trap();
            if (n > size) n = size;
            memcpy(p, data, n);
            data += n;
            size -= n;
            rk_jsonl_filled(&r, n);
        } while (!rk_jsonl_ready(&r));
        if (rk_jsonl_read(&r, &task)) __builtin_trap();
        collect(&found, &r);
    } while (!r.at_end);
    found.n_bad = r.n_bad;
    if (r.n_bad && (!r.bad_line || !r.reason[0])) __builtin_trap();
    rk_jsonl_free(&r);
    return found;
}

/* The text with everything that can be escaped escaped, as a line. */
static void write_and_read(const uint8_t *text, size_t n) {
    char *line = malloc(6 * n + 32);
    size_t k = (size_t)sprintf(line, "{\"t\\u0065xt\":\"");
    for (size_t i = 0; i < n; i++) {
        if (text[i] < 0x80)
            k += (size_t)sprintf(line + k, "\\u%04x", text[i]);
        else
            line[k++] = (char)text[i];
    }
    k += (size_t)sprintf(line + k, "\"}");
    RkJsonText again;
    if (rk_json_text((uint8_t *)line, k, &again) || again.n != n || memcmp(again.p, text, n)) __builtin_trap();
    free(line);
}

static int is_utf8_text(const uint8_t *p, size_t n) {
    for (size_t i = 0; i + 1 < n; i++)
        if (p[i] == 0xed && p[i + 1] >= 0xa0) return 0; /* a surrogate */
    return 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const size_t block = size ? (size_t)data[0] + 1 : 1;
    if (size) data++, size--;
    const Found small = read_all(data, size, block), whole = read_all(data, size, size + 1);
    if (small.n != whole.n || small.n_bad != whole.n_bad || memcmp(small.p, whole.p, whole.n)) __builtin_trap();
    for (size_t at = 0; at < whole.n;) {
        uint64_t head[2];
        memcpy(head, whole.p + at, sizeof head);
        const uint8_t *text = whole.p + at + sizeof head;
        if (is_utf8_text(text, head[1])) write_and_read(text, head[1]);
        at += sizeof head + head[1];
    }
    free(small.p);
    free(whole.p);
    return 0;
}
