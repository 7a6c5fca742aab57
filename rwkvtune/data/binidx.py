"""Token data on disk (PREFIX.bin and PREFIX.idx), and which part of it each training sample is.

The format is RWKV-LM's, byte for byte; csrc/data/binidx.h describes it, csrc/data/sampler.h the order of samples.
"""

import operator
import os

import numpy as np

from .. import _rwkvcore
from ..atomic import interrupts_wait

DTYPE_CODES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}


def _require_files(prefix):
    """Raise FileNotFoundError, or another OSError with its number, unless both files of a pair can be read."""
    for ending in (".idx", ".bin"):
        with open(prefix + ending, "rb"):
            pass


class BinIdxDataset:
    """Reads a pair of files by memory mapping; a context manager.

    prefix: the common part of the names: "data/train" for data/train.bin and data/train.idx.
    Raises FileNotFoundError or another OSError, or FormatError if the files are not a whole and fitting pair: the index
    is checked completely here.
    """

    def __init__(self, prefix):
        self.prefix = os.fspath(prefix)
        _require_files(self.prefix)
        self._core = _rwkvcore.BinIdx(self.prefix)

    def _open(self):
        if self._core is None:
            raise ValueError(f"the data set {self.prefix} is closed")
        return self._core

    @property
    def num_items(self):
        """Number of sequences; also len(dataset)."""
        return self._open().num_items

    @property
    def total_tokens(self):
        """Tokens of all sequences together."""
        return self._open().total_tokens

    @property
    def dtype(self):
        """NumPy dtype of the tokens on disk."""
        return self._open().dtype

    @property
    def sizes(self):
        """Tokens in each sequence, int32 (num_items,), a copy."""
        return self._open().sizes()

    @property
    def documents(self):
        """The index's document entries, int64: the sequence each document begins with, and num_items at the end."""
        return self._open().documents()

    def get(self, i, offset=0, length=None):
        """Tokens of sequence i from `offset` on, as a read-only array of `dtype` that is the file itself, not a copy.

        length: number of tokens, default up to the end of the sequence.  offset and length may reach beyond it: the
            sequences follow each other without gaps.
        IndexError for i, ValueError for tokens that are not in the file.  Negative i counts from the end.
        """
        core, i = self._open(), operator.index(i)
        if not -core.num_items <= i < core.num_items:
            raise IndexError(f"sequence {i} of a data set of {core.num_items}")
        start, size = core.item(i % core.num_items)
        if length is None:
            length = max(size - offset, 0)
        if offset < 0 or length < 0:
            raise ValueError(f"offset is {offset} and length is {length}; neither may be negative")
        return core.view(start + offset, length)

    __getitem__ = get

    def stream(self, start=0, length=None):
        """`length` tokens from `start` on of all sequences as one stream (default: to its end), as `get` returns them."""
        core = self._open()
        return core.view(start, max(core.total_tokens - start, 0) if length is None else length)

    def __len__(self):
        return self.num_items

    def close(self):
        """Let go of the files; arrays already returned stay valid."""
        self._core = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def __reduce__(self):
        return BinIdxDataset, (self.prefix,)

    def __repr__(self):
        if self._core is None:
            return f"BinIdxDataset({self.prefix!r}, closed)"
        return f"BinIdxDataset({self.prefix!r}, {self.num_items} sequences, {self.total_tokens} tokens, {self.dtype})"


class BinIdxBuilder:
    """Writes a pair of files of any size in little memory; a context manager.

    prefix: as for BinIdxDataset.
    dtype: of the tokens on disk: uint16 (default), uint8, int8, int16, int32 or int64.
    The files get their names in `finalize`, or when the `with` block ends without an exception; until then, and after an
    error, existing files of these names are untouched.  OSError names the path.
    """

    def __init__(self, prefix, dtype=np.uint16):
        self.prefix = os.fspath(prefix)
        self.dtype = np.dtype(dtype)
        codes = [code for code, known in DTYPE_CODES.items() if known == self.dtype]
        if not codes:
            raise ValueError(f"dtype is {self.dtype}; allowed are uint16, uint8, int8, int16, int32 and int64")
        self._core = _rwkvcore.BinIdxWriter(self.prefix, codes[0])

    def _tokens(self, tokens):
        """The tokens as an array of `dtype`; ValueError where one does not fit."""
        array = np.asarray(tokens)
        if array.size == 0:
            array = array.astype(self.dtype)
        if array.dtype != self.dtype:
            limits = np.iinfo(self.dtype)
            if array.dtype.kind not in "iu" or array.min() < limits.min or array.max() > limits.max:
                raise ValueError(
                    f"tokens must be integers from {limits.min} to {limits.max}, which {self.dtype} can hold"
                )
        return np.ascontiguousarray(array.ravel(), dtype=self.dtype)

    def add_item(self, tokens):
        """Append a sequence: integers, any array-like.  ValueError for one that does not fit the dtype."""
        self._core.add(self._tokens(tokens))

    def end_document(self):
        """End the document of the sequences added since the last call."""
        self._core.end_document()

    def add_documents(self, tokens, starts, order):
        """Append, for each k in order, tokens[starts[k]:starts[k + 1]] as a document of one sequence.

        tokens: (n,) array of the builder's dtype; starts: (k + 1,) and order: any length, array-likes of int64.
        """
        starts, order = (np.ascontiguousarray(a, dtype=np.int64) for a in (starts, order))
        self._core.add_documents(self._tokens(tokens), starts, order)

    def copy_documents(self, file, starts, order):
        """As `add_documents`, for tokens that are the contents of `file` (with a fileno) and stay there."""
        starts, order = (np.ascontiguousarray(a, dtype=np.int64) for a in (starts, order))
        self._core.copy_documents(file.fileno(), starts, order)

    def finalize(self):
        """Write what is left and give both files their names."""
        self._core.finish()

    def stage(self, files):
        """Write what is left and hand both files to `files` (an AtomicFiles), which gives them their names, .idx last."""
        with interrupts_wait():  # between one owner of the files and the next
            for ending, temporary in zip((".bin", ".idx"), self._core.seal(), strict=True):
                files.stage(self.prefix + ending, temporary)

    def abort(self):
        """Remove what was written."""
        self._core.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, *exception):
        if kind is None:
            self.finalize()
        else:
            self.abort()


def is_prime(n):
    """Whether n (below 2**64) is prime."""
    return n > 1 and _rwkvcore.is_prime(n)


def compute_magic_prime(total_tokens, ctx_len):
    """The largest prime P <= total_tokens // ctx_len - 1 with P % 3 == 2, or None if total_tokens < 3 * ctx_len.

    total_tokens: a number of tokens, or the prefix of a pair of files (str or path).
    ctx_len: tokens per sample, at least 1 (ValueError).
    """
    if ctx_len < 1:
        raise ValueError(f"ctx_len is {ctx_len}; it must be at least 1")
    if isinstance(total_tokens, (str, os.PathLike)):
        with BinIdxDataset(total_tokens) as dataset:
            total_tokens = dataset.total_tokens
    return _rwkvcore.magic_prime(total_tokens, ctx_len) or None


class MagicPrimeSampler:
    """Which tokens the samples of training are: every slot of ctx_len tokens once per magic_prime samples, scattered.

    total_tokens: tokens of the data set.  ctx_len: tokens per sample.
    magic_prime: None (default) computes it; otherwise a prime of the form 3 k + 2 with magic_prime * ctx_len < total_tokens.
    world_size, rank: number of processes, and which of them this one is.  micro_bsz: samples per batch, default 16.
    ValueError says which argument is wrong and what is allowed.
    """

    epoch_samples = 40320  #: samples of all processes together in a mini-epoch

    def __init__(self, total_tokens, ctx_len, magic_prime=None, world_size=1, rank=0, micro_bsz=16):
        values = {
            "total_tokens": total_tokens,
            "ctx_len": ctx_len,
            "magic_prime": magic_prime or 0,
            "world_size": world_size,
            "rank": rank,
            "micro_bsz": micro_bsz,
        }
        for name, value in values.items():
            if operator.index(value) < 0:
                raise ValueError(f"{name} is {value}; it must not be negative")
        if micro_bsz < 1:
            raise ValueError(f"micro_bsz is {micro_bsz}; it must be at least 1")
        self.total_tokens, self.ctx_len, self.world_size, self.rank = total_tokens, ctx_len, world_size, rank
        self.micro_bsz = micro_bsz
        self.magic_prime, self.factor = _rwkvcore.sampler_check(
            total_tokens, ctx_len, magic_prime or 0, world_size, rank
        )

    def offset(self, epoch, idx):
        """Token offset of the idx-th sample (from 0) of this process in mini-epoch `epoch` (from 0)."""
        numbers = (self.total_tokens, self.ctx_len, self.magic_prime, self.world_size, self.rank)
        return _rwkvcore.sampler_offset(numbers, epoch, idx)

    def batch(self, dataset, epoch, idx0, B=None, vocab_size=0):
        """Samples idx0 .. idx0 + B - 1 of this process in mini-epoch `epoch`: (ids, targets), int32 (B, ctx_len) each.

        targets[b, t] is the token after ids[b, t].  B: default micro_bsz.  vocab_size: FormatError names the first token
        that is not below it; 0 (default) lets every non-negative token pass.
        ValueError if the data set is too small for this sampler.
        """
        numbers = (self.ctx_len, self.magic_prime, self.world_size, self.rank)
        return dataset._open().batch(numbers, epoch, idx0, self.micro_bsz if B is None else B, vocab_size)
