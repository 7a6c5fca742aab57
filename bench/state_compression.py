"""What compressing a state costs: bytes, and how far the rest of a text is predicted otherwise.

    python bench/state_compression.py [--train_steps 150] [--text FILE]

A small model of each version is trained on the first nine tenths of a text (default: Python's standard library). Of the rest
it reads 512 tokens, the state is compressed once, and the next 256 tokens are read on from it:

    bytes     of the state, as a share of its float32 arrays
    logits    largest difference of any logit from those without compression
    loss      difference of the mean cross-entropy of the 256 tokens, in nats
"""

import argparse
import sysconfig
from pathlib import Path

import numpy as np

from rwkvtune import RWKV, ModelConfig, Trainer, TrainingConfig
from rwkvtune.state_codec import ENCODINGS

_READ, _ON = 512, 256


def text_bytes(path, most=2_000_000):
    """The text as ids: byte b is b + 1."""
    if path:
        data = Path(path).read_bytes()
    else:
        data = b"".join(file.read_bytes() for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))
    return np.frombuffer(data[:most], np.uint8).astype(np.int64) + 1


def trained(version, ids, steps):
    model = RWKV(ModelConfig(model_type=version, n_layer=3, n_embd=128, vocab_size=257))
    trainer, rng = Trainer(model, TrainingConfig(precision="fp32", micro_bsz=8, grad_cp=0)), np.random.default_rng(0)
    for step in range(steps):
        rows = np.stack([ids[at : at + 129] for at in rng.integers(0, len(ids) - 129, 8)])
        trainer.step(rows[:, :-1], rows[:, 1:], lr=2e-3 * min(1, (step + 1) / 10))
    return model


def measure(model, ids):
    """Prints a line per encoding."""
    _, state = model.process_with_state(ids[:_READ])
    x, y = ids[_READ : _READ + _ON], ids[_READ + 1 : _READ + _ON + 1]
    exact, loss = model(x, y, state=state)
    size = sum(value.nbytes for value in state.to_numpy().values())
    for dtype in ENCODINGS:
        packed = state.compressed(dtype)
        logits, other = model(x, y, state=packed)
        share, moved = packed.nbytes / size, np.abs(logits - exact).max()
        print(f"{model.config.model_type}  {dtype}  bytes {share:.3f}  logits {moved:.1e}  loss {other - loss:+.1e} (of {loss:.3f})", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_steps", type=int, default=150)
    parser.add_argument("--text", default="", help="text to train and measure on")
    args = parser.parse_args()
    ids = text_bytes(args.text)
    cut = len(ids) * 9 // 10
    for version in ("x052", "x060", "x070"):
        measure(trained(version, ids[:cut], args.train_steps), ids[cut:])


if __name__ == "__main__":
    main()
