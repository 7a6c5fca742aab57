"""Text files as windows of tokens, and loaders that give batches of them."""

import os
import zlib

import numpy as np

from ..arrays import IGNORED, token_ids
from ..atomic import reading
from ..config import whole_number
from .chunking import ChunkedLoader, targets_of
from .settings import setting


def encode_files(tokenizer, file_path):
    """1-D array of the ids of one text file, or of several with id 0 between them.

    file_path: path or list of paths, UTF-8.  Raises OSError with the path, ValueError (not UTF-8, no token).
    """
    paths = [file_path] if isinstance(file_path, (str, os.PathLike)) else list(file_path)
    pieces = []
    for path in paths:
        try:
            with reading(path), open(path, encoding="utf-8-sig") as file:
                text = file.read()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"text file not found: {path}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text ({error})") from error
        if pieces:
            pieces.append([0])
        pieces.append(np.asarray(getattr(tokenizer, "encode_array", tokenizer.encode)(text), np.int64))
    tokens = np.concatenate(pieces) if pieces else np.empty(0, np.int64)
    if len(tokens) < 2:
        raise ValueError(f"{', '.join(map(str, paths))}: {len(tokens)} tokens; training needs at least two")
    return token_ids(tokens, tokenizer.vocab_size, "tokens")[0]


class TextDataset:
    """The windows of a text.

    tokenizer: anything with `encode` and `vocab_size`.  file_path: text file, or a list of them.  block_size: tokens of a
    window.  stride: tokens from one window to the next (default block_size: each token is in one window; block_size // 2
    gives overlapping windows).  use_rwkv_chunking: `TrainingEngine.train` runs the windows in chunks of chunk_size tokens.
    The last window is filled up with id 0 and labels -100; one of a single token, with nothing to predict, is left out.
    Items: dict "input_ids", "labels", (block_size,) int64, labels being the inputs (they are shifted in training).
    tokens: the ids of the whole text.
    Raises OSError, ValueError.
    """

    def __init__(self, tokenizer, file_path, block_size=1024, use_rwkv_chunking=False, chunk_size=None, stride=None):
        self.block_size = whole_number("block_size", block_size)
        self.stride = whole_number("stride", self.block_size if stride is None else stride)
        if self.block_size < 2 or self.stride > self.block_size:
            raise ValueError(
                f"block_size is {self.block_size} and stride {self.stride}; allowed are 2 or more and 1 to block_size"
            )
        self.use_rwkv_chunking = bool(use_rwkv_chunking)
        self.chunk_size = whole_number("chunk_size", min(1024, block_size) if chunk_size is None else chunk_size)
        self.tokens = encode_files(tokenizer, file_path)

    def __len__(self):
        windows = 1 + max(0, -(-(len(self.tokens) - self.block_size) // self.stride))
        return windows - (len(self.tokens) - (windows - 1) * self.stride < 2)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"window {index}; there are {len(self)}")
        window = self.tokens[index * self.stride : index * self.stride + self.block_size]
        ids, labels = np.zeros(self.block_size, np.int64), np.full(self.block_size, IGNORED, np.int64)
        ids[: len(window)] = labels[: len(window)] = window
        return {"input_ids": ids, "labels": labels}


class DataLoader:
    """Batches of a dataset; which items a batch holds is a function of (seed, epoch, number) alone.

    dataset: anything with a length whose items are dicts of arrays of one shape.  batch_size: items of a batch; the last
    batch of an epoch may have fewer.  shuffle: a new order each epoch.  seed: of that order.
    Iterating gives the batches of `epoch` (see `set_epoch`); calling with a step gives (ids, targets) of that batch of
    the endless sequence of epochs, as `rwkvtune.TrainingRun` wants it.
    Raises ValueError.
    """

    def __init__(self, dataset, batch_size=8, shuffle=False, seed=0):
        self.dataset, self.batch_size = dataset, whole_number("batch_size", batch_size)
        self.shuffle, self.seed, self.epoch = bool(shuffle), int(seed), 0
        if not len(dataset):
            raise ValueError("the dataset is empty")

    def __len__(self):
        return -(-len(self.dataset) // self.batch_size)

    def set_epoch(self, epoch):
        """Iterate over the order of this epoch from now on."""
        self.epoch = int(epoch)

    def batch(self, epoch, number):
        """dict of arrays (B, ...): the batch `number` of an epoch."""
        items = range(len(self.dataset))
        if self.shuffle:
            items = np.random.default_rng([self.seed & 0xFFFFFFFF, epoch]).permutation(len(self.dataset))
        chosen = [self.dataset[int(i)] for i in items[number * self.batch_size : (number + 1) * self.batch_size]]
        return {name: np.stack([item[name] for item in chosen]) for name in chosen[0]}

    def __iter__(self):
        return (self.batch(self.epoch, number) for number in range(len(self)))

    def __call__(self, step):
        return targets_of(self.batch(*divmod(step, len(self))))

    def identity(self):
        """dict of plain values by which a resumed run recognises its data."""
        first, last = (self.dataset[i]["input_ids"] for i in (0, len(self.dataset) - 1))
        return {"items": len(self.dataset), "batch_size": self.batch_size, "shuffle": self.shuffle, "seed": self.seed,
                "check": zlib.crc32(np.ascontiguousarray(last), zlib.crc32(np.ascontiguousarray(first)))}  # fmt: skip


def _loader(path_name, shuffle, args, tokenizer, training_config, batch_size, use_rwkv_chunking, chunk_size):
    path = setting(args, path_name)
    if not path:
        raise ValueError(f"{path_name} is not given; name a text file")
    dataset = TextDataset(
        tokenizer, path, setting(args, "max_seq_length") or setting(args, "block_size") or 1024,
        use_rwkv_chunking, chunk_size or setting(args, "rwkv_chunk_size"), setting(args, "stride"),
    )  # fmt: skip
    size = batch_size or setting(args, "batch_size") or setting(training_config, "batch_size") or 8
    loader = DataLoader(dataset, size, shuffle, setting(args, "seed", 0) or 0)
    return ChunkedLoader(loader, dataset.chunk_size) if use_rwkv_chunking else loader


def setup_train_dataloader(
    args, tokenizer, training_config=None, batch_size=None, use_rwkv_chunking=False, chunk_size=None
):
    """The loader of `args.train_file`, in a new order each epoch.

    args: namespace with train_file and, where wanted, max_seq_length (window, 1024), stride, batch_size (8),
    rwkv_chunk_size, seed (0).  batch_size, chunk_size: over those of args.  use_rwkv_chunking: a `ChunkedLoader`.
    Raises ValueError, OSError.
    """
    return _loader("train_file", True, args, tokenizer, training_config, batch_size, use_rwkv_chunking, chunk_size)


def setup_val_dataloader(
    args, tokenizer, training_config=None, batch_size=None, use_rwkv_chunking=False, chunk_size=None
):
    """The loader of `args.val_file`, in order; otherwise as `setup_train_dataloader`."""
    return _loader("val_file", False, args, tokenizer, training_config, batch_size, use_rwkv_chunking, chunk_size)
