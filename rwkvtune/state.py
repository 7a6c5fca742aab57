"""The recurrent state of a model, as a value.

For L layers, B sequences, C channels in H heads of N: att_shift (L,B,C) and ffn_shift (L,B,C) are the normalised
inputs of the last token, wkv (L,B,H,N,N) the memory, rows = value slot, columns = key slot.  Layers of attention have
key_cache and value_cache (L,B,P,G,N): the keys (with their rotary positions) and values of all P tokens read so far,
in G heads; their state grows with every token.  In a hybrid the first axis of each array counts only the layers that
have it; where such layers differ in size, every one has an array of its own, called like "wkv.3", with a first axis
of 1.  The compiled core keeps wkv key-major; the exchange of the last two axes happens here and nowhere else.
"""

import numpy as np

from .errors import FormatError

_KEY_MAJOR = "wkv"
_GROWING = ("key_cache", "value_cache")


def _outside(name, array):
    return np.swapaxes(array, -1, -2) if name == _KEY_MAJOR else array


def _arrays_of(rows):
    """The arrays of this module's layout that rows (layer, name, array) make: {array's name: [(layer, name, array)]}."""
    by_name, result = {}, {}
    for layer, name, array in sorted(rows, key=lambda row: row[0]):
        by_name.setdefault(name, []).append((layer, name, _outside(name, np.asarray(array))))
    for name, places in by_name.items():
        if len({array.shape for _, _, array in places}) == 1:
            result[name] = places
        else:
            result |= {f"{name}.{place[0]}": [place] for place in places}
    return result


def rows_to_arrays(rows):
    """The core's rows (layer, name, array) as {name: array (layers, B, ...)} in the layout of this module, copied."""
    return {
        name: np.ascontiguousarray(np.stack([array for _, _, array in places]))
        for name, places in _arrays_of(rows).items()
    }


class RWKVState:
    """What a model remembers of a batch of sequences; never changed by anything.

    Made by `RWKV.init_state`, `RWKV.process_with_state` and `from_numpy`; it may be kept, used again and branched.
    batch_size: sequences.  Every method of a model that takes a state accepts this or a dict of its arrays.
    """

    __slots__ = ("_core", "_model", "_arrays")

    def __init__(self, core=None, model=None, arrays=None):
        self._core, self._model, self._arrays = core, model, arrays

    @classmethod
    def from_numpy(cls, arrays):
        """A state from its arrays.

        arrays: {"att_shift": (L,B,C), "wkv": (L,B,H,N,N), "ffn_shift": (L,B,C)}, and with attention "key_cache" and
        "value_cache" (L,B,P,G,N), any floating dtype.
        Raises ValueError naming what is missing or misshapen; sizes are compared when a model uses the state.
        """
        copied = {name: np.array(value, copy=True) for name, value in dict(arrays).items()}
        sizes = {value.shape[1] if value.ndim >= 2 else None for value in copied.values()}
        if not copied or len(sizes) != 1 or None in sizes:
            shapes = {name: value.shape for name, value in copied.items()}
            raise ValueError(f"a state needs arrays of shape (layers, batch, ...) with one batch size, not {shapes}")
        for name, value in copied.items():
            if value.dtype.kind not in "fiu":
                raise ValueError(f"state {name}: dtype {value.dtype} does not hold numbers")
        return cls(arrays=copied)

    def to_numpy(self):
        """dict: {"att_shift": (L,B,C), "wkv": (L,B,H,value,key), "ffn_shift": (L,B,C)}, fresh copies; with attention
        also "key_cache" and "value_cache" (L,B,P,G,N) of the P tokens read, see the head of this module."""
        if self._arrays is not None:
            return {name: value.copy() for name, value in self._arrays.items()}
        return rows_to_arrays(self._core.rows())

    @property
    def batch_size(self):
        """Sequences the state is of."""
        return self._core.batch_size if self._arrays is None else next(iter(self._arrays.values())).shape[1]

    @property
    def nbytes(self):
        """Bytes of the arrays."""
        return self._core.nbytes if self._arrays is None else sum(value.nbytes for value in self._arrays.values())

    def __repr__(self):
        return f"RWKVState(batch_size={self.batch_size}, {self.nbytes / 1e6:.2f} MB)"

    def save(self, path):
        """Write the state to `path` (NumPy's npz), at once or not at all.  Raises OSError with the path."""
        from .atomic import atomic_write

        with atomic_write(path) as file:
            np.savez(file, **self.to_numpy())

    @classmethod
    def load(cls, path):
        """Read what `save` wrote.  Raises OSError, FormatError."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except OSError:
            raise
        except Exception as error:  # zipfile, zlib and NumPy each have their own
            raise FormatError(f"{path}: not a saved state ({error}); it is written by RWKVState.save") from error
        return cls.from_numpy(arrays)


def to_core(state, model, batch_size):
    """The core's state for core model `model`: None for None, checked for the batch size and for every shape."""
    if state is None:
        return None
    if not isinstance(state, RWKVState):
        state = RWKVState.from_numpy(state)
    if state.batch_size != batch_size:
        raise ValueError(f"the state is of {state.batch_size} sequences but ids hold {batch_size}")
    if state._core is not None and state._model is model:
        return state._core
    arrays = state.to_numpy()
    past = _tokens_held(arrays)
    return model.state_from(batch_size, _rows_for(arrays, model, batch_size, past), past)


def _tokens_held(arrays):
    """Tokens in the caches of attention, which must agree; 0 where there are none."""
    held = {
        name: value.shape[2] for name, value in arrays.items() if name.split(".")[0] in _GROWING and value.ndim == 5
    }
    if len(set(held.values())) > 1:
        raise ValueError(f"the caches of a state must hold the same number of tokens, not {held}")
    return next(iter(held.values()), 0)


def _rows_for(arrays, model, batch_size, past):
    """The core's rows of `arrays`, against the rows this model has."""
    wanted = _arrays_of(model.new_state(batch_size).rows())
    if set(wanted) != set(arrays):
        raise ValueError(f"the state holds {', '.join(sorted(arrays))}; this model has {', '.join(sorted(wanted))}")
    rows = []
    for key, places in wanted.items():
        name, like = places[0][1:]
        shape = (len(places), *like.shape)
        if name in _GROWING:
            shape = (*shape[:2], past, *shape[3:])
        if arrays[key].shape != shape:
            raise ValueError(f"state {key} has shape {arrays[key].shape}; this model's is {shape}")
        for (layer, _, _), value in zip(places, arrays[key]):
            rows.append((layer, name, np.ascontiguousarray(_outside(name, value), like.dtype)))
    return rows
