"""rwkvtune prepare: text, JSONL, CSV or numbers into the bin/idx files that training reads."""

import json
import sys
from pathlib import Path

from . import run_command

SUMMARY = "Turn a text, JSONL, CSV or .npy file into bin/idx training data."


def add_arguments(parser):
    parser.add_argument(
        "input", help='.jsonl with {"text": ...} lines, .csv with a header, .npy with integers, or any UTF-8 text file'
    )
    parser.add_argument("output", help="path of the data without .bin and .idx")
    parser.add_argument("--vocab", default="", help="vocabulary file of a text tokenizer")
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


def make_tokenizer(args, vocab_path):
    """The tokenizer the arguments name; a byte vocabulary is written to `vocab_path`."""
    from ..data.tokenizers import AngleTokenizer, GenericTokenizer, IntegerTokenizer, create_byte_vocab_file

    if args.vocab:
        return GenericTokenizer(args.vocab)
    kind, _, most = args.tokenizer.partition(":")
    if kind == "integer" and most.isdigit():
        return IntegerTokenizer(max_value=int(most))
    if kind == "angle" and not most:
        return AngleTokenizer()
    if kind == "byte" and not most:
        create_byte_vocab_file(str(vocab_path))
        return GenericTokenizer(str(vocab_path))
    raise ValueError(f"--tokenizer is {args.tokenizer!r}; allowed are byte, angle and integer:N")


def _to_jsonl(args, path):
    """Writes the input as JSONL to `path` unless it is JSONL; the JSONL file."""
    from ..atomic import atomic_write
    from ..data.converters import NumpyToJsonlConverter, csv_to_jsonl
    from ..pipeline import text_documents

    source = Path(args.input)
    if not source.exists():
        raise FileNotFoundError(f"input not found: {source}")
    if source.suffix == ".jsonl":
        return source
    if source.suffix == ".csv":
        n_bad = csv_to_jsonl(source, path, args.column, args.skip_bad)
        if n_bad:
            print(f"### Skipped {n_bad} rows without the column {args.column!r}")
        return path
    if source.suffix == ".npy":
        import numpy as np

        NumpyToJsonlConverter().convert(np.load(source, allow_pickle=False), path, sequence_length=args.sequence_length)
        return path
    documents = text_documents(source.read_text(encoding="utf-8"), args.document_chars)
    if not documents:
        raise ValueError(f"{source} holds no text")
    with atomic_write(path, "w") as file:
        file.writelines(json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in documents)
    return path


def run(args):
    from ..data.binidx import BinIdxDataset, compute_magic_prime
    from ..data.converters import JsonlToBinIdxConverter

    prefix = Path(args.output)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    vocab_path = prefix.parent / f"{prefix.name}.vocab.txt"
    tokenizer = make_tokenizer(args, vocab_path)
    jsonl = _to_jsonl(args, prefix.parent / f"{prefix.name}.jsonl")
    JsonlToBinIdxConverter(tokenizer).convert(
        jsonl,
        prefix,
        n_epochs=args.n_epochs,
        shuffle=not args.no_shuffle,
        random_seed=args.random_seed,
        skip_bad=args.skip_bad,
    )
    if not args.vocab:
        tokenizer.save_vocab(str(vocab_path))
    with BinIdxDataset(str(prefix)) as dataset:
        total, items = int(dataset.total_tokens), int(dataset.num_items)
    prime = compute_magic_prime(total, args.ctx_len)
    print(
        f"{prefix}.bin: {items:,} documents, {total:,} tokens, vocabulary {tokenizer.vocab_size} ({args.vocab or vocab_path})"
    )
    print(f"for --ctx_len {args.ctx_len}: --my_exit_tokens {total} --magic_prime {prime}")


if __name__ == "__main__":
    sys.exit(run_command("prepare", sys.argv[1:]))
