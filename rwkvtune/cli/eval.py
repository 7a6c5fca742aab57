"""rwkvtune eval: how well a model predicts a text."""

import math
import sys
from pathlib import Path

from . import run_command
from .common import load_model, model_options

SUMMARY = "Measure loss, perplexity and bits per byte of a model on a text."


def add_arguments(parser):
    model_options(parser)
    parser.add_argument("--text", default="", help="UTF-8 text file")
    parser.add_argument("--data_file", default="", help="bin/idx data instead: the path without .bin and .idx")
    parser.add_argument("--max_tokens", type=int, default=0, help="stop after so many tokens, 0 = all")


def _tokens(args, tokenizer):
    """(token ids, bytes of text or None)."""
    if args.data_file:
        from ..data.binidx import BinIdxDataset

        with BinIdxDataset(args.data_file) as dataset:
            return dataset.stream().copy(), None
    if not args.text:
        raise ValueError("give --text FILE or --data_file PREFIX")
    if tokenizer is None:
        raise ValueError("a text needs the model's vocabulary: give --vocab FILE")
    text = Path(args.text).read_text(encoding="utf-8")
    return tokenizer.encode(text), len(text.encode("utf-8"))


def run(args):
    from ..trainer import bits, evaluate

    model, tokenizer = load_model(args)
    tokens, size = _tokens(args, tokenizer)
    if args.max_tokens:
        tokens, size = tokens[: args.max_tokens], None
    loss, count = evaluate(model, tokens, context=[0])
    print(f"tokens {count:,}   loss {loss:.6f}   perplexity {math.exp(min(loss, 700)):.4f}")
    if size:
        print(f"bytes {size:,}   bits per byte {bits(loss) * count / size:.4f}")


if __name__ == "__main__":
    sys.exit(run_command("eval", sys.argv[1:]))
