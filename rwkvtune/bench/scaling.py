"""How cost grows: with threads, with the length of a sequence, with the size of a batch."""

from . import Table
from .shapes import SHAPES, batch_of, split
from .timing import best, best_in_turn, in_a_process

_COLUMNS = {"value": "", "train": "train tok/s", "train_share": "per token", "read": "read tok/s", "read_share": "per token"}
_CHUNK = 1024  # tokens read at a time


def _trainer(config, rows):
    from ..config import TrainingConfig
    from ..model import RWKV
    from ..trainer import Trainer

    model = RWKV(config, seed=0)
    return Trainer(model, TrainingConfig(precision="fp32", micro_bsz=rows, grad_cp=0, l2wrap=0))


def run_case(sizes, rows, tokens, threads, seconds):
    """Tokens per second of a training step and of reading, for one batch."""
    from .. import set_num_threads

    set_num_threads(threads)
    config, _ = split({**sizes, "ctx_len": tokens})
    trainer = _trainer(config, rows)
    ids, targets = batch_of(config, rows)
    pieces = [ids[:, at : at + _CHUNK].copy() for at in range(0, tokens, _CHUNK)]

    def read():
        state = None
        for piece in pieces:
            state = trainer.model._core.forward(piece, state, "none")[1]

    return {"train": ids.size / best(lambda: trainer.step(ids, targets, lr=0.0), seconds), "read": ids.size / best(read, seconds / 2)}


def run_threads(sizes, counts, seconds):
    """Tokens per second for each number of threads, measured in turn in one process."""
    from .. import set_num_threads

    config, rows = split(sizes)
    trainer = _trainer(config, rows)
    ids, targets = batch_of(config, rows)

    def with_threads(number, work):
        def run():
            set_num_threads(number)
            work()

        return run

    train = lambda: trainer.step(ids, targets, lr=0.0)  # noqa: E731
    read = lambda: trainer.model._core.forward(ids, None, "none")  # noqa: E731
    took = best_in_turn([with_threads(number, work) for work in (train, read) for number in counts], 2 * seconds)
    return [{"train": ids.size / a, "read": ids.size / b} for a, b in zip(took[: len(counts)], took[len(counts) :], strict=True)]


def _compared(rows, base):
    """Rows with their cost per token as a multiple of the first row's, or, for threads, their gain over it."""
    first = rows[0]
    for row in rows:
        for name in ("train", "read"):
            row[f"{name}_share"] = row[name] / first[name] if base == "gain" else first[name] / row[name]
    return rows


def measure_scaling(options):
    """Three tables."""
    name = "small" if "small" in options.shapes else next(iter(options.shapes))
    threads = sorted({1, *(n for n in (2, 4, 8, 16, 32) if n < options.threads), options.threads})
    found = in_a_process("scaling:run_threads", sizes=options.shapes[name], counts=threads, seconds=options.seconds)
    by_threads = _compared([{"value": f"{n} threads", **row} for n, row in zip(threads, found, strict=True)], "gain")
    tiny = {key: value for key, value in SHAPES["tiny"].items() if key != "ctx_len"}
    lengths, batches = ((1024, 4096), (1, 4)) if options.quick else ((1024, 2048, 4096, 8192, 16384, 32768, 65536), (1, 2, 4, 8, 16, 32))

    def case(rows, tokens):
        return in_a_process("scaling:run_case", sizes=tiny, rows=rows, tokens=tokens, threads=options.threads, seconds=options.seconds / 4)

    by_length = _compared([{"value": f"{tokens:,} tokens", **case(1, tokens)} for tokens in lengths], "cost")
    by_batch = _compared([{"value": f"{rows} sequences", **case(rows, 256)} for rows in batches], "cost")
    gain = _COLUMNS | {"train_share": "gain", "read_share": "gain"}
    notes = (f"per token: time of a token over that of the first row; reading in pieces of {_CHUNK} tokens; the shape is tiny",)
    return [Table(f"scaling: threads, shape {name}", gain, by_threads), Table("scaling: length of one sequence", _COLUMNS, by_length, notes=notes),
            Table("scaling: sequences of 256 tokens in a batch", _COLUMNS, by_batch, notes=notes)]  # fmt: skip
