/* tok_encode.c - greedy longest match, several places of a text at once.
 *
 * One walk waits most of its time: for the next node to load, and for the processor to find out that it guessed the end
 * of a token wrongly. So a text is cut into chunks and LANES of them are walked side by side, a byte each in turn,
 * without branches on the data. A text may be cut wherever two bytes meet that stand together in no token: there every
 * token ends, whatever comes before, so the ids of the chunks put together are those of the text.
 *
 * A lane is always somewhere below a pair. A step reads the child by the next byte, and at the same time the pair with
 * which the next token would begin, and keeps one of the two. */
#include "data/tokenizer.h"

#include <string.h>

#include "base/err.h"

enum { LANES = 4, STEPS = 4, CHUNK = 4096, LEAST_CHUNK = 32, CHUNKS = 64 };

typedef struct Lane {
    const uint8_t *s; /* the next byte */
    uint64_t node;    /* where the bytes before it lead to: link, and above it best */
    char *out;        /* the next id */
} Lane;

typedef struct Chunk {
    const uint8_t *begin, *end;
    char *ids; /* where there is room for its ids */
    size_t count;
} Chunk;

static int fail_byte(const uint8_t *text, size_t n, size_t at) {
    char shown[16 * 4 + 1];
    size_t end = n - at > 16 ? at + 16 : n, k = 0;
    for (size_t i = at; i < end; i++) {
        static const char hex[] = "0123456789abcdef";
        if (text[i] >= 0x20 && text[i] < 0x7f && text[i] != '\'' && text[i] != '\\') {
            shown[k++] = (char)text[i];
        } else {
            shown[k++] = '\\';
            shown[k++] = 'x';
            shown[k++] = hex[text[i] >> 4];
            shown[k++] = hex[text[i] & 15];
        }
    }
    return rk_fail(RK_EINVAL, "Cannot encode byte at position %zu: unknown token starting with b'%.*s'%s", at, (int)k,
                   shown, end < n ? "..." : "");
}

/* ---- one walk ---- */

static inline uint32_t pair_at(const uint8_t *s) { return s[0] | (uint32_t)s[1] << 8; }

/* The last node on the way of text[0..n), n >= 1, and in *depth how many bytes lead to it (at least 2 if n is). */
static inline RkTrieNode walk(const RkTrie *t, const uint8_t *text, size_t n, size_t *depth) {
    if (n == 1) {
        const RkTrieNode *one = rk_trie_child(t, &t->node[RK_TRIE_PAIRS], text[0]);
        *depth = 1;
        return one ? *one : (RkTrieNode){0, RK_TRIE_NONE};
    }
    RkTrieNode last = t->node[pair_at(text)];
    size_t j = 2;
    for (; j < n; j++) {
        const RkTrieNode next = t->node[(last.link >> RK_TRIE_LABEL_BITS) + text[j]];
        if ((next.link & RK_TRIE_LABEL_MASK) != text[j]) break;
        last = next;
    }
    *depth = j;
    return last;
}

/* Length of the longest token on the path text[0..depth) when it is not the whole path. */
static __attribute__((noinline)) size_t length_back(const RkTrie *t, const uint8_t *text, size_t depth, uint32_t best) {
    const uint32_t back = best & RK_TRIE_BACK_FAR;
    if (back < RK_TRIE_BACK_FAR) return depth - back;
    const RkTrieNode *node = &t->node[RK_TRIE_PAIRS];
    size_t length = 0;
    for (size_t j = 0; j < depth; j++) {
        node = rk_trie_child(t, node, text[j]);
        if (node->best == best - back) length = j + 1;
    }
    return length;
}

/* The ids of [s, end) to `ids`; their number is added to *count. Returns where no token matches, NULL if there is no such
 * place. */
static inline __attribute__((always_inline)) const uint8_t *encode_plain(const RkTrie *t, const uint8_t *s,
                                                                         const uint8_t *end, int width, char *ids,
                                                                         size_t *count) {
    size_t k = 0;
    while (s < end) {
        size_t depth;
        const uint32_t best = walk(t, s, (size_t)(end - s), &depth).best;
        if (best == RK_TRIE_NONE) return s;
        rk_ids_put(ids, k++, width, (int32_t)(best >> RK_TRIE_BACK_BITS));
        /* A call, so that the next position hangs on a predicted branch and not on the node that is still loading. */
        s += best & RK_TRIE_BACK_FAR ? length_back(t, s, depth, best) : depth;
    }
    *count += k;
    return NULL;
}

/* ---- lanes ---- */

static inline uint64_t load_node(const RkTrieNode *node) {
    uint64_t x;
    memcpy(&x, node, sizeof x);
    return x;
}

/* One byte. 0: the last token lies too far back for the node to say; the lane has not moved. */
static inline __attribute__((always_inline)) int step(const RkTrieNode *node, Lane *lane, int width) {
    const uint32_t link = (uint32_t)lane->node, best = (uint32_t)(lane->node >> 32);
    const uint32_t back = best & RK_TRIE_BACK_FAR, byte = *lane->s;
    if (__builtin_expect(back == RK_TRIE_BACK_FAR, 0)) return 0;
    const uint8_t *token_end = lane->s - back;
    const uint64_t child = load_node(&node[(link >> RK_TRIE_LABEL_BITS) + byte]);
    const uint64_t fresh = load_node(&node[pair_at(token_end)]);
    /* Masks, because a compiler makes branches of conditions. */
    const uint64_t ends = -(uint64_t)((child & RK_TRIE_LABEL_MASK) != byte);
    rk_ids_put(lane->out, 0, width, (int32_t)(best >> RK_TRIE_BACK_BITS)); /* overwritten if the token goes on */
    lane->out += (uint64_t)width & ends;
    lane->s += (int64_t)(1 + ((1 - (uint64_t)back) & ends));
    lane->node = child ^ ((child ^ fresh) & ends);
    return 1;
}

/* What is left of a lane's chunk; all of it where the lane could not go on. As encode_plain otherwise. */
static const uint8_t *finish_lane(const RkTrie *t, Lane lane, Chunk *c, int width) {
    const uint8_t *s = lane.s;
    RkTrieNode node = {(uint32_t)lane.node, (uint32_t)(lane.node >> 32)};
    for (; s < c->end; s++) {
        const RkTrieNode *next = rk_trie_child(t, &node, *s);
        if (!next) break;
        node = *next;
    }
    const uint32_t back = node.best & RK_TRIE_BACK_FAR;
    c->count = 0;
    if (back == RK_TRIE_BACK_FAR) {
        s = c->begin;
        lane.out = c->ids;
    } else {
        c->count = (size_t)(lane.out - c->ids) / (size_t)width + 1;
        rk_ids_put(lane.out, 0, width, (int32_t)(node.best >> RK_TRIE_BACK_BITS));
        lane.out += width;
        s -= back;
    }
    return width == 2 ? encode_plain(t, s, c->end, 2, lane.out, &c->count)
                      : encode_plain(t, s, c->end, 4, lane.out, &c->count);
}

/* Walks until a lane comes near its limit or cannot go on; the number of that lane. Up to there a block of steps, each at
 * most two bytes, stays inside its chunk. */
static inline __attribute__((always_inline)) int run_lanes(const RkTrieNode *node, Lane *lanes,
                                                           const uint8_t *const *limit, int width) {
    Lane lane[LANES];
    int stopped = -1;
    memcpy(lane, lanes, sizeof lane);
    while (stopped < 0) {
        for (int i = 0; i < LANES; i++)
            if (lane[i].s > limit[i]) stopped = i;
        for (int k = 0; stopped < 0 && k < STEPS; k++) {
#pragma GCC unroll 4
            for (int i = 0; i < LANES; i++)
                if (!step(node, &lane[i], width)) stopped = i;
        }
    }
    memcpy(lanes, lane, sizeof lane);
    return stopped;
}

/* All chunks, LANES at a time: a lane that is done takes the next one. */
static const uint8_t *encode_chunks(const RkTrie *t, Chunk *chunk, int n_chunks, int width) {
    Lane lane[LANES];
    const uint8_t *limit[LANES];
    int of[LANES], next = 0;
    for (; next < LANES; next++) {
        const Chunk *c = &chunk[next];
        of[next] = next;
        lane[next] = (Lane){c->begin + 2, load_node(&t->node[pair_at(c->begin)]), c->ids};
        limit[next] = c->end - 2 * STEPS;
    }
    for (;;) {
        const int i = width == 2 ? run_lanes(t->node, lane, limit, 2) : run_lanes(t->node, lane, limit, 4);
        const uint8_t *bad = finish_lane(t, lane[i], &chunk[of[i]], width);
        if (bad) return bad;
        if (next == n_chunks) {
            for (int k = 0; k < LANES; k++)
                if (k != i && (bad = finish_lane(t, lane[k], &chunk[of[k]], width))) return bad;
            return NULL;
        }
        const Chunk *c = &chunk[next];
        of[i] = next++;
        lane[i] = (Lane){c->begin + 2, load_node(&t->node[pair_at(c->begin)]), c->ids};
        limit[i] = c->end - 2 * STEPS;
    }
}

/* ---- chunks ---- */

/* The first place from s on where the text may be cut. */
static const uint8_t *find_cut(const RkTrie *t, const uint8_t *s, const uint8_t *end) {
    for (; s < end; s++) {
        const uint32_t pair = pair_at(s - 1);
        if (!(t->joined[pair >> 3] >> (pair & 7) & 1)) return s;
    }
    return end;
}

/* Cuts off up to CHUNKS chunks from [s, end); where the last one ends. */
static const uint8_t *cut(const RkTrie *t, const uint8_t *s, const uint8_t *end, Chunk *chunk, int *n_chunks) {
    size_t size = (size_t)(end - s) / LANES;
    size = size < CHUNK ? size : CHUNK;
    for (*n_chunks = 0; *n_chunks < CHUNKS && s < end; ++*n_chunks) {
        const uint8_t *stop = (size_t)(end - s) < size + LEAST_CHUNK ? end : find_cut(t, s + size, end);
        if ((size_t)(end - stop) < LEAST_CHUNK) stop = end;
        chunk[*n_chunks] = (Chunk){.begin = s, .end = stop};
        s = stop;
    }
    return s;
}

int rk_trie_encode(const void *trie, const uint8_t *text, size_t n, int width, void *ids, size_t *count) {
    const RkTrie t = *(const RkTrie *)trie;
    const uint8_t *s = text, *end = text + n, *bad = NULL;
    size_t k = 0;
    while (!bad && n && (size_t)(end - s) >= LANES * LEAST_CHUNK) {
        Chunk chunk[CHUNKS];
        int n_chunks;
        const uint8_t *stop = cut(&t, s, end, chunk, &n_chunks);
        if (n_chunks < LANES) break;
        for (int i = 0; i < n_chunks; i++) chunk[i].ids = (char *)ids + (k + (size_t)(chunk[i].begin - s)) * (size_t)width;
        bad = encode_chunks(&t, chunk, n_chunks, width);
        for (int i = 0; !bad && i < n_chunks; i++) {
            memmove((char *)ids + k * (size_t)width, chunk[i].ids, chunk[i].count * (size_t)width);
            k += chunk[i].count;
        }
        s = stop;
    }
    char *out = (char *)ids + k * (size_t)width;
    if (!bad) bad = width == 2 ? encode_plain(&t, s, end, 2, out, &k) : encode_plain(&t, s, end, 4, out, &k);
    if (!bad) {
        *count = k;
        return RK_OK;
    }
    /* A lane may have met a later place first. */
    k = 0;
    bad = encode_plain(&t, text, end, width, ids, &k);
    return fail_byte(text, n, (size_t)(bad - text));
}
