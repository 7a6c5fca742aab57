"""Inference from weights of each format: reading a prompt, and writing token by token."""

import tempfile
from pathlib import Path

import numpy as np

from . import Table
from .shapes import batch_of, in_products, random_model, split
from .timing import best, best_in_turn, in_a_process

_STREAMS, _ABSENT = (1, 8, 32, 128), "not in this build"
_PREFILL = {
    "shape": "shape", "precision": "weights", "tokens": "tokens", "tokens_per_second": "tok/s", "gflops": "GFLOP/s", "sgemm_gflops": "sgemm",
    "share": "of sgemm", "note": "",
}  # fmt: skip
_DECODE = {
    "shape": "shape", "precision": "weights", "streams": "streams", "tokens_per_second": "tok/s", "read_mb": "MB read", "gbs": "GB/s", "read_gbs": "memory GB/s",
    "share": "of memory", "value_read": "ffn.value read", "sampled": "sampled tok/s", "first_token_ms": "first token ms", "note": "",
}  # fmt: skip


def bytes_per_step(model):
    """Bytes of weights that one step of decoding reads: all but the embedding, of which it looks up a row."""
    held = getattr(model, "_weights", None)  # name -> (format, array) of a model whose weights have formats of their own
    arrays = {name: array for name, (_, array) in held.items()} if held else model.named_parameters()
    return sum(array.nbytes for name, array in arrays.items() if name != "emb.weight")


def load(path, precision):
    """The model, or None where this build has no such format.  Raises what `RWKV.load` does, but for that."""
    from ..model import _PRECISIONS, RWKV

    return RWKV.load(path, precision=precision) if precision in _PRECISIONS else None


def _ready(path, precision, threads):
    from .. import set_num_threads

    set_num_threads(threads)
    return load(path, precision)


def run_prefill(path, precision, tokens, threads, seconds):
    """Reading `tokens` ids, logits of the last only."""
    from .machine import sgemm_gflops

    model = _ready(path, precision, threads)
    if model is None:
        return {"note": _ABSENT}
    ids = batch_of(model.config, 1, tokens)[0]
    sgemm = sgemm_gflops()
    took = best(lambda: model._core.forward(ids, None, "last"), seconds)
    layers, head = in_products(model)
    gflops = 2e-9 * (layers * tokens + head) / took
    sgemm = max(sgemm, sgemm_gflops())
    return {"tokens_per_second": tokens / took, "gflops": gflops, "sgemm_gflops": sgemm, "share": gflops / sgemm}


def run_decode(path, precision, streams, threads, seconds):
    """One row for each number of streams; what a user sees of generation beside the first."""
    from .. import _rwkvcore
    from .machine import read_gbs

    model = _ready(path, precision, threads)
    if model is None:
        return [{"note": _ABSENT}]
    before, rows = read_gbs(threads), []
    for number in streams:
        some, every = _rwkvcore.columns_read()
        took = _step_time(model, number, seconds)
        read = bytes_per_step(model)
        rows.append({"streams": number, "tokens_per_second": number / took, "read_mb": read / 1e6, "gbs": 1e-9 * read / took})
        some, every = (now - before for now, before in zip(_rwkvcore.columns_read(), (some, every), strict=True))
        if every:
            rows[-1]["value_read"] = some / every
    rows[0] |= _as_a_user(model, seconds)
    limit = max(before, read_gbs(threads))
    return [{**row, "read_gbs": limit, "share": row["gbs"] / limit} for row in rows]


def _step_time(model, streams, seconds):
    """Seconds of one step of some streams, as generation makes it: the state is continued in place. The best run of a few tokens."""
    tokens, vocab_size = max(2, 16 // streams), model.config.vocab_size
    ids = np.random.default_rng(1).integers(1, vocab_size, (tokens, streams, 1), np.int32)
    state, logits = model._core.new_state(streams), np.empty((streams, vocab_size), np.float32)

    def run():
        for token in ids:
            model._core.step(token, state, logits)

    return best(run, seconds) / tokens


def _as_a_user(model, seconds, tokens=32, prompt=16):
    """Tokens per second of `generate` with its default sampling, and the time to the first token of a short prompt."""
    ids = batch_of(model.config, 1, prompt)[0][0]
    first, whole = best_in_turn([lambda: model.generate(ids, 1), lambda: model.generate(ids, tokens + 1)], seconds)
    return {"sampled": tokens / (whole - first), "first_token_ms": 1000 * first}


def _on_a_file(options, measure_file):
    """The rows of measure_file(name, path, config) for each shape, its random weights in a file of the disk."""
    rows = []
    for name, sizes in options.shapes.items():
        config = split(sizes)[0]
        with tempfile.TemporaryDirectory() as directory:
            path = str(Path(directory) / "model.safetensors")
            random_model(config).save(path)
            rows += measure_file(name, path, config)
    return rows


def measure_prefill(options):
    """One row for each shape and format of weights."""

    def rows(name, path, config):
        tokens = min(512, config.ctx_len)
        arguments = dict(path=path, tokens=tokens, threads=options.threads, seconds=options.seconds)
        return [{"shape": name, "precision": p, "tokens": tokens, **in_a_process("inference:run_prefill", precision=p, **arguments)}
                for p in options.precisions]  # fmt: skip

    notes = ("GFLOP/s by 2 N per token, N the parameters in matrix products of the layers, and the head once.",)
    return [Table("prefill: reading a prompt, logits of its last token", _PREFILL, _on_a_file(options, rows), "share", notes)]


def measure_decode(options):
    """One row for each shape, format of weights and number of streams."""
    streams = _STREAMS[:2] if options.quick else _STREAMS

    def rows(name, path, _):
        arguments = dict(path=path, streams=streams, threads=options.threads, seconds=options.seconds / 2)
        return [{"shape": name, "precision": p, **row} for p in options.precisions
                for row in in_a_process("inference:run_decode", precision=p, **arguments)]  # fmt: skip

    notes = (
        "MB read: weights but the embedding, read once per step for all streams; of memory: of what the machine reads where no cache holds it;",
        "ffn.value read: of its columns, those that do not meet zeros only (half of them with these random weights, a tenth with trained ones),",
        "which are not taken off MB read;",
        "sampled: `generate` with its default sampling, loop and all; first token: of a prompt of 16 tokens, model loaded.",
    )
    return [Table("decode: token by token", _DECODE, _on_a_file(options, rows), "share", notes)]
