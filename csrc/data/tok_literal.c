/* tok_literal.c - Python string and bytes literals, as repr() writes them and a little beyond.
 *
 *   '...' or "..."       text in UTF-8; escapes \\ \' \" \a \b \f \n \r \t \v \ooo \xHH \uXXXX \UXXXXXXXX
 *   b'...' or b"..."     bytes, plain characters ASCII; the same escapes without \u and \U
 *
 * A backslash before any other character stands for itself, as in Python. Triple quotes, other prefixes, \N{...} and
 * joined literals are refused. Nothing is ever evaluated. */
#include "data/tokenizer.h"

#include <string.h>

#include "base/utf8.h"

typedef struct Reader {
    const uint8_t *s, *end; /* what is left between the quotes */
    uint8_t *out;
    int is_bytes;
} Reader;

static int hex_value(uint8_t c) {
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* A code point as UTF-8, or in a bytes literal as one byte. */
static const char *put(Reader *r, uint32_t c) {
    if (r->is_bytes) {
        if (c > 0xff) return "an escape beyond one byte in a bytes literal";
        *r->out++ = (uint8_t)c;
        return NULL;
    }
    if (c > 0x10ffff) return "an escape beyond the last code point 10ffff";
    if (c >= 0xd800 && c <= 0xdfff) return "a surrogate, which is not a character";
    r->out = rk_utf8_put(r->out, c);
    return NULL;
}

static const char *read_hex(Reader *r, int digits) {
    uint32_t c = 0;
    if (r->end - r->s < digits) return "an escape cut short";
    for (int i = 0; i < digits; i++) {
        int h = hex_value(*r->s++);
        if (h < 0) return "an escape with a character that is not a hexadecimal digit";
        c = c << 4 | (uint32_t)h;
    }
    return put(r, c);
}

static const char *read_octal(Reader *r) {
    uint32_t c = 0;
    for (int i = 0; i < 3 && r->s < r->end && *r->s >= '0' && *r->s <= '7'; i++) c = c << 3 | (uint32_t)(*r->s++ - '0');
    return put(r, c);
}

/* What follows a backslash. */
static const char *read_escape(Reader *r) {
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    if (r->s == r->end) return "a backslash before the closing quote";
    uint8_t c = *r->s;
    if (c >= '0' && c <= '7') return read_octal(r);
    r->s++;
    const char *known = c ? strchr(from, c) : NULL;
    if (known) return put(r, (uint8_t)to[known - from]);
    if (c == 'x') return read_hex(r, 2);
    if (c == 'u' && !r->is_bytes) return read_hex(r, 4);
    if (c == 'U' && !r->is_bytes) return read_hex(r, 8);
    if (c == 'N' && !r->is_bytes) return "an escape by name (\\N), which is not supported";
    r->s--;
    return put(r, '\\');
}

static const char *read_plain(Reader *r) {
    if (*r->s == 0 || *r->s == '\r' || *r->s == '\n') return "a bare control character (write \\x00, \\r or \\n)";
    if (r->is_bytes && *r->s >= 0x80) return "a bytes literal with a character beyond ASCII";
    int n = rk_utf8_length(r->s, r->end);
    if (!n) return "text that is not UTF-8";
    memcpy(r->out, r->s, (size_t)n);
    r->s += n;
    r->out += n;
    return NULL;
}

const char *rk_literal_parse(const char *s, size_t n, uint8_t *out, size_t *bytes) {
    int is_bytes = n && (s[0] == 'b' || s[0] == 'B');
    s += is_bytes;
    n -= (size_t)is_bytes;
    if (n < 2 || (s[0] != '\'' && s[0] != '"')) return "the token is not a quoted string or bytes literal";
    if (s[n - 1] != s[0]) return "the closing quote is missing";
    const uint8_t quote = (uint8_t)s[0];
    Reader r = {(const uint8_t *)s + 1, (const uint8_t *)s + n - 1, out, is_bytes};
    while (r.s < r.end) {
        const char *reason;
        if (*r.s == quote) return "a quote inside the token without a backslash";
        if (*r.s == '\\') {
            r.s++;
            reason = read_escape(&r);
        } else {
            reason = read_plain(&r);
        }
        if (reason) return reason;
    }
    *bytes = (size_t)(r.out - out);
    return NULL;
}
