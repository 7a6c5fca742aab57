"""Token ids from whatever holds integers: lists, NumPy, the buffer protocol, `__array__`, DLPack."""

import numpy as np

IGNORED = -100


def to_array(values, name):
    """`values` as a NumPy array of its own dtype, sharing memory where it can.  Raises ValueError naming `name`."""
    if np.ma.is_masked(values):
        raise ValueError(f"{name}: an array with {np.ma.count_masked(values)} masked values; put numbers there with .filled(...)")
    if isinstance(values, np.ndarray):
        return np.asarray(values)
    try:
        if hasattr(values, "__dlpack__") and not hasattr(values, "__array__"):
            return np.from_dlpack(values)
        return np.asarray(values)
    except (ValueError, TypeError, BufferError, RuntimeError) as error:
        raise ValueError(f"{name}: not an array of numbers of equal row lengths ({error})") from error


def token_ids(values, vocab_size, name="ids", ignored=False):
    """Token ids as a C-contiguous int32 array of shape (B, T).

    values: array-like of integers of shape (B, T), (T,) (taken as one row) or a single integer (one row of one).
    vocab_size: ids are in [0, vocab_size).  ignored: -100 is allowed as well (targets that do not count).
    Raises ValueError naming `name`, the offending value and its place.
    """
    array = to_array(values, name)
    if array.size == 0:
        raise ValueError(f"{name} is empty; give at least one token")
    if array.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: dtype {array.dtype} does not hold integers; token ids are integers in [0, {vocab_size})"
        )
    if array.ndim > 2:
        raise ValueError(f"{name} has shape {array.shape}; allowed are (B, T), (T,) and a single integer")
    array = array.reshape(1, -1) if array.ndim < 2 else array
    # A copy even where none is needed: the core reads it without the GIL, when its owner could be changing it.
    return _checked_copy(array, vocab_size, name, ignored)


def _checked_copy(array, vocab_size, name, ignored):
    copy = np.array(array, order="C", copy=True)
    _check_range(copy, vocab_size, name, ignored)
    return copy.astype(np.int32, copy=False)


def _check_range(array, vocab_size, name, ignored):
    if int(array.max()) < vocab_size and int(array.min()) >= 0:
        return
    bad = (array < 0) | (array >= vocab_size)
    if ignored:
        bad &= array != IGNORED
    if bad.any():
        row, column = np.argwhere(bad)[0].tolist()
        also = f", or {IGNORED} for a place that does not count" if ignored else ""
        raise ValueError(f"{name}[{row}, {column}] is {array[row, column]}; token ids are in [0, {vocab_size}){also}")


def ids_and_targets(ids, targets, vocab_size):
    """(ids, targets), both int32 (B, T); targets may be -100.  Raises ValueError also where the shapes differ."""
    ids = token_ids(ids, vocab_size)
    targets = token_ids(targets, vocab_size, "targets", ignored=True)
    if ids.shape != targets.shape:
        raise ValueError(f"ids have shape {ids.shape} but targets {targets.shape}; there is one target per id")
    return ids, targets
