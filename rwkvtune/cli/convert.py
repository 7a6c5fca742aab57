"""rwkvtune convert: rewrite weights in another container or precision."""

import os
import sys

from . import run_command
from .common import open_weights

SUMMARY = "Convert weights between .pth and .safetensors and between fp32, bf16 and fp16."


def add_arguments(parser):
    parser.add_argument("source", help=".pth or .safetensors file")
    parser.add_argument("target", help="file to write; its ending decides the format")
    parser.add_argument("--dtype", default=None, choices=("fp32", "bf16", "fp16"), help="default: as the tensors are")


def run(args):
    from ..checkpoint import write_pth, write_safetensors

    writers = {".pth": write_pth, ".safetensors": write_safetensors}
    ending = os.path.splitext(args.target)[1]
    if ending not in writers:
        raise ValueError(f"{args.target}: the ending must be .pth or .safetensors")
    tensors = open_weights(args.source)
    if os.path.exists(args.target) and os.path.samefile(args.source, args.target):
        raise ValueError(f"{args.target}: source and target are the same file")
    try:
        writers[ending](args.target, tensors, dtype=args.dtype)
    except TypeError as error:  # a type of numbers that the other format has no name for
        raise ValueError(str(error)) from error
    print(f"{args.target}: {len(tensors)} tensors, {os.path.getsize(args.target):,} bytes")


if __name__ == "__main__":
    sys.exit(run_command("convert", sys.argv[1:]))
