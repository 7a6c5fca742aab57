"""Reading a prompt and writing token by token beside the `rwkv` package and llama.cpp, in turn on one machine, the same weights.

    python bench/peers/inference.py [--python PEERS_PYTHON] [--shape 0.1b] [--tokens 512] [--steps 32]

llama.cpp gets the model as GGUF (gguf_file.py) and quantizes it itself. Before timing, the logits after 32 tokens must agree with
rwkvtune's in float32: the largest difference over the largest logit within 1e-3 for float32 engines, 2e-2 for 16 bits, 0.1 for 8;
of 4 bits the figure is only printed.
"""

import argparse
import os
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

from engine import Missing, in_turn, started

_OURS = ("fp32", "bf16", "fp16", "int8", "int4")
_LLAMA = {"F16": "fp16", "Q8_0": "int8", "Q4_0": "int4", "Q4_K_M": "int4"}
_BOUND = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 2e-2, "int8": 0.1, "int4": float("inf")}
_CHECKED = 32


def prepare(sizes, directory):
    """Writes the model as .npz and as .pth where they are not there; returns its configuration."""
    import numpy as np

    from rwkvtune.bench.shapes import random_model, split

    config, weights = split(sizes)[0], os.path.join(directory, "model.pth")
    if not os.path.exists(weights):
        model = random_model(config)
        np.savez(os.path.join(directory, "model.npz"), **model.named_parameters())
        model.save(weights)
    return config


def llama_files(directory, args, absent):
    """precision of ours, name and file of each format of llama.cpp."""
    import subprocess

    source, target = (os.path.join(directory, name) for name in ("model.npz", "f32.gguf"))
    command = [args.python, str(Path(__file__).with_name("gguf_file.py")), source, target]
    done = None if os.path.exists(target) else subprocess.run(command, capture_output=True, text=True)
    if done and done.returncode:
        absent["llama.cpp"] = f"no GGUF file ({done.stderr.strip().splitlines()[-1]})"
        return
    engine, reason = started("llama.cpp F32", args.python, "llama_cpp_engine.py", weights=target, threads=args.threads)
    if engine is None:
        absent["llama.cpp"] = reason
        return
    yield "fp32", "llama.cpp F32", target
    try:
        for kind, precision in _LLAMA.items():
            path = os.path.join(directory, f"{kind}.gguf")
            if not os.path.exists(path):
                engine.ask("quantize", target, path, kind)
            yield precision, f"llama.cpp {kind}", path
    except Missing as reason:
        absent["llama.cpp quantized"] = str(reason)
    finally:
        engine.close()


def engines_of(directory, args, absent):
    """(precision, engine) of everything there is."""
    weights = os.path.join(directory, "model.pth")
    wanted = [(p, f"rwkvtune {p}", sys.executable, "ours.py", {"weights": weights, "precision": p}) for p in _OURS]
    if "fp32" in args.precisions:
        wanted.append(("fp32", "rwkv package", args.python, "rwkv_package.py", {"weights": weights}))
    wanted += [(p, name, args.python, "llama_cpp_engine.py", {"weights": path}) for p, name, path in llama_files(directory, args, absent)]
    for precision, name, python, program, settings in wanted:
        if precision not in ("fp32", *args.precisions):
            continue
        engine, reason = started(name, python, program, threads=args.threads, **settings)
        if engine is None:
            absent[name] = reason
        else:
            yield precision, engine


def check(engines, ids, absent):
    """engine's name -> largest difference of a logit from rwkvtune's float32 over the largest logit.  Ends where an engine computes something else."""
    import numpy as np

    expected, found = None, {}
    for precision, engine in engines:
        try:
            logits = np.array(engine.ask("logits", ids))
        except Missing as reason:
            absent[engine.name] = str(reason)
            continue
        expected = logits if expected is None else expected
        found[engine.name] = float(np.abs(logits - expected).max() / np.abs(expected).max())
        if not found[engine.name] <= _BOUND[precision]:
            raise SystemExit(f"{engine.name} computes something else: its logits differ by {found[engine.name]:.1e} of the largest")
    return found


def main():
    from rwkvtune.bench.machine import read_gbs, sgemm_gflops
    from rwkvtune.bench.shapes import SHAPES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="Python that the peers are installed for (default: this one)")
    parser.add_argument("--shape", choices=SHAPES, default="0.1b")
    parser.add_argument("--precisions", nargs="+", choices=_OURS, default=list(_OURS), help="formats; float32 is always measured, the rwkv package with it where it is named")
    parser.add_argument("--tokens", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--steps", type=int, default=32, help="tokens that are written")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", default="", help="directory for the models' files, taken from there where they are (default: a temporary one)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    absent = {}
    with nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory() as directory:
        config = prepare(SHAPES[args.shape], directory)
        ids = [(7919 * i) % (config.vocab_size - 1) + 1 for i in range(args.tokens)]
        engines = list(engines_of(directory, args, absent))
        errors = check(engines, ids[:_CHECKED], absent)
        engines = [(precision, engine) for precision, engine in engines if engine.name in errors]
        before = sgemm_gflops(), read_gbs(args.threads)
        names = [engine for _, engine in engines]
        prefill, decode = in_turn(names, args.rounds, "prefill", ids), in_turn(names, 2 * args.rounds, "decode", ids[: args.steps])
        sgemm, read = map(max, before, (sgemm_gflops(), read_gbs(args.threads)))
        print(f"{args.shape}, {args.threads} threads: sgemm {sgemm:.0f} GFLOP/s, reading {read:.1f} GB/s\n")
        print("| engine | logits off by | prefill tok/s | rwkvtune is faster by | decode tok/s | rwkvtune is faster by | peak MiB |\n|---|---|---|---|---|---|---|")
        for precision, engine in engines:
            ours = next((name for name in (f"rwkvtune {precision}",) if name in prefill), "rwkvtune fp32")
            a, b = prefill[engine.name], decode[engine.name]
            print(f"| {engine.name} | {errors[engine.name]:.0e} | {args.tokens / a:.0f} | {a / prefill[ours]:.2f} | {args.steps / b:.1f} | {b / decode[ours]:.2f} | {engine.ask('peak'):,.0f} |")
            engine.close()
    for name, reason in absent.items():
        print(f"| {name} | {reason} | | | | | |")


if __name__ == "__main__":
    main()
