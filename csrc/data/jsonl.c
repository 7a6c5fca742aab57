/* jsonl.c - JSON lines in blocks: whole lines, cut into pieces that are worked on at the same time.
 *
 * Nothing is allocated per line. Escapes are resolved where the text stands, and every piece writes its documents and
 * ids to places that follow from where it begins in the block: no text has more ids than bytes, its line is longer than
 * it, and the shortest line with a text has LEAST bytes. */
#include "data/jsonl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/file.h"
#include "base/parallel.h"

enum { LEAST = sizeof "{\"text\":\"\"}" }; /* with its line end, which only the last line may lack */

typedef struct Job {
    RkJsonl *r;
    const RkJsonlTask *task;
} Job;

int rk_jsonl_open(RkJsonl *r, size_t block_bytes) {
    *r = (RkJsonl){.room = block_bytes ? block_bytes : 1};
    r->buffer = malloc(r->room);
    return r->buffer ? RK_OK : rk_fail(RK_ENOMEM, "no memory for blocks of %zu bytes", block_bytes);
}

void rk_jsonl_free(RkJsonl *r) {
    free(r->buffer);
    free(r->document);
    free(r->ids);
    *r = (RkJsonl){0};
}

/* ---- blocks ---- */

int rk_jsonl_space(RkJsonl *r, uint8_t **p, size_t *n) {
    r->filled -= r->block;
    memmove(r->buffer, r->buffer + r->block, r->filled);
    r->block = 0;
    if (r->filled == r->room) {
        uint8_t *more = r->room <= SIZE_MAX / 2 ? realloc(r->buffer, r->room * 2) : NULL;
        if (!more) return rk_fail(RK_ENOMEM, "no memory for a line of more than %zu bytes", r->room);
        r->buffer = more;
        r->room *= 2;
    }
    *p = r->buffer + r->filled;
    *n = r->room - r->filled;
    return RK_OK;
}

void rk_jsonl_filled(RkJsonl *r, size_t n) {
    r->filled += n;
    if (!n) {
        r->at_end = 1;
        r->block = r->filled;
    } else if (r->filled == r->room) {
        const uint8_t *s = r->buffer + r->filled;
        while (s > r->buffer && s[-1] != '\n') s--;
        r->block = (size_t)(s - r->buffer);
    }
}

int rk_jsonl_ready(const RkJsonl *r) { return r->at_end || r->block; }

/* ---- pieces ---- */

static int fail_surrogate(const RkJsonText *text) {
    const uint8_t *s = text->p;
    size_t characters = 0;
    for (; s[0] != 0xed || s[1] < 0xa0; s++) characters += (*s & 0xc0) != 0x80;
    return rk_fail(RK_EFORMAT, "\\u%04x without its other half at character %zu of the text: surrogates not allowed",
                   0xd000u | (s[1] & 0x3fu) << 6 | (s[2] & 0x3fu), characters + 1);
}

/* One line's document and its ids; text.p stays NULL for a blank line. */
static int read_line(const RkJsonlTask *task, uint8_t *line, size_t n, RkJsonlDocument *d, void *ids) {
    RK_TRY(rk_json_text(line, n, &d->text));
    d->n_ids = 0;
    if (!task->encode || !d->text.p) return RK_OK;
    if (d->text.has_surrogates) return fail_surrogate(&d->text);
    RK_TRY(task->encode(task->tokenizer, d->text.p, d->text.n, task->width, ids, &d->n_ids));
    rk_ids_put(ids, d->n_ids++, task->width, 0);
    return RK_OK;
}

static void read_piece(void *ctx, size_t i) {
    const Job *job = ctx;
    RkJsonlPiece *p = &job->r->piece[i];
    uint8_t *line = job->r->buffer + p->begin, *end = job->r->buffer + p->end;
    for (uint8_t *next; line < end; line = next) {
        uint8_t *newline = memchr(line, '\n', (size_t)(end - line));
        next = newline ? newline + 1 : end;
        RkJsonlDocument d; /* not yet in its place, which is the next piece's where this line turns out to be none */
        char *ids = (char *)p->ids + p->n_ids * (size_t)job->task->width;
        const int is_bad = read_line(job->task, line, (size_t)(next - line), &d, ids);
        d.line = ++p->n_lines;
        if (!is_bad && d.text.p) {
            p->document[p->n_documents++] = d;
            p->n_ids += d.n_ids;
        } else if (is_bad && !p->n_bad++) {
            p->bad_line = p->n_lines;
            snprintf(p->reason, sizeof p->reason, "%s", rk_error());
        }
        if (is_bad && !job->task->skip_bad) return;
    }
}

static int make_room(void **p, size_t *room, size_t n, size_t each) {
    if (n <= *room / each) return RK_OK;
    free(*p);
    *room = 0;
    *p = n <= SIZE_MAX / each ? malloc(n * each) : NULL;
    if (!*p) return rk_fail(RK_ENOMEM, "no memory for %zu times %zu bytes", n, each);
    *room = n * each;
    return RK_OK;
}

/* The block as whole lines in pieces of about equal size: where it is cut depends on the bytes alone. */
static int cut_block(RkJsonl *r, int width) {
    void *document = r->document;
    const int rc = make_room(&document, &r->document_room, r->room / LEAST + 1, sizeof *r->document);
    r->document = document;
    RK_TRY(rc);
    RK_TRY(make_room(&r->ids, &r->ids_room, r->room + 1, (size_t)width));
    const size_t least = r->block / RK_JSONL_PIECES + 1;
    size_t begin = r->n_lines == 0 && r->block >= 3 && !memcmp(r->buffer, "\xef\xbb\xbf", 3) ? 3 : 0;
    r->n_pieces = 0;
    for (size_t end; begin < r->block; begin = end) {
        end = r->block;
        if (end - begin > least) {
            const uint8_t *newline = memchr(r->buffer + begin + least - 1, '\n', end - begin - least + 1);
            if (newline) end = (size_t)(newline + 1 - r->buffer);
        }
        r->piece[r->n_pieces++] = (RkJsonlPiece){.begin = begin,
                                                 .end = end,
                                                 .document = r->document + begin / LEAST,
                                                 .ids = (char *)r->ids + begin * (size_t)width};
    }
    return RK_OK;
}

int rk_jsonl_read(RkJsonl *r, const RkJsonlTask *task) {
    RK_TRY(cut_block(r, task->encode ? task->width : 1));
    Job job = {r, task};
    rk_parallel((size_t)r->n_pieces, read_piece, &job);
    r->n_bytes += r->block;
    for (int i = 0; i < r->n_pieces; i++) {
        const RkJsonlPiece *p = &r->piece[i];
        for (size_t k = 0; k < p->n_documents; k++) p->document[k].line += r->n_lines;
        if (p->n_bad && !r->n_bad) {
            r->bad_line = r->n_lines + p->bad_line;
            memcpy(r->reason, p->reason, sizeof r->reason);
        }
        r->n_bad += p->n_bad;
        if (p->n_bad && !task->skip_bad) return rk_fail(RK_EFORMAT, "%s", r->reason);
        r->n_lines += p->n_lines;
    }
    return RK_OK;
}

/* ---- writing ---- */

typedef struct Writing {
    const RkJsonl *r;
    int fd;
    size_t width;
    uint64_t at[RK_JSONL_PIECES]; /* where a piece's ids go */
    int failed[RK_JSONL_PIECES];
} Writing;

static void write_piece(void *ctx, size_t i) {
    Writing *w = ctx;
    const RkJsonlPiece *p = &w->r->piece[i];
    w->failed[i] = rk_file_write_at(w->fd, p->ids, p->n_ids * w->width, w->at[i]);
}

int rk_jsonl_write_ids(const RkJsonl *r, int width, int fd, uint64_t at) {
    Writing w = {.r = r, .fd = fd, .width = (size_t)width};
    for (int i = 0; i < r->n_pieces; i++) {
        w.at[i] = at;
        at += r->piece[i].n_ids * w.width;
    }
    rk_parallel((size_t)r->n_pieces, write_piece, &w);
    for (int i = 0; i < r->n_pieces; i++)
        if (w.failed[i]) return rk_fail(RK_EIO, "%s", strerror(w.failed[i]));
    return RK_OK;
}
