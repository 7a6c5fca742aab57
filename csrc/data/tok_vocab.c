/* tok_vocab.c - reads vocabulary files (format: tokenizer.h) and turns ids back into bytes. */
#include "data/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/file.h"

typedef struct Parser {
    const char *name; /* of the file */
    RkVocab *v;
    size_t used;   /* bytes of v->text */
    size_t number; /* of the line */
} Parser;

static int fail_line(const Parser *p, const char *s, size_t n, const char *reason) {
    return rk_fail(RK_EFORMAT, "%s:%zu: %s: %.*s%s", p->name, p->number, reason, (int)(n < 60 ? n : 60), s,
                   n > 60 ? "..." : "");
}

/* A decimal number that fills [s, s + n) and is at most `max`; -1 if it is not one. */
static int64_t parse_number(const char *s, size_t n, int64_t max) {
    int64_t x = 0;
    if (!n) return -1;
    for (size_t i = 0; i < n; i++) {
        if (s[i] < '0' || s[i] > '9') return -1;
        x = x * 10 + (s[i] - '0');
        if (x > max) return -1;
    }
    return x;
}

static int is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static int parse_line(Parser *p, const char *s, size_t n) {
    const char *first = memchr(s, ' ', n), *last = s + n;
    while (last > s && last[-1] != ' ') last--;
    if (!first || last - 1 <= first) return fail_line(p, s, n, "expected `id 'token' length`");
    int64_t id = parse_number(s, (size_t)(first - s), RK_MAX_TOKEN_ID);
    if (id < 0) return fail_line(p, s, n, "the id is not a number from 0 to 4194302");
    int64_t length = parse_number(last, (size_t)(s + n - last), INT32_MAX);
    if (length < 0) return fail_line(p, s, n, "the length is not a number");

    size_t bytes = 0;
    const char *reason = rk_literal_parse(first + 1, (size_t)(last - 1 - (first + 1)), p->v->text + p->used, &bytes);
    if (reason) return fail_line(p, s, n, reason);
    if (bytes != (size_t)length)
        return rk_fail(RK_EFORMAT, "%s:%zu: the line says %lld bytes, but the token has %zu: %.*s", p->name, p->number,
                       (long long)length, bytes, (int)(n < 60 ? n : 60), s);
    if (!bytes && id) return fail_line(p, s, n, "an empty token (only id 0, the end of a document, may be empty)");
    p->v->line[p->v->n_lines++] = (RkVocabLine){(int32_t)id, (int32_t)length, p->used, p->number};
    p->used += bytes;
    return RK_OK;
}

static int parse_lines(Parser *p, const char *src, size_t n) {
    const char *s = src, *end = src + n;
    if (n >= 3 && !memcmp(s, "\xef\xbb\xbf", 3)) s += 3; /* a byte order mark, as some editors leave */
    while (s < end) {
        const char *stop = memchr(s, '\n', (size_t)(end - s));
        const char *next = stop ? stop + 1 : end;
        if (!stop) stop = end;
        p->number++;
        while (s < stop && is_space(*s)) s++;
        while (stop > s && is_space(stop[-1])) stop--;
        if (s < stop && *s != '#') RK_TRY(parse_line(p, s, (size_t)(stop - s)));
        s = next;
    }
    return RK_OK;
}

static int index_ids(RkVocab *v, const char *name) {
    for (size_t i = 0; i < v->n_lines; i++)
        if (v->line[i].id >= v->n_ids) v->n_ids = v->line[i].id + 1;
    v->of_id = malloc(((size_t)v->n_ids + 1) * sizeof *v->of_id);
    if (!v->of_id) return rk_fail(RK_ENOMEM, "no memory for the vocabulary %s", name);
    for (int32_t id = 0; id < v->n_ids; id++) v->of_id[id] = -1;
    for (size_t i = 0; i < v->n_lines; i++) {
        int32_t *of = &v->of_id[v->line[i].id];
        if (*of >= 0)
            return rk_fail(RK_EFORMAT, "%s:%zu: id %d stands already on line %zu", name, v->line[i].number,
                           v->line[i].id, v->line[*of].number);
        *of = (int32_t)i;
    }
    return RK_OK;
}

int rk_vocab_parse(RkVocab *v, const char *src, size_t n, const char *name) {
    size_t lines = 1;
    for (const char *s = src, *end = src + n; s < end && (s = memchr(s, '\n', (size_t)(end - s))); s++) lines++;
    if (lines > INT32_MAX) return rk_fail(RK_EFORMAT, "%s has %zu lines, too many for a vocabulary", name, lines);
    /* No escape is shorter than the bytes it stands for, so the file's size bounds the tokens'. */
    *v = (RkVocab){.text = calloc(n + RK_VOCAB_PAD, 1), .line = malloc(lines * sizeof *v->line)};
    Parser p = {.name = name, .v = v};
    int rc = v->text && v->line ? parse_lines(&p, src, n) : rk_fail(RK_ENOMEM, "no memory for the vocabulary %s", name);
    if (!rc) rc = index_ids(v, name);
    if (rc) rk_vocab_free(v);
    return rc;
}

int rk_vocab_load(RkVocab *v, const char *path) {
    RkFile f;
    RK_TRY(rk_file_map(path, &f));
    int rc = rk_vocab_parse(v, f.p ? f.p : "", f.bytes, path);
    rk_file_unmap(&f);
    return rc;
}

void rk_vocab_free(RkVocab *v) {
    free(v->text);
    free(v->line);
    free(v->of_id);
    *v = (RkVocab){0};
}

static inline const RkVocabLine *find(const RkVocab *v, int64_t id) {
    if (id < 0 || id >= v->n_ids || v->of_id[id] < 0) return NULL;
    return &v->line[v->of_id[id]];
}

size_t rk_vocab_decoded_bytes(const RkVocab *v, RkIds ids) {
    size_t bytes = 0;
    for (size_t i = 0; i < ids.n; i++) {
        const RkVocabLine *t = find(v, rk_ids_at(ids, i));
        if (t) bytes += (size_t)t->length;
    }
    return bytes;
}

void rk_vocab_decode(const RkVocab *v, RkIds ids, uint8_t *out, size_t bytes) {
    const uint8_t *end = out + bytes;
    for (size_t i = 0; i < ids.n; i++) {
        const RkVocabLine *t = find(v, rk_ids_at(ids, i));
        if (!t || t->length > end - out) continue; /* the latter only if another thread changes the ids meanwhile */
        /* Nearly all tokens are short: a copy of fixed size is one instruction, one of any size a call. */
        if (t->length <= RK_VOCAB_PAD && end - out >= RK_VOCAB_PAD)
            memcpy(out, v->text + t->start, RK_VOCAB_PAD);
        else
            memcpy(out, v->text + t->start, (size_t)t->length);
        out += t->length;
    }
}
