"""Text: tokenizers and `prepare`, in megabytes of UTF-8 a second."""

import json
import os
import random
import sysconfig
import tempfile
import time
from pathlib import Path

from . import Table
from .timing import best, in_a_process, peak_mib

_MB = 1e6
_TOKENIZE = {"what": "", "threads": "threads", "mb_per_second": "MB/s", "tokens_per_second": "million tokens/s", "ms": "ms"}
_PREPARE = {"what": "JSON lines of", "threads": "threads", "mb_per_second": "MB/s", "processor_mb_per_second": "by processor time", "mib": "memory + MiB"}


def python_sources(n_bytes):
    """Text that every Python brings: the sources of its standard library."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("**/*.py"))
    text = bytearray()
    for path in (path for path in paths if "site-packages" not in path.parts):
        text += path.read_bytes()
        if len(text) >= n_bytes:
            break
    return text[:n_bytes].decode("utf-8", "ignore")


def vocabulary(name, directory):
    """(what `GenericTokenizer` takes, words for it): "world" where it is installed, else one token per byte in a file of the directory.

    Raises FileNotFoundError for any other name that is no file.
    """
    from ..data import GenericTokenizer, create_byte_vocab_file

    if name == "world":
        try:
            GenericTokenizer("world")
            return "world", "the world vocabulary"
        except (ImportError, FileNotFoundError, ValueError):
            name = "bytes"
    if name == "bytes":
        path = os.path.join(directory, "bytes.txt")
        create_byte_vocab_file(path)
        return path, 'a vocabulary of bytes (pip install "rwkvtune[world]" brings the world vocabulary)'
    if not os.path.isfile(name):
        raise FileNotFoundError(f"vocabulary not found: {name}")
    return name, name


def measure_tokenize(options):
    """Loading, encoding and decoding with one vocabulary, and numbers as text."""
    from .. import set_num_threads
    from ..data import GenericTokenizer, IntegerTokenizer

    text = python_sources(1_000_000 if options.quick else 5_000_000)
    pieces = [text[at : at + 2000] for at in range(0, len(text), 2000)]
    numbers = " ".join(str(random.Random(i).randrange(1000)) for i in range(1000)) + " "
    numbers *= len(text) // len(numbers) + 1
    seconds, size, counts = options.seconds / 3, len(text.encode()), sorted({1, options.threads})
    with tempfile.TemporaryDirectory() as directory:
        source, words = vocabulary(options.vocab, directory)
        rows = [{"what": "load the vocabulary", "ms": 1000 * best(lambda: GenericTokenizer(source), seconds)}]
        tokenizer = GenericTokenizer(source)
    ids = tokenizer.encode_array(text)
    if tokenizer.decode(ids) != text:
        raise RuntimeError(f"decoding the ids of a text with {words} does not give the text")
    cases = [("encode into an array", 1, size, lambda: tokenizer.encode_array(text)), ("encode into a list", 1, size, lambda: tokenizer.encode(text)),
             ("decode an array", 1, size, lambda: tokenizer.decode(ids)),
             *(("encode many texts of 2 kB", n, size, lambda: tokenizer.encode_batch(pieces)) for n in counts),
             ("numbers into an array", 1, len(numbers), lambda: IntegerTokenizer(999).encode_array(numbers))]  # fmt: skip
    for what, threads, n_bytes, work in cases:
        set_num_threads(threads)
        took = best(work, seconds)
        tokens = None if "numbers" in what else len(ids) / took / 1e6
        rows.append({"what": what, "threads": threads, "mb_per_second": n_bytes / took / _MB, "tokens_per_second": tokens})
    set_num_threads(options.threads)
    return [Table(f"tokenize: {size / _MB:.0f} MB of Python with {words}, {len(ids):,} tokens", _TOKENIZE, rows)]


def _write_lines(path, n_bytes, text):
    """About n_bytes of JSON lines; text: pieces of 100 to 8000 characters of it, or None for numbers."""
    rng, size = random.Random(0), 0
    with open(path, "w", encoding="utf-8") as file:
        while size < n_bytes:
            if text is None:
                piece = " ".join(str(rng.randrange(1000)) for _ in range(500))
            else:
                at = rng.randrange(len(text))
                piece = text[at : at + rng.choice([100, 300, 1000, 3000, 8000])]
            for _ in range(1 if text else 20):
                size += file.write(json.dumps({"text": piece}, ensure_ascii=False) + "\n")


def convert(source, target, vocab, threads):
    """One conversion in this process: (seconds by the clock, seconds of processor time, MiB by which its memory grew)."""
    from .. import set_num_threads
    from ..data import GenericTokenizer, IntegerTokenizer, JsonlToBinIdxConverter

    set_num_threads(threads)
    tokenizer = GenericTokenizer(vocab) if vocab else IntegerTokenizer(999)
    before, clock, processor = peak_mib(), time.perf_counter(), time.process_time()
    JsonlToBinIdxConverter(tokenizer, verbose=False).convert(source, target, n_epochs=1, random_seed=0)
    return time.perf_counter() - clock, time.process_time() - processor, peak_mib() - before


def measure_prepare(options):
    """Each run is a process of its own, so that its memory is its own; shuffling and fsync are part of it."""
    n_bytes, runs, rows = (20_000_000, 2, []) if options.quick else (200_000_000, 3, [])
    text = python_sources(5_000_000)
    with tempfile.TemporaryDirectory() as directory:
        vocab, words = vocabulary(options.vocab, directory)
        source, target = os.path.join(directory, "a.jsonl"), os.path.join(directory, "data")
        for kind, pieces, chosen in ((f"text, {words.split(' (')[0]}", text, vocab), ("numbers", None, "")):
            _write_lines(source, n_bytes, pieces)
            size = os.path.getsize(source)
            for threads in sorted({1, options.threads}):
                found = [in_a_process("text:convert", source=source, target=target, vocab=chosen, threads=threads) for _ in range(runs)]
                clock, processor, memory = (min(values) for values in zip(*found, strict=True))
                rows.append({"what": kind, "threads": threads, "mb_per_second": size / clock / _MB, "processor_mb_per_second": size / processor / _MB,
                             "mib": memory})  # fmt: skip
    return [Table(f"prepare: {n_bytes / _MB:.0f} MB of JSON lines into bin/idx, shuffled", _PREPARE, rows)]
