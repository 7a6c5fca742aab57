"""Tokenizers: text to token ids and back.

Id 0 is the end of a document in all of them.  The work is done in C (`_rwkvcore.Tokenizer` and
`_rwkvcore.IntegerTokenizer`); a class of your own needs only `encode`, `decode` and `vocab_size`, see `BaseTokenizer`.
"""

import importlib.util
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from .. import _rwkvcore
from ..atomic import atomic_write
from ..errors import FormatError


@dataclass
class Encoding:
    """What calling a tokenizer returns: `input_ids`, also as `encoding["input_ids"]`."""

    input_ids: object

    def __getitem__(self, key):
        return getattr(self, key)


def _literal_line(token_id, token):
    """One line of a vocabulary file: the token (bytes) as a Python string where it is text, else as bytes."""
    try:
        literal = repr(token.decode("utf-8"))
    except UnicodeDecodeError:
        literal = repr(token)
    return f"{token_id} {literal} {len(token)}\n"


def _require_file(path):
    """Raise FileNotFoundError or another OSError, with its number, if `path` cannot be read."""
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        reason = f"cannot read the vocabulary: {error.strerror}"
        raise OSError(error.errno, reason, error.filename) from None  # errno makes it a FileNotFoundError again


def world_vocab_file():
    """Path of the RWKV World vocabulary (rwkv_vocab_v20230424.txt) in the installed package pyrwkv-tokenizer.

    Only the file is used, nothing of the package is imported.  FileNotFoundError says how to install it.
    """
    spec = importlib.util.find_spec("pyrwkv_tokenizer")
    for folder in spec.submodule_search_locations or [] if spec else []:
        path = os.path.join(folder, "rwkv_vocab_v20230424.txt")
        if os.path.isfile(path):
            return path
    raise FileNotFoundError(
        'the World vocabulary is not installed: pip install "rwkvtune[world]", or give the path of rwkv_vocab_v20230424.txt'
    )


class BaseTokenizer(ABC):
    """What every tokenizer offers; subclass it for one of your own.

    A subclass defines `encode(text) -> list[int]`, `decode(ids) -> str` and the property `vocab_size` (largest id + 1).
    Everything else here is built on these and may be overridden, `encode_batch` and `save_vocab` above all.
    """

    @abstractmethod
    def encode(self, text):
        """The ids of a text, a list of ints."""

    @abstractmethod
    def decode(self, ids):
        """The text of a sequence of ids."""

    @property
    @abstractmethod
    def vocab_size(self):
        """Largest id + 1, the number of rows of a model's embedding."""

    @property
    def dtype(self):
        """NumPy dtype that holds every id: uint16, or int32 when vocab_size > 65536."""
        return np.dtype(np.uint16 if self.vocab_size <= 65536 else np.int32)

    def encode_array(self, text):
        """The ids of a text as an array of `dtype`.  ValueError if `encode` returns an id outside [0, vocab_size)."""
        ids = np.asarray(self.encode(text))
        if not ids.size:
            return np.empty(0, self.dtype)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(f"encode must return integers in one dimension, not {ids.dtype} {ids.shape}")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            bad = ids[(ids < 0) | (ids >= self.vocab_size)][0]
            raise ValueError(
                f"token id {bad} is not in [0, {self.vocab_size}), the range of this tokenizer's vocab_size"
            )
        return ids.astype(self.dtype)

    def encode_batch(self, texts):
        """A list of arrays, one per text; see `encode_array`."""
        return [self.encode_array(text) for text in texts]

    def encodeBytes(self, data):
        """The ids of UTF-8 encoded text."""
        return self.encode(bytes(data).decode("utf-8"))

    def decodeBytes(self, ids):
        """The text of a sequence of ids, UTF-8 encoded."""
        return self.decode(ids).encode("utf-8")

    def _vocab_lines(self):
        """(id, bytes) of every line of the vocabulary file; here: what each id decodes to by itself, if anything."""
        for token_id in range(self.vocab_size):
            try:
                token = self.decode([token_id]).encode("utf-8")
            except (ValueError, LookupError):
                continue
            if token or token_id == 0:
                yield token_id, token

    def save_vocab(self, path):
        """Write the vocabulary file, one token per line: `id literal length`.  OSError names the path."""
        with atomic_write(path, "w") as file:
            file.writelines(_literal_line(token_id, token) for token_id, token in self._vocab_lines())

    def printTokens(self, ids):
        """Print each token and its id on one line."""
        print("".join(f"{self.decode([i])!r}{i} " for i in ids))

    def __call__(self, text, return_tensors=None):
        """Encode one text or a list of texts the way Hugging Face tokenizers are called.

        return_tensors: None gives lists (a list of lists for a list of texts); "np" or "pt" gives an int64 NumPy array of
        shape (B, T), for which all texts must have equally many tokens.
        Returns an object with `input_ids`.
        """
        if return_tensors not in (None, "np", "pt"):
            raise ValueError(f'return_tensors is {return_tensors!r}; allowed are None, "np" and "pt" (NumPy as well)')
        single = isinstance(text, str)
        ids = [self.encode(t) for t in ([text] if single else text)]
        if return_tensors is None:
            return Encoding(ids[0] if single else ids)
        if len({len(row) for row in ids}) > 1:
            raise ValueError(
                "the texts have different numbers of tokens: encode them one by one, or pad the lists yourself"
            )
        return Encoding(np.array(ids, dtype=np.int64).reshape(len(ids), -1))


class _CoreTokenizer(BaseTokenizer):
    """A tokenizer whose work is done by `self._core`, in C."""

    def encode_array(self, text):
        """As `encode`, but an array: uint16, or int32 when vocab_size > 65536."""
        return self._core.encode_array(text)

    def encode_batch(self, texts):
        """A list of arrays, one per text; all threads work on it (`rwkvtune.set_num_threads`)."""
        return self._core.encode_batch(texts)


class GenericTokenizer(_CoreTokenizer):
    """A vocabulary file with greedy longest match over bytes, as the RWKV World tokenizer works.

    vocab_file: one token per line, `id literal length`, for example `33155 'Hello' 5`; blank lines and lines that start
        with '#' are skipped.  Literals are parsed, never evaluated.  If two ids have one text, the later line wins.
        "world", where no file is called so: the World vocabulary of the extra `rwkvtune[world]`, see `world_vocab_file`.
    Raises FileNotFoundError, or FormatError naming file, line and reason.
    """

    def __init__(self, vocab_file):
        if vocab_file == "world" and not os.path.exists(vocab_file):
            vocab_file = world_vocab_file()
        _require_file(vocab_file)
        self.vocab_file = vocab_file
        self._core = _rwkvcore.Tokenizer(vocab_file)

    @property
    def vocab_size(self):
        """Largest id + 1; 0 for an empty vocabulary."""
        return self._core.vocab_size

    def encode(self, text):
        """text: str (or bytes).  list[int].  ValueError names the first byte position where no token matches."""
        return self._core.encode(text)

    def encodeBytes(self, data):
        """The ids of any bytes, which need not be valid UTF-8.  list[int]."""
        return self._core.encode(bytes(data))

    def decode(self, ids, errors="replace"):
        """ids: integers, any array-like.  str.

        The tokens' bytes are joined and decoded as UTF-8.  Ids that are not in the vocabulary give nothing.  errors: as
        for bytes.decode; "replace" (default) puts U+FFFD in the place of each malformed piece and keeps the rest.
        """
        return self._core.decode(ids, errors)

    def decodeBytes(self, ids):
        """The tokens' bytes joined; ids that are not in the vocabulary give nothing."""
        return self._core.decode_bytes(ids)

    def _vocab_lines(self):
        return self._core.lines()  # in the file's order, on which the meaning of double texts depends

    def printTokens(self, ids):
        """Print each token and its id on one line.  KeyError for an id that is not in the vocabulary."""
        shown = []
        for token_id in ids:
            token = self._core.token(token_id)
            if token is None:
                raise KeyError(token_id)
            try:
                token = token.decode("utf-8")
            except UnicodeDecodeError:
                pass
            shown.append(f"{token!r}{token_id} ")
        print("".join(shown))


class IntegerTokenizer(_CoreTokenizer):
    """Integers as tokens: the value v in [0, max_value] is id v + 1, and 0 is the end of a document.

    max_value: largest value, default 359.
    vocab_file: a file written by `save_vocab`; it decides max_value then.  FileNotFoundError, or FormatError if the file
        is not a list of the integers 0, 1, 2, ...
    """

    END_OF_DOC_TOKEN = 0
    _noun = "Value"

    def __init__(self, max_value=359, vocab_file=None):
        if isinstance(max_value, bool) or not hasattr(max_value, "__index__"):
            raise ValueError(f"max_value is {max_value!r}; it must be an integer")
        self.max_value = int(max_value) if vocab_file is None else self._read_max_value(vocab_file)
        self._core = _rwkvcore.IntegerTokenizer(self.max_value, self._noun)

    @staticmethod
    def _read_max_value(vocab_file):
        _require_file(vocab_file)
        lines = dict(_rwkvcore.Tokenizer(vocab_file).lines())
        lines.pop(0, None)
        if not lines:
            raise FormatError(f"{vocab_file}: a vocabulary without tokens, not one of integers")
        for token_id in range(1, max(lines) + 1):
            if lines.get(token_id) != b"%d" % (token_id - 1):
                raise FormatError(
                    f"{vocab_file}: id {token_id} is {lines.get(token_id)!r} where a vocabulary of integers "
                    f"has {str(token_id - 1)!r}; use GenericTokenizer for other vocabularies"
                )
        return max(lines) - 1

    @property
    def vocab_size(self):
        """max_value + 2."""
        return self._core.vocab_size

    def encode(self, text):
        """text: decimal integers between white space.  list[int].

        ValueError names the value and its position: `Value must be in [0, 359], got 400 (at position 4)`.
        """
        return self._core.encode(text)

    def encodeBytes(self, data):
        """As `encode`, for bytes."""
        return self._core.encode(bytes(data))

    def decode(self, ids):
        """The values between single spaces; zeros are skipped.  ValueError `Invalid token ID ...` for others."""
        return self._core.decode(ids)

    def encode_sequence(self, values):
        """values: numbers without fraction, any array-like.  list[int] of value + 1.

        ValueError names the first value that has a fraction or is outside [0, max_value].
        """
        array = np.asarray(values).ravel()
        if not array.size:
            return []
        if array.dtype.kind not in "iufO":
            raise ValueError(f"{self._noun} must be an integer, got {array[0]!r}")
        with np.errstate(invalid="ignore"):
            inside = np.asarray((array >= 0) & (array <= self.max_value), dtype=bool)
        if not inside.all():
            raise ValueError(f"{self._noun} must be in [0, {self.max_value}], got {array[~inside][0]}")
        whole = array.astype(np.int64)
        if (whole != array).any():
            raise ValueError(f"{self._noun} must be an integer, got {array[whole != array][0]}")
        return (whole + 1).tolist()

    def decode_sequence(self, ids):
        """The values of ids, list[int]; zeros are skipped.  ValueError `Invalid token ID ...` for ids out of range."""
        values = []
        for token_id in np.asarray(ids).ravel().tolist():
            if not 0 <= token_id <= self.max_value + 1:
                raise ValueError(f"Invalid token ID {token_id}")
            if token_id:
                values.append(token_id - 1)
        return values

    def _vocab_lines(self):
        yield 0, b"\x00"
        for value in range(self.max_value + 1):
            yield value + 1, b"%d" % value


class AngleTokenizer(IntegerTokenizer):
    """Whole degrees, 0 to 359, as tokens 1 to 360; an IntegerTokenizer whose messages speak of angles.

    vocab_file: optional; must be the file of this very vocabulary (FormatError otherwise).
    """

    _noun = "Angle"

    def __init__(self, vocab_file=None):
        super().__init__(359)
        if vocab_file is not None and self._read_max_value(vocab_file) != 359:
            raise FormatError(f"{vocab_file}: not the vocabulary of the angles 0 to 359")

    def encode_angle_sequence(self, angles):
        """As `encode_sequence`."""
        return self.encode_sequence(angles)

    def decode_angle_sequence(self, ids):
        """As `decode_sequence`."""
        return self.decode_sequence(ids)


def create_vocab_file_from_tokens(tokens, filepath):
    """Write a vocabulary file for GenericTokenizer.

    tokens: str or bytes, not empty, no two alike; they get the ids 1, 2, ... in this order, and id 0 becomes the end of
        a document.
    filepath: file to write; an existing one is replaced.
    ValueError (TypeError for other types) names the token and its place in the list; OSError names the path.
    """
    lines, seen = ["0 b'\\x00' 1\n"], {}
    for place, token in enumerate(tokens):
        if not isinstance(token, (str, bytes)):
            raise TypeError(f"tokens[{place}] is {token!r}: a token must be str or bytes")
        data = token.encode("utf-8") if isinstance(token, str) else token
        if not data:
            raise ValueError(f"tokens[{place}] is empty: an empty token could never be matched")
        if data in seen:
            raise ValueError(
                f"tokens[{place}] is {token!r}, as tokens[{seen[data]}] is already: one of them could never be used"
            )
        seen[data] = place
        lines.append(f"{place + 1} {token!r} {len(data)}\n")
    with atomic_write(filepath, "w") as file:
        file.writelines(lines)


def create_default_vocab_file(filepath, max_value=359):
    """Write the vocabulary file of IntegerTokenizer(max_value); returns filepath."""
    IntegerTokenizer(max_value).save_vocab(filepath)
    return filepath


def create_byte_vocab_file(filepath):
    """Write a vocabulary file whose tokens are the 256 bytes: byte b is id b + 1, and vocab_size is 257.

    Any text can be encoded with it, one token per UTF-8 byte, as with the first 256 ids of the RWKV World vocabulary;
    like there, id 0 is the end of a document and has no line.  Returns filepath.
    """
    with atomic_write(filepath, "w") as file:
        file.writelines(_literal_line(byte + 1, bytes([byte])) for byte in range(256))
    return filepath
