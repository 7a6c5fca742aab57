"""RWKV, hybrid and attention models against the length of the sequence: loss, speed and memory.

    python bench/architectures.py [--lengths 512 2048 8192 32768] [--train_steps 300] [--text FILE] [--json FILE]

The three models have the same sizes apart from their layers. Each is first trained in the same way on the first nine tenths
of a text (default: Python's standard library), in windows of 512 tokens, then for every length T:

    loss         nats per token over the first T tokens of the rest of the text, read from the beginning
    read tok/s   of that reading, in chunks of 1024 tokens with the state carried on; seconds are those of a processor core, so
                 that other work on the machine does not count
    state MiB    what the model remembers after T tokens: fixed for RWKV, growing with T for attention
    train tok/s  of one optimizer step on one sequence of T tokens, gradients through all of it (best of three up to 4096)
    train MiB    by how much that step raised the peak memory of its process

Every row is measured in a process of its own.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ARCHITECTURES = {"rwkv": ["x070"], "x060": ["x060"], "x052": ["x052"], "hybrid": ["x070", "attention"], "attention": ["attention"]}
WINDOW = 512


def read_text(path, size=4_000_000):
    """UTF-8 bytes as ids 1..256; 0 stays the end of a document."""
    import numpy as np

    if path:
        data = Path(path).read_bytes()
    else:
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        data = b"".join(file.read_bytes() for file in files)
    ids = np.frombuffer(data[:size], np.uint8).astype(np.int32) + 1
    return ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :]


def peak_mib():
    """Most memory this process ever held, where /proc tells it."""
    try:
        return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def train(name, args):
    """Trains one architecture and saves its weights."""
    import numpy as np

    from rwkvtune import RWKV, ModelConfig, Schedule, Trainer, TrainingConfig

    kinds = ARCHITECTURES[name]
    recipe = [kinds[i % len(kinds)] for i in range(args.n_layer)]
    model = RWKV(
        ModelConfig(model_type="x070", layers=recipe, n_embd=args.n_embd, vocab_size=257, ctx_len=WINDOW), seed=0
    )
    trainer = Trainer(model, TrainingConfig(precision="fp32", micro_bsz=4, grad_cp=0))
    schedule = Schedule(2e-3, 2e-4, 10, exit_tokens=args.train_steps, weight_decay=0.1)
    text, rng = read_text(args.text)[0], np.random.default_rng(0)
    for step in range(args.train_steps):
        starts = rng.integers(0, len(text) - WINDOW - 1, 4)
        rows = np.stack([text[start : start + WINDOW + 1] for start in starts])
        loss, _ = trainer.step(rows[:, :-1], rows[:, 1:], lr=schedule.lr(step), weight_decay=schedule.wd(step))
    model.save(args.weights)
    return {"parameters": model.num_parameters, "final_training_loss": loss}


def measure(name, length, args):
    """One row of the table."""
    from rwkvtune import RWKV, Trainer, TrainingConfig
    from rwkvtune.trainer import evaluate

    model = RWKV.load(args.weights, head_size_a=64)
    text = read_text(args.text)[1]
    if len(text) <= length:
        raise ValueError(f"the text is too short for T = {length}; give a longer one with --text")
    began = time.process_time()
    loss, count = evaluate(model, text[: length + 1])
    read = count / (time.process_time() - began)
    state = model.init_state(1)
    for start in range(0, length, 1024):
        state = model.process_with_state(text[start : min(start + 1024, length)], state)[1]
    trainer, before = Trainer(model, TrainingConfig(precision="fp32", micro_bsz=1, grad_cp=args.grad_cp)), peak_mib()
    seconds = math.inf
    for _ in range(3 if length <= 4096 else 1):
        began = time.process_time()
        trainer.step(text[:length], text[1 : length + 1], lr=0.0)
        seconds = min(seconds, time.process_time() - began)
    return {"architecture": name, "T": length, "loss": loss, "read_tokens_per_second": read, "state_mib": state.nbytes / 2**20,
            "train_tokens_per_second": length / seconds, "train_mib": peak_mib() - before}  # fmt: skip


def in_a_process(*arguments):
    done = subprocess.run([sys.executable, __file__, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip() or f"a measurement ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192, 32768])
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--n_layer", type=int, default=4)
    parser.add_argument("--n_embd", type=int, default=128)
    parser.add_argument("--train_steps", type=int, default=300, help="steps of 4 x 512 tokens before measuring")
    parser.add_argument(
        "--grad_cp", type=int, choices=(0, 1), default=0, help="1: compute activations again in the measured step"
    )
    parser.add_argument("--text", help="UTF-8 text (default: Python's standard library)")
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, *length = args.one
        return print(json.dumps(measure(name, int(length[0]), args) if length else train(name, args)))
    sizes = [
        "--n_layer",
        args.n_layer,
        "--n_embd",
        args.n_embd,
        "--train_steps",
        args.train_steps,
        "--grad_cp",
        args.grad_cp,
    ]
    sizes += ["--text", args.text] if args.text else []
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for name in args.architectures:
            weights = Path(directory) / f"{name}.pth"
            trained = in_a_process(*sizes, "--weights", weights, "--one", name)
            print(f"{name}: {trained['parameters']:,} parameters, training loss {trained['final_training_loss']:.3f}")
            for length in args.lengths:
                rows.append(in_a_process(*sizes, "--weights", weights, "--one", name, length) | trained)
    print("\n| layers | T | loss | read tok/s | state MiB | train tok/s | train MiB |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['architecture']} | {row['T']} | {row['loss']:.3f} | {row['read_tokens_per_second']:,.0f} | {row['state_mib']:.2f}"
              f" | {row['train_tokens_per_second']:,.0f} | {row['train_mib']:,.0f} |")  # fmt: skip
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
