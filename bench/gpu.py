"""One command on a machine with an NVIDIA GPU: builds, checks and measures the CUDA backend, and prints one table.

    .venv/bin/python bench/gpu.py [--no-build] [--no-tests] [--json FILE]

Times are medians; those of operations are taken by events on the device, those of steps by the host's clock around steps that end by
reading the loss. Beside each stands what the roofline predicts: the larger of bytes / bandwidth and FLOPs / matmul rate of one H200
(4.8 TB/s, 800 dense bf16 TFLOP/s reached). PyTorch is a peer where it is installed.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BANDWIDTH, MATMUL = 4.8e12, 800e12
TESTS = [f"tests/py/test_{name}.py" for name in ("ops_numpy", "golden_ops", "golden_model", "golden_train", "numerics", "cuda", "cuda_half", "cuda_products", "cuda_runs")]
SANITIZED = "cuda and fwd and (layernorm or shift_lerp or key_prep or out_gate or xent or wkv7 or attention) and equals_reference"


def run(*command, **environment):
    """Whether the command succeeded; its output goes to the terminal."""
    print("$", *command, flush=True)
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode == 0


def build():
    return run(sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "-e", ".[test]", RWKVTUNE_CUDA="1", RWKVTUNE_CUDA_ARCHS="90")


def tests():
    """{what: passed}; the sanitizers look at one forward of each kind of kernel."""
    found = {"op, golden and training tests": run(sys.executable, "-m", "pytest", "-q", "-k", "cuda", *TESTS)}
    if shutil.which("compute-sanitizer"):
        for tool in ("memcheck", "racecheck", "initcheck"):
            found[tool] = run("compute-sanitizer", "--tool", tool, "--error-exitcode", "1", sys.executable, "-m", "pytest", "-q", "-k", SANITIZED, TESTS[0])
    return found


def bf16(*shape, scale=1.0):
    """Normal numbers as the bits of bfloat16."""
    import numpy as np

    x = (scale * np.random.default_rng(0).standard_normal(shape, np.float32)).view(np.uint32)
    return (x >> 16).astype(np.uint16)


def op_ms(op, direction, args, times=20):
    from rwkvtune import _rwkvcore as core

    return statistics.median(core.run_op("cuda-bf16", op, direction, args, times)[3:])


def wkv7(B=8, T=4096, C=4096, N=64):
    """Milliseconds of the forward and of the backward."""
    import numpy as np

    H, shape = C // N, (B, T, C // N, N)
    rows = {name: bf16(*shape, scale=0.1) for name in "rskvab"}
    saved = dict(ckpt=bf16(B * H, -(-T // 16), N, N), y=bf16(*shape))
    gradients = {name: bf16(*shape, scale=0.1) for name in ("dy", "dr", "dk", "dv", "ds", "da", "db")}
    return op_ms("wkv7", "fwd", rows | saved), op_ms("wkv7", "bwd", rows | saved | gradients)


def matmul_rate(n=8192):
    """TFLOP/s of one product of two (n,n) matrices."""
    ms = op_ms("linear", "fwd", dict(x=bf16(n, n), w=bf16(n, n), y=bf16(n, n)))
    return 2 * n**3 / ms / 1e9


def model_of(layers, width, vocab=65536, ctx_len=4096):
    """A bf16 model on the device with zeros for weights: how long a kernel takes does not depend on them."""
    from rwkvtune import RWKV, ModelConfig

    model = RWKV.__new__(RWKV)
    model._build(ModelConfig(model_type="x070", n_layer=layers, n_embd=width, vocab_size=vocab, ctx_len=ctx_len), "cuda", "bf16", "cpu")
    return model


def training(layers, width, batch, ctx_len, grad_cp=0, steps=6):
    """(tokens/s, bytes allocated, FLOPs of a token); 6 FLOPs per weight that is multiplied, and those of wkv7."""
    import numpy as np
    from rwkvtune import Trainer, TrainingConfig

    model = model_of(layers, width, ctx_len=ctx_len)
    trainer = Trainer(model, TrainingConfig(precision="bf16", micro_bsz=batch, grad_cp=grad_cp))
    rng = np.random.default_rng(0)
    ids, targets = (rng.integers(0, 65536, (batch, ctx_len)) for _ in range(2))
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        trainer.step(ids, targets, lr=1e-4)
        seconds.append(time.perf_counter() - start)
    weights = model.num_parameters - 65536 * width  # the embedding is not multiplied
    return batch * ctx_len / statistics.median(seconds[2:]), trainer._core.allocated()["total"], 6 * weights + 3 * layers * 8 * width * 64


def decoding(layers, width, tokens=64):
    """(tokens/s, bytes read for a token) of one text."""
    model = model_of(layers, width)
    model.generate([1, 2, 3], max_new_tokens=8, temperature=0)
    start = time.perf_counter()
    model.generate([1, 2, 3], max_new_tokens=tokens, temperature=0)
    return tokens / (time.perf_counter() - start), 2 * (model.num_parameters - 65536 * width)


def prefill(layers, width, T=4096):
    """(tokens/s, FLOPs of a token) of reading a prompt."""
    import numpy as np

    model = model_of(layers, width)
    ids = np.random.default_rng(0).integers(0, 65536, (1, T)).astype(np.int32)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        model._core.forward(ids, None, "last")
        seconds.append(time.perf_counter() - start)
    return T / statistics.median(seconds[1:]), 2 * (model.num_parameters - 2 * 65536 * width)


def torch_matmul_rate(n=8192):
    """The same of PyTorch, None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    x, w = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        x @ w.T
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return 2 * n**3 / statistics.median(times) / 1e9


def measure():
    """Rows (what, measured, unit, roofline, goal)."""
    rows = []
    rate, torch_rate = matmul_rate(), torch_matmul_rate()
    rows.append(("dense bf16 product, n = 8192", rate, "TFLOP/s", MATMUL / 1e12, f"PyTorch: {torch_rate:.0f}" if torch_rate else ""))
    forward, backward = wkv7()
    rows.append(("wkv7 forward + backward, 8 x 4096 x 4096", forward + backward, "ms", 20 * 8 * 4096 * 4096 * 2 / BANDWIDTH * 1e3, "<= 5, aim 3"))
    for name, args, goal in (("12 x 768, batch 16, ctx 512", (12, 768, 16, 512), ""), ("24 x 2048, batch 1, ctx 4096", (24, 2048, 1, 4096), "50 %"),
                             ("4 x 4096 (blocks of 7.2B), batch 1, ctx 4096", (4, 4096, 1, 4096), "55 %")):  # fmt: skip
        tokens, memory, flops = training(*args)
        rows.append((f"training {name}", tokens, "tokens/s", MATMUL / flops, ""))
        rows.append(("  of the matmul rate", 100 * tokens * flops / rate / 1e12, "%", 100, goal))
        rows.append(("  memory", memory / 2**30, "GiB", None, "<= 30" if "2048" in name else ""))
    tokens, size = decoding(8, 4096)
    rows.append(("decoding 8 x 4096, batch 1", tokens, "tokens/s", BANDWIDTH / size, "90 %"))
    tokens, flops = prefill(8, 4096)
    rows.append(("prefill 8 x 4096", tokens, "tokens/s", MATMUL / flops, "60 %"))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-build", action="store_true", help="take the extension as it is")
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    parser.add_argument("--json", metavar="FILE", help="write the rows there, too")
    args = parser.parse_args()
    if not args.no_build and not build():
        sys.exit("the build failed")
    checked = {} if args.no_tests else tests()
    rows = measure()
    for what, passed in checked.items():
        print(f"{what:48} {'passed' if passed else 'FAILED'}")
    print(f"{'':48} {'measured':>12} {'roofline':>12}  unit      goal")
    for what, value, unit, roofline, goal in rows:
        print(f"{what:48} {value:12.1f} {'' if roofline is None else format(roofline, '12.1f'):>12}  {unit:9} {goal}")
    if args.json:
        Path(args.json).write_text(json.dumps({"tests": checked, "rows": rows}, indent=1))
    sys.exit(not all(checked.values()))


if __name__ == "__main__":
    main()
