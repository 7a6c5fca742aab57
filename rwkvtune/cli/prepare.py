"""rwkvtune prepare: text, JSONL, CSV or numbers into the bin/idx files that training reads."""

import json
import os
import sys
from pathlib import Path

from . import run_command

SUMMARY = "Turn a text, JSONL, CSV or .npy file into bin/idx training data."


def add_arguments(parser):
    parser.add_argument(
        "input", help='.jsonl with {"text": ...} lines, .csv with a header, .npy with integers, or any UTF-8 text file'
    )
    parser.add_argument("output", help="path of the data without .bin and .idx")
    parser.add_argument("--vocab", default="", help="vocabulary file of a text tokenizer, or world (pip install \"rwkvtune[world]\")")
    parser.add_argument(
        "--tokenizer", default="byte", help="without --vocab: byte, angle, or integer:N for values 0 to N"
    )
    parser.add_argument(
        "--n_epochs", type=int, default=1, help="repeat the documents so often, each time in another order"
    )
    parser.add_argument("--no_shuffle", action="store_true", help="keep the order of the documents")
    parser.add_argument(
        "--random_seed", type=int, default=0, help="of the shuffling: the same seed gives the same files"
    )
    parser.add_argument("--column", default="text", help=".csv: name of the column with the texts")
    parser.add_argument(
        "--skip_bad",
        "--skip-bad",
        action="store_true",
        help=".jsonl, .csv: leave out malformed lines and count them, instead of stopping at the first",
    )
    parser.add_argument("--sequence_length", type=int, default=1024, help="cut of one-dimensional numbers")
    parser.add_argument(
        "--document_chars",
        type=int,
        default=0,
        help="text: put paragraphs together up to so many characters, 0 = do not",
    )
    parser.add_argument("--ctx_len", type=int, default=1024, help="only for the magic prime that is printed")


def make_tokenizer(args, files, vocab_path):
    """The tokenizer the arguments name; unless it is --vocab, its vocabulary is staged in `files` as `vocab_path`."""
    from ..data.tokenizers import AngleTokenizer, GenericTokenizer, IntegerTokenizer, create_byte_vocab_file

    if args.vocab:
        return GenericTokenizer(args.vocab)
    kind, _, most = args.tokenizer.partition(":")
    if kind == "byte" and not most:
        return GenericTokenizer(create_byte_vocab_file(files.stage(vocab_path)))
    if kind == "integer" and most.isdecimal():
        tokenizer = IntegerTokenizer(max_value=int(most))
    elif kind == "angle" and not most:
        tokenizer = AngleTokenizer()
    else:
        raise ValueError(f"--tokenizer is {args.tokenizer!r}; allowed are byte, angle and integer:N")
    tokenizer.save_vocab(files.stage(vocab_path))
    return tokenizer


def _load_npy(path):
    """The array in a .npy file, mapped.  Raises FormatError."""
    import numpy as np

    from ..errors import FormatError

    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise FormatError(f"not an array file without objects ({error})") from error


def _stage_lines(args, files, path):
    """Stages the input as JSON lines for `path`, unless it is JSONL; where the lines are."""
    from ..data.converters import NumpyToJsonlConverter, write_csv_column
    from ..pipeline import text_documents

    source = Path(args.input)
    if not source.exists():
        raise FileNotFoundError(f"input not found: {source}")
    if source.is_dir():
        raise IsADirectoryError(f"input is a directory: {source}; give a file in it")
    if source.suffix == ".jsonl":
        return source
    if source.suffix == ".npy":
        try:
            return NumpyToJsonlConverter().stage(_load_npy(source), files, path, args.sequence_length)
        except ValueError as error:  # FormatError too
            raise ValueError(f"{source}: {error}") from error
    with files.write(path, "w") as file:
        if source.suffix == ".csv":
            n_bad = write_csv_column(source, file, args.column, args.skip_bad)
            if n_bad:
                print(f"### Skipped {n_bad} rows without the column {args.column!r}")
        else:
            documents = text_documents(_read_text(source), args.document_chars)
            if not documents:
                raise ValueError(f"{source} holds no text")
            file.writelines(json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in documents)
    return file.name


def _read_text(path):
    from ..errors import FormatError

    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8: {error.reason} at byte {error.start}; convert it to UTF-8 first") from None


def run(args):
    from ..atomic import AtomicFiles
    from ..data.binidx import compute_magic_prime
    from ..data.converters import JsonlToBinIdxConverter, make_parent

    if os.path.isdir(args.output) or args.output.endswith("/") or not args.output:
        raise ValueError(f"OUTPUT is {args.output!r}, a directory; give a name in it, such as {os.path.join(args.output, 'train')}")
    for name in ("ctx_len", "sequence_length", "n_epochs"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least 1")
    if args.document_chars < 0:
        raise ValueError(f"--document_chars is {args.document_chars}; it must be at least 0")
    prefix = Path(args.output)
    make_parent(prefix)
    vocab_path, jsonl_path = (prefix.parent / f"{prefix.name}{ending}" for ending in (".vocab.txt", ".jsonl"))
    with AtomicFiles() as files:
        tokenizer = make_tokenizer(args, files, vocab_path)
        lines = _stage_lines(args, files, jsonl_path)
        items, total = JsonlToBinIdxConverter(tokenizer).stage(
            files,
            lines,
            prefix,
            n_epochs=args.n_epochs,
            shuffle=not args.no_shuffle,
            random_seed=args.random_seed,
            skip_bad=args.skip_bad,
            name=args.input + ("" if lines == Path(args.input) else ", document"),
        )
    prime = compute_magic_prime(total, args.ctx_len)
    print(
        f"{prefix}.bin: {items:,} documents, {total:,} tokens, vocabulary {tokenizer.vocab_size} ({args.vocab or vocab_path})"
    )
    print(f"for --ctx_len {args.ctx_len}: --my_exit_tokens {total} --magic_prime {prime}")


if __name__ == "__main__":
    sys.exit(run_command("prepare", sys.argv[1:]))
