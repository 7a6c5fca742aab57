"""From nothing to the first token: a new process that imports the package, loads a weight file and generates one token.

    python bench/load.py [--runs 5] [--n_layer 12 --n_embd 768 --vocab_size 65536] [FILE ...]

Without files, one of random weights is made in each format. Times are in seconds, the best of all runs, so files are in the
page cache. total: the whole process, from its start. memory: the largest it had, with all pages of the file it looked at.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rwkvtune import RWKV, ModelConfig

CHILD = """
import time; start = time.perf_counter()
from rwkvtune import RWKV
imported = time.perf_counter()
import json, sys
model = RWKV.load(sys.argv[1], precision="file")
loaded = time.perf_counter()
model.generate([1], 1)
done = time.perf_counter()
import resource
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
print(json.dumps({"import": imported - start, "load": loaded - imported, "token": done - loaded, "memory": peak}))
"""


def make_files(args, directory):
    config = ModelConfig(model_type="x070", n_layer=args.n_layer, n_embd=args.n_embd, vocab_size=args.vocab_size)
    model, rng = RWKV(config), np.random.default_rng(0)
    for value in model.named_parameters().values():
        if not value.any():
            value[...] = 0.01 * rng.standard_normal(value.shape, dtype=np.float32)
    for name, dtype in (("fp32.pth", "fp32"), ("bf16.pth", "bf16"), ("bf16.safetensors", "bf16"), ("int8.safetensors", "int8"), ("int4.safetensors", "int4")):
        model.save(Path(directory, name), dtype=dtype)
        yield Path(directory, name)


def run_once(path):
    start = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=True).stdout
    return json.loads(out) | {"total": time.perf_counter() - start}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="weight files; default: random weights in each format")
    for name, value in (("runs", 5), ("n_layer", 12), ("n_embd", 768), ("vocab_size", 65536)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(path) for path in args.files] or list(make_files(args, directory))
        print("file                    MiB   import   load  token  total   memory MiB (share of the file)")
        for path in files:
            runs = [run_once(path) for _ in range(args.runs)]
            best = {name: min(run[name] for run in runs) for name in runs[0]}
            size = path.stat().st_size
            times = "  ".join(f"{best[name]:5.3f}" for name in ("import", "load", "token", "total"))
            print(f"{path.name:20} {size / 2**20:6.1f}    {times}   {best['memory'] / 2**20:6.1f} ({best['memory'] / size:.2f})")


if __name__ == "__main__":
    main()
