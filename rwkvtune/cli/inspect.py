"""rwkvtune inspect: what a weight file holds, from its header alone."""

import json
import sys

from . import run_command

SUMMARY = "Show the version, sizes and tensors of a weight file without loading it."


def add_arguments(parser):
    parser.add_argument("path", help=".pth or .safetensors file, or the trainer_state.pth of a run")
    parser.add_argument("--tensors", action="store_true", help="list every tensor with its dtype and shape")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run_state(path, tensors):
    """The facts of a trainer's state file."""
    from ..trainer import read_position

    about = read_position(path)
    names = ("steps", "tokens", "applied_steps", "precision", "backend")
    return {"checkpoint_path": path, "trainer_state": {name: about[name] for name in names}, "model": about["model"],
            "training": about["training"], "num_tensors": len(tensors)}  # fmt: skip


def _print(facts, indent=""):
    """One line per fact; those that do not apply are left out (--json has them as null)."""
    for name, value in facts.items():
        if value is None or isinstance(value, (str, dict)) and not value:
            continue
        if name == "layers":
            value = f"{len(value)} x " + "+".join(sorted({layer["time_mix"] for layer in value})) if value else None
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            _print(value, indent + "  ")
        elif isinstance(value, float):
            print(f"{indent}{name}: {value:.6g}")
        elif isinstance(value, int) and not isinstance(value, bool):
            print(f"{indent}{name}: {value:,}")
        elif isinstance(value, list):
            print(f"{indent}{name}: {', '.join(map(str, value))}")
        else:
            print(f"{indent}{name}: {value}")


def run(args):
    import os

    from ..checkpoint import inspect_checkpoint, read_checkpoint

    if not os.path.exists(args.path):
        raise FileNotFoundError(f"Checkpoint not found: {args.path}")
    tensors = read_checkpoint(args.path)
    facts = _run_state(args.path, tensors) if "about" in tensors else inspect_checkpoint(args.path)
    if args.json:
        if args.tensors:
            facts = {**facts, "tensors": {name: [tensor.dtype, list(tensor.shape)] for name, tensor in tensors.items()}}
        print(json.dumps(facts))
        return
    _print(facts)
    if args.tensors:
        for name, tensor in tensors.items():
            print(f"{name}  {tensor.dtype}  {'x'.join(map(str, tensor.shape)) or 'scalar'}")


if __name__ == "__main__":
    sys.exit(run_command("inspect", sys.argv[1:]))
