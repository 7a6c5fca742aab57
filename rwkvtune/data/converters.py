"""From arrays to JSON lines, and from JSON lines to token data (bin/idx)."""

import contextlib
import csv
import functools
import json
import operator
import os
import random
import shutil
import tempfile
from array import array
from pathlib import Path

import numpy as np

from .. import _rwkvcore
from ..atomic import AtomicFiles
from ..errors import FormatError
from .binidx import BinIdxBuilder, BinIdxDataset, compute_magic_prime, is_prime
from .tokenizers import AngleTokenizer, GenericTokenizer, IntegerTokenizer

_BATCH_BYTES = 4 << 20  # lines encoded at a time: enough to keep all threads busy
_WRITE_DOCUMENTS = 1 << 14  # documents written between two looks at the progress bar and at Ctrl-C

_CORE_TOKENIZERS = (AngleTokenizer, GenericTokenizer, IntegerTokenizer)  # not what is derived from them


def _progress(**kwargs):
    """A progress bar where somebody watches."""
    from tqdm import tqdm

    return tqdm(disable=None, leave=False, **kwargs)


def tokens_dtype(tokenizer):
    """NumPy dtype of a tokenizer's ids on disk: uint16, or int32 when its vocab_size > 65536."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 65536 else np.int32)


def make_parent(path):
    """Create the directory of a file.  OSError says which part of the path is in the way."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"cannot write {path}: {error.filename} is no directory; check the path") from None


class NumpyToJsonlConverter:
    """Writes arrays as JSON lines {"text": "v v v"}.

    transform: function of one value that returns its text; default str(int(x)), for which values with a fraction are refused.
    """

    def __init__(self, transform=None):
        self.transform = transform

    def _text(self, row, number):
        if self.transform is not None:
            return " ".join(self.transform(x) for x in row)
        if row.dtype.kind not in "iufbO":
            raise ValueError(f"the values are {row.dtype}; they must be numbers without a fraction, or give a transform")
        if row.dtype.kind == "f" and not np.isfinite(row).all():
            bad = row[~np.isfinite(row)][0]
            raise ValueError(f"a value of sequence {number} is {bad}; only finite numbers can become integers")
        if row.dtype.kind == "f" and (row != np.trunc(row)).any():
            bad = row[row != np.trunc(row)][0]
            raise ValueError(f"a value of sequence {number} is {bad}; round the data yourself, or give a transform")
        if row.dtype.kind in "iu":
            return " ".join(map(str, row.tolist()))
        try:
            return " ".join(str(operator.index(x) if row.dtype.kind == "O" else int(x)) for x in row)
        except TypeError as error:
            raise ValueError(f"a value of sequence {number} is no integer: {error}") from None

    @staticmethod
    def _rows(data, sequence_length):
        if data.ndim == 2:
            return data
        if data.ndim != 1:
            raise ValueError(
                f"data has shape {data.shape}; one or two dimensions are allowed: (values,) or (sequences, values)"
            )
        if sequence_length is None:
            return data[None]
        if operator.index(sequence_length) < 1:
            raise ValueError(f"sequence_length is {sequence_length}; it must be at least 1")
        if data.size < sequence_length:
            raise ValueError(
                f"data has {data.size} values, less than one sequence of sequence_length {sequence_length}"
            )
        return data[: data.size // sequence_length * sequence_length].reshape(-1, sequence_length)

    def convert(self, data, output_path, sequence_length=None):
        """data: (n, m), one line per row; or (n,), cut into pieces of sequence_length (a shorter rest is dropped; None:
        one line).  Returns Path(output_path).  ValueError for other shapes and for values that are no integers, with the
        sequence's number; OSError names the path."""
        with AtomicFiles() as files:
            self.stage(data, files, output_path, sequence_length)
        return Path(output_path)

    def stage(self, data, files, output_path, sequence_length=None):
        """As `convert`, but the lines take their name with the others of `files` (an AtomicFiles); where they are until then."""
        rows = self._rows(np.asarray(data), sequence_length)
        make_parent(output_path)
        with files.write(output_path, "w") as file:
            for number, row in enumerate(rows, 1):
                file.write(json.dumps({"text": self._text(row, number)}) + "\n")
        return file.name

    def convert_file(self, input_path, output_path, sequence_length=1024):
        """As `convert`, for an array in a .npy file, read by memory mapping."""
        return self.convert(np.load(input_path, mmap_mode="r", allow_pickle=False), output_path, sequence_length)


def csv_to_jsonl(csv_path, output_path, column="text", skip_bad=False):
    """Write one column of a CSV file as JSON lines {"text": "..."}.

    csv_path: UTF-8, commas and double quotes (RFC 4180), the names of the columns in the first row; empty rows are
        skipped.  column: the name of one of them.  skip_bad: leave out the rows without that column.
    Returns the number of rows left out.  FormatError names file and line; OSError the path.
    """
    make_parent(output_path)
    with AtomicFiles() as files, files.write(output_path, "w") as file:
        return write_csv_column(csv_path, file, column, skip_bad)


def write_csv_column(csv_path, file, column, skip_bad):
    """As `csv_to_jsonl`, into a file that is open for text."""
    n_bad, limit = 0, csv.field_size_limit(2**31 - 1)
    try:
        with (
            open(csv_path, encoding="utf-8-sig", newline="") as source,
            _progress(total=os.path.getsize(csv_path), unit="B", unit_scale=True, desc="reading") as progress,
        ):
            rows = csv.reader(source, strict=True)
            names = next(rows, [])
            if column not in names:
                raise FormatError(
                    f"{csv_path}:1: no column {column!r}; there are {', '.join(map(repr, names)) or 'none'}"
                )
            place = names.index(column)
            for row in rows:
                if len(row) > place:
                    file.write(json.dumps({"text": row[place]}, ensure_ascii=False) + "\n")
                elif row and not skip_bad:
                    raise FormatError(
                        f"{csv_path}:{rows.line_num}: {len(row)} of {len(names)} columns, none {column!r}"
                    )
                else:
                    n_bad += bool(row)
                progress.update(source.buffer.tell() - progress.n)
    except csv.Error as error:
        raise FormatError(f"{csv_path}:{rows.line_num}: not CSV: {error}") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{csv_path}: not UTF-8: {error.reason} after line {rows.line_num}") from None
    finally:
        csv.field_size_limit(limit)
    return n_bad


class _Spool:
    """A nameless file beside PREFIX.bin, to which OSErrors of writing are attributed."""

    def __init__(self, prefix):
        self.prefix, self.n_bytes = prefix, 0
        self.file = tempfile.TemporaryFile(dir=os.path.dirname(prefix) or ".", buffering=0)  # noqa: SIM115

    def write(self, array):
        rest = memoryview(array).cast("B") if len(array) else b""
        try:
            while rest:
                n = os.pwrite(self.file.fileno(), rest, self.n_bytes)
                self.n_bytes, rest = self.n_bytes + n, rest[n:]
        except OSError as error:
            raise OSError(error.errno, f"cannot write {self.prefix}.bin: {error.strerror}") from error

    def write_ids(self, reader, core, width):
        """The next block of a JsonlReader, by a tokenizer of the core; tokens of each document, None at the end."""
        try:
            sizes = reader.write_ids(core, self.file.fileno(), self.n_bytes)
        except OSError as error:
            if error.errno is not None:  # of the file that is read
                raise
            raise OSError(f"cannot write {self.prefix}.bin: {error}") from error
        self.n_bytes += width * (0 if sizes is None else int(sizes.sum()))
        return sizes

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()


class JsonlToBinIdxConverter:
    """Tokenizes JSON lines {"text": "..."} into PREFIX.bin and PREFIX.idx, as RWKV-LM's make_data.py does.

    tokenizer: default IntegerTokenizer(359).  Ids are stored as uint16, or int32 when its vocab_size > 65536.
    verbose: print what is done (default).
    n_skipped: lines that the last `convert` left out (with skip_bad).
    """

    compute_magic_prime = staticmethod(compute_magic_prime)
    _is_prime = staticmethod(is_prime)

    def __init__(self, tokenizer=None, verbose=True):
        self.tokenizer = IntegerTokenizer(359) if tokenizer is None else tokenizer
        self.verbose = verbose
        self.n_skipped = 0

    def _say(self, text):
        if self.verbose:
            print(text)

    def _encode(self, batch, path):
        """The ids of a batch of lines, one array each.  FormatError names the first line that cannot be encoded."""
        encode_one = getattr(
            self.tokenizer, "encode_array", lambda text: np.array(self.tokenizer.encode(text), np.int64)
        )
        encode = getattr(self.tokenizer, "encode_batch", lambda texts: list(map(encode_one, texts)))
        try:
            return encode([text for _, text in batch])
        except (ValueError, LookupError, TypeError):
            for number, text in batch:
                try:
                    encode_one(text)
                except (ValueError, LookupError, TypeError) as error:
                    raise FormatError(f"{path}:{number}: {error}") from error
            raise

    def _refuse(self, arrays, batch, path):
        """Raise FormatError with the first line that has an id outside the vocabulary."""
        size = self.tokenizer.vocab_size
        for (number, _), ids in zip(batch, arrays, strict=True):
            for token_id in np.asarray(ids).tolist():
                if not 0 <= token_id < size:
                    raise FormatError(
                        f"{path}:{number}: token id {token_id} is not in [0, {size}), the range of the tokenizer's vocab_size"
                    )

    def _encode_checked(self, batch, path, dtype):
        """(ids of the lines, each with a 0 at its end; tokens of each line) by the tokenizer's Python methods."""
        arrays, zero = self._encode(batch, path), np.zeros(1, dtype)
        joined = np.concatenate([np.empty(0, dtype), *(piece for ids in arrays for piece in (ids, zero))])
        if joined.size and (joined.min() < 0 or joined.max() >= self.tokenizer.vocab_size):
            self._refuse(arrays, batch, path)
        return joined.astype(dtype, copy=False), np.array([len(ids) + 1 for ids in arrays], np.int64)

    def _encode_good(self, batch, path, dtype, bad):
        """As `_encode_checked`, without the lines that cannot be encoded; their errors go to the list `bad`."""
        try:
            return self._encode_checked(batch, path, dtype)
        except FormatError as error:
            if len(batch) == 1:
                bad.append(error)
                return np.empty(0, dtype), np.empty(0, np.int64)
        parts = [self._encode_good([line], path, dtype, bad) for line in batch]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def _blocks(self, reader, path, dtype, spool, bad):
        """Writes the ids of the file to `spool`, block by block, and yields their sizes; `bad`: None, or see `_encode_good`."""
        if type(self.tokenizer) in _CORE_TOKENIZERS:
            while (sizes := spool.write_ids(reader, self.tokenizer._core, dtype.itemsize)) is not None:
                yield sizes
            return
        for batch in iter(reader.texts, None):
            encode = self._encode_checked if bad is None else functools.partial(self._encode_good, bad=bad)
            ids, sizes = encode(batch, path, dtype)
            spool.write(ids)
            yield sizes

    def _encode_file(self, path, name, dtype, spool, skip_bad):
        """Writes the documents of all lines, each with a 0 at its end, to the file `spool`; their starts, (n + 1,).

        name: of the file in messages.
        """
        starts, bad = array("q", [0]), [] if skip_bad else None
        with (
            open(path, "rb", buffering=0) as file,
            _progress(total=os.path.getsize(path), unit="B", unit_scale=True, desc="tokenizing") as progress,
        ):
            reader = _rwkvcore.JsonlReader(file.readinto, f"{name}", _BATCH_BYTES, skip_bad)
            for sizes in self._blocks(reader, name, dtype, spool, bad):
                starts.frombytes((np.cumsum(sizes) + starts[-1]).tobytes())
                progress.update(reader.n_bytes - progress.n)
        self.n_skipped = reader.n_bad + len(bad or [])
        if self.n_skipped:
            self._say(f"### Skipped {self.n_skipped} bad lines, for example {reader.first_bad or bad[0]}")
        if len(starts) == 1:
            raise FormatError(f'{name}: no lines; expected at least one object {{"text": "..."}}')
        return starts

    def convert(self, jsonl_path, output_prefix, n_epochs=3, shuffle=True, random_seed=None, skip_bad=False):
        """Write every line n_epochs times, each as one document that ends with token 0.

        jsonl_path: the lines; blank ones are skipped.  output_prefix: of the files to write; its directory is created.
        shuffle: each repetition goes through the lines in a new random order, drawn from the order before.
        random_seed: decides the orders; None (default) takes Python's global `random`, which random.seed() sets.  The
            same seed gives the same files as RWKV-LM's builder.
        skip_bad: leave out the lines that would be an error; `n_skipped` counts them.
        Returns Path(output_prefix).  FormatError names file and line of what is not JSON, has no text, or cannot be
        tokenized; OSError names the path.  After an error existing files are as before.
        """
        with AtomicFiles() as files:
            self.stage(files, jsonl_path, output_prefix, n_epochs, shuffle, random_seed, skip_bad)
        self._say(f"### Done! Created {os.fspath(output_prefix)}.bin and {os.fspath(output_prefix)}.idx")
        return Path(output_prefix)

    def stage(
        self, files, jsonl_path, output_prefix, n_epochs=3, shuffle=True, random_seed=None, skip_bad=False, name=None
    ):
        """As `convert`, but both files take their names with the others of `files` (an AtomicFiles), .idx last of all.

        name: of the lines in messages, default jsonl_path.  Returns (sequences, tokens) that were written.
        """
        if operator.index(n_epochs) < 1:
            raise ValueError(f"n_epochs is {n_epochs}; it must be at least 1")
        shuffler = random if random_seed is None else random.Random(random_seed)
        dtype = tokens_dtype(self.tokenizer)
        prefix, name = os.fspath(output_prefix), jsonl_path if name is None else name
        make_parent(prefix)
        # Every line is tokenized once, whatever n_epochs is; the orders are drawn over the finished documents.
        with contextlib.ExitStack() as stack, _Spool(prefix) as spool:
            builder = BinIdxBuilder(prefix, dtype)
            stack.callback(builder.abort)
            starts = self._encode_file(jsonl_path, name, dtype, spool, skip_bad)
            self._say(f"### Loaded {len(starts) - 1} sequences from {name}")
            if random_seed is not None:
                self._say(f"### Using fixed random seed: {random_seed}")
            self._say("### Building bin/idx...")
            self._write(builder, spool.file, starts, n_epochs, shuffler if shuffle else None)
            builder.stage(files)
        return n_epochs * (len(starts) - 1), n_epochs * starts[-1]

    @staticmethod
    def _write(builder, tokens, starts, n_epochs, shuffler):
        order = array("I" if len(starts) < 1 << 32 else "Q", range(len(starts) - 1))
        starts, places = np.frombuffer(starts, np.int64), np.frombuffer(order, f"u{order.itemsize}")
        with _progress(total=n_epochs * len(order), unit=" sequences", desc="writing") as progress:
            for _ in range(n_epochs):
                if shuffler:
                    shuffler.shuffle(order)
                for i in range(0, len(order), _WRITE_DOCUMENTS):
                    builder.copy_documents(tokens, starts, places[i : i + _WRITE_DOCUMENTS])
                    progress.update(len(places[i : i + _WRITE_DOCUMENTS]))

    @staticmethod
    def get_data_info(prefix):
        """As the function `get_data_info`."""
        return get_data_info(prefix)


def get_data_info(prefix):
    """{"num_items", "total_tokens", "dtype"} of a pair of files; dtype is the name of a NumPy class, as a str."""
    with BinIdxDataset(prefix) as dataset:
        return {"num_items": dataset.num_items, "total_tokens": dataset.total_tokens, "dtype": str(dataset.dtype.type)}


class DataPipeline:
    """Everything from an array or JSON lines to files ready for training, in one directory.

    tokenizer: default IntegerTokenizer(359).  verbose: print what is done (default).
    """

    get_data_info = staticmethod(get_data_info)

    def __init__(self, tokenizer=None, verbose=True):
        self.tokenizer = IntegerTokenizer(359) if tokenizer is None else tokenizer
        self.verbose = verbose

    def process_numpy(
        self, data, output_dir, name="data", sequence_length=1024, n_epochs=3, shuffle=True, random_seed=None
    ):
        """data: see NumpyToJsonlConverter.convert; the rest and the result: see `process_jsonl`."""
        path = Path(output_dir, f"{name}.jsonl")
        with AtomicFiles() as files:
            lines = NumpyToJsonlConverter().stage(data, files, path, sequence_length)
            self._stage(files, lines, path, path, n_epochs, shuffle, random_seed)
        return self._result(path, sequence_length)

    process = process_numpy

    def process_jsonl(
        self, jsonl_path, output_dir, name="data", n_epochs=3, sequence_length=1024, shuffle=True, random_seed=None
    ):
        """Copy the lines to output_dir/name.jsonl (unless they are that file), tokenize them into name.bin and name.idx,
        and write vocab.txt.  After an error all of these are as before.

        sequence_length: the context length that magic_prime is computed for.  n_epochs, shuffle, random_seed: see
        JsonlToBinIdxConverter.convert.
        Returns {"jsonl_path", "binidx_prefix", "vocab_path": Path, "num_sequences": after repetition, "total_tokens",
        "magic_prime": int, or None if there are fewer than 3 * sequence_length tokens}.
        """
        path = Path(output_dir, f"{name}.jsonl")
        with AtomicFiles() as files:
            lines = stage_copy(files, jsonl_path, path)
            self._stage(files, lines, path, jsonl_path, n_epochs, shuffle, random_seed)
        return self._result(path, sequence_length)

    def _stage(self, files, lines, path, name, n_epochs, shuffle, random_seed):
        save_vocab = getattr(self.tokenizer, "save_vocab", None)
        if save_vocab is not None:
            save_vocab(files.stage(path.with_name("vocab.txt")))
        converter = JsonlToBinIdxConverter(self.tokenizer, self.verbose)
        converter.stage(files, lines, path.with_suffix(""), n_epochs, shuffle, random_seed, name=name)

    def _result(self, path, sequence_length):
        prefix = path.with_suffix("")
        with BinIdxDataset(prefix) as dataset:
            return {
                "jsonl_path": path,
                "binidx_prefix": prefix,
                "vocab_path": path.with_name("vocab.txt"),
                "num_sequences": dataset.num_items,
                "total_tokens": dataset.total_tokens,
                "magic_prime": compute_magic_prime(dataset.total_tokens, sequence_length),
            }


def stage_copy(files, source, path):
    """A copy of the file `source` that takes the name `path` with the others of `files`; where the lines are until then.

    Nothing is copied where they are that file already.
    """
    make_parent(path)
    with contextlib.suppress(FileNotFoundError):
        if os.path.samefile(source, path):
            return path
    with open(source, "rb") as file, files.write(path) as copy:
        shutil.copyfileobj(file, copy, 1 << 20)
    return copy.name
