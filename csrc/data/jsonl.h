/* jsonl.h - JSON lines to texts and token ids.
 *
 * A file holds one object per line with a string called "text": {"text": "..."}. Other members are allowed and ignored;
 * of two members called "text" the last one counts. Lines end with \n; white space at both ends of a line (ASCII, so \r
 * too) does not count, blank lines are skipped, and a byte order mark may begin the file.
 *
 * What is JSON is RFC 8259 in UTF-8 as Python's json.loads reads it: NaN, Infinity and -Infinity are values, and an
 * escape may name a lone surrogate. Integers have at most 4300 digits and values nest at most 1000 deep. */
#ifndef RK_DATA_JSONL_H
#define RK_DATA_JSONL_H

#include <stddef.h>
#include <stdint.h>

#include "data/tokenizer.h"

/* ---- json_text.c: one line ---- */

typedef struct RkJsonText {
    uint8_t *p; /* inside the line; NULL: the line is blank */
    size_t n;
    int has_surrogates; /* lone ones, three bytes each: the text is not UTF-8 */
} RkJsonText;

/* Finds the text of the line [line, line + n) and resolves its escapes in place: it never gets longer. RK_EFORMAT with
 * the reason, where the line is not such an object; the line is then as before. */
int rk_json_text(uint8_t *line, size_t n, RkJsonText *text);

/* ---- jsonl.c: a stream of lines, block by block ---- */

enum { RK_JSONL_PIECES = 32, RK_JSONL_REASON = 512 };

typedef struct RkJsonlDocument {
    uint64_t line; /* in the file, from 1 */
    RkJsonText text;
    size_t n_ids; /* with the 0 at the end; 0 when nothing was encoded */
} RkJsonlDocument;

typedef struct RkJsonlPiece { /* whole lines that one task works on */
    size_t begin, end;        /* in the block */
    uint64_t n_lines;
    size_t n_documents, n_ids, n_bad;
    RkJsonlDocument *document; /* (n_documents) */
    void *ids;                 /* (n_ids) */
    uint64_t bad_line;         /* the first bad line, counted in the piece, and what is wrong with it */
    char reason[RK_JSONL_REASON];
} RkJsonlPiece;

typedef struct RkJsonl {
    uint8_t *buffer; /* (room): a block of whole lines, then the beginning of the next line */
    size_t room, filled, block;
    int at_end;                /* of the file */
    RkJsonlDocument *document; /* room for those of a block */
    void *ids;                 /* room for those of a block */
    size_t document_room, ids_room; /* bytes */
    uint64_t n_lines, n_bytes; /* in the blocks before this one, and in this one once it is read */
    uint64_t n_bad, bad_line;  /* bad lines so far, the first of them, and what is wrong with it */
    char reason[RK_JSONL_REASON];
    int n_pieces;
    RkJsonlPiece piece[RK_JSONL_PIECES];
} RkJsonl;

typedef struct RkJsonlTask {
    RkEncodeFn encode; /* NULL: only find the texts */
    const void *tokenizer;
    int width;    /* bytes per id */
    int skip_bad; /* leave bad lines out and count them; otherwise the first one is an error */
} RkJsonlTask;

/* Blocks of about `block_bytes`, at least 1; a longer line makes a longer block. Free it in any case. */
int rk_jsonl_open(RkJsonl *r, size_t block_bytes);
void rk_jsonl_free(RkJsonl *r);

/* Where the next bytes of the file go (*n > 0 of them at most), and then how many came, 0 at its end. Call both until
 * rk_jsonl_ready; asking for space drops the block before. */
int rk_jsonl_space(RkJsonl *r, uint8_t **p, size_t *n);
void rk_jsonl_filled(RkJsonl *r, size_t n);
int rk_jsonl_ready(const RkJsonl *r);

/* Reads the block: r->piece then has its documents in their order, valid until the next call for space. At the end of
 * the file there are no pieces. RK_EFORMAT: a line is bad, r->bad_line says which and r->reason why. */
int rk_jsonl_read(RkJsonl *r, const RkJsonlTask *task);

/* Writes the ids of the block that was read to the file fd from byte `at` on, on all threads. RK_EIO with the reason. */
int rk_jsonl_write_ids(const RkJsonl *r, int width, int fd, uint64_t at);

#endif
