"""rwkvtune bench: tokens per second of training, prompt reading and generation on this machine."""

import sys
import time

from . import run_command

SUMMARY = "Measure the speed of training and of generation for a model of a given size."


def add_arguments(parser):
    parser.add_argument("--model_type", default="x070", choices=("x052", "x060", "x070"), help="version of the model")
    parser.add_argument("--n_layer", type=int, default=4, help="layers")
    parser.add_argument("--n_embd", type=int, default=256, help="channels")
    parser.add_argument("--vocab_size", type=int, default=257, help="vocabulary")
    parser.add_argument("--head_size_a", type=int, default=64, help="channels of a head")
    parser.add_argument("--ctx_len", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--micro_bsz", type=int, default=8, help="sequences of a step")
    parser.add_argument("--grad_cp", type=int, default=0, help="1 = recompute activations")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each measurement")
    parser.add_argument("--threads", type=int, default=0, help="threads, 0 = as the machine has processors")
    parser.add_argument("--backend", default="cpu", choices=("cpu", "ref"), help="implementation")


def _rate(work, tokens, seconds):
    """Tokens per second of the fastest call of work() within some seconds; the first call does not count."""
    work()
    best, end = 0.0, time.perf_counter() + seconds
    while not best or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        best = max(best, tokens / (time.perf_counter() - began))
    return best


def run(args):
    import numpy as np

    from .. import info, set_num_threads
    from ..config import ModelConfig, TrainingConfig
    from ..model import RWKV
    from ..trainer import Trainer

    for name, least in (("micro_bsz", 1), ("ctx_len", 1), ("seconds", 0.0), ("threads", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least {least}")
    if args.threads > 256:
        raise ValueError(f"--threads is {args.threads}; it must be at most 256")
    if args.threads:
        set_num_threads(args.threads)
    config = ModelConfig(model_type=args.model_type, n_layer=args.n_layer, n_embd=args.n_embd, vocab_size=args.vocab_size,
                         head_size_a=args.head_size_a, ctx_len=args.ctx_len)  # fmt: skip
    model = RWKV(config, backend=args.backend)
    facts = info()
    print(f"{model!r}\n{facts['isa']}, {facts['threads']} threads")
    ids = np.random.default_rng(0).integers(0, args.vocab_size, (args.micro_bsz, args.ctx_len + 1), np.int32)
    x, y = ids[:, :-1].copy(), ids[:, 1:].copy()
    trainer = Trainer(model, TrainingConfig(precision="fp32", micro_bsz=args.micro_bsz, grad_cp=args.grad_cp))
    rates = {
        "training": _rate(lambda: trainer.step(x, y, lr=0.0), x.size, args.seconds),
        "prompt": _rate(lambda: model.process_with_state(x[:1]), args.ctx_len, args.seconds),
        "generation": _rate(lambda: model.generate([0], 64), 64, args.seconds),
    }
    for name, rate in rates.items():
        print(f"{name:12} {rate:12,.0f} tokens/s")


if __name__ == "__main__":
    sys.exit(run_command("bench", sys.argv[1:]))
