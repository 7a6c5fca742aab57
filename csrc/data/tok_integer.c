/* tok_integer.c - sequences of integers as text: "17 0 359" <-> 18 1 360. */
#include "data/tokenizer.h"

#include "base/err.h"

/* White space as Python's str.split sees it among the ASCII characters. */
static inline int is_space(uint8_t c) { return c == ' ' || (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x1f); }

static int fail_word(const RkIntegers *t, const uint8_t *text, size_t n, size_t at) {
    size_t end = at, digits = at;
    while (end < n && !is_space(text[end])) end++;
    if (text[digits] == '-' || text[digits] == '+') digits++;
    int is_number = digits < end;
    for (size_t i = digits; i < end; i++) is_number &= text[i] >= '0' && text[i] <= '9';
    const char *cut = end - at > 40 ? "..." : "";
    int shown = (int)(end - at > 40 ? 40 : end - at);
    const char *word = (const char *)text + at;
    if (is_number)
        return rk_fail(RK_EINVAL, "%s must be in [0, %d], got %.*s%s (at position %zu)", t->noun, t->max_value, shown,
                       word, cut, at);
    return rk_fail(RK_EINVAL, "Cannot read an integer at position %zu: '%.*s%s'; text needs a GenericTokenizer", at, shown, word, cut);
}

int rk_integers_encode(const void *integers, const uint8_t *text, size_t n, int width, void *ids, size_t *count) {
    const RkIntegers *t = integers;
    size_t i = 0, k = 0;
    for (;;) {
        while (i < n && is_space(text[i])) i++;
        if (i == n) break;
        const size_t word = i;
        const int negative = text[i] == '-';
        if (negative || text[i] == '+') i++;
        const size_t digits = i;
        int64_t value = 0;
        for (; i < n && text[i] >= '0' && text[i] <= '9' && value <= t->max_value; i++)
            value = value * 10 + (text[i] - '0');
        const int whole = i > digits && (i == n || is_space(text[i]));
        if (!whole || value > t->max_value || (negative && value)) return fail_word(t, text, n, word);
        rk_ids_put(ids, k++, width, (int32_t)value + 1);
    }
    *count = k;
    return RK_OK;
}

int rk_integers_decode(const RkIntegers *t, RkIds ids, char *out, size_t *bytes) {
    char *s = out;
    for (size_t i = 0; i < ids.n; i++) {
        int64_t id = rk_ids_at(ids, i);
        if (!id) continue;
        if (id < 0 || id > (int64_t)t->max_value + 1) return rk_fail(RK_EINVAL, "Invalid token ID %lld", (long long)id);
        if (s > out) *s++ = ' ';
        char digit[RK_INTEGER_CHARS];
        int n = 0;
        uint32_t value = (uint32_t)(id - 1);
        do digit[n++] = (char)('0' + value % 10);
        while (value /= 10);
        while (n) *s++ = digit[--n];
    }
    *bytes = (size_t)(s - out);
    return RK_OK;
}
