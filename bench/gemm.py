"""Matrix products in the shapes of training and prefill beside what NumPy's BLAS and the multiply-adds alone can do.

    python bench/gemm.py [--shapes 0.1b] [--threads 1 2] [--seconds 0.2] [--json FILE]

For each shape and number of threads: GFLOP/s of the product here, of NumPy's BLAS on all its threads, and the former as a share of
the rate of a product whose operands stay in the caches (best of a few, found here first). For each product the two alternate, and the best of
each counts: a rate changes by half with what else the machine does.
"""

import argparse
import json
import time

import numpy as np

import rwkvtune
from rwkvtune import _rwkvcore as core

WIDTHS = {"tiny": (1024, 128, 1001), "small": (2048, 512, 8192), "0.1b": (512, 768, 65536)}
HEAD_ROWS = 128


def shapes_of(name):
    """(label, R, K, M) of products y (R,M) = x (R,K) w (M,K)^T."""
    rows, width, vocab = WIDTHS[name]
    yield "square", rows, width, width
    yield "widening", rows, width, 4 * width
    yield "narrowing", rows, 4 * width, width
    yield "head", HEAD_ROWS, width, vocab


def alternate(seconds, *calls):
    """Best time of each."""
    best, end = [np.inf] * len(calls), time.perf_counter() + seconds
    while time.perf_counter() < end or not np.isfinite(best).all():
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def measure(R, K, M, seconds):
    """GFLOP/s of forward, dx, dw here and of each in NumPy."""
    rng = np.random.default_rng(0)
    x, w, dy = (rng.standard_normal(s, dtype=np.float32) for s in ((R, K), (M, K), (R, M)))
    y, dx, dw = np.empty((R, M), np.float32), np.empty((R, K), np.float32), np.zeros((M, K), np.float32)
    work = 2e-9 * R * K * M
    calls = {
        "forward": (("fwd", dict(x=x, w=w, y=y)), lambda: np.matmul(x, w.T, out=y)),
        "dx": (("bwd", dict(x=x, w=w, dy=dy, dx=dx)), lambda: np.matmul(dy, w, out=dx)),
        "dw": (("bwd", dict(x=x, w=w, dy=dy, dw=dw)), lambda: np.matmul(dy.T, x, out=dw)),
    }
    for label, ((direction, fields), numpy_call) in calls.items():
        ours, theirs = alternate(seconds, lambda: core.run_op("cpu", "linear", direction, fields), numpy_call)
        yield label, work / ours, work / theirs


def best_rate(seconds=1.0):
    """GFLOP/s of products that stay in the caches."""
    return max(rate for size in (256, 384, 512) for _, rate, _ in measure(size, 256, size, seconds / 9))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, rwkvtune.info()["cpus"]])
    parser.add_argument("--seconds", type=float, default=0.2, help="per product (default 0.2)")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    print(f"{'shape':>6} {'product':>10} {'R':>5} {'K':>6} {'M':>6} {'':>8} {'threads':>7} {'GFLOP/s':>8} {'share':>6} {'NumPy':>7}")
    rows = []
    for threads in dict.fromkeys(args.threads):
        rwkvtune.set_num_threads(threads)
        limit = best_rate()
        for name in args.shapes:
            for label, R, K, M in shapes_of(name):
                for product, rate, numpy_rate in measure(R, K, M, args.seconds):
                    rows.append(dict(shape=name, product=f"{label} {product}", rows=R, inputs=K, outputs=M, threads=threads, gflops=rate,
                                     share=rate / limit, numpy_gflops=numpy_rate))
                    print(f"{name:>6} {label:>10} {R:>5} {K:>6} {M:>6} {product:>8} {threads:>7} {rate:>8.1f} {rate / limit:>6.1%} {numpy_rate:>7.1f}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
