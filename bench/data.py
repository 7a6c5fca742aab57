"""Speed of tokenizers and of `prepare`, in one table; peers beside them where they are installed.

    python bench/data.py [--vocab FILE] [--mb 200]

Speeds are megabytes of UTF-8 text a second, the best of a few runs, by the clock and, in brackets, by processor time (all
threads together), which other programs on the machine disturb less.  The text is the Python standard library's sources.
Peers: a trie of dicts in Python (below); pyrwkv-tokenizer (Rust) and tiktoken if pip has installed them.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from rwkvtune import _rwkvcore, set_num_threads
from rwkvtune.data import GenericTokenizer, IntegerTokenizer

MB = 1e6


class TrieOfDicts:
    """Greedy longest match as one writes it in Python: a peer, and a check."""

    def __init__(self, tokens):
        self.root = {}
        for token_id, token in tokens:
            node = self.root
            for byte in token:
                node = node.setdefault(byte, {})
            node[None] = token_id

    def encode(self, data):
        ids, at = [], 0
        while at < len(data):
            node, i = self.root, at
            while i < len(data) and data[i] in node:
                node = node[data[i]]
                i += 1
                if None in node:
                    found, end = node[None], i
            ids.append(found)
            at = end
        return ids


def measure(action, runs=5):
    """(seconds by the clock, seconds of processor time, what the action returned): the best of several runs."""
    best = []
    for _ in range(runs):
        clock, processor = time.perf_counter(), time.process_time()
        result = action()
        best.append((time.perf_counter() - clock, time.process_time() - processor))
    return min(a for a, _ in best), min(b for _, b in best), result


def row(what, n_bytes, action, goal="", runs=5):
    clock, processor, result = measure(action, runs)
    print(f"| {what} | {n_bytes / clock / MB:.0f} ({n_bytes / processor / MB:.0f}) | {goal} |", flush=True)
    return result


def python_sources(n_bytes):
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("**/*.py"))
    text = bytearray()
    for path in (path for path in paths if "site-packages" not in path.parts):
        text += path.read_bytes()
        if len(text) >= n_bytes:
            break
    return text[:n_bytes].decode("utf-8", "ignore")


def tokenizers(vocab, text):
    clock, _, tok = measure(lambda: GenericTokenizer(vocab))
    data = text.encode()
    print(f"| load the vocabulary | {1000 * clock:.0f} ms | <= 120 ms |")
    set_num_threads(1)
    ids = row("encode into an array", len(data), lambda: tok.encode_array(text), ">= 200")
    row("encode into a list", len(data), lambda: tok.encode(text))
    assert row("decode an array", len(data), lambda: tok.decode(ids), ">= 300") == text
    pieces = [text[i : i + 2000] for i in range(0, len(text), 2000)]
    for n in (1, 2):
        set_num_threads(n)
        row(f"encode_batch, texts of 2 kB, {n} threads", len(data), lambda: tok.encode_batch(pieces))
    numbers = " ".join(str(random.Random(i).randrange(1000)) for i in range(1000)) + " "
    numbers *= 1000
    row("integers into an array", len(numbers), lambda: IntegerTokenizer(999).encode_array(numbers), ">= 200")
    peers(tok, data, text, ids.tolist())


def peers(tok, data, text, expected):
    part = data[:500000]
    trie = TrieOfDicts(tok._core.lines())
    assert row("peer: trie of dicts in Python", len(part), lambda: trie.encode(part), runs=2) == tok.encode(part)
    try:
        import pyrwkv_tokenizer

        peer = pyrwkv_tokenizer.RWKVTokenizer()
        found = row("peer: pyrwkv-tokenizer, into a list", len(data), lambda: peer.encode(text))
        print(f"| the same ids as pyrwkv-tokenizer | {found == expected} | |")
    except ImportError:
        print("| peer: pyrwkv-tokenizer | not installed | |")
    try:
        import tiktoken

        ranks = {bytes([byte]): byte for byte in range(256)}
        peer = tiktoken.Encoding("bytes", pat_str=r"\s?\w+|[^\w\s]+|\s+", mergeable_ranks=ranks, special_tokens={})
        row("peer: tiktoken, 256 bytes without merges", len(data), lambda: peer.encode_ordinary(text))
    except ImportError:
        print("| peer: tiktoken | not installed | |")


PREPARE = """
import os, resource, sys, time
from rwkvtune import set_num_threads
from rwkvtune.data import GenericTokenizer, IntegerTokenizer, JsonlToBinIdxConverter
source, target, vocab, threads = sys.argv[1:]
set_num_threads(int(threads))
tokenizer = GenericTokenizer(vocab) if vocab else IntegerTokenizer(999)
def peak():
    if os.path.exists("/proc/self/status"):  # ru_maxrss begins with the parent's there
        return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1048576
before, clock, processor = peak(), time.perf_counter(), time.process_time()
JsonlToBinIdxConverter(tokenizer, verbose=False).convert(source, target, n_epochs=1, random_seed=0)
print(time.perf_counter() - clock, time.process_time() - processor, peak() - before)
"""


def write_lines(path, n_bytes, text):
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


def prepare(vocab, text, n_bytes, runs=3):
    """Each run is a process of its own, so that its memory is its own; shuffling and fsync are part of it."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "a.jsonl"), Path(folder, "data")
        for kind, words, vocabulary, goals in [("text", text, vocab, (120, 200)), ("integers", None, "", ("", ""))]:
            write_lines(source, n_bytes, words)
            size = os.path.getsize(source)
            for threads, goal in zip((1, 2), goals, strict=True):
                command = [sys.executable, "-c", PREPARE, source, target, vocabulary, str(threads)]
                found = [[*map(float, subprocess.check_output(command).split())] for _ in range(runs)]
                clock, processor, memory = (min(values) for values in zip(*found, strict=True))
                print(f"| prepare, JSONL of {kind}, {threads} threads, + {memory:.0f} MiB | {size / clock / MB:.0f} "
                      f"({size / processor / MB:.0f}) | {f'>= {goal}' if goal else ''} |", flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", default="world", help='vocabulary file; default: that of pip install "rwkvtune[world]"')
    parser.add_argument("--mb", type=int, default=200, help="size of the JSON lines that are prepared")
    args = parser.parse_args()
    text = python_sources(5_000_000)
    print(f"| {_rwkvcore.info()['isa']}, {os.cpu_count()} processors | MB/s (by processor time) | goal |\n|---|---|---|")
    tokenizers(args.vocab, text)
    prepare(args.vocab, text, args.mb * 1_000_000)


if __name__ == "__main__":
    main()
