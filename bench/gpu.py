"""One command on a machine with an NVIDIA GPU: builds, checks and measures the CUDA backend, and prints one table.

    .venv/bin/python bench/gpu.py [--no-build] [--no-tests] [--no-peers] [--torch-python PROGRAM] [--json FILE]

Times are medians; those of operations are taken by events on the device, those of steps by the host's clock around steps that end by
reading the loss or a token. Beside each stands what was predicted, for one H200 (4.8 TB/s, 800 dense bf16 TFLOP/s reached), from bytes and FLOPs
and the share of the limit that kernels of the kind reach; how is said in bench/NOTES.md. PyTorch, where PROGRAM has it, is measured in the same run,
in a process of its own that has ended before the next measurement begins. The whole takes less than eight minutes; what fails is a row that says why.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BANDWIDTH, MATMUL = 4.8e12, 800e12
VOCAB = 65536
TESTS = [f"tests/py/test_{name}.py" for name in ("ops_numpy", "golden_ops", "golden_model", "golden_train", "numerics", "cuda", "cuda_half",
                                                 "cuda_products", "cuda_attention_split", "cuda_runs")]  # fmt: skip
SANITIZED = "cuda and fwd and (layernorm or shift_lerp or key_prep or out_gate or xent or linear or lowrank or wkv7 or attention) and equals_reference"
STAGES = {"build": 120, "tests": 100, "sanitizer": 35, "peers": 100}  # seconds, at most

# measured and predicted are of `unit`; goal: a text, met: whether it was, None where there is nothing to meet
Row = namedtuple("Row", "what measured predicted unit goal met", defaults=("", None))


# ---- predictions ----------------------------------------------------------------------------------------------------


def multiplied(layers, width, vocab=VOCAB):
    """Weights that a token is multiplied by: of the layers' matrices and low-rank factors, and the head's."""
    import math

    from rwkvtune import ModelConfig, _rwkvcore

    rows = _rwkvcore.Model.describe(ModelConfig(model_type="x070", n_layer=layers, n_embd=width, vocab_size=vocab).to_core_dict())
    sizes = {row["name"]: math.prod(row["shape"]) for row in rows if "bf16" in row["formats"]}
    return sum(size for name, size in sizes.items() if name.startswith("blocks.")), sizes["head.weight"]


def training_flops(layers, width):
    """Of one token, forward and backward: 6 per weight, and wkv7's 8 products of a head of 64 thrice."""
    return 6 * sum(multiplied(layers, width)) + 3 * layers * 8 * width * 64


def decoding_seconds(layers, width, bytes_per_weight=2, active=1.0, share=0.9):
    """Of one token of one text: every matrix once at `share` of the bandwidth, ffn.value only for the hidden units that are active."""
    inner, head = multiplied(layers, width)
    value = 4 * layers * width * width
    return (inner + head - value * (1 - active)) * bytes_per_weight / BANDWIDTH / share


def wkv7_seconds(B=8, T=4096, C=4096):
    """Forward and backward: 22 KB and 40 KB of each chunk of 16 tokens of a head of 64, at 67 % and 47 % of the bandwidth."""
    chunks = B * (C // 64) * (T // 16)
    return chunks * 22e3 / BANDWIDTH / 0.67, chunks * 40e3 / BANDWIDTH / 0.47


# ---- builds and tests -----------------------------------------------------------------------------------------------


def run(stage, *command, **environment):
    """Whether the command succeeded in its time; its output goes to the terminal."""
    print("$", *command, flush=True)
    try:
        return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, timeout=STAGES[stage]).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"stopped after {STAGES[stage]} seconds", flush=True)
        return False


def build():
    return run("build", sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "-e", ".[test]", RWKVTUNE_CUDA="1", RWKVTUNE_CUDA_ARCHS="90")


def tests():
    """{what: passed}; the sanitizers look at one forward of each kind of kernel."""
    found = {"op, golden and training tests": run("tests", sys.executable, "-m", "pytest", "-q", "-k", "cuda", *TESTS)}
    if shutil.which("compute-sanitizer"):
        for tool in ("memcheck", "racecheck", "initcheck"):
            found[tool] = run("sanitizer", "compute-sanitizer", "--tool", tool, "--error-exitcode", "1", sys.executable, "-m", "pytest", "-q", "-k", SANITIZED, TESTS[0])
    return found


# ---- operations -----------------------------------------------------------------------------------------------------


def bf16(*shape, scale=1.0):
    """Normal numbers as the bits of bfloat16; a large array repeats its first million."""
    import numpy as np

    n = 1
    for size in shape:
        n *= size
    x = (scale * np.random.default_rng(0).standard_normal(min(n, 1 << 20), np.float32)).view(np.uint32)
    return np.resize((x >> 16).astype(np.uint16), shape)


def op_seconds(op, direction, args, times=20):
    from rwkvtune import _rwkvcore as core

    return statistics.median(core.run_op("cuda-bf16", op, direction, args, times)[3:]) / 1e3


def wkv7_times(B=8, T=4096, C=4096, N=64):
    """Seconds of the forward and of the backward."""
    import numpy as np

    H, shape = C // N, (B, T, C // N, N)
    rows = {name: bf16(*shape, scale=0.1) for name in "rskvab"}
    saved = dict(ckpt=bf16(B * H, -(-T // 16), N, N), y=bf16(*shape))
    gradients = {name: bf16(*shape, scale=0.1) for name in ("dy", "dr", "dk", "dv", "ds", "da", "db")}
    return op_seconds("wkv7", "fwd", rows | saved), op_seconds("wkv7", "bwd", rows | saved | gradients)


def product_args(R, K, M, form=None, active=None):
    """Arguments of the op `linear`; form: of quantised weights; active: the share of x that is not zero, and w transposed beside it."""
    import numpy as np

    from rwkvtune import _rwkvcore as core

    args = dict(x=bf16(R, K), w=bf16(M, K), y=bf16(R, M))
    if form:
        args["w"] = (form, core.convert_weight(("fp32", np.resize(np.random.default_rng(0).standard_normal(1 << 16, np.float32), (M, K))), form))
    if active is not None:
        args["columns"] = bf16(K, M)
        args["x"][:, np.random.default_rng(0).random(K) >= active] = 0
    return args


def matmul_rate(n=8192):
    """FLOP/s of one product of two (n,n) matrices."""
    return 2 * n**3 / op_seconds("linear", "fwd", product_args(n, n, n))


def bandwidth(n=1 << 28):
    """Bytes/s of adding two arrays into a third."""
    return 6 * n / op_seconds("add", "fwd", dict(a=bf16(n // 4096, 4096), b=bf16(n // 4096, 4096), y=bf16(n // 4096, 4096)))


def attention_seconds(past=4096, H=32, N=64):
    """One query after many tokens."""
    import numpy as np

    cache = np.zeros((1, past + 1, H, N), np.float32)
    args = {name: bf16(1, 1, H, N) for name in ("q", "k", "v", "y")} | {name: cache.copy() for name in ("k_past", "v_past")}
    return op_seconds("attention", "fwd", args | dict(k_all=args["k_past"], v_all=args["v_past"], past=past))


def layernorm_seconds(R=8192, C=2048):
    import numpy as np

    args = dict(x=bf16(R, C), w=bf16(C), b=bf16(C), y=bf16(R, C), stats=np.zeros((R, 2), np.float32), eps=1e-5)
    return op_seconds("layernorm", "fwd", args)


# ---- models ---------------------------------------------------------------------------------------------------------


def model_of(layers, width, precision="bf16", vocab=VOCAB, ctx_len=4096):
    """A model on the device with zeros for weights: how long a kernel takes does not depend on them."""
    import numpy as np

    from rwkvtune import RWKV, ModelConfig, _rwkvcore

    model = RWKV.__new__(RWKV)
    model._build(ModelConfig(model_type="x070", n_layer=layers, n_embd=width, vocab_size=vocab, ctx_len=ctx_len), "cuda", precision, "cpu")
    if model._core is None:
        weights, same = {}, {}  # one array for all parameters of a kind
        for row in model._rows:
            kind = tuple(row["shape"]), precision if precision in row["formats"] else "fp32"
            if kind not in same:
                zeros = np.zeros(kind[0], np.float32)
                same[kind] = zeros if kind[1] == "fp32" else _rwkvcore.convert_weight(("fp32", zeros), kind[1])
            weights[row["name"]] = kind[1], same[kind]
        model._take(weights)
    return model


def activate(model, share):
    """Gives the first `share` of the hidden units of every channel mix a positive number and the others a negative one."""
    import numpy as np

    hidden, width = next(row["shape"] for row in model._rows if row["name"] == "blocks.0.ffn.key.weight")
    key = np.full((hidden, width), -1 / width, np.float32)
    key[: round(share * hidden)] *= -1
    for layer in range(model.config.n_layer):
        model._core.write_parameter(f"blocks.{layer}.ln2.bias", np.ones(width, np.float32))
        model._core.write_parameter(f"blocks.{layer}.ffn.key.weight", key)


def training(layers, width, batch, ctx_len, grad_cp=0, steps=6, vocab=VOCAB):
    """(tokens/s, bytes allocated)."""
    import numpy as np
    from rwkvtune import Trainer, TrainingConfig

    model = model_of(layers, width, ctx_len=ctx_len, vocab=vocab)
    trainer = Trainer(model, TrainingConfig(precision="bf16", micro_bsz=batch, grad_cp=grad_cp))
    rng = np.random.default_rng(0)
    ids, targets = (rng.integers(0, vocab, (batch, ctx_len)) for _ in range(2))
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        trainer.step(ids, targets, lr=1e-4)
        seconds.append(time.perf_counter() - start)
    return batch * ctx_len / statistics.median(seconds[2:]), trainer._core.allocated()["total"]


def decoding(model, tokens=64):
    """Seconds of one token of one text."""
    model.generate([1, 2, 3], max_new_tokens=8, temperature=0)
    start = time.perf_counter()
    model.generate([1, 2, 3], max_new_tokens=tokens, temperature=0)
    return (time.perf_counter() - start) / tokens


def prefill(model, T=4096):
    """Seconds of reading a prompt."""
    import numpy as np

    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (1, T)).astype(np.int32)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        model._core.forward(ids, None, "last")
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


# ---- the rows -------------------------------------------------------------------------------------------------------


def measure_operations(known):
    rate, peer = matmul_rate(), known.get("matmul")
    known["rate"] = rate
    yield Row("dense bf16 product, n = 8192", rate / 1e12, MATMUL / 1e12, "TFLOP/s", f"PyTorch: {peer / 1e12:.0f}" if peer else "")
    yield Row("memory, adding two arrays", bandwidth() / 1e12, 0.9 * BANDWIDTH / 1e12, "TB/s")
    predicted, times = wkv7_seconds(), wkv7_times()
    both = 1e3 * sum(times)
    peer = f", official-style kernel: {known['wkv7']:.1f}" if known.get("wkv7") else ""
    yield Row("wkv7 8 x 4096 x 4096, forward", 1e3 * times[0], 1e3 * predicted[0], "ms")
    yield Row("  forward + backward", both, 1e3 * sum(predicted), "ms", f"<= 5, aim 3{peer}", both <= 5)
    for what, args, read in (("bf16", {}, 2), ("int8", {"form": "int8"}, 1.0625), ("int4", {"form": "int4"}, 0.5625), ("bf16, 20 % active", {"active": 0.2}, 0.4)):
        seconds, launch = op_seconds("linear", "fwd", product_args(1, 16384, 4096, **args)), 2.5e-6
        yield Row(f"one row x 16384 x 4096, {what}", 1e6 * seconds, 1e6 * (16384 * 4096 * read / BANDWIDTH / 0.9 + launch), "us")
    yield Row("16 rows x 16384 x 4096, bf16", 1e6 * op_seconds("linear", "fwd", product_args(16, 16384, 4096)), 1e6 * (134.2e6 / BANDWIDTH / 0.9 + 2.5e-6), "us")
    yield Row("attention of one query after 4096 tokens", 1e6 * attention_seconds(), 21, "us")
    yield Row("layernorm 8192 x 2048", 1e6 * layernorm_seconds(), 17, "us")


def measure_training(known):
    for name, args, share, goal in (("12 x 768, batch 16, ctx 512", (12, 768, 16, 512), 0.35, None), ("24 x 2048, batch 1, ctx 4096", (24, 2048, 1, 4096), 0.5, 50),
                                    ("24 x 2048, grad_cp", (24, 2048, 1, 4096, 1), 0.4, None),
                                    ("4 x 4096 (blocks of 7.2B), batch 1, ctx 4096", (4, 4096, 1, 4096), 0.55, 55)):  # fmt: skip
        tokens, memory = training(*args)
        flops, rate = training_flops(*args[:2]), known.get("rate", MATMUL)
        reached = 100 * tokens * flops / rate
        peer = known.get("training") if args[1] == 768 else None
        note = f">= 1.3 x PyTorch's {peer:.0f}" if peer else ""
        yield Row(f"training {name}", tokens, share * MATMUL / flops, "tokens/s", note, tokens >= 1.3 * peer if peer else None)
        yield Row("  of the matmul rate", reached, 100 * share, "%", f">= {goal}" if goal else "", reached >= goal if goal else None)
        limit = 30 if name.endswith("grad_cp") else None
        yield Row("  memory", memory / 1e9, None, "GB", f"<= {limit}" if limit else "", memory / 1e9 <= limit if limit else None)


def measure_decoding(known):
    layers, width = 32, 4096
    whole = decoding_seconds(layers, width, share=1.0)
    model = model_of(layers, width)
    for share, what, goal in ((1.0, "all units active", 90), (0.2, "20 % active", 100)):
        activate(model, share)
        seconds = decoding(model)
        predicted = decoding_seconds(layers, width, active=share)
        yield Row(f"decoding 7.2B-shaped bf16, {what}", 1 / seconds, 1 / predicted, "tokens/s")
        yield Row("  of the bandwidth, as if all was read", 100 * whole / seconds, 100 * whole / predicted, "%", f">= {goal}", 100 * whole / seconds >= goal)
    seconds, flops = prefill(model), 2 * 4096 * multiplied(layers, width)[0]
    reached = 100 * flops / seconds / known.get("rate", MATMUL)
    yield Row("prefill 7.2B-shaped bf16, 4096 tokens", 4096 / seconds, 0.6 * MATMUL * 4096 / flops, "tokens/s")
    yield Row("  of the matmul rate", reached, 60, "%", ">= 60", reached >= 60)
    del model
    for precision, size in (("int8", 1.0625), ("int4", 0.5625)):
        yield Row(f"decoding 8 x 4096 {precision}", 1 / decoding(model_of(8, width, precision)), 1 / decoding_seconds(8, width, size), "tokens/s")


def peers(python):
    """What PyTorch does, {} where it is not there: matmul FLOP/s, milliseconds of wkv7 forward and backward, tokens/s of training."""
    try:
        lines = subprocess.run([python, ROOT / "bench/peers/torch_gpu.py"], capture_output=True, timeout=STAGES["peers"]).stdout
    except subprocess.TimeoutExpired as expired:
        lines = expired.stdout or b""
    except OSError as error:
        lines = json.dumps({"missing": str(error)}).encode()
    found = json.loads((lines.splitlines() or [b'{"missing": "it said nothing"}'])[-1])
    if found.get("missing"):
        print(f"of PyTorch there is no figure of {found['missing']}", flush=True)
    return found


def measure(known, groups=(measure_operations, measure_training, measure_decoding)):
    """All rows; a measurement that fails is a row that says why, and the next group goes on."""
    rows = []
    for group in groups:
        try:
            for row in group(known):
                rows.append(row)
                print(line_of(row), flush=True)
        except Exception as error:  # whatever it is belongs into the table
            rows.append(Row(f"{group.__name__} stopped after {rows[-1].what if rows else 'nothing'}", None, None, "", f"{type(error).__name__}: {error}", False))
            print(line_of(rows[-1]), flush=True)
    return rows


def line_of(row):
    measured, predicted = ("" if value is None else format(value, ".1f") for value in (row.measured, row.predicted))
    met = "" if row.met is None else "met" if row.met else "MISSED"
    return f"{row.what:52} {measured:>12} {predicted:>12}  {row.unit:9} {met:7} {row.goal}".rstrip()


def table(checked, rows):
    """The lines that are printed at the end."""
    yield from (f"{what:52} {'passed' if passed else 'FAILED'}" for what, passed in checked.items())
    yield f"{'':52} {'measured':>12} {'predicted':>12}  {'unit':9} {'':7} goal"
    yield from map(line_of, rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-build", action="store_true", help="take the extension as it is")
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    parser.add_argument("--no-peers", action="store_true", help="without PyTorch")
    parser.add_argument("--torch-python", default=shutil.which("python3") or sys.executable, metavar="PROGRAM", help="a Python that has PyTorch")
    parser.add_argument("--json", metavar="FILE", help="write the rows there, too")
    args = parser.parse_args()
    start = time.perf_counter()
    if not args.no_build and not build():
        sys.exit("the build failed")
    checked = {} if args.no_tests else tests()
    known = {} if args.no_peers else peers(args.torch_python)
    rows = measure(known)
    print("\n" + "\n".join(table(checked, rows)))
    print(f"took {time.perf_counter() - start:.0f} seconds")
    if args.json:
        Path(args.json).write_text(json.dumps({"tests": checked, "peers": known, "rows": [row._asdict() for row in rows]}, indent=1))
    sys.exit(not all(checked.values()) or any(row.met is False for row in rows))


if __name__ == "__main__":
    main()
