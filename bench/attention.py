"""Attention beside the machine's own limit: GFLOP/s of its forward and backward and of a large matrix product, in one run.

    python bench/attention.py [--threads N]

12 heads of 64 channels. Counted are the operations that causal attention needs, 2 N per pair of a query and a key it sees and
product: 2 products forward, 5 backward. The best of several runs of each, since other work on the machine only slows them.
"""

import argparse
import time

import numpy as np

from rwkvtune import _rwkvcore as core

HEADS, N = 12, 64


def best(run, seconds=2.0):
    """The shortest time of one run, in seconds."""
    run()
    shortest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        shortest = min(shortest, time.perf_counter() - start)
    return shortest


def product_rate():
    """GFLOP/s of the package's own matrix product, 1024 cubed."""
    size = 1024
    args = {name: np.ones((size, size), np.float32) for name in ("x", "w", "y")}
    return 2e-9 * size**3 / best(lambda: core.run_op("cpu", "linear", "fwd", args))


def attention_rates(batch, length):
    """GFLOP/s of (forward, backward, both)."""
    rng = np.random.default_rng(0)
    names = ("q", "k", "v", "y", "dy", "dq", "dk", "dv")
    args = {name: rng.standard_normal((batch, length, HEADS, N)).astype(np.float32) for name in names}
    args["lse"] = np.empty((batch, HEADS, length), np.float32)
    forward = best(lambda: core.run_op("cpu", "attention", "fwd", args))
    backward = best(lambda: core.run_op("cpu", "attention", "bwd", args))
    work = 2e-9 * N * batch * HEADS * length * (length + 1) / 2
    return 2 * work / forward, 5 * work / backward, 7 * work / (forward + backward)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=core.get_num_threads(), help="default: all processors")
    core.set_num_threads(parser.parse_args().threads)
    limit = product_rate()
    print(f"{core.info()['isa']}, {core.get_num_threads()} threads: matrix product {limit:.0f} GFLOP/s")
    for batch, length in ((1, 512), (4, 512), (1, 2048)):
        forward, backward, both = attention_rates(batch, length)
        print(f"batch {batch}, {length:4} tokens: forward {forward:.0f}, backward {backward:.0f}, both {both:.0f} GFLOP/s"
              f" = {both / limit:.0%} of the product")  # fmt: skip


if __name__ == "__main__":
    main()
