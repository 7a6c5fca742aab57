"""Memory and speed on one long document: evaluation from its beginning to its end, and a training step over all of it.

    python bench/long_context.py                   # 1,000,000 tokens evaluated, 131,072 trained
    python bench/long_context.py --eval_tokens 0   # training only

Evaluation is `rwkvtune eval`, training `Trainer.step` with train_type "infctx": the state is carried all along, gradients are
cut every --chunk_ctx tokens.  Each runs in a process of its own; its peak resident memory is what the system reports at its end.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_TRAIN = """
import sys
import numpy as np
from rwkvtune import RWKV, Trainer, TrainingConfig
path, text, tokens, chunk, grad_cp = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
ids = np.frombuffer(open(text, "rb").read(tokens + 1), np.uint8).astype(np.int64)[None] + 1
trainer = Trainer(RWKV.load(path), TrainingConfig(train_type="infctx", chunk_ctx=chunk, precision="fp32", micro_bsz=1, grad_cp=grad_cp))
loss, norm = trainer.step(ids[:, :-1], ids[:, 1:], lr=1e-3)
print(f"loss {loss:.4f}, gradient norm {norm:.4f}, activations {trainer.model._core.allocated()['activations'] / 1e6:.0f} MB")
"""


def document(path, size):
    """Writes `size` bytes of text with words that repeat, so that there is something to predict."""
    words = [f"{prefix}{ending}" for prefix in ("carry ", "state ", "token ", "chunk ") for ending in ("on", "of", "by", "and\n")]
    lines, at = [], 0
    length = 0
    while length < size:
        at = (at * 1103515245 + 12345) % 2**31
        lines.append(words[(at >> 16) % len(words)])
        length += len(lines[-1]) + 1
    Path(path).write_bytes(" ".join(lines).encode()[:size])


def measured(name, command, tokens):
    """Runs a command and prints what it took."""
    began = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{name}: {tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s, peak memory so far {peak / 1e6:.0f} MB")
    print("  " + done.stdout.strip().replace("\n", "\n  "), flush=True)


def main():
    from rwkvtune import RWKV, ModelConfig, create_byte_vocab_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_type", default="x070", choices=("x052", "x060", "x070"))
    parser.add_argument("--n_layer", type=int, default=4)
    parser.add_argument("--n_embd", type=int, default=128)
    parser.add_argument("--eval_tokens", type=int, default=1_000_000, help="0 = none")
    parser.add_argument("--train_tokens", type=int, default=131_072, help="0 = none")
    parser.add_argument("--chunk_ctx", type=int, default=512, help="tokens after which gradients are cut")
    parser.add_argument("--grad_cp", type=int, default=0, choices=(0, 1))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        weights, text, vocab = (str(Path(directory) / name) for name in ("m.pth", "text.txt", "vocab.txt"))
        create_byte_vocab_file(vocab)
        document(text, max(args.eval_tokens, args.train_tokens + 1))
        model = RWKV(ModelConfig(model_type=args.model_type, n_layer=args.n_layer, n_embd=args.n_embd, vocab_size=257))
        model.save(weights)
        print(f"{model!r}")
        if args.train_tokens:
            command = [sys.executable, "-c", _TRAIN, weights, text, str(args.train_tokens), str(args.chunk_ctx), str(args.grad_cp)]
            measured("training step", command, args.train_tokens)
        if args.eval_tokens:
            command = [sys.executable, "-m", "rwkvtune", "eval", weights, "--text", text, "--vocab", vocab]
            measured("evaluation", command, args.eval_tokens)


if __name__ == "__main__":
    main()
