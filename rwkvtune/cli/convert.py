"""rwkvtune convert: rewrite weights in another container or precision."""

import os
import sys
import warnings
from collections.abc import Mapping

from . import run_command
from .common import open_weights

SUMMARY = "Convert weights between .pth and .safetensors and between fp32, bf16, fp16, int8 and int4."


class _Watched(Mapping):
    """Tensors by name that move a progress bar along: a writer takes each twice, the second time to write it."""

    def __init__(self, tensors, bar):
        self._tensors, self._bar, self._seen = tensors, bar, set()

    def __getitem__(self, name):
        if name in self._seen:
            self._bar.update(self._tensors[name].nbytes)
        self._seen.add(name)
        return self._tensors[name]

    def __iter__(self):
        return iter(self._tensors)

    def __len__(self):
        return len(self._tensors)


def add_arguments(parser):
    parser.add_argument("source", help=".pth or .safetensors file")
    parser.add_argument("target", help="file to write; its ending decides the format")
    parser.add_argument("--dtype", default=None, choices=("fp32", "bf16", "fp16", "int8", "int4"),
                        help="default: as the tensors are; int8 and int4 (.safetensors only) quantise the matrices of a model")  # fmt: skip


def _formats(dtype, tensors, source):
    """What writers take for --dtype.  Raises FormatError: int8 and int4 of what is no model."""
    if dtype not in ("int8", "int4"):
        return dtype
    from .. import _rwkvcore
    from ..model import config_of
    from ..weights import file_formats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the head size of attention, which no shape depends on
        config = config_of(tensors, source)
    return file_formats(_rwkvcore.Model.describe(config.to_core_dict()), tensors, dtype)


def run(args):
    from tqdm.auto import tqdm

    from ..checkpoint import write_pth, write_safetensors

    writers = {".pth": write_pth, ".safetensors": write_safetensors}
    ending = os.path.splitext(args.target)[1]
    if ending not in writers:
        raise ValueError(f"{args.target}: the ending must be .pth or .safetensors")
    if ending == ".pth" and args.dtype in ("int8", "int4"):
        raise ValueError(f"{args.target}: a .pth file cannot hold {args.dtype}; give the target the ending .safetensors, or choose --dtype bf16")
    tensors = open_weights(args.source)
    if os.path.exists(args.target) and os.path.samefile(args.source, args.target):
        raise ValueError(f"{args.target}: source and target are the same file")
    try:
        with tqdm(total=sum(tensor.nbytes for tensor in tensors.values()), unit="B", unit_scale=True, delay=2) as bar:
            writers[ending](args.target, _Watched(tensors, bar), dtype=_formats(args.dtype, tensors, args.source))
    except TypeError as error:  # a type of numbers that the other format has no name for
        raise ValueError(str(error)) from error
    print(f"{args.target}: {len(tensors)} tensors, {os.path.getsize(args.target):,} bytes")


if __name__ == "__main__":
    sys.exit(run_command("convert", sys.argv[1:]))
