"""Tensors that stay in their file until somebody wants the numbers.

A `LazyTensor` is a dtype, a shape, strides and a place in a buffer (a memory-mapped file as a rule).
NumPy has no bfloat16, so it is kept as its 16 bits in uint16: value = float32 with bits << 16.  Rounding
float32 to bfloat16 is to nearest, ties to even: bits + 0x7fff + (bit 16 of bits), then >> 16.
"""

import contextlib
import math
import mmap
from collections.abc import Mapping

import numpy as np

from ..errors import FormatError

# dtype name -> NumPy dtype of the stored bits.  Names are torch's.
STORED_AS = {
    "float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2",
    "int64": "<i8", "int32": "<i4", "int16": "<i2", "int8": "<i1",
    "uint64": "<u8", "uint32": "<u4", "uint16": "<u2", "uint8": "<u1",
    "bool": "<u1", "complex64": "<c8", "complex128": "<c16",
    "complex32": "<u4", "float8_e4m3fn": "<u1", "float8_e5m2": "<u1",
    "float8_e4m3fnuz": "<u1", "float8_e5m2fnuz": "<u1", "float8_e8m0fnu": "<u1",
}  # fmt: skip
FLOATING = ("float64", "float32", "bfloat16", "float16")
# Weights of 8 and 4 bits, a scale for each 32 of a row (csrc/base/quant.h) -> bytes of such a block.
QUANTISED = {"int8_block32": 34, "int4_block32": 18}
_BLOCK = 32
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "int8_block32", "int4": "int4_block32"}
FORMATS = {dtype: precision for precision, dtype in PRECISIONS.items()}  # the core's names
_NO_NUMBERS = frozenset(name for name in STORED_AS if name.startswith("float8") or name == "complex32")
_PREFIXES = ("_forward_module.", "module.", "model.")
_BEYOND_FLOAT16 = 65520  # from here on numbers round to infinity: half-way between the largest, 65504, and 65536
_CHUNK = 1 << 20  # elements converted at a time when writing: 4 MiB of float32


def itemsize(dtype):
    """Bytes of one element of a dtype name; of a quantised one, of a byte of its rows."""
    return 1 if dtype in QUANTISED else np.dtype(STORED_AS[dtype]).itemsize


def stored_shape(dtype, shape):
    """Shape of what a file holds of a tensor: its own, of a quantised one (rows, bytes of a row)."""
    if dtype not in QUANTISED:
        return shape
    if len(shape) != 2 or shape[1] % _BLOCK or not shape[1]:
        raise ValueError(f"a tensor of shape {tuple(shape)} cannot be {dtype}: only matrices whose rows are multiples of {_BLOCK} can")
    return shape[0], shape[1] // _BLOCK * QUANTISED[dtype]


def strip_prefix(name):
    """A tensor's name without what wrappers put in front of it (DeepSpeed, DataParallel, Lightning)."""
    while True:
        for prefix in _PREFIXES:
            if name.startswith(prefix) and len(name) > len(prefix):
                name = name[len(prefix) :]
                break
        else:
            return name


class LazyTensor:
    """One tensor of a file; no number is read before `raw` or `numpy` is called.

    dtype: torch's name ("bfloat16", "float32", ...).  shape, strides: tuples, strides counted in elements.
    """

    __slots__ = ("dtype", "shape", "strides", "_buffer", "_start")

    def __init__(self, dtype, shape, strides, buffer, start):
        """buffer: object with the buffer protocol; start: byte at which element [0, ..., 0] lies in it."""
        self.dtype, self.shape, self.strides = dtype, tuple(shape), tuple(strides)
        self._buffer, self._start = buffer, start

    @property
    def numel(self):
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def span(self):
        """Elements of the file from the first to the last of the tensor, those in between included."""
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.strides)) if self.numel else 0

    @property
    def nbytes(self):
        """Bytes of the elements, each counted once."""
        return self.numel * itemsize(self.dtype)

    def __repr__(self):
        return f"LazyTensor({self.dtype}, {self.shape})"

    def raw(self):
        """The stored bits as a read-only array of shape `shape` that shares the file's memory.

        bfloat16 comes as uint16, bool and float8 as uint8, complex32 as uint32; the rest as itself.  The array
        may be strided, and unaligned in files of the format before torch 1.6.
        """
        stored = np.dtype(STORED_AS[self.dtype])
        if self.numel == 0:
            array = np.empty(self.shape, stored)
        else:
            strides = tuple(step * stored.itemsize for step in self.strides)
            array = np.ndarray(self.shape, stored, self._buffer, self._start, strides)
        array.flags.writeable = False
        return array

    def numpy(self, dtype=None):
        """The tensor as an array of shape `shape`.

        dtype: a NumPy dtype; default: the tensor's own, float32 for bfloat16.  No copy is made when the file
        holds that dtype already (the array is then read-only and may be strided).
        Raises FormatError (float8 and complex32 have no numbers in NumPy), TypeError (e.g. float to integer).
        """
        if self.dtype in _NO_NUMBERS:
            raise FormatError(f"no conversion from dtype {self.dtype}; convert the file to bfloat16 with torch first")
        array = self.raw()
        if self.dtype == "bool":
            array = array != 0
        elif self.dtype == "bfloat16":
            array = widen_bfloat16(array)
        elif not array.flags.aligned:
            array = array.copy()
        if dtype is None or array.dtype == np.dtype(dtype):
            return array
        out = np.empty(self.shape, dtype)
        np.copyto(out, array, casting="same_kind")
        return out

    def core_array(self):
        """The numbers as the core takes them, C-contiguous and aligned; the file's own memory where it can be."""
        array = self.raw()
        return array if array.flags.c_contiguous and array.flags.aligned else np.array(array, order="C")

    def release(self, first, end):
        """Let go of the memory that elements first to end, in the order of the file, take; the next use reads them again."""
        if isinstance(self._buffer, mmap.mmap) and hasattr(self._buffer, "madvise") and end > first:
            size = itemsize(self.dtype)
            start = (self._start + first * size) // mmap.PAGESIZE * mmap.PAGESIZE
            with contextlib.suppress(OSError):  # where the system keeps its pages, only memory is lost
                self._buffer.madvise(mmap.MADV_DONTNEED, start, self._start + end * size - start)

    def __array__(self, dtype=None, copy=None):
        array = self.numpy(dtype)
        return array.copy() if copy else array


class QuantisedTensor(LazyTensor):
    """A matrix of 8 or 4 bits per weight; `shape` is that of the matrix, `raw` gives the bytes of its rows."""

    __slots__ = ()

    def __init__(self, dtype, shape, buffer, start):
        """dtype: a key of QUANTISED.  shape: (rows, bytes of a row) in the file.  Raises ValueError (no such row)."""
        rows, size = shape
        if size % QUANTISED[dtype] or not size or not rows:
            raise ValueError(f"{rows} rows of {size} bytes are no {dtype}, whose rows are multiples of {QUANTISED[dtype]} bytes")
        columns = size // QUANTISED[dtype] * _BLOCK
        super().__init__(dtype, (rows, columns), (columns, 1), buffer, start)

    @property
    def nbytes(self):
        return math.prod(stored_shape(self.dtype, self.shape))

    @property
    def span(self):
        return self.nbytes

    def raw(self):
        """The bytes of the rows as a read-only uint8 array (rows, bytes of a row) that shares the file's memory."""
        array = np.ndarray(stored_shape(self.dtype, self.shape), np.uint8, self._buffer, self._start)
        array.flags.writeable = False
        return array

    def core_array(self):
        array = self.raw()
        return array if array.ctypes.data % 2 == 0 else array.copy()  # scales of two bytes lie behind the values

    def numpy(self, dtype=None):
        """The matrix as a new float32 array, or one of dtype."""
        array = to_format(self, "fp32")
        return array if dtype is None else array.astype(dtype, copy=False)


def to_format(value, precision, out=None):
    """A tensor's numbers as the core holds them in a format of weights, C-contiguous.

    value: `LazyTensor` or array.  precision: a key of PRECISIONS.  No copy is made of a tensor in a file that has it already
    and is aligned.  out: where the numbers are written, an array of the same size as the tensor up to axes of 1.  Raises ValueError (numbers too large for it), FormatError (a dtype without numbers).
    """
    own = _dtype_of("", value)
    if own in FORMATS:
        array = value.core_array() if isinstance(value, LazyTensor) else np.ascontiguousarray(value)
    else:
        own, array = "float32", value.numpy(np.float32) if isinstance(value, LazyTensor) else np.asarray(value, np.float32)
        array = np.ascontiguousarray(array)
    if FORMATS[own] == precision and out is None:
        return array
    from .. import _rwkvcore

    if out is not None and own not in QUANTISED:
        array = array.reshape(out.shape)
    return _rwkvcore.convert_weight((FORMATS[own], array), precision, out)


class Checkpoint(Mapping):
    """The tensors of one file: name -> `LazyTensor`, in the order of the file.

    path: the file's name.  container: "zip", "legacy" or "safetensors".
    """

    def __init__(self, path, container, tensors):
        self.path, self.container, self._tensors = path, container, tensors

    def __getitem__(self, name):
        return self._tensors[name]

    def __iter__(self):
        return iter(self._tensors)

    def __len__(self):
        return len(self._tensors)

    def __repr__(self):
        return f"Checkpoint({str(self.path)!r}, {self.container}, {len(self)} tensors)"

    @property
    def shapes(self):
        """dict: name -> shape."""
        return {name: tensor.shape for name, tensor in self.items()}

    @property
    def dtypes(self):
        """dict: name -> dtype name."""
        return {name: tensor.dtype for name, tensor in self.items()}


def bfloat16_tensor(bits):
    """A bfloat16 tensor from its bits, to hand to a writer.  bits: uint16 array of any shape, kept and not copied."""
    bits = np.ascontiguousarray(bits).reshape(np.shape(bits))
    if bits.dtype != np.uint16:
        raise TypeError(f"the bits of bfloat16 numbers are uint16, not {bits.dtype}")
    return LazyTensor("bfloat16", bits.shape, [step // 2 for step in bits.strides], bits, 0)


def quantised_tensor(dtype, rows):
    """A quantised matrix from its bytes, to hand to a writer.  dtype: a key of QUANTISED.  rows: uint8 (rows, bytes of a row)."""
    return QuantisedTensor(dtype, rows.shape, np.ascontiguousarray(rows), 0)


def widen_bfloat16(bits):
    """bfloat16 bits (uint16, any shape) as a new float32 array; exact."""
    out = np.empty(bits.shape, np.float32)
    np.left_shift(bits, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)
    return out


def round_to_bfloat16(values):
    """float32 or float64 array (1-D) as bfloat16 bits (uint16): nearest, ties to even; NaN stays NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        single = values.astype(np.float32)
    bits = single.view(np.uint32)
    if values.dtype == np.float64:
        # Rounding twice can go wrong at a tie, so the first step rounds to odd: truncate, then keep a sticky bit.
        inexact = (single != values) & ~np.isnan(values)
        bits -= inexact & (np.abs(single) > np.abs(values))
        bits |= inexact
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(nan, (bits >> 16) | 0x40, rounded).astype(np.uint16)


def _dtype_of(name, value):
    """The dtype name under which a writer stores an array or a lazy tensor."""
    if isinstance(value, LazyTensor):
        return value.dtype
    dtype = np.asarray(value).dtype.name
    if dtype not in STORED_AS:
        raise TypeError(
            f"tensor {name!r:.80}: dtype {dtype} cannot be stored; convert it to float32 or an integer type"
        )
    return dtype


def shape_of(value):
    """Shape of an array, array-like or lazy tensor."""
    return tuple(map(int, value.shape if hasattr(value, "shape") else np.shape(value)))


def target_dtype(name, value, wanted):
    """dtype name a writer uses for tensor `name`.

    wanted: a key of PRECISIONS or None (as it is), or a mapping name -> one of these; it concerns floats and what is quantised.
    Raises ValueError: no such precision, or one that this tensor cannot have.
    """
    if isinstance(wanted, Mapping):
        wanted = wanted.get(name)
    elif wanted in ("int8", "int4"):
        raise ValueError(f"dtype is {wanted!r}, which is for the matrices of a model: RWKV.save and `rwkvtune convert` write it")
    if wanted is not None and wanted not in PRECISIONS:
        raise ValueError(f"dtype is {wanted!r}; allowed are None (as it is), 'fp32', 'bf16' and 'fp16'")
    own = _dtype_of(name, value)
    target = PRECISIONS[wanted] if wanted is not None and (own in FLOATING or own in QUANTISED) else own
    stored_shape(target, shape_of(value))
    return target


def _runs(array):
    """An array of any strides as contiguous 1-D arrays that follow one another in C order."""
    if array.flags.c_contiguous:
        yield array.reshape(-1)
        return
    array = array.reshape([size for size in array.shape if size != 1])
    rows = max(1, _CHUNK // max(1, math.prod(array.shape[1:])))
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows]).reshape(-1)


def stored_chunks(name, value, target):
    """The bytes of a tensor in C order, converted to dtype name `target`, as an iterator of contiguous 1-D arrays.

    Besides the tensor itself only a chunk of memory is in use; of a tensor in a file, what has been passed is let go.
    Raises ValueError when a finite number does not fit float16.
    """
    own = _dtype_of(name, value)
    if own != target and (own in QUANTISED or target in QUANTISED):
        yield from _converted_rows(name, value, target)
        return
    array = value.raw() if isinstance(value, LazyTensor) else np.asarray(value)
    in_order, done = isinstance(value, LazyTensor) and array.flags.c_contiguous, 0
    for run in _runs(array):
        for start in range(0, run.size, _CHUNK):
            chunk = run[start : start + _CHUNK]
            chunk = np.ascontiguousarray(chunk, chunk.dtype.newbyteorder("<"))
            if own != target:
                chunk = _convert(name, widen_bfloat16(chunk) if own == "bfloat16" else chunk, target)
            yield chunk
            done += len(chunk)
            if in_order:
                value.release(done - len(chunk), done)
    if isinstance(value, LazyTensor) and not in_order:
        value.release(0, value.span)


def _converted_rows(name, value, target):
    """`stored_chunks` of a matrix that is quantised, or becomes so."""
    rows, columns = shape_of(value)
    own, step = _dtype_of(name, value), max(1, _CHUNK // columns)
    array = value.raw() if isinstance(value, LazyTensor) else np.asarray(value)
    for start in range(0, rows, step):
        part = array[start : start + step]
        if own in QUANTISED:
            part = quantised_tensor(own, part)
        elif own == "bfloat16":
            part = bfloat16_tensor(part)
        try:
            yield to_format(part, FORMATS[target]).reshape(-1)
        except ValueError as error:
            raise ValueError(f"tensor {name!r} {error}") from error
    if isinstance(value, LazyTensor):
        value.release(0, value.span)


def _convert(name, values, target):
    """Floating-point numbers (1-D) as the stored form of dtype name `target`."""
    if target == "bfloat16":
        return round_to_bfloat16(values if values.dtype == np.float64 else values.astype(np.float32))
    if target == "float16" and np.any((np.abs(values) >= _BEYOND_FLOAT16) & np.isfinite(values)):
        raise ValueError(f"tensor {name!r} holds numbers beyond float16 (largest 65504); write it as bf16 or fp32")
    with np.errstate(over="ignore"):
        return values.astype(STORED_AS[target])
