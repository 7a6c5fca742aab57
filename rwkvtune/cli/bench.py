"""rwkvtune bench: speed of this package on this machine, beside the machine's own limits measured in the same run."""

import json
import os
import sys

from . import run_command

SUMMARY = "Measure speed and memory on this machine beside its own limits; docs/benchmarks.md tells how to read it."
_SIZES = ("model_type", "n_layer", "n_embd", "vocab_size", "head_size_a", "ctx_len", "micro_bsz")
_OWN = {"model_type": "x070", "n_layer": 4, "n_embd": 256, "vocab_size": 257, "head_size_a": 64, "ctx_len": 256, "micro_bsz": 8}


def add_arguments(parser):
    from ..bench import SUBJECTS
    from ..bench.shapes import SHAPES

    told = "; ".join(f"{name}: {words}" for name, words in SUBJECTS.items())
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"{told}; all: every one, also without any")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases, a short time for each: about two minutes for all")
    parser.add_argument("--seconds", type=float, default=None, help="time for each figure (default: 3, with --quick 0.3)")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=None, help="models to measure (default: train all; the others 0.1b, with --quick tiny)")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "fp16", "int8", "int4"], choices=("fp32", "bf16", "fp16", "int8", "int4"),
                        help="formats of weights for prefill, decode and load")  # fmt: skip
    parser.add_argument("--threads", type=int, default=0, help="threads, 0 = as the machine has processors")
    parser.add_argument("--vocab", default="world", help="vocabulary file for tokenize and prepare, or world, or bytes")
    parser.add_argument("--json", default="", help="also write everything measured to this file")
    parser.add_argument("--chart", default="", help="also draw the shares of the limits into this PNG file (needs matplotlib)")
    own = parser.add_argument_group("a model of your own sizes instead of --shapes, where any of these is given")
    own.add_argument("--model_type", choices=("x052", "x060", "x070"), help=f"version of the model (otherwise {_OWN['model_type']})")
    for name, words in (("n_layer", "layers"), ("n_embd", "channels"), ("vocab_size", "vocabulary"), ("head_size_a", "channels of a head"),
                        ("ctx_len", "tokens of a sequence"), ("micro_bsz", "sequences of a step")):  # fmt: skip
        own.add_argument(f"--{name}", type=int, help=f"{words} (otherwise {_OWN[name]})")


def _shapes(args, subject):
    """name -> sizes of what a subject measures."""
    from ..bench.shapes import SHAPES

    given = {name: getattr(args, name) for name in _SIZES if getattr(args, name) is not None}
    if given:
        sizes = {**_OWN, **given}
        return {"own": {**{name: value for name, value in sizes.items() if name != "micro_bsz"}, "batch": sizes["micro_bsz"]}}
    names = args.shapes or (["tiny"] if args.quick else list(SHAPES) if subject == "train" else ["small"] if subject == "scaling" else ["0.1b"])
    return {name: SHAPES[name] for name in names}


def _check(args):
    from ..bench import SUBJECTS
    from ..bench.shapes import split

    unknown = [subject for subject in args.subjects if subject not in (*SUBJECTS, "all")]
    if unknown:
        raise ValueError(f"there is no benchmark {unknown[0]!r}; there are {', '.join(SUBJECTS)} and all")
    for name, least in (("micro_bsz", 1), ("ctx_len", 1), ("seconds", 0.0), ("threads", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} is {value}; it must be at least {least}")
    if args.threads > 256:
        raise ValueError(f"--threads is {args.threads}; it must be at most 256")
    for sizes in _shapes(args, "train").values():
        split(sizes)
    for path in (args.json, args.chart):
        if path and not os.path.isdir(os.path.dirname(path) or "."):
            raise FileNotFoundError(f"{path}: the directory does not exist")


def run(args):
    from .. import info, set_num_threads
    from ..bench import SUBJECTS, Options, measure
    from ..bench.machine import describe, in_words, limits

    _check(args)
    if args.threads:
        set_num_threads(args.threads)
    threads, seconds = info()["threads"], (0.3 if args.quick else 3.0) if args.seconds is None else args.seconds
    machine = {**describe(), "limits": limits(threads, min(seconds, 0.5))}
    print(in_words(machine), flush=True)
    found, subjects = {}, list(SUBJECTS) if not args.subjects or "all" in args.subjects else args.subjects
    for subject in subjects:
        options = Options(seconds, _shapes(args, subject), tuple(args.precisions), args.quick, threads, args.vocab)
        found[subject] = measure(subject, options)
        for table in found[subject]:
            print(f"\n{table.text()}", flush=True)
    tables = [table for group in found.values() for table in group]
    if args.json:
        _write_json(args.json, {"machine": machine, "tables": {name: [vars(table) for table in group] for name, group in found.items()}})
    if args.chart:
        from ..bench.chart import draw

        draw(tables, args.chart, f"{machine['processor']}, {threads} threads")


def _write_json(path, found):
    from ..atomic import atomic_write

    with atomic_write(path) as file:
        file.write(json.dumps(found, indent=1, default=list).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(run_command("bench", sys.argv[1:]))
