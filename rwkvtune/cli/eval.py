"""rwkvtune eval: how well a model predicts a text.

The input is one stream of tokens after an end-of-document token, read and scored piece by piece with the state carried
along, so that memory does not depend on its size.  Lines of JSONL give the stream `rwkvtune prepare --no_shuffle` would.
"""

import codecs
import json
import math
import os
import sys

from . import run_command
from .common import load_model, model_options, open_data

SUMMARY = "Measure loss, perplexity and bits per byte of a model on a text, JSONL or bin/idx data."
_READ = 1 << 20  # bytes of text at a time
_CHUNK = 1024  # tokens at a time, as in `rwkvtune.evaluate`


def add_arguments(parser):
    model_options(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--text", default="", help='UTF-8 text file; with the ending .jsonl, lines {"text": "..."}')
    source.add_argument("--data_file", default="", help="bin/idx data instead: the path without .bin and .idx")
    parser.add_argument("--ctx_len", type=int, default=0, help="begin with an empty state every so many tokens, as training does; 0 = never")
    parser.add_argument("--max_tokens", type=int, default=0, help="stop after so many tokens, 0 = all")


def text_ids(path, tokenizer, advance):
    """The ids of a text file, a list at a time; together those of the whole text at once.

    The greedy choice of a token looks no further than the longest token reaches, so what lies that far before the
    end of what has been read is final.  advance: called with the number of bytes read.  Raises ValueError, OSError.
    """
    longest = max((len(tokenizer.decodeBytes([token])) for token in range(tokenizer.vocab_size)), default=1)
    rest, done = b"", False
    with open(path, "rb") as file:
        while not done:
            at, data = file.tell(), file.read(max(_READ, 4 * longest)) + file.readline()
            advance(len(data))
            done = not data
            if not at and data.startswith(codecs.BOM_UTF8):  # no more part of the text than in training data
                data = data[len(codecs.BOM_UTF8) :]
            try:
                data.decode("utf-8")
                ids = tokenizer.encodeBytes(rest + data)
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not UTF-8 text (byte {at + error.start + 1:,})") from None
            except ValueError as error:
                raise ValueError(f"{path}, counted from byte {at - len(rest):,}: {error}") from error
            rest = b""
            while ids and not done and len(rest) < longest:
                rest = tokenizer.decodeBytes([ids.pop()]) + rest
            yield ids


def word_ids(path, tokenizer, advance):
    """As `text_ids`, for a tokenizer of numbers: a line at a time."""
    for number, line in _lines(path, advance):
        try:
            yield tokenizer.encode(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error


def jsonl_ids(path, tokenizer, advance):
    """The ids of each line's "text", followed by the end-of-document token 0.  Raises ValueError with the line."""
    for number, line in _lines(path, advance):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
            yield [*tokenizer.encode(text), 0]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f'{path}:{number}: expected an object with a "text": {error}') from error


def _lines(path, advance):
    """(number, line) of a UTF-8 file."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            advance(len(line))
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8 text (byte {error.start + 1} of the line)") from None


def data_ids(dataset, advance):
    """The ids of bin/idx data, a piece at a time."""
    for at in range(0, dataset.total_tokens, _CHUNK):
        ids = dataset.stream(at, min(_CHUNK, dataset.total_tokens - at))
        advance(len(ids))
        yield ids.tolist()


def chunks(pieces, size, most):
    """The ids of all pieces again, in lists of `size` (the last is shorter); at most `most` ids, 0 = all."""
    waiting, left = [], most or math.inf
    for piece in pieces:
        waiting += piece if len(piece) <= left else piece[: int(left)]
        left -= len(piece)
        whole = len(waiting) // size * size
        yield from (waiting[at : at + size] for at in range(0, whole, size))
        waiting = waiting[whole:]
        if left <= 0:
            break
    if waiting:
        yield waiting


def score(model, parts, size_of, carried):
    """(sum of the losses in nats, tokens, sum of size_of(part)) over all parts, lists of ids.

    carried: the state goes on from part to part; otherwise each begins empty.  Raises ValueError where there is nothing.
    """
    import numpy as np

    from ..arrays import ids_and_targets

    total, count, size, last, state = 0.0, 0, 0, 0, None
    for part in parts:
        x, y = ids_and_targets(np.array([last, *part[:-1]]), np.array(part), model.config.vocab_size)
        loss, n, state = model._core.loss(x, y, state if carried else None)
        total, count, size, last = total + loss, count + n, size + size_of(part), part[-1]
    if not count:
        raise ValueError("the input is empty; there is nothing to predict")
    return total, count, size


def _measure(args, model, tokenizer):
    """`score` of what the arguments name, sizes in bytes of text; a progress bar where it takes more than a moment."""
    from tqdm.auto import tqdm

    from ..data.tokenizers import GenericTokenizer

    of_bytes = isinstance(tokenizer, GenericTokenizer)
    size_of = (lambda part: len(tokenizer.decodeBytes(part))) if of_bytes else lambda part: 0

    def measure(pieces):
        return score(model, chunks(pieces, args.ctx_len or _CHUNK, args.max_tokens), size_of, not args.ctx_len)

    if args.data_file:
        with open_data(args.data_file) as dataset, tqdm(total=dataset.total_tokens, unit="token", unit_scale=True, delay=2) as bar:
            return measure(data_ids(dataset, bar.update))
    read = jsonl_ids if args.text.endswith(".jsonl") else text_ids if of_bytes else word_ids
    with tqdm(total=os.stat(args.text).st_size, unit="B", unit_scale=True, delay=2) as bar:
        return measure(read(args.text, tokenizer, bar.update))


def run(args):
    from ..trainer import bits

    if not args.text and not args.data_file:
        raise ValueError("give --text FILE or --data_file PREFIX")
    for name in ("max_tokens", "ctx_len"):
        if getattr(args, name) < 0:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least 0")
    model, tokenizer = load_model(args)
    if args.text and tokenizer is None:
        raise ValueError("a text needs the model's vocabulary: give --vocab FILE")
    total, count, size = _measure(args, model, tokenizer)
    loss = total / count
    print(f"tokens {count:,}   loss {loss:.6f}   perplexity {math.exp(min(loss, 700)):.4f}")
    if size:
        print(f"bytes {size:,}   bits per byte {bits(total) / size:.4f}")


if __name__ == "__main__":
    sys.exit(run_command("eval", sys.argv[1:]))
