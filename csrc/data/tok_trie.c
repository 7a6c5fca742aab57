/* tok_trie.c - builds the double-array trie that tok_encode.c walks.
 *
 * The trie lives in one array of 8-byte nodes. A node's children stand at base + byte; each node carries its label, the
 * byte that leads to it, and no two nodes share a base. So slot base + c is the child by c exactly when its label is c,
 * and a step of the walk reads one node and nothing else. Base 0 is for nodes without children: slot c would need label c
 * and base 0, which no child has. Free slots, the root and pairs carry labels no byte equals.
 *
 * Each node also knows the longest token on the path to it and how many bytes before the node that token ended, so the
 * walk only has to remember where it stopped. Most tokens are two to five bytes; a table of all byte pairs, the first
 * part of the same array, gives the node two steps down at once.
 *
 * Construction: tokens sorted by bytes, nodes placed breadth first (the levels every walk passes through end up
 * together), each node's children at the first base where all of them find free slots. Free slots form a list inside the
 * node array: `best` is the next one, the bits above the label the one before. */
#include "data/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/err.h"

#define LABEL_BITS RK_TRIE_LABEL_BITS
#define LABEL_MASK RK_TRIE_LABEL_MASK
#define N_PAIRS RK_TRIE_PAIRS

enum { LABEL_FREE = 256, LABEL_ROOT, LABEL_PAIR };
enum { MAX_NODES = (1 << 23) - N_PAIRS, MAX_TRIES = 100 };

/* What a node knows of the longest token on its path: its id and how many bytes ago it ended. */
static uint32_t best_at(int32_t id, uint32_t back) {
    return (uint32_t)id << RK_TRIE_BACK_BITS | (back < RK_TRIE_BACK_FAR ? back : RK_TRIE_BACK_FAR);
}

/* ---- construction ---- */

typedef struct Key { /* a token to place */
    uint64_t head;   /* its first 8 bytes, big-endian, zero filled: decides most comparisons */
    const uint8_t *p;
    int32_t length, id;
    size_t number;
} Key;

typedef struct Range { /* a node whose children are still to be placed */
    uint32_t node;
    uint32_t lo, hi; /* its tokens: keys lo to hi - 1, which agree in the first `depth` bytes */
    uint32_t depth;
    uint32_t matched; /* length of the longest token on its path, 0 if none */
    int32_t token;    /* that token */
} Range;

typedef struct Builder {
    RkTrie *t;
    Key *key;
    Range *queue;
    uint8_t *taken; /* (n_nodes): this base is in use */
    size_t n_keys, head, tail, queue_room;
    uint32_t last_free, highest; /* end of the list of free slots; last slot in use */
    uint32_t cursor[2];          /* where to look for room for one child, for several */
} Builder;

static int compare_keys(const void *pa, const void *pb) {
    const Key *a = pa, *b = pb;
    if (a->head != b->head) return a->head < b->head ? -1 : 1;
    int32_t shorter = a->length < b->length ? a->length : b->length;
    int c = memcmp(a->p, b->p, (size_t)shorter);
    if (c) return c;
    if (a->length != b->length) return a->length < b->length ? -1 : 1;
    return a->number < b->number ? -1 : a->number > b->number;
}

/* All tokens but an empty one, sorted; of equal byte strings only the one on the later line. */
static int sort_keys(Builder *b, const RkVocab *v) {
    b->key = malloc((v->n_lines + 1) * sizeof *b->key);
    if (!b->key) return rk_fail(RK_ENOMEM, "no memory for a vocabulary of %zu tokens", v->n_lines);
    size_t n = 0;
    for (size_t i = 0; i < v->n_lines; i++) {
        const RkVocabLine *l = &v->line[i];
        const uint8_t *p = v->text + l->start;
        uint64_t head = 0;
        for (int k = 0; k < 8; k++) head = head << 8 | (k < l->length ? p[k] : 0);
        if (l->length) b->key[n++] = (Key){head, p, l->length, l->id, l->number};
    }
    qsort(b->key, n, sizeof *b->key, compare_keys);
    for (size_t i = 0; i < n; i++) {
        const Key *k = &b->key[i], *next = k + 1;
        if (i + 1 < n && k->length == next->length && !memcmp(k->p, next->p, (size_t)k->length)) continue;
        b->key[b->n_keys++] = *k;
    }
    return RK_OK;
}

static int grow_nodes(Builder *b, uint32_t room) {
    RkTrie *t = b->t;
    if (room > MAX_NODES)
        return rk_fail(RK_EFORMAT, "the vocabulary needs more than %d trie nodes: fewer or shorter tokens", MAX_NODES);
    uint32_t n = t->n_nodes;
    while (n < room) n *= 2;
    RkTrieNode *node = realloc(t->node, n * sizeof *node);
    if (node) t->node = node;
    uint8_t *taken = realloc(b->taken, n);
    if (taken) b->taken = taken;
    if (!node || !taken) return rk_fail(RK_ENOMEM, "no memory for a trie of %u nodes", n);
    memset(taken + t->n_nodes, 0, n - t->n_nodes);
    for (uint32_t i = t->n_nodes; i < n; i++) {
        node[i].link = b->last_free << LABEL_BITS | LABEL_FREE;
        node[i].best = 0;
        node[b->last_free].best = i;
        b->last_free = i;
    }
    t->n_nodes = n;
    return RK_OK;
}

static int is_free(const Builder *b, uint32_t slot) { return (b->t->node[slot].link & LABEL_MASK) == LABEL_FREE; }

/* Takes a slot out of the list of free ones. The last one is never taken: bases stay 256 below the end. */
static void take_slot(Builder *b, uint32_t slot, uint32_t label) {
    RkTrieNode *node = b->t->node;
    uint32_t before = node[slot].link >> LABEL_BITS, next = node[slot].best;
    node[before].best = next;
    node[next].link = before << LABEL_BITS | LABEL_FREE;
    for (int i = 0; i < 2; i++)
        if (b->cursor[i] == slot) b->cursor[i] = next;
    node[slot].link = label;
    if (slot > b->highest) b->highest = slot;
}

/* The first base from the cursor on where all n labels (ascending) find free slots. */
static int find_base(Builder *b, const uint8_t *label, int n, uint32_t *base) {
    uint32_t *cursor = &b->cursor[n > 1], slot = *cursor;
    for (int tries = 0;; tries++, slot = b->t->node[slot].best) {
        if (slot + 257 > b->t->n_nodes) RK_TRY(grow_nodes(b, slot + 257));
        uint32_t candidate = slot - label[0];
        if (b->taken[candidate]) continue;
        int i = 1;
        while (i < n && is_free(b, candidate + label[i])) i++;
        if (i < n) continue;
        /* What so many nodes did not fit into is not worth trying again: that would be quadratic. */
        if (tries > MAX_TRIES) *cursor = slot;
        b->taken[candidate] = 1;
        *base = candidate;
        return RK_OK;
    }
}

static int push(Builder *b, Range r) {
    if (b->tail == b->queue_room) {
        size_t room = b->queue_room ? b->queue_room * 2 : 4096;
        Range *queue = realloc(b->queue, room * sizeof *queue);
        if (!queue) return rk_fail(RK_ENOMEM, "no memory for a trie of %zu nodes", room);
        b->queue = queue;
        b->queue_room = room;
    }
    b->queue[b->tail++] = r;
    return RK_OK;
}

/* Gives a node its token and its children. */
static int place(Builder *b, Range r) {
    if (b->key[r.lo].length == (int32_t)r.depth) {
        r.token = b->key[r.lo++].id;
        r.matched = r.depth;
    }
    b->t->node[r.node].best = r.matched ? best_at(r.token, r.depth - r.matched) : RK_TRIE_NONE;
    if (r.lo == r.hi) return RK_OK;
    uint8_t label[256];
    uint32_t from[257], base;
    int n = 0;
    for (uint32_t i = r.lo; i < r.hi; i++) {
        uint8_t c = b->key[i].p[r.depth];
        if (n && label[n - 1] == c) continue;
        label[n] = c;
        from[n++] = i;
    }
    from[n] = r.hi;
    RK_TRY(find_base(b, label, n, &base));
    b->t->node[r.node].link |= base << LABEL_BITS;
    for (int i = 0; i < n; i++) {
        uint32_t slot = base + label[i];
        take_slot(b, slot, label[i]);
        RK_TRY(push(b, (Range){slot, from[i], from[i + 1], r.depth + 1, r.matched, r.token}));
    }
    return RK_OK;
}

/* Moves the nodes behind the table of pairs. Bases move along, but for 0: slot 0 + c is then a pair, which has no child's
 * label. */
static int append_nodes_to_pairs(Builder *b) {
    RkTrie *t = b->t;
    const uint32_t n = b->highest + 257;
    RkTrieNode *all = malloc((N_PAIRS + (size_t)n) * sizeof *all);
    if (!all) return rk_fail(RK_ENOMEM, "no memory for a trie of %u nodes", n);
    for (uint32_t i = 0; i < n; i++) {
        RkTrieNode node = t->node[i];
        if (node.link >> LABEL_BITS && (node.link & LABEL_MASK) != LABEL_FREE) node.link += (uint32_t)N_PAIRS << LABEL_BITS;
        all[N_PAIRS + i] = node;
    }
    free(t->node);
    t->node = all;
    t->n_nodes = N_PAIRS + n;
    return RK_OK;
}

/* Pairs that begin no token of two or more bytes get a node of their own: the first byte's token, one byte back. */
static void fill_pairs(RkTrie *t) {
    const RkTrieNode *root = &t->node[N_PAIRS];
    for (uint32_t pair = 0; pair < N_PAIRS; pair++) t->node[pair].link = LABEL_PAIR; /* nobody's child while they are filled */
    for (uint32_t first = 0; first < 256; first++) {
        const RkTrieNode *one = rk_trie_child(t, root, first);
        for (uint32_t second = 0; second < 256; second++) {
            const RkTrieNode *two = one ? rk_trie_child(t, one, second) : NULL;
            RkTrieNode pair = {0, one && one->best != RK_TRIE_NONE ? one->best + 1 : RK_TRIE_NONE};
            if (two) pair = *two;
            pair.link = (pair.link & ~(uint32_t)LABEL_MASK) | LABEL_PAIR;
            t->node[first | second << 8] = pair;
        }
    }
}

static void fill_joined(const Builder *b) {
    for (size_t i = 0; i < b->n_keys; i++) {
        const Key *k = &b->key[i];
        for (int32_t at = 0; at + 1 < k->length; at++) {
            const uint32_t pair = k->p[at] | (uint32_t)k->p[at + 1] << 8;
            b->t->joined[pair >> 3] |= (uint8_t)(1 << (pair & 7));
        }
    }
}

static int build(Builder *b, const RkVocab *v) {
    RkTrie *t = b->t;
    RK_TRY(sort_keys(b, v));
    t->node = malloc(sizeof *t->node);
    t->joined = calloc(N_PAIRS / 8, 1);
    b->taken = calloc(1, 1);
    if (!t->node || !t->joined || !b->taken) return rk_fail(RK_ENOMEM, "no memory for a trie");
    t->node[0] = (RkTrieNode){LABEL_ROOT, RK_TRIE_NONE};
    t->n_nodes = 1;
    RK_TRY(grow_nodes(b, 4096));
    b->cursor[0] = b->cursor[1] = 257; /* beyond any label, so that every base is at least 1 */
    if (b->n_keys) RK_TRY(push(b, (Range){.hi = (uint32_t)b->n_keys}));
    while (b->head < b->tail) RK_TRY(place(b, b->queue[b->head++]));
    t->node[0].best = RK_TRIE_NONE; /* the free list began here */
    RK_TRY(append_nodes_to_pairs(b));
    fill_pairs(t);
    fill_joined(b);
    return RK_OK;
}

int rk_trie_build(RkTrie *t, const RkVocab *v) {
    *t = (RkTrie){0};
    Builder b = {.t = t};
    int rc = build(&b, v);
    free(b.key);
    free(b.queue);
    free(b.taken);
    if (rc) rk_trie_free(t);
    return rc;
}

void rk_trie_free(RkTrie *t) {
    free(t->node);
    free(t->joined);
    *t = (RkTrie){0};
}
