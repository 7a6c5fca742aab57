"""Token shards (.npy), and batches of them as a function of the step: the same for every model, and after every resume."""

import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from rwkvtune.atomic import atomic_write, make_directory
from rwkvtune.prepared_data import text_documents

DOCUMENT_CHARS = 2000
HELD_OUT = 0.05


def write_shards(text, data_root):
    """Makes shards of a text: its UTF-8 bytes as ids 1 to 256, documents of whole paragraphs, id 0 after each.

    The last 5 % of the documents become val_000.npy, the rest train_000.npy.  Raises ValueError (a short text), OSError.
    """
    documents = [np.frombuffer(part.encode(), np.uint8).astype(np.uint16) + 1 for part in text_documents(text, DOCUMENT_CHARS)]
    if len(documents) < 20:
        raise ValueError(f"the text gives {len(documents)} documents of up to {DOCUMENT_CHARS} characters; at least 20 are needed")
    cut = len(documents) - max(1, round(HELD_OUT * len(documents)))
    make_directory(data_root)
    for name, part in (("val", documents[cut:]), ("train", documents[:cut])):
        ids = np.concatenate([np.append(document, np.uint16(0)) for document in part])
        with atomic_write(Path(data_root) / f"{name}_000.npy") as file:
            np.save(file, ids, allow_pickle=False)


def _open_shard(path):
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a .npy file of numbers ({error})") from None
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids):
        raise ValueError(f"{path}: shape {ids.shape}, {ids.dtype}; a shard is one row of integers, of at least one")
    return ids


class ShardLoader:
    """Batches from the shards of a split.

    data_root: directory.  split: "train" or "val", part of the file names.  batch: (sequences, tokens) of a batch.
    vocab_size: ids are below it.  eot_token: ends a document.  seed: None = in order, else an epoch goes through the shards in an order of its own, and
    through the documents of each, what follows the last eot_token being one too.  An epoch is every token once; batches go
    on from one shard and one epoch into the next.
    Raises ValueError (no shards; no .npy of integers; when reading, an id out of range), OSError.
    """

    def __init__(self, data_root, split, batch, vocab_size, eot_token, seed=None):
        self.batch, self.vocab_size, self.eot_token, self.seed = batch, vocab_size, eot_token, seed
        self.paths = sorted(path for path in Path(data_root).glob("*.npy") if split in path.name)
        if not self.paths:
            raise ValueError(f"{data_root} holds no .npy file with {split!r} in its name; put token shards there or give --text")
        self.shards = [_open_shard(path) for path in self.paths]
        self.tokens = sum(map(len, self.shards))
        self._shuffled = lru_cache(maxsize=2)(self._shuffle)

    def _order(self, epoch):
        count = len(self.shards)
        return range(count) if self.seed is None else np.random.default_rng([self.seed, epoch]).permutation(count)

    def _shuffle(self, epoch, shard):
        """The ids of a shard, documents in the order of an epoch."""
        ids = self.shards[shard]
        if self.seed is None:
            return ids
        documents = np.split(ids, np.flatnonzero(ids == self.eot_token) + 1)
        order = np.random.default_rng([self.seed, epoch, shard]).permutation(len(documents))
        return np.concatenate([documents[i] for i in order])

    def _pieces(self, at):
        """The stream of all epochs from its token `at` on, piece by piece."""
        epoch, at = divmod(at, self.tokens)
        while True:
            for shard in self._order(epoch):
                if at < len(self.shards[shard]):
                    yield self.paths[shard], self._shuffled(epoch, int(shard))[at:]
                at = max(0, at - len(self.shards[shard]))
            epoch += 1

    def _read(self, start, count):
        ids, filled = np.empty(count, np.int64), 0
        pieces = self._pieces(start)
        while filled < count:
            path, piece = next(pieces)
            piece = piece[: count - filled]
            if piece.min() < 0 or piece.max() >= self.vocab_size:
                raise ValueError(f"{path}: ids from {piece.min()} to {piece.max()}; the vocabulary is 0 to {self.vocab_size - 1}")
            ids[filled : filled + len(piece)] = piece
            filled += len(piece)
        return ids

    def __call__(self, step):
        """(ids, targets), int64 of the shape of a batch: targets are the ids one further on."""
        size = self.batch[0] * self.batch[1]
        ids = self._read(step * size, size + 1)
        return ids[:-1].reshape(self.batch), ids[1:].reshape(self.batch)

    def position(self, step):
        """dict: epoch, current_shard (its name) and current_position (token within it) where the batch of a step begins."""
        epoch, at = divmod(step * self.batch[0] * self.batch[1], self.tokens)
        for shard in self._order(epoch):
            if at < len(self.shards[shard]):
                break
            at -= len(self.shards[shard])
        return {"epoch": epoch, "current_shard": self.paths[shard].name, "current_position": at}

    def identity(self):
        """dict of plain values by which a resumed run recognises its data."""
        check = 0
        for ids in self.shards:
            check = zlib.crc32(np.ascontiguousarray(ids[: 1 << 20]), check)
        return {"shards": [path.name for path in self.paths], "tokens": self.tokens, "check": check, "batch": list(self.batch),
                "eot_token": self.eot_token, "seed": self.seed}  # fmt: skip
