"""A training step beside PyTorch's, in turn on one machine: the same weights, batch, loss, clipping and AdamW, float32.

    python bench/peers/train.py [--python PEERS_PYTHON] [--shapes tiny small 0.1b] [--loop tiny]

PyTorch runs the model of torch_rwkv7.py: its recurrence as a compiled op of our own (wkv7.cpp), the same with torch.compile around
everything else, and as a loop over tokens, which takes minutes and 16 GB for a step of the larger shapes (--loop names the shapes
it is tried on). Before timing, loss and gradient norm of the first step must agree to 1e-3.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from engine import Missing, in_turn, started

_ENGINES = {
    "op": ("PyTorch, compiled op", {"op": "compiled"}),
    "compile": ("PyTorch, compiled op and torch.compile", {"op": "compiled", "compile": True}),
    "loop": ("PyTorch, loop over tokens", {"op": "loop"}),
}
_AGREE = 1e-3


def prepare(sizes, directory):
    """(settings of every engine, tokens of a step, GFLOP of a step by 6 N)."""
    import numpy as np

    from rwkvtune.bench.shapes import batch_of, in_products, random_model, split

    config, batch = split(sizes)
    model = random_model(config)
    paths = {"weights": str(Path(directory) / "model.pth"), "ids": str(Path(directory) / "ids.npz")}
    model.save(paths["weights"])
    ids, targets = batch_of(config, batch)
    np.savez(paths["ids"], ids=ids, targets=targets)
    return paths, ids.size, 6e-9 * sum(in_products(model)) * ids.size


def run(name, sizes, args):
    """The rows of one shape."""
    with tempfile.TemporaryDirectory() as directory:
        settings, tokens, gflop = prepare(sizes, directory)
        settings["threads"] = args.threads
        ours, reason = started("rwkvtune", sys.executable, "ours.py", **settings)
        if ours is None:
            raise SystemExit(f"rwkvtune itself: {reason}")
        expected, engines, absent = ours.ask("step"), [ours], {}
        for kind in args.engines:
            peer, variant = _ENGINES[kind]
            if kind == "loop" and name not in args.loop:
                continue
            engine, reason = started(peer, args.python, "torch_rwkv7.py", **settings, **variant)
            try:
                found = engine and engine.ask("step")
            except Missing as failure:
                engine, reason = None, str(failure)
            if engine is None:
                absent[peer] = reason
                continue
            if not all(abs(a - b) <= _AGREE * abs(b) for a, b in zip(found, expected, strict=True)):
                raise SystemExit(f"{peer} does another step: (loss, gradient norm) {found}, rwkvtune {expected}")
            engines.append(engine)
        took = in_turn(engines, args.rounds * (20 if name == "tiny" else 1), "step")
        for engine in engines:
            peak, seconds = engine.ask("peak"), took[engine.name]
            yield f"| {name} | {engine.name} | {tokens / seconds:,.0f} | {gflop / seconds:.1f} | {seconds / took['rwkvtune']:.2f} | {peak:,.0f} | {peak / ours.ask('peak'):.1f} |"
        for engine in engines:
            engine.close()
        for peer, reason in absent.items():
            yield f"| {name} | {peer} | {reason} | | | | |"


def main():
    import os

    from rwkvtune.bench.machine import sgemm_gflops
    from rwkvtune.bench.shapes import SHAPES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="Python that PyTorch is installed for (default: this one)")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--engines", nargs="+", choices=_ENGINES, default=list(_ENGINES))
    parser.add_argument("--loop", nargs="*", choices=SHAPES, default=["tiny"], help="shapes that the loop is tried on")
    parser.add_argument("--rounds", type=int, default=4, help="steps of each engine, twenty times as many for tiny")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    print(f"sgemm {sgemm_gflops():.0f} GFLOP/s, {args.threads} threads\n")
    print("| shape | engine | tok/s | GFLOP/s (6 N) | rwkvtune is faster by | peak MiB | of rwkvtune's |\n|---|---|---|---|---|---|---|")
    for name in args.shapes:
        for line in run(name, SHAPES[name], args):
            print(line, flush=True)


if __name__ == "__main__":
    main()
