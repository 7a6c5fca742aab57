/* utf8.h - one code point to and from UTF-8 (RFC 3629). */
#ifndef RK_BASE_UTF8_H
#define RK_BASE_UTF8_H

#include <stdint.h>

/* Bytes of the well-formed character at s < end, 0 if there is none. */
static inline int rk_utf8_length(const uint8_t *s, const uint8_t *end) {
    if (s[0] < 0x80) return 1;
    int n = s[0] >= 0xc2 && s[0] <= 0xdf ? 2 : (s[0] & 0xf0) == 0xe0 ? 3 : s[0] >= 0xf0 && s[0] <= 0xf4 ? 4 : 0;
    if (!n || end - s < n) return 0;
    for (int i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    /* Overlong forms, surrogates, and what lies beyond 10ffff show in the second byte. */
    if (s[0] == 0xe0 && s[1] < 0xa0) return 0;
    if (s[0] == 0xed && s[1] > 0x9f) return 0;
    if (s[0] == 0xf0 && s[1] < 0x90) return 0;
    if (s[0] == 0xf4 && s[1] > 0x8f) return 0;
    return n;
}

/* Writes c <= 10ffff at out (room for 4 bytes); the end of it. A surrogate becomes the three bytes its number gives,
 * which are not UTF-8: callers decide whether it may come here. */
static inline uint8_t *rk_utf8_put(uint8_t *out, uint32_t c) {
    if (c < 0x80) {
        *out++ = (uint8_t)c;
        return out;
    }
    int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    static const uint8_t lead[4] = {0, 0xc0, 0xe0, 0xf0};
    *out++ = (uint8_t)(lead[more] | c >> 6 * more);
    while (more--) *out++ = (uint8_t)(0x80 | ((c >> 6 * more) & 0x3f));
    return out;
}

#endif
