"""The recurrent state of a model, as a value.

For L layers, B sequences, C channels in H heads of N: att_shift (L,B,C) and ffn_shift (L,B,C) are the normalised
inputs of the last token, wkv (L,B,H,N,N) the memory, rows = value slot, columns = key slot.  Layers of attention have
key_cache and value_cache (L,B,P,G,N): the keys (with their rotary positions) and values of all P tokens read so far,
in G heads; their state grows with every token.  In a hybrid the first axis of each array counts only the layers that
have it; where such layers differ in size, every one has an array of its own, called like "wkv.3", with a first axis
of 1.  The compiled core keeps wkv key-major; the exchange of the last two axes happens here and nowhere else.
"""

from collections.abc import Mapping

import numpy as np

from .errors import FormatError
from .state_codec import Encoded, check_encoding, concatenated, encode

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

    Made by `RWKV.init_state`, `RWKV.process_with_state`, `from_numpy`, `from_list` and `load`; it may be kept, used again,
    branched, copied (a copy is the state itself) and pickled.
    batch_size: sequences.  Every method of a model that takes a state accepts this or a dict of its arrays.

    >>> from rwkvtune import RWKV, ModelConfig
    >>> model = RWKV(ModelConfig(model_type="x070", n_layer=1, n_embd=64, vocab_size=10))
    >>> _, state = model.process_with_state([[1, 2], [3, 4]])
    >>> state.select([1, 1, 0]).batch_size
    3
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
        if not isinstance(arrays, Mapping):
            raise ValueError(f"a state is an RWKVState or a dict of its arrays, not a {type(arrays).__name__}")
        copied = {name: np.array(value, copy=True) for name, value in arrays.items()}
        for name, value in copied.items():
            if value.dtype.kind not in "fiu":
                raise ValueError(f"state {name}: dtype {value.dtype} does not hold numbers")
        return cls._of(copied)

    @classmethod
    def _of(cls, arrays):
        """A state that keeps `arrays`, each an ndarray or `Encoded`, themselves.  Raises ValueError."""
        sizes = {value.shape[1] if len(value.shape) >= 2 else None for value in arrays.values()}
        if len(sizes) != 1 or not sizes.isdisjoint({None, 0}):
            shapes = {name: value.shape for name, value in arrays.items()}
            raise ValueError(f"a state needs arrays of shape (layers, batch, ...) with one batch size, not {shapes}")
        return cls(arrays=arrays)

    def _parts(self):
        """dict: name -> ndarray or `Encoded`, not to be changed."""
        return rows_to_arrays(self._core.rows()) if self._arrays is None else self._arrays

    def to_numpy(self):
        """dict: {"att_shift": (L,B,C), "wkv": (L,B,H,value,key), "ffn_shift": (L,B,C)}, fresh copies; with attention
        also "key_cache" and "value_cache" (L,B,P,G,N) of the P tokens read, see the head of this module.  The numbers of a
        compressed state are float32."""
        if self._arrays is None:
            return self._parts()
        return {name: value.array() if isinstance(value, Encoded) else value.copy() for name, value in self._arrays.items()}

    @property
    def batch_size(self):
        """Sequences the state is of."""
        return self._core.batch_size if self._arrays is None else next(iter(self._arrays.values())).shape[1]

    @property
    def nbytes(self):
        """Bytes it takes."""
        return self._core.nbytes if self._arrays is None else sum(value.nbytes for value in self._arrays.values())

    def __repr__(self):
        how = f", {self.compression}" if self.compression else ""
        return f"RWKVState(batch_size={self.batch_size}, {self.nbytes / 1e6:.2f} MB{how})"

    # ---- copies ----

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return _restored, (self._stored(),)

    def detached(self):
        """The same state in memory of its own: it no longer keeps the model alive that made it."""
        return RWKVState._of(self._parts()) if self._arrays is None else self

    # ---- compression ----

    @property
    def compression(self):
        """None, or "fp16", "bf16" or "int8": how the numbers are kept."""
        kinds = {value.encoding for value in (self._arrays or {}).values() if isinstance(value, Encoded)}
        return "int8" if "int8" in kinds else kinds.pop() if kinds else None

    def compressed(self, dtype="fp16"):
        """The state in fewer bytes, to keep or to save; shapes are kept, numbers are rounded.

        dtype: "fp16" (default), "bf16" (half the bytes) or "int8" (about a quarter, a scale per row); how far numbers move
        stands in `rwkvtune.state_codec`.  Raises ValueError (dtype, a number that is not finite).
        """
        if check_encoding(dtype) == self.compression:
            return self
        return RWKVState._of({name: encode(name, value, dtype) for name, value in self.to_numpy().items()})

    def decompressed(self):
        """The state with plain arrays; what was rounded stays rounded."""
        return RWKVState._of(self.to_numpy()) if self.compression else self

    # ---- rows of the batch ----

    def select(self, rows):
        """The state of some of the sequences, in the order given.

        rows: an integer, a slice, a list of integers (also repeated, to branch) or of booleans, one per sequence.
        Raises ValueError (no such row, none at all).
        """
        try:
            chosen = np.atleast_1d(np.arange(self.batch_size)[rows if isinstance(rows, slice) else np.asarray(rows)])
        except (IndexError, TypeError) as error:
            raise ValueError(f"rows is {rows!r}; the state is of {self.batch_size} sequences ({error})") from None
        if chosen.ndim != 1 or not chosen.size:
            raise ValueError(f"rows is {rows!r}; it must choose at least one of {self.batch_size} sequences")

        def take(part):
            return np.ascontiguousarray(part[:, chosen])

        return RWKVState._of(
            {name: value.map(take) if isinstance(value, Encoded) else take(value) for name, value in self._parts().items()}
        )

    @staticmethod
    def concatenate(states):
        """One state of the sequences of several, in their order.

        states: `RWKVState`s of one model, with attention after the same number of tokens.  Compression is kept where all
        have the same.  Raises ValueError naming what differs.
        """
        states = list(states)
        if not states or not all(isinstance(state, RWKVState) for state in states):
            raise ValueError("concatenate needs a list of at least one RWKVState")
        if len({state.compression for state in states}) > 1:
            states = [state.decompressed() for state in states]
        parts = [state._parts() for state in states]
        first = {name: (value.shape[0], *value.shape[2:]) for name, value in parts[0].items()}
        for i, other in enumerate(parts[1:], 1):
            sizes = {name: (value.shape[0], *value.shape[2:]) for name, value in other.items()}
            if sizes != first:
                raise ValueError(f"state {i} is of another model or length than state 0: (layers, ...) are {sizes}, there {first}")

        def joined(values):
            return concatenated(values) if isinstance(values[0], Encoded) else np.concatenate(values, axis=1)

        return RWKVState._of({name: joined([part[name] for part in parts]) for name in first})

    # ---- lists of other programs ----

    def to_list(self, layout="rwkv-lm"):
        """The state as a flat list of arrays, three per layer, as another program keeps it.

        layout: see `rwkvtune.state_lists`.  Returns fresh arrays.  Raises ValueError (layout, a layer of attention).
        """
        from .state_lists import to_list

        return to_list(self.to_numpy(), layout)

    @classmethod
    def from_list(cls, values, layout="rwkv-lm"):
        """The state that another program keeps as a flat list of arrays, three per layer.

        values: array-likes, NumPy's or anything with `__array__`.  layout: see `rwkvtune.state_lists`.  Raises ValueError.
        """
        from .state_lists import from_list

        return cls._of(from_list(values, layout))

    # ---- files ----

    def _stored(self):
        """dict of plain arrays: an `Encoded` as "name@encoding", its scales as "name@scale"."""
        stored = {}
        for name, value in self._parts().items():
            if isinstance(value, Encoded):
                stored |= {f"{name}@{ending}": part for ending, part in zip((value.encoding, "scale"), value.parts())}
            else:
                stored[name] = value
        return stored

    def save(self, path):
        """Write the state to `path` (NumPy's npz), at once or not at all; compressed as it is.  Raises OSError with the path."""
        from .atomic import atomic_write

        with atomic_write(path) as file:
            np.savez(file, **self._stored())

    @classmethod
    def load(cls, path):
        """Read what `save` wrote.  Raises OSError, FormatError."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return _restored({name: file[name] for name in file.files})
        except OSError:
            raise
        except Exception as error:  # zipfile, zlib and NumPy each have their own
            raise FormatError(f"{path}: not a saved state ({error}); it is written by RWKVState.save") from error


def _restored(stored):
    """The state of `RWKVState._stored`.  Raises ValueError."""
    arrays = {}
    for key, value in stored.items():
        name, _, encoding = key.partition("@")
        if not encoding:
            arrays[name] = value
        elif encoding != "scale":
            arrays[name] = Encoded(encoding, value, stored.get(f"{name}@scale"))
    plain = {name: value for name, value in arrays.items() if not isinstance(value, Encoded)}
    if plain:
        RWKVState.from_numpy(plain)  # checks them
    return RWKVState._of(arrays)


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
