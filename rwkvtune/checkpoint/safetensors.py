"""Reading and writing `.safetensors` files.

    uint64 length of the header | header: JSON | data
    header: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ..., "__metadata__": {text: text}}

Offsets count from the end of the header; the tensors cover the data without gap or overlap.  The container is
read and written here, since the NumPy interface of the `safetensors` package knows no bfloat16, reads whole files
and writes them in place.

A quantised matrix is a tensor of U8, one row the bytes of one row (csrc/base/quant.h); its format stands in the metadata:
"rwkvtune.quantised": a JSON text of {"name": "int8_block32", ...}.  Its width follows from the bytes of a row.

Format: https://github.com/huggingface/safetensors, section "Format".
"""

import json
import math
import mmap
import os

from ..errors import FormatError
from ..atomic import atomic_write
from .lazy_tensor import (
    QUANTISED, Checkpoint, LazyTensor, QuantisedTensor, itemsize, shape_of, stored_chunks, stored_shape, strip_prefix, target_dtype,
)  # fmt: skip

_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    "BOOL": "bool", "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
_CODES = {name: code for code, name in _NAMES.items()}
_MAX_HEADER = 32 << 20
_MAX_AXES = 32
_ALIGNMENT = 64
_KEY = "rwkvtune.quantised"


def _stored_as(dtype):
    return "uint8" if dtype in QUANTISED else dtype


def is_safetensors(path):
    """Does the file begin like a safetensors file?  Raises OSError."""
    with open(path, "rb") as file:
        head, size = file.read(9), os.fstat(file.fileno()).st_size
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def _unique(pairs):
    """A JSON object as a dict; two equal keys would let two readers see two files."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name is there twice")
    return result


def _header(data, path):
    """(header as a dict, first byte of the data)."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 9 or length > min(_MAX_HEADER, len(data) - 8) or data[8:9] != b"{":
        raise FormatError(f"{path}: not a safetensors file, or cut off: its header of {length} bytes is impossible")
    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: the header is damaged: {str(error)[:120]}") from error
    return header, 8 + length


def _entry(name, entry, path):
    """(dtype name, shape, first byte, end) of one tensor of the header, checked by itself."""
    where = f"{path}: tensor {name[:80]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where}: expected exactly dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _NAMES:
        raise FormatError(f"{where}: dtype {code!r:.40} is unknown")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n <= 1 << 56 for n in numbers):
            raise FormatError(f"{where}: shape and data_offsets are lists of non-negative integers")
    if len(shape) > _MAX_AXES or len(offsets) != 2 or math.prod(max(1, size) for size in shape) > 1 << 56:
        raise FormatError(f"{where}: shape or data_offsets are impossible")
    dtype = _NAMES[code]
    if offsets[1] - offsets[0] != math.prod(shape) * itemsize(dtype):
        raise FormatError(f"{where}: {offsets[1] - offsets[0]} bytes for shape {tuple(shape)} of {dtype}")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _quantised(metadata, path):
    """dict: name of a tensor -> its quantised dtype."""
    if not isinstance(metadata, dict) or _KEY not in metadata:
        return {}
    try:
        formats = json.loads(metadata[_KEY], object_pairs_hook=_unique)
        if not isinstance(formats, dict) or not all(isinstance(dtype, str) for dtype in formats.values()):
            raise TypeError("it does not map names to formats")
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"{path}: {_KEY} in the metadata is damaged: {str(error)[:120]}") from error
    for name, dtype in formats.items():
        if dtype not in QUANTISED:
            raise FormatError(f"{path}: tensor {name[:80]!r} is of format {dtype[:40]!r}; known are {', '.join(QUANTISED)}")
    return formats


def _tensor(dtype, shape, data, start, quantised):
    """`LazyTensor` of an entry of the header.  Raises ValueError (it cannot be `quantised`)."""
    if quantised is None:
        return LazyTensor(dtype, shape, [math.prod(shape[axis + 1 :]) for axis in range(len(shape))], data, start)
    if dtype != "uint8" or len(shape) != 2:
        raise ValueError(f"{dtype} of shape {shape} holds no {quantised}, which is uint8 (rows, bytes of a row)")
    return QuantisedTensor(quantised, shape, data, start)


def read_safetensors(path, strip_prefixes=True):
    """Open a safetensors file.

    path: file name.
    strip_prefixes: take `_forward_module.`, `module.` and `model.` off the front of names (default True).
    Returns a `Checkpoint`: name -> `LazyTensor`, in the order of the header; tensors are views of the mapped file.
    Raises FormatError (not such a file, or damaged), OSError.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise FormatError(f"{path}: the file is empty")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    header, base = _header(data, path)
    quantised = _quantised(header.pop("__metadata__", None), path)
    tensors, spans = {}, []
    for name, entry in header.items():
        dtype, shape, start, end = _entry(name, entry, path)
        short = strip_prefix(name) if strip_prefixes else name
        if short in tensors:
            raise FormatError(f"{path}: two tensors are named {short[:80]!r} once prefixes are taken off")
        try:
            tensors[short] = _tensor(dtype, shape, data, base + start, quantised.pop(name, None))
        except ValueError as error:
            raise FormatError(f"{path}: tensor {name[:80]!r}: {error}") from error
        spans.append((start, end))
    if not tensors:
        raise FormatError(f"{path}: holds no tensors")
    if quantised:
        raise FormatError(f"{path}: {_KEY} in the metadata names {next(iter(quantised))[:80]!r}, which is not in the file")
    position = 0
    for start, end in sorted(spans):
        if start != position:
            raise FormatError(f"{path}: tensors overlap or leave a gap at byte {position} of the data")
        position = end
    if position != len(data) - base:
        raise FormatError(f"{path}: the tensors take {position} bytes, the file has {len(data) - base}; is it cut off?")
    return Checkpoint(path, "safetensors", tensors)


def write_safetensors(path, tensors, dtype=None, metadata=None):
    """Write tensors as a safetensors file.

    tensors: mapping name -> array of any shape, or `LazyTensor` (bf16 bits: `bfloat16_tensor`); names stay as they
    are and in order.  Each is taken twice, first for its shape and then for its numbers.
    dtype: "fp32", "bf16" or "fp16" for all floating-point tensors; None (default) leaves every tensor as it is; or a
    mapping name -> one of these, "int8" or "int4".
    metadata: dict of text to text, default {"format": "pt"}, which Transformers expects.
    The file appears under its name when it is complete.
    Raises ValueError (dtype, a number too large for fp16, nothing to write), TypeError (a dtype the format lacks,
    metadata that is not text), OSError (disk full, no permission, ...; the message names the path).
    """
    metadata = {"format": "pt"} if metadata is None else metadata
    if any(not isinstance(text, str) for item in metadata.items() for text in item):
        raise TypeError("metadata must map text to text")
    if not tensors:
        raise ValueError("there are no tensors to write")
    plan = {}
    for name in tensors:
        value = tensors[name]
        target = target_dtype(name, value, dtype)
        if not isinstance(name, str) or name == "__metadata__" or _stored_as(target) not in _CODES:
            raise TypeError(f"tensor {name!r:.80} of dtype {target} has no place in a safetensors file")
        plan[name] = target, stored_shape(target, shape_of(value))
    quantised = {name: target for name, (target, _) in plan.items() if target in QUANTISED}
    if quantised:
        metadata = metadata | {_KEY: json.dumps(quantised)}

    def size_of(name):
        return math.prod(plan[name][1]) * itemsize(plan[name][0])

    # Sizes that are multiples of 64 bytes come first, then of 32, and so on: with the header's own length a multiple of 64 every tensor
    # is as aligned as its size is, which is at least its elements' size.  The sort keeps the order among equals.
    order = sorted(plan, key=lambda name: -math.gcd(size_of(name), _ALIGNMENT))
    header, end = {"__metadata__": metadata} | dict.fromkeys(plan), 0
    for name in order:
        target, shape = plan[name]
        start, end = end, end + size_of(name)
        header[name] = {"dtype": _CODES[_stored_as(target)], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            written = 0
            for chunk in stored_chunks(name, tensors[name], plan[name][0]):
                written += file.write(chunk)
            if written != header[name]["data_offsets"][1] - header[name]["data_offsets"][0]:
                raise ValueError(f"tensor {name!r} changed its size while it was written")
