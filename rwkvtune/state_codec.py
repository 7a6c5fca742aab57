"""Arrays of a state in fewer bits, for states that are kept: in memory between calls, and in files.

A row is what shares the first axes: a value slot of wkv, a head of a token in the caches, the channels of a shift.  With m
its largest magnitude, a number x of it comes back as y with

    fp16   |x - y| <= max(2^-11 |x|, 2^-39 m)   float16 of x 2^s, s per row, so that any size of state fits
    bf16   |x - y| <= 2^-8 |x|                  the upper half of a float32
    int8   |x - y| <= m / 254                   integers of -127 to 127 times m / 127; the shifts are kept as fp16

up to the rounding of float32 and its smallest normal number, 2^-126.  Shapes are kept.
"""

import numpy as np

from .checkpoint.lazy_tensor import round_to_bfloat16, widen_bfloat16

ENCODINGS = ("fp16", "bf16", "int8")
_CODES = {"fp16": np.float16, "bf16": np.uint16, "int8": np.int8}
_SCALES = {"fp16": np.int16, "int8": np.float32}
_SMALLEST = np.finfo(np.float32).tiny
_TOP = 15  # rows are brought below 2^15; float16 ends at 65504


def check_encoding(dtype):
    """`dtype`, one of `ENCODINGS`.  Raises ValueError."""
    if dtype not in ENCODINGS:
        raise ValueError(f"dtype of the compression is {dtype!r}; allowed are {', '.join(map(repr, ENCODINGS))}")
    return dtype


class Encoded:
    """An array in fewer bits.

    encoding: one of `ENCODINGS`.  codes: of the array's shape; float16, uint16 (bits of bf16) or int8.  scale: one number
    per row of the last axis, of shape (..., 1): the exponent (int16) or the step (float32) of the row; None for bf16.
    Raises ValueError where these do not belong together.
    """

    __slots__ = ("encoding", "codes", "scale")

    def __init__(self, encoding, codes, scale):
        self.encoding, self.codes, self.scale = encoding, codes, scale
        wanted = _SCALES.get(check_encoding(encoding))
        fits = scale is None if wanted is None else scale is not None and (scale.dtype, scale.shape) == (wanted, (*codes.shape[:-1], 1))
        if codes.dtype != _CODES[encoding] or codes.ndim < 2 or not fits:
            raise ValueError(f"{encoding} numbers need codes of {np.dtype(_CODES[encoding])} and a scale per row")
        for part in self.parts():
            part.flags.writeable = False

    @property
    def shape(self):
        """Of the array."""
        return self.codes.shape

    @property
    def nbytes(self):
        """Bytes of codes and scales."""
        return sum(part.nbytes for part in self.parts())

    def parts(self):
        """codes, and the scale where there is one."""
        return (self.codes,) if self.scale is None else (self.codes, self.scale)

    def map(self, function):
        """With function(part) in place of codes and of scale; for what acts on the first axes alone."""
        return Encoded(self.encoding, *map(function, self.parts()), *([None] if self.scale is None else []))

    def array(self):
        """The numbers as float32."""
        if self.encoding == "fp16":
            return np.ldexp(self.codes.astype(np.float32), self.scale.astype(np.int32) - _TOP)
        if self.encoding == "bf16":
            return widen_bfloat16(self.codes)
        return self.codes * self.scale


def _encoded_rows(encoding, values):
    if encoding == "bf16":
        return Encoded(encoding, round_to_bfloat16(values.reshape(-1)).reshape(values.shape), None)
    largest = np.abs(values).max(axis=-1, keepdims=True, initial=0)
    if encoding == "fp16":
        exponent = np.frexp(largest)[1]
        return Encoded(encoding, np.ldexp(values, _TOP - exponent).astype(np.float16), exponent.astype(np.int16))
    step = np.maximum(largest / np.float32(127), _SMALLEST)
    return Encoded(encoding, np.rint(values / step).astype(np.int8), step)


def encode(name, array, dtype):
    """`Encoded` of a state's array.

    name: of the array; the shifts, which are few numbers, are kept as fp16 where the rest is int8.
    Raises ValueError (a number that is not finite).
    """
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"state {name} holds a number that is not finite; it cannot be compressed")
    small = dtype == "int8" and name.split(".")[0].endswith("_shift")
    return _encoded_rows("fp16" if small else dtype, values)


def concatenated(parts):
    """One `Encoded` of several of the same encoding, along the axis of sequences."""
    codes = np.concatenate([part.codes for part in parts], axis=1)
    scale = None if parts[0].scale is None else np.concatenate([part.scale for part in parts], axis=1)
    return Encoded(parts[0].encoding, codes, scale)
