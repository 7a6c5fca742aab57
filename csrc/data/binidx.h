/* binidx.h - token data on disk: PREFIX.bin and PREFIX.idx, as RWKV-LM and Megatron write them.
 *
 * .bin: the tokens of all sequences, back to back, little-endian, no header.
 * .idx, little-endian, packed:
 *     0   9  "MMIDIDX\0\0"
 *     9   8  version, u64 = 1
 *     17  1  dtype code: 1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 8 u16 (6 and 7 are float64: no tokens)
 *     18  8  number of sequences n, u64
 *     26  8  number of document entries m, u64
 *     34     n x i32 tokens in each sequence
 *            n x i64 where each sequence starts in .bin, in bytes
 *            m x i64 documents: the sequence each begins with, and n at the end (0, 1, ..., n for one sequence each)
 *
 * Training reads the tokens as one stream and ignores where sequences begin. */
#ifndef RK_DATA_BINIDX_H
#define RK_DATA_BINIDX_H

#include <stddef.h>
#include <stdint.h>

#include "base/file.h"

enum { RK_BINIDX_HEADER = 34 };

/* Bytes per token of a dtype code, 0 for a code that holds no tokens. */
int rk_binidx_width(int code);

/* ---- reading ---- */

typedef struct RkBinIdx {
    RkFile idx, bin;
    char *name; /* PREFIX, for messages */
    int code, width;
    uint64_t n_items, n_docs, n_tokens;
    const uint8_t *sizes, *offsets, *docs; /* the arrays of .idx; not aligned */
} RkBinIdx;

/* Maps PREFIX.idx and PREFIX.bin. Everything in the index is checked here, so that nothing later can point outside. */
int rk_binidx_open(RkBinIdx *d, const char *prefix);
void rk_binidx_close(RkBinIdx *d);

/* The check by itself, over memory that the caller owns: d->idx and d->bin are given, d->name may be NULL. */
int rk_binidx_check(RkBinIdx *d);

int32_t rk_binidx_size(const RkBinIdx *d, uint64_t item);   /* tokens in a sequence */
uint64_t rk_binidx_start(const RkBinIdx *d, uint64_t item); /* its first token's place in the stream */
int64_t rk_binidx_document(const RkBinIdx *d, uint64_t i);  /* entry i of the document array */

/* Tokens start .. start + n - 1 of the stream as int32. RK_EFORMAT names the place of a token that is negative or not
 * below `vocab_size` (0: any int32 will do). */
int rk_binidx_read(const RkBinIdx *d, uint64_t start, size_t n, int32_t vocab_size, int32_t *out);

/* ---- writing (binidx_writer.c) ---- */

typedef struct RkBinWriter RkBinWriter;

/* Starts PREFIX.bin and PREFIX.idx under temporary names in their directory; memory use does not grow with the data. */
int rk_binidx_writer_open(RkBinWriter **w, const char *prefix, int code);

/* Appends a sequence of n tokens (width bytes each, as in .bin). */
int rk_binidx_writer_add(RkBinWriter *w, const void *tokens, size_t n);

typedef struct RkBinStock { /* tokenized documents in a file */
    int fd;
    const int64_t *start; /* (n + 1): document k is tokens start[k] to start[k + 1] - 1 */
    size_t n;
} RkBinStock;

/* Appends, for each k of order[0 .. n), document k of the stock as a document of one sequence; on all threads. */
int rk_binidx_writer_copy(RkBinWriter *w, const RkBinStock *stock, const int64_t *order, size_t n);

/* Ends the document begun after the last one; it may be empty. */
int rk_binidx_writer_end_document(RkBinWriter *w);

/* Writes both files to the disk and gives them their names, .bin first. After an error, or instead, call _close. */
int rk_binidx_writer_finish(RkBinWriter *w);

/* The first half of _finish: both files are complete, on the disk, under temporary names (which the writer owns). _release
 * then leaves them to the caller; nothing may follow but _close. */
int rk_binidx_writer_seal(RkBinWriter *w, const char **bin, const char **idx);
void rk_binidx_writer_release(RkBinWriter *w);

/* Frees the writer; without a successful finish the temporary files are removed and existing files stay as they were. */
void rk_binidx_writer_close(RkBinWriter *w);

#endif
