/* Tokenizers, token files and the sampler, below Python. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "data/binidx.h"
#include "data/jsonl.h"
#include "data/sampler.h"
#include "data/tokenizer.h"
#include "test.h"

static int message_has(const char *part) { return strstr(rk_error(), part) != NULL; }

/* ---- literals ---- */

static int literal_is(const char *literal, const char *token, size_t n) {
    uint8_t out[64];
    size_t bytes;
    return !rk_literal_parse(literal, strlen(literal), out, &bytes) && bytes == n && !memcmp(out, token, n);
}

static void test_literals(void) {
    uint8_t out[64];
    size_t bytes;
    CHECK(literal_is("'a'", "a", 1));
    CHECK(literal_is("\"it's\"", "it's", 4));
    CHECK(literal_is("b'\\xff\\0\\12'", "\xff\0\n", 3));
    CHECK(literal_is("'\\xff\\u20ac\\U0001f642'", "\xc3\xbf\xe2\x82\xac\xf0\x9f\x99\x82", 9));
    CHECK(literal_is("'\\\\\\'\\\"\\a\\b\\f\\n\\r\\t\\v\\q'", "\\'\"\a\b\f\n\r\t\v\\q", 12));
    CHECK(literal_is("''", "", 0));
    const char *bad[] = {"",     "'",      "b",        "b'",       "a",      "'a\"",        "'''",
                         "'\\'", "'\\x1'", "'\\u123'", "b'\\400'", "'\xff'", "b'\xc3\xa9'", "'\n'"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(rk_literal_parse(bad[i], strlen(bad[i]), out, &bytes) != NULL);
}

/* ---- vocabularies ---- */

static void test_vocab(void) {
    const char src[] = "# words\n0 '' 0\n1 'ab' 2\n\n2 'a' 1\r\n7 b'\\xff' 1\n3 'abcde' 5\n4 'c' 1";
    RkVocab v;
    RkTrie t;
    uint16_t ids[16];
    uint8_t back[16];
    size_t n = 0;
    if (!CHECK(!rk_vocab_parse(&v, src, sizeof src - 1, "src")) || !CHECK(!rk_trie_build(&t, &v))) return;
    CHECK(v.n_ids == 8 && v.n_lines == 6 && v.of_id[5] == -1 && v.line[v.of_id[7]].number == 6);
    CHECK(!rk_trie_encode(&t, (const uint8_t *)"abcabcdea\xff", 10, 2, ids, &n));
    const uint16_t expected[] = {1, 4, 3, 2, 7};
    CHECK(n == 5 && !memcmp(ids, expected, sizeof expected));
    CHECK(rk_vocab_decoded_bytes(&v, (RkIds){ids, n, 2}) == 10);
    rk_vocab_decode(&v, (RkIds){ids, n, 2}, back, 10);
    CHECK(!memcmp(back, "abcabcdea\xff", 10));
    const int64_t unknown[] = {-1, 5, 8, INT64_MAX, INT64_MIN, 2, 0};
    CHECK(rk_vocab_decoded_bytes(&v, (RkIds){unknown, 7, 8}) == 1);
    CHECK(rk_trie_encode(&t, (const uint8_t *)"abd", 3, 2, ids, &n) == RK_EINVAL &&
          message_has("position 2: unknown token starting with b'd'"));
    rk_trie_free(&t);
    rk_vocab_free(&v);
    CHECK(rk_vocab_parse(&v, "1 'a' 1\n1 'b' 1", 15, "src") == RK_EFORMAT &&
          message_has("src:2: id 1 stands already on line 1"));
    CHECK(rk_vocab_load(&v, "/nowhere/vocab.txt") == RK_EIO && message_has("/nowhere/vocab.txt"));
}

/* A trie of many nodes with few holes: every combination of three letters of 40, and the bytes themselves. */
static void test_large_trie(void) {
    enum { LETTERS = 40, TOKENS = LETTERS * LETTERS * LETTERS };
    char *src = malloc((TOKENS + 256) * 40), *s = src;
    for (int i = 0; i < TOKENS; i++)
        s += sprintf(s, "%d b'\\x%02x\\x%02x\\x%02x' 3\n", i + 257, 6 * (i / LETTERS / LETTERS),
                     6 * (i / LETTERS % LETTERS), 6 * (i % LETTERS));
    for (int i = 0; i < 256; i++) s += sprintf(s, "%d b'\\x%02x' 1\n", i + 1, i);
    RkVocab v;
    RkTrie t;
    if (!CHECK(!rk_vocab_parse(&v, src, (size_t)(s - src), "src")) || !CHECK(!rk_trie_build(&t, &v))) return;
    int wrong = 0;
    for (int i = 0; i < TOKENS; i++) {
        const uint8_t text[4] = {(uint8_t)(6 * (i / LETTERS / LETTERS)), (uint8_t)(6 * (i / LETTERS % LETTERS)),
                                 (uint8_t)(6 * (i % LETTERS)), 255};
        int32_t ids[4];
        size_t n;
        wrong += rk_trie_encode(&t, text, 4, 4, ids, &n) || n != 2 || ids[0] != i + 257 || ids[1] != 256;
    }
    CHECK(wrong == 0);
    CHECK(t.n_nodes - RK_TRIE_PAIRS < 2 * (TOKENS + LETTERS * LETTERS + 256));
    rk_trie_free(&t);
    rk_vocab_free(&v);
    free(src);
}

static void test_integers(void) {
    const RkIntegers t = {359, "Angle"};
    uint16_t ids[16];
    char text[64];
    size_t n, bytes;
    CHECK(!rk_integers_encode(&t, (const uint8_t *)" 0 359\t+7\n", 10, 2, ids, &n));
    CHECK(n == 3 && ids[0] == 1 && ids[1] == 360 && ids[2] == 8);
    CHECK(!rk_integers_decode(&t, (RkIds){ids, n, 2}, text, &bytes) && bytes == 7 && !memcmp(text, "0 359 7", 7));
    CHECK(rk_integers_encode(&t, (const uint8_t *)"1 360", 5, 2, ids, &n) == RK_EINVAL &&
          message_has("Angle must be in [0, 359], got 360 (at position 2)"));
    CHECK(rk_integers_encode(&t, (const uint8_t *)"1 3x", 4, 2, ids, &n) == RK_EINVAL &&
          message_has("position 2: '3x'"));
    const int32_t bad[] = {1, 361};
    CHECK(rk_integers_decode(&t, (RkIds){bad, 2, 4}, text, &bytes) == RK_EINVAL && message_has("361"));
}

/* ---- token files ---- */

static void write_example(const char *prefix) {
    RkBinWriter *w;
    const uint16_t first[] = {2, 3, 4, 0}, second[] = {1, 0};
    if (!CHECK(!rk_binidx_writer_open(&w, prefix, 8))) return;
    CHECK(!rk_binidx_writer_add(w, first, 4) && !rk_binidx_writer_end_document(w));
    CHECK(!rk_binidx_writer_add(w, second, 2) && !rk_binidx_writer_end_document(w));
    CHECK(!rk_binidx_writer_finish(w));
    rk_binidx_writer_close(w);
}

static void test_token_files(const char *folder) {
    char prefix[256], path[300];
    RkBinIdx d;
    RkBinWriter *w;
    int32_t tokens[6];
    snprintf(prefix, sizeof prefix, "%s/data", folder);
    write_example(prefix);
    if (!CHECK(!rk_binidx_open(&d, prefix))) return;
    static const uint8_t header[] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', 0, 0, 1, 0, 0, 0, 0,
                                     0,   0,   0,   8,   2,   0,   0,   0, 0, 0, 0, 0, 3};
    CHECK(d.idx.bytes == 82 && !memcmp(d.idx.p, header, sizeof header));
    CHECK(d.n_items == 2 && d.n_docs == 3 && d.n_tokens == 6 && d.code == 8);
    CHECK(rk_binidx_start(&d, 1) == 4 && rk_binidx_size(&d, 1) == 2 && rk_binidx_document(&d, 2) == 2);
    CHECK(!rk_binidx_read(&d, 1, 5, 5, tokens) && tokens[0] == 3 && tokens[4] == 0);
    CHECK(rk_binidx_read(&d, 0, 6, 4, tokens) == RK_EFORMAT && message_has("token 4 at position 2"));
    CHECK(rk_binidx_read(&d, 2, 5, 0, tokens) == RK_EINVAL && rk_binidx_read(&d, 7, 0, 0, tokens) == RK_EINVAL);
    CHECK(rk_binidx_read(&d, UINT64_MAX, 2, 0, tokens) == RK_EINVAL);
    rk_binidx_close(&d);

    CHECK(!rk_binidx_writer_open(&w, prefix, 8) && !rk_binidx_writer_add(w, header, 3));
    rk_binidx_writer_close(w);
    CHECK(!rk_binidx_open(&d, prefix) && d.n_items == 2); /* as before the writer that did not finish */
    rk_binidx_close(&d);
    CHECK(rk_binidx_writer_open(&w, prefix, 6) == RK_EINVAL);
    CHECK(rk_binidx_writer_open(&w, "/nowhere/data", 8) == RK_EIO && message_has("/nowhere/data.bin"));
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s%s", prefix, i ? ".idx" : ".bin");
        CHECK(!unlink(path));
    }
    CHECK(rk_binidx_open(&d, prefix) == RK_EIO && message_has("data.idx"));
}

/* ---- the sampler ---- */

static void test_sampler(void) {
    RkSampler s;
    static const int slot[] = {1853, 2828, 2047, 1631, 702, 1381, 2790, 1052};
    CHECK(rk_magic_prime(3075000, 1024) == 2999 && rk_magic_prime(332115325534, 4096) == 81082817);
    CHECK(rk_magic_prime(3, 1) == 2 && rk_magic_prime(2, 1) == 0 && rk_magic_prime(100, 0) == 0);
    CHECK(!rk_sampler_init(&s, 3075000, 1024, 0, 1, 0) && s.prime == 2999 && s.factor == 1853);
    for (uint64_t i = 0; i < 8; i++) CHECK(rk_sampler_offset(&s, 0, i) == (uint64_t)slot[i] * 1024);
    /* A mini-epoch on is the same as 40320 samples on; the largest counts do not overflow. */
    CHECK(rk_sampler_offset(&s, 3, 5) == rk_sampler_offset(&s, 0, 5 + 3 * 40320));
    CHECK(rk_sampler_offset(&s, UINT64_MAX, UINT64_MAX) < 2999 * 1024);
    CHECK(rk_sampler_init(&s, 1010, 10, 101, 1, 0) == RK_EINVAL && message_has("at most 100"));
    CHECK(rk_sampler_init(&s, 1011, 10, 101, 1, 0) == RK_OK);
    CHECK(rk_sampler_init(&s, 0, 10, 5, 1, 0) == RK_EINVAL && rk_sampler_init(&s, 1000, 10, 0, 2, 2) == RK_EINVAL);
    CHECK(rk_is_prime(18446744073709551557u) && !rk_is_prime(18446744073709551556u) &&
          !rk_is_prime(3825123056546413051));
    int primes = 0;
    for (uint64_t n = 0; n < 10000; n++) primes += rk_is_prime(n);
    CHECK(primes == 1229);
}

/* ---- JSON lines ---- */

static int json_text_is(const char *source, const char *expected) {
    char line[200];
    RkJsonText text;
    snprintf(line, sizeof line, "%s", source);
    return !rk_json_text((uint8_t *)line, strlen(line), &text) && text.p && text.n == strlen(expected) &&
           !memcmp(text.p, expected, text.n);
}

static int json_refuses(const char *source, const char *reason) {
    char line[200];
    RkJsonText text;
    snprintf(line, sizeof line, "%s", source);
    return rk_json_text((uint8_t *)line, strlen(line), &text) == RK_EFORMAT && message_has(reason) &&
           !strcmp(line, source);
}

static void test_json_text(void) {
    CHECK(json_text_is("{\"text\": \"a\"}", "a") && json_text_is(" {\"text\":\"\"}\r\n", ""));
    CHECK(json_text_is("{\"text\": \"\\n\\u00e9\\ud83d\\ude00/\\/\"}", "\n\u00e9\U0001f600//"));
    CHECK(json_text_is("{\"te\\u0078t\": \"a\", \"x\": [{\"text\": \"b\"}, null]}", "a"));
    CHECK(json_text_is("{\"text\": \"a\", \"text\": \"b\"}", "b"));
    CHECK(json_refuses("{\"text\": \"a\", \"text\": 1}", "expected an object") &&
          json_refuses("[{\"text\": 1}, \"b\"]", "expected an object"));
    CHECK(json_refuses("{\"text\": \"\\n\", }",
                       "not JSON: Expecting property name enclosed in double quotes at character 16"));
    CHECK(json_refuses("{\"\u65e5\": 1 2}", "not JSON: Expecting ',' delimiter at character 9"));
    CHECK(json_refuses("{\"text\": \"\xe6\x97\"}", "not UTF-8: invalid continuation byte at byte 11"));
    RkJsonText text;
    uint8_t blank[] = " \t\r\n";
    CHECK(!rk_json_text(blank, 4, &text) && !text.p && !rk_json_text(blank, 0, &text) && !text.p);
}

/* Lines from memory, a few bytes at a time. */
static int read_lines(RkJsonl *r, const char *s, const RkJsonlTask *task) {
    size_t left = strlen(s);
    do {
        do {
            uint8_t *p;
            size_t n;
            RK_TRY(rk_jsonl_space(r, &p, &n));
            if (n > 7) n = 7;
            if (n > left) n = left;
            memcpy(p, s, n);
            s += n;
            left -= n;
            rk_jsonl_filled(r, n);
        } while (!rk_jsonl_ready(r));
        RK_TRY(rk_jsonl_read(r, task));
    } while (r->n_pieces && !r->at_end);
    return RK_OK;
}

static void test_jsonl(void) {
    const RkIntegers integers = {359, "Value"};
    const char *lines = "{\"text\": \"1 2\"}\n\n{\"text\": \"360\"}\n{\n{\"text\": \"3\"}";
    RkJsonlTask task = {rk_integers_encode, &integers, 2, 0};
    RkJsonl r;
    CHECK(!rk_jsonl_open(&r, 20) && read_lines(&r, lines, &task) == RK_EFORMAT && r.bad_line == 3);
    CHECK(message_has("Value must be in [0, 359], got 360") && !strcmp(r.reason, rk_error()));
    rk_jsonl_free(&r);
    task.skip_bad = 1;
    CHECK(!rk_jsonl_open(&r, 1000) && !read_lines(&r, lines, &task) && r.n_bad == 2 && r.bad_line == 3);
    CHECK(r.n_lines == 5 && r.n_bytes == strlen(lines));
    size_t documents = 0, ids = 0;
    for (int i = 0; i < r.n_pieces; i++) {
        documents += r.piece[i].n_documents;
        ids += r.piece[i].n_ids;
    }
    const RkJsonlPiece *last = &r.piece[r.n_pieces - 1];
    const uint16_t *token = last->ids;
    CHECK(documents == 2 && ids == 5 && last->document[last->n_documents - 1].line == 5);
    CHECK(token[last->n_ids - 2] == 4 && token[last->n_ids - 1] == 0);
    rk_jsonl_free(&r);
}

int main(void) {
    char folder[] = P_tmpdir "/rwkvtune-test-XXXXXX";
    test_literals();
    test_vocab();
    test_large_trie();
    test_integers();
    test_json_text();
    test_jsonl();
    if (CHECK(mkdtemp(folder) != NULL)) {
        test_token_files(folder);
        CHECK(!rmdir(folder)); /* nothing was left behind */
    }
    test_sampler();
    return test_summary();
}
