"""The recurrence by itself: microseconds per token, head and thread, for each version of RWKV and instruction set."""

import numpy as np

from . import Table
from .timing import best_in_turn

_HEADS, _N, _TOKENS, _CHUNK = 12, 64, 512, 16
_COLUMNS = {"version": "version", "isa": "instructions", "inference": "forward us", "forward": "in training us", "backward": "backward us"}


def arguments(op, rng):
    """The arrays of wkv5, wkv6 or wkv7 for one sequence, of sizes that training sees."""
    rows, state = (1, _TOKENS, _HEADS, _N), (1, _HEADS, _N, _N)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    inputs = ("r", "s", "k", "v", "a", "b") if op == "wkv7" else ("r", "k", "v")
    outputs = ("dr", "dk", "dv", "ds", "da", "db") if op == "wkv7" else ("dr", "dk", "dv")
    found = {name: draw(*rows) * np.float32(0.1) for name in (*inputs, "dy")}
    found |= {name: np.zeros(rows, np.float32) for name in (*outputs, "y")}
    found |= {"s0": np.zeros(state, np.float32), "sT": np.zeros(state, np.float32), "ckpt": np.zeros((_HEADS, _TOKENS // _CHUNK, _N, _N), np.float32)}
    if op == "wkv7":
        return found | {"z": np.zeros(rows, np.float32)}
    decay = rows if op == "wkv6" else rows[2:]
    return found | {"w": draw(*decay) - 2, "u": draw(_HEADS, _N), "dw": np.zeros(decay, np.float32), "du": np.zeros((_HEADS, _N), np.float32),
                    "sums": np.zeros((_HEADS, 2, _N), np.float32)}  # fmt: skip


def measure_wkv(options):
    """One row for each version and instruction set, one thread."""
    from .. import _rwkvcore as core

    rows, usual = [], core.info()["isa"]
    core.set_num_threads(1)
    try:
        for op, version in (("wkv5", "RWKV-5"), ("wkv6", "RWKV-6"), ("wkv7", "RWKV-7")):
            full = arguments(op, np.random.default_rng(0))
            short = {name: value for name, value in full.items() if name not in ("ckpt", "z")}
            for isa in core.info()["isa_available"]:
                core.select_isa(isa)
                took = best_in_turn([lambda: core.run_op("cpu", op, "fwd", short), lambda: core.run_op("cpu", op, "fwd", full),  # noqa: B023
                                     lambda: core.run_op("cpu", op, "bwd", full)], options.seconds / 2)  # fmt: skip  # noqa: B023
                each = [1e6 * seconds / (_TOKENS * _HEADS) for seconds in took]
                rows.append({"version": version, "isa": isa, "inference": each[0], "forward": each[1], "backward": each[2]})
    finally:
        core.select_isa(usual)
        core.set_num_threads(options.threads)
    notes = (f"per token and head of {_N} channels, one thread; {_TOKENS} tokens of {_HEADS} heads; in training the forward also saves states",)
    return [Table("wkv: the recurrence", _COLUMNS, rows, notes=notes)]
