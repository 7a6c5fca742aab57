"""What each format of weights costs in quality: bytes, change of the held-out loss, divergence of the predictions.

    python bench/weight_formats.py                        trains the model of `rwkvtune quickstart` first (minutes)
    python bench/weight_formats.py WORK_DIR               its newest checkpoint, scored on its held-out data
    python bench/weight_formats.py m.pth --data_file data/val

Loss in nats per token.  KL: sum over the vocabulary of p log(p / q), p the predictions in float32, q those of the format,
mean over the tokens.  Each is measured twice: on chunks of text, and with --decode N on the first N tokens one at a time,
where the activations of int8 and int4 products are quantised as well.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from rwkvtune import RWKV, BinIdxDataset
from rwkvtune.cli import main as command
from rwkvtune.cli.common import newest_checkpoint

FORMATS = ("fp32", "bf16", "fp16", "int8", "int4")
CHUNK = 256


def log_softmax(logits):
    z = logits.astype(np.float64)
    z -= z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def compare(models, ids, size):
    """{format: (loss, KL to fp32)}, means over ids[1:], read `size` tokens at a time with the state carried along."""
    states, sums, exact = dict.fromkeys(models), {name: np.zeros(2) for name in models}, None
    for at in range(0, len(ids) - 1, size):
        x, y = ids[at : at + size], ids[at + 1 : at + size + 1]
        x = x[: len(y)]
        for name, model in models.items():
            logits, states[name] = model.process_with_state(x[None], states[name])
            log_p = log_softmax(logits[0])
            exact = log_p if name == "fp32" else exact  # fp32 is the first of models
            sums[name] += -log_p[np.arange(len(y)), y].sum(), (np.exp(exact) * (exact - log_p)).sum()
    return {name: tuple(total / (len(ids) - 1)) for name, total in sums.items()}


def measure(path, ids, decode):
    """One dict per format."""
    models, sizes = {}, {}
    with tempfile.TemporaryDirectory() as directory:
        for name in FORMATS:
            models[name] = RWKV.load(path, precision=name)
            target = Path(directory, name + ".safetensors")
            models[name].save(target)
            sizes[name] = target.stat().st_size
    chunks = compare(models, ids, CHUNK)
    single = compare(models, ids[: decode + 1], 1) if decode else {}
    rows = []
    for name in FORMATS:
        row = {"format": name, "file_bytes": sizes[name], "bytes": models[name].plan(training=False)["parameters"], "loss": chunks[name][0]}
        for how, result in (("chunks", chunks), ("decoding", single)):
            if result:
                row[f"{how}_loss_change"], row[f"{how}_kl"] = result[name][0] - result["fp32"][0], result[name][1]
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="", help="a work directory or a weight file; default: train one")
    parser.add_argument("--data_file", default="", help="bin/idx data to score, without the ending; default: that of the work directory")
    parser.add_argument("--tokens", type=int, default=20000, help="at most so many tokens")
    parser.add_argument("--decode", type=int, default=1000, help="tokens read one at a time, 0 = none")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    directory = args.model or "rwkv-quickstart"
    if not args.model and command(["quickstart", "--work_dir", directory, "--max_new_tokens", "0"]):
        raise SystemExit(1)
    path = newest_checkpoint(Path(directory, "out")) if Path(directory).is_dir() else Path(directory)
    with BinIdxDataset(args.data_file or str(Path(directory, "data", "val"))) as data:
        ids = np.array(data.stream(0, int(min(args.tokens, data.total_tokens))), np.int64)
    rows = measure(path, ids, min(args.decode, len(ids) - 1))
    if args.json:
        print(json.dumps({"model": str(path), "tokens": len(ids), "rows": rows}))
        return
    print(f"{path}, {len(ids):,} tokens, loss {rows[0]['loss']:.4f} nats per token in float32\n")
    names = ["bytes", "chunks_loss_change", "chunks_kl", *(["decoding_loss_change", "decoding_kl"] if args.decode else [])]
    print("| format | " + " | ".join(name.replace("_", " ") for name in names) + " |\n" + "|---" * (len(names) + 1) + "|")
    for row in rows:
        cells = [f"{row[name]:,}" if name == "bytes" else f"{row[name]:+.5f}" if "change" in name else f"{row[name]:.2e}" for name in names]
        print(f"| {row['format']} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
