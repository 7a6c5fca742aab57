/* json_text.c - one JSON line: is it an object with a text, and which.
 *
 * The line is looked at three times while it is in the cache: is it UTF-8; is it JSON (a loop over values with a stack of
 * the brackets that are open); then the escapes of the one string that matters are resolved in place. Runs of plain
 * characters, nearly everything in practice, are skipped RUN bytes at a time in loops that compilers turn into vector
 * code. Reasons for refusal count from 1, in bytes where the line is not UTF-8 and in characters otherwise. */
#include "data/jsonl.h"

#include <string.h>

#include "base/err.h"
#include "base/utf8.h"

enum { RUN = 32, MAX_DEPTH = 1000, MAX_DIGITS = 4300, KEY_CHARS = 4, ESCAPE_CHARS = 6 };

typedef struct Span { /* the raw characters between two quotes */
    const uint8_t *p, *end;
    int escaped; /* there is a backslash among them */
} Span;

typedef struct Reader {
    const uint8_t *line, *s, *end;
    Span text; /* p is NULL until a text is found */
    int key_is_text; /* the last key was "text" */
    int depth;
    uint8_t open[MAX_DEPTH]; /* the brackets that are open */
} Reader;

/* ---- UTF-8 ---- */

static const uint8_t *skip_ascii(const uint8_t *s, const uint8_t *end) {
    for (; end - s >= RUN; s += RUN) {
        uint8_t any = 0;
        for (int i = 0; i < RUN; i++) any |= s[i];
        if (any & 0x80) break;
    }
    while (s < end && *s < 0x80) s++;
    return s;
}

static int fail_utf8(const uint8_t *line, const uint8_t *s, const uint8_t *end) {
    const int n = s[0] < 0xc2 || s[0] > 0xf4 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    const char *reason = n ? "invalid continuation byte" : "invalid start byte";
    if (end - s < n) { /* cut short, if what is there could begin a character */
        uint8_t whole[4] = {0x80, 0x80, 0x80, 0x80};
        memcpy(whole, s, (size_t)(end - s));
        if (end - s == 1 || rk_utf8_length(whole, whole + n)) reason = "unexpected end of data";
    }
    return rk_fail(RK_EFORMAT, "not UTF-8: %s at byte %zu of the line", reason, (size_t)(s - line) + 1);
}

static int check_utf8(const uint8_t *line, const uint8_t *end) {
    for (const uint8_t *s = line; s < end;) {
        const int n = rk_utf8_length(s, end);
        if (!n) return fail_utf8(line, s, end);
        s = n == 1 ? skip_ascii(s, end) : s + n;
    }
    return RK_OK;
}

/* ---- JSON ---- */

static int fail_at(const Reader *r, const uint8_t *at, const char *reason) {
    size_t characters = 1;
    for (const uint8_t *s = r->line; s < at; s++) characters += (*s & 0xc0) != 0x80;
    return rk_fail(RK_EFORMAT, "not JSON: %s at character %zu of the line", reason, characters);
}

static void skip_space(Reader *r) {
    while (r->s < r->end && (*r->s == ' ' || *r->s == '\t' || *r->s == '\n' || *r->s == '\r')) r->s++;
}

static int next_is(const Reader *r, uint8_t c) { return r->s < r->end && *r->s == c; }

static int is_digit(const Reader *r, const uint8_t *s) { return s < r->end && *s >= '0' && *s <= '9'; }

static inline int ends_plain(uint8_t c) { return c == '"' || c == '\\' || c < 0x20; }

#define EACH_BYTE(c) (UINT64_C(0x0101010101010101) * (c))

/* How many of the 8 bytes at s stand before the first that ends plain text. Taking c from a byte below c borrows into
 * its top bit; only bytes above such a one can be marked wrongly. */
static inline int plain_in_word(const uint8_t *s) {
    uint64_t w;
    memcpy(&w, s, sizeof w);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    w = __builtin_bswap64(w);
#endif
    const uint64_t quote = w ^ EACH_BYTE('"'), backslash = w ^ EACH_BYTE('\\');
    const uint64_t marks = ((quote - EACH_BYTE(1)) & ~quote) | ((backslash - EACH_BYTE(1)) & ~backslash) |
                           ((w - EACH_BYTE(0x20)) & ~w);
    const uint64_t tops = marks & EACH_BYTE(0x80);
    return tops ? __builtin_ctzll(tops) / 8 : 8;
}

/* The first quote, backslash or control character from s on. */
static const uint8_t *skip_plain(const uint8_t *s, const uint8_t *end) {
    for (; end - s >= RUN; s += RUN) {
        uint8_t any = 0;
        for (int i = 0; i < RUN; i++) any |= (uint8_t)((s[i] == '"') | (s[i] == '\\') | (s[i] < 0x20));
        if (any) break;
    }
    while (end - s >= 8) {
        const int n = plain_in_word(s);
        s += n;
        if (n < 8) return s;
    }
    while (s < end && !ends_plain(*s)) s++;
    return s;
}

/* What the character after a backslash stands for, where it is one of these; \\u is another matter. */
static const uint8_t escaped[256] = {['"'] = '"',  ['\\'] = '\\', ['/'] = '/',  ['b'] = '\b',
                                     ['f'] = '\f', ['n'] = '\n',   ['r'] = '\r', ['t'] = '\t'};

static int hex_value(uint8_t c) {
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The number in the four hexadecimal digits at s, -1 if they are something else. */
static int32_t hex4(const uint8_t *s) {
    int32_t c = 0;
    for (int i = 0; i < 4; i++) {
        const int h = hex_value(s[i]);
        if (h < 0) return -1;
        c = c << 4 | h;
    }
    return c;
}

/* r->s is at the opening quote and goes behind the closing one. */
static int scan_string(Reader *r, Span *span) {
    const uint8_t *quote = r->s, *s = quote + 1;
    *span = (Span){.p = s};
    while ((s = skip_plain(s, r->end)) < r->end && *s != '"') {
        if (*s != '\\') return fail_at(r, s, "Invalid control character at");
        span->escaped = 1;
        if (r->end - s < 2) break;
        if (s[1] == 'u') {
            if (r->end - s <= ESCAPE_CHARS || hex4(s + 2) < 0) return fail_at(r, s + 1, "Invalid \\uXXXX escape");
            s += ESCAPE_CHARS;
        } else {
            if (!escaped[s[1]]) return fail_at(r, s, "Invalid \\escape");
            s += 2;
        }
    }
    if (s >= r->end || *s != '"') return fail_at(r, quote, "Unterminated string starting at");
    span->end = s;
    r->s = s + 1;
    return RK_OK;
}

static int scan_number(Reader *r) {
    const uint8_t *start = r->s, *s = start + (*start == '-'), *digits = s;
    if (!is_digit(r, s)) return fail_at(r, start, "Expecting value");
    if (*s++ != '0')
        while (is_digit(r, s)) s++;
    const size_t n = (size_t)(s - digits);
    const uint8_t *whole = s;
    if (s < r->end && *s == '.' && is_digit(r, s + 1))
        for (s += 2; is_digit(r, s);) s++;
    if (s < r->end && (*s | 0x20) == 'e') {
        const uint8_t *e = s + 1;
        if (e < r->end && (*e == '+' || *e == '-')) e++;
        if (is_digit(r, e))
            for (s = e; is_digit(r, s);) s++;
    }
    if (s == whole && n > MAX_DIGITS) return fail_at(r, start, "Integer of more than 4300 digits");
    r->s = s;
    return RK_OK;
}

/* A value without parts that is no string. */
static int scan_atom(Reader *r) {
    static const char *const word[] = {"null", "true", "false", "NaN", "Infinity", "-Infinity"};
    for (size_t i = 0; r->s < r->end && i < sizeof word / sizeof *word; i++) {
        const size_t n = strlen(word[i]);
        if ((size_t)(r->end - r->s) < n || memcmp(r->s, word[i], n)) continue;
        r->s += n;
        return RK_OK;
    }
    return r->s < r->end ? scan_number(r) : fail_at(r, r->s, "Expecting value");
}

static uint8_t *unescape(uint8_t *out, Span from, int *has_surrogates);

/* A key and its colon; r->s is where the key should begin. */
static int scan_key(Reader *r) {
    Span key;
    if (!next_is(r, '"')) return fail_at(r, r->s, "Expecting property name enclosed in double quotes");
    RK_TRY(scan_string(r, &key));
    skip_space(r);
    if (!next_is(r, ':')) return fail_at(r, r->s, "Expecting ':' delimiter");
    r->s++;
    uint8_t plain[KEY_CHARS * ESCAPE_CHARS];
    size_t n = (size_t)(key.end - key.p);
    if (key.escaped && n <= sizeof plain) {
        int ignored;
        n = (size_t)(unescape(plain, key, &ignored) - plain);
        key.p = plain;
    }
    r->key_is_text = n == KEY_CHARS && !memcmp(key.p, "text", KEY_CHARS);
    return RK_OK;
}

static uint8_t closing(const Reader *r) { return r->open[r->depth - 1] == '{' ? '}' : ']'; }

/* Begins a value: the whole of it, or its opening bracket and, in an object, the first key. *whole says which. */
static int begin_value(Reader *r, int *whole) {
    skip_space(r);
    const int is_text = r->depth == 1 && r->open[0] == '{' && r->key_is_text;
    *whole = 1;
    if (is_text) r->text.p = NULL; /* of two texts the last one counts, and it may be no string */
    if (next_is(r, '"')) {
        Span string;
        RK_TRY(scan_string(r, &string));
        if (is_text) r->text = string;
        return RK_OK;
    }
    if (!next_is(r, '{') && !next_is(r, '[')) return scan_atom(r);
    if (r->depth == MAX_DEPTH) return rk_fail(RK_EFORMAT, "JSON nested too deeply");
    r->open[r->depth++] = *r->s++;
    skip_space(r);
    if (next_is(r, closing(r))) {
        r->s++;
        r->depth--;
        return RK_OK;
    }
    *whole = 0;
    return closing(r) == '}' ? scan_key(r) : RK_OK;
}

/* After a whole value: the brackets that close with it, then the comma and what must come before the next value. */
static int end_value(Reader *r) {
    for (skip_space(r); r->depth && next_is(r, closing(r)); skip_space(r)) {
        r->s++;
        r->depth--;
    }
    if (!r->depth) return r->s < r->end ? fail_at(r, r->s, "Extra data") : RK_OK;
    if (!next_is(r, ',')) return fail_at(r, r->s, "Expecting ',' delimiter");
    r->s++;
    skip_space(r);
    return closing(r) == '}' ? scan_key(r) : RK_OK;
}

static int scan_document(Reader *r) {
    do {
        int whole;
        RK_TRY(begin_value(r, &whole));
        if (whole) RK_TRY(end_value(r));
    } while (r->depth);
    return RK_OK;
}

/* ---- escapes ---- */

/* Resolves one escape of a string that has been scanned; *s is at the backslash and goes behind it. */
static uint8_t *unescape_one(uint8_t *out, const uint8_t **s, const uint8_t *end, int *has_surrogates) {
    const uint8_t *p = *s;
    if (p[1] != 'u') {
        *s = p + 2;
        *out = escaped[p[1]];
        return out + 1;
    }
    uint32_t c = (uint32_t)hex4(p + 2);
    *s = p += ESCAPE_CHARS;
    if (c >= 0xd800 && c <= 0xdbff && end - p >= ESCAPE_CHARS && p[0] == '\\' && p[1] == 'u') {
        const uint32_t low = (uint32_t)hex4(p + 2);
        if (low >= 0xdc00 && low <= 0xdfff) {
            c = 0x10000 + ((c & 0x3ff) << 10 | (low & 0x3ff));
            *s = p + ESCAPE_CHARS;
        }
    }
    *has_surrogates |= c >= 0xd800 && c <= 0xdfff;
    return rk_utf8_put(out, c);
}

/* Resolves the escapes of a string that has been scanned; `out` may be where it stands. The end of what was written. */
static uint8_t *unescape(uint8_t *out, Span from, int *has_surrogates) {
    *has_surrogates = 0;
    for (const uint8_t *s = from.p; s < from.end;) {
        const uint8_t *plain = s;
        s = skip_plain(s, from.end);
        memmove(out, plain, (size_t)(s - plain));
        out += s - plain;
        while (s < from.end && *s == '\\') out = unescape_one(out, &s, from.end, has_surrogates);
    }
    return out;
}

/* ---- the line ---- */

static int is_space(uint8_t c) { return c == ' ' || (c >= 0x09 && c <= 0x0d); }

int rk_json_text(uint8_t *line, size_t n, RkJsonText *text) {
    uint8_t *end = line + n;
    while (line < end && is_space(*line)) line++;
    while (line < end && is_space(end[-1])) end--;
    *text = (RkJsonText){0};
    if (line == end) return RK_OK;
    RK_TRY(check_utf8(line, end));
    Reader r;
    r.line = r.s = line;
    r.end = end;
    r.text.p = NULL;
    r.key_is_text = r.depth = 0;
    if (end - line >= 3 && !memcmp(line, "\xef\xbb\xbf", 3))
        return fail_at(&r, line, "Unexpected UTF-8 BOM (decode using utf-8-sig)");
    RK_TRY(scan_document(&r));
    if (!r.text.p) return rk_fail(RK_EFORMAT, "expected an object with a text, {\"text\": \"...\"}");
    text->p = line + (r.text.p - line);
    text->n = (size_t)(r.text.end - r.text.p);
    if (r.text.escaped) text->n = (size_t)(unescape(text->p, r.text, &text->has_surrogates) - text->p);
    return RK_OK;
}
