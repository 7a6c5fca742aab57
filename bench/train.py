"""Training speed beside the machine's own limit, in one run.

    python bench/train.py [--shapes tiny small 0.1b] [--seconds 20] [--json FILE]

For each shape: tokens per second of whole optimizer steps (forward, backward, clipping, AdamW), the same as GFLOP/s
by 6 N FLOPs per token with N the parameters in matrix products (embedding left out), and that as a fraction of the
float32 matrix-product rate NumPy's BLAS reaches here just before and after. Peak memory of the process stands beside
what the plan said before the run. Each shape runs in a process of its own.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import time

SHAPES = {
    "tiny": dict(n_layer=3, n_embd=128, vocab_size=1001, ctx_len=256, batch=4),
    "small": dict(n_layer=6, n_embd=512, vocab_size=8192, ctx_len=512, batch=4),
    "0.1b": dict(n_layer=12, n_embd=768, vocab_size=65536, ctx_len=512, batch=1),
}


def sgemm_rate(seconds=1.5):
    """Best GFLOP/s of NumPy's float32 product over a few shapes of the kind training uses."""
    import numpy as np

    best = 0.0
    for m, k, n in ((1024, 768, 3072), (2048, 768, 3072), (1024, 1024, 1024)):
        a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
        a @ b
        end = time.perf_counter() + seconds / 3
        while time.perf_counter() < end:
            start = time.perf_counter()
            a @ b
            best = max(best, 2e-9 * m * k * n / (time.perf_counter() - start))
    return best


def peak_mib():
    """Most memory this process ever held. Not getrusage's figure where there is a better one: that includes the parent's."""
    try:
        with open("/proc/self/status") as file:
            return int(re.search(r"VmHWM:\s*(\d+)", file.read())[1]) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name, seconds):
    """One shape, in this process; prints one JSON line."""
    import numpy as np

    import rwkvtune

    shape = dict(SHAPES[name])
    batch = shape.pop("batch")
    start_mib = peak_mib()
    model = rwkvtune.RWKV(rwkvtune.ModelConfig(model_type="x070", **shape), seed=0)
    trainer = rwkvtune.Trainer(model, rwkvtune.TrainingConfig(micro_bsz=batch, grad_cp=0, weight_decay=0.001))
    plan = model.plan(batch, shape["ctx_len"], training=True, grad_cp=0)
    rng = np.random.default_rng(0)
    ids = rng.integers(1, shape["vocab_size"], (batch, shape["ctx_len"] + 1))
    times = []
    trainer.step(ids[:, :-1], ids[:, 1:], lr=1e-4)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        trainer.step(ids[:, :-1], ids[:, 1:], lr=1e-4)
        times.append(time.perf_counter() - start)
    in_products = sum(p.size for key, p in model.named_parameters().items() if p.squeeze().ndim == 2
                      and key != "emb.weight" and not key.endswith("r_k"))
    tokens = batch * shape["ctx_len"]
    print(json.dumps({
        "shape": name, "parameters": model.num_parameters, "in_products": in_products, "steps": len(times),
        "tokens_per_second": tokens / float(np.median(times)), "tokens_per_second_best": tokens / min(times),
        "gflops": 6e-9 * in_products * tokens / float(np.median(times)),
        "start_mib": start_mib, "peak_mib": peak_mib(), "plan_mib": plan["total"] / 2**20,
    }))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--seconds", type=float, default=20, help="per shape (default 20)")
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--one", choices=SHAPES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return measure(args.one, args.seconds)
    rows = []
    print(f"{'shape':>6} {'params':>12} {'tok/s':>8} {'GFLOP/s':>8} {'sgemm':>6} {'share':>6} {'peak MiB':>9} {'start + plan MiB':>17}")
    for name in args.shapes:
        before = sgemm_rate()
        command = [sys.executable, __file__, "--one", name, "--seconds", str(args.seconds)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        row["sgemm_gflops"] = max(before, sgemm_rate())
        rows.append(row)
        print(f"{name:>6} {row['parameters']:>12,} {row['tokens_per_second']:>8.0f} {row['gflops']:>8.1f} {row['sgemm_gflops']:>6.0f} "
              f"{row['gflops'] / row['sgemm_gflops']:>6.1%} {row['peak_mib']:>9.0f} {row['start_mib'] + row['plan_mib']:>17.0f}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
