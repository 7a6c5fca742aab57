"""Weights held in formats of their own: which tensor is held in which, and their numbers when somebody asks for them.

| format | bytes per weight | what may be held in it |
|---|---|---|
| fp32 | 4 | everything |
| bf16, fp16 | 2 | matrices, low-rank matrices, the embedding |
| int8 | 1.0625 | matrices (of attention, time mix, channel mix, and the head) whose rows are multiples of 32 |
| int4 | 0.5625 | the same |

The core says of each parameter which it takes (`_rwkvcore.Model.describe`).
"""

from collections.abc import Mapping

import numpy as np

from .checkpoint.lazy_tensor import FORMATS, PRECISIONS, LazyTensor, bfloat16_tensor, quantised_tensor, to_format

HELD = ("bf16", "fp16", "int8", "int4", "file")  # precisions of a model for inference
_HALVES = ("bf16", "fp16")
_SMALL = 1 << 20  # bytes not worth a call of the system


def _format_of(value):
    """The format a tensor is stored in; None: one of no weights, such as float64."""
    dtype = value.dtype if isinstance(value, LazyTensor) else np.asarray(value).dtype.name
    return FORMATS.get(dtype)


def held_formats(rows, tensors, precision):
    """dict name -> format in which a model for inference holds each parameter.

    rows: the core's description of the parameters.  tensors: their sources by name.  precision: one of HELD; "file" = as stored.
    What cannot be held so is held as bf16 where that can be (fp16 where it is stored so), else as float32.
    """
    formats = {}
    for row in rows:
        own = _format_of(tensors[row["name"]]) if row["name"] in tensors else None
        wanted = own if precision == "file" else precision
        if wanted not in row["formats"]:
            narrow = wanted in ("int8", "int4") and "bf16" in row["formats"]
            wanted = "fp32" if not narrow else own if own in _HALVES else "bf16"
        formats[row["name"]] = wanted
    return formats


def file_formats(rows, tensors, precision):
    """dict name -> format in which a file of this precision stores each tensor; None = as it is.

    Of "int8" and "int4" the matrices are quantised, wide low-rank matrices and embeddings become bf16, vectors stay as they are.
    """
    if precision not in ("int8", "int4"):
        return dict.fromkeys(tensors, precision)
    held = held_formats([row for row in rows if row["name"] in tensors], tensors, precision)
    return {name: None if held.get(name) == "fp32" else held.get(name) for name in tensors}


def hold(rows, tensors, formats):
    """dict name -> (format, array) for `_rwkvcore.Model`; parameters that are missing are zeros.

    Tensors of a file that have their format already stay in the mapped file, everything else becomes memory of its own.
    Raises ValueError naming the tensor whose numbers are too large.
    """
    weights = {}
    for row in rows:
        name, shape = row["name"], tuple(row["shape"])
        value, wanted = tensors[name] if name in tensors else np.zeros(shape, np.float32), formats[name]
        try:
            array = to_format(value, wanted)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from error
        if isinstance(value, LazyTensor):
            if wanted != _format_of(value) and value.nbytes > _SMALL:
                value.release(0, value.span)  # its pages would count as memory of this process
        elif np.may_share_memory(array, value):
            array = array.copy()
        weights[name] = wanted, array.reshape(shape) if wanted in ("fp32", *_HALVES) else array
    return weights


def stored_tensor(weight):
    """A held (format, array) as what writers take."""
    held, array = weight
    if held == "bf16":
        return bfloat16_tensor(array)
    return array if held in ("fp32", "fp16") else quantised_tensor(PRECISIONS[held], array)


def precision_of(rows, formats):
    """The format the matrices are held in, "mixed" where they differ; what cannot be quantised does not count beside what is."""
    found = {formats[row["name"]] for row in rows if "bf16" in row["formats"]}
    found = found & {"int8", "int4"} or found
    return found.pop() if len(found) == 1 else "mixed"


class HeldParameters(Mapping):
    """The parameters of a model for inference by name; looking one up makes a read-only float32 array of its numbers."""

    def __init__(self, weights):
        self._weights = weights

    def __getitem__(self, name):
        held, array = self._weights[name]
        value = to_format(stored_tensor((held, array)), "fp32")
        value = value.view() if held == "fp32" else value
        value.flags.writeable = False
        return value

    def __iter__(self):
        return iter(self._weights)

    def __len__(self):
        return len(self._weights)

    def __repr__(self):
        return f"HeldParameters({len(self)} of {', '.join(sorted({held for held, _ in self._weights.values()}))})"
