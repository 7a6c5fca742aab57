"""Long batches as consecutive chunks, with the word when the state begins anew."""

import numpy as np

from ..arrays import IGNORED
from ..config import whole_number


def next_tokens(labels):
    """Targets from labels that repeat the inputs: moved one to the left, the last place -100.  labels: (B,T) integers."""
    labels = np.asarray(labels)
    targets = np.full(labels.shape, IGNORED, np.int64)
    targets[..., :-1] = labels[..., 1:]
    return targets


def targets_of(batch):
    """(ids, targets), both (B,T), of a batch: a dict with "input_ids" and "labels", or a pair (ids, targets).

    Labels of a dict repeat the inputs and are shifted here, unless the batch says "labels_shifted"; without labels the
    inputs are the labels.  A pair is taken as it is.  Raises ValueError.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return np.atleast_2d(np.asarray(batch[0])), np.atleast_2d(np.asarray(batch[1]))
    if not isinstance(batch, dict) or "input_ids" not in batch:
        raise ValueError('a batch is a dict with "input_ids" and "labels", or a pair (ids, targets)')
    ids = np.atleast_2d(np.asarray(batch["input_ids"]))
    labels = np.atleast_2d(np.asarray(batch.get("labels", ids)))
    if labels.shape != ids.shape:
        raise ValueError(f'"labels" have shape {labels.shape} but "input_ids" {ids.shape}')
    return ids, labels if batch.get("labels_shifted") else next_tokens(labels)


class ChunkedLoader:
    """Iterates over a loader's batches in consecutive chunks.

    loader: iterable of batches, see `targets_of`.  chunk_size: tokens of a chunk; the last one of a batch may be shorter.
    Each chunk is a dict: "input_ids", "labels" (B, <= chunk_size), "labels_shifted" True (the target of a chunk's last
    place is the first token of the next chunk, so none is lost), "reset_state" (True for the first chunk of a batch),
    "last_chunk" (True for the last), "start" (its place in the batch).
    Raises ValueError (chunk_size).

    >>> chunks = list(ChunkedLoader([{"input_ids": [[1, 2, 3, 4, 5]]}], 2))
    >>> [(c["input_ids"].tolist(), c["labels"].tolist(), c["reset_state"]) for c in chunks]
    [([[1, 2]], [[2, 3]], True), ([[3, 4]], [[4, 5]], False), ([[5]], [[-100]], False)]
    """

    def __init__(self, loader, chunk_size):
        self.loader, self.chunk_size = loader, whole_number("chunk_size", chunk_size)

    def __iter__(self):
        for batch in self.loader:
            yield from self.chunks(batch)

    def chunks(self, batch):
        """The chunks of one batch."""
        ids, targets = targets_of(batch)
        for start in range(0, ids.shape[1], self.chunk_size):
            part = slice(start, start + self.chunk_size)
            yield {"input_ids": ids[:, part], "labels": targets[:, part], "labels_shifted": True, "reset_state": start == 0,
                   "last_chunk": start + self.chunk_size >= ids.shape[1], "start": start}  # fmt: skip

    def __getattr__(self, name):  # dataset, batch_size, ... are those of the loader
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)


def apply_chunking(dataloader, chunk_size):
    """A `ChunkedLoader` over `dataloader`; one that is chunked already gets the new size."""
    return ChunkedLoader(dataloader.loader if isinstance(dataloader, ChunkedLoader) else dataloader, chunk_size)
