"""States of texts that were read before, so that a prompt which begins like one of them is read from there on only."""

from collections import OrderedDict

import numpy as np

_WORTH = 16  # tokens in common that are worth a state of their own


class PrefixCache:
    """States by the ids they are of; the least recently used go when there is no room.

    max_bytes: of all states together.  hits, misses: prompts that began with a text in the cache, and others.
    tokens: of prompts, which did not have to be read.  States are of the weights that made them: `clear` after training.

    A prompt leaves its state, all but its last token, and a text that was written after it leaves its own.  Where two prompts
    begin alike, the second leaves the state of what they share, as well: from the third on a common system prompt is free.
    """

    def __init__(self, max_bytes):
        self.max_bytes, self._states = int(max_bytes), OrderedDict()
        self.clear()

    def clear(self):
        """Forget everything."""
        self._states.clear()
        self.hits = self.misses = self.tokens = self.nbytes = 0

    def __len__(self):
        return len(self._states)

    def __repr__(self):
        return f"PrefixCache({len(self)} states, {self.nbytes / 1e6:.1f} of {self.max_bytes / 1e6:.1f} MB, {self.hits} hits, {self.misses} misses)"

    def find(self, ids):
        """(tokens, the core's state of so many) of the longest text in the cache that `ids` (int32 array) begin with; (0, None)."""
        wanted = ids.tobytes()
        key = max((key for key in self._states if wanted.startswith(key)), key=len, default=None)
        if key is None:
            self.misses += 1
            return 0, None
        self._states.move_to_end(key)
        self.hits += 1
        self.tokens += len(key) // 4
        return len(key) // 4, self._states[key]

    def branch(self, ids, read):
        """Where to leave a state while reading `ids`, of which `read` are known: where they part from a text in the cache.

        None where that is not worth it.
        """
        shared = max((_in_common(ids, np.frombuffer(key, np.int32)) for key in self._states), default=0)
        return shared if shared - read >= _WORTH else None

    def put(self, ids, state):
        """Keep the core's state of `ids` (int32 array, at least one); nobody may change it any more."""
        key = ids.tobytes()
        if not key or state.nbytes > self.max_bytes:
            return
        self._remove(key)
        self._states[key] = state
        self.nbytes += state.nbytes
        while self.nbytes > self.max_bytes:
            self._remove(next(iter(self._states)))

    def _remove(self, key):
        if key in self._states:
            self.nbytes -= self._states.pop(key).nbytes


def _in_common(a, b):
    """Ids that two arrays begin with, both."""
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size
