"""States as the flat lists of arrays that other programs keep, three per layer: att_shift, wkv, ffn_shift.

    layout         shapes                           wkv's last two axes   program
    "rwkv-lm"      (B,C), (B,H,N,N), (B,C)          value, key            RWKV-LM's CUDA kernels, and this package
    "rwkv-x070"    (C,), (H,N,N), (C,)              value, key            `rwkv` package, RWKV-7
    "rwkv-x060"    (C,), (H,N,N), (C,)              key, value            `rwkv` package, RWKV-6
    "rwkv-x052"    (C,), (H,N,N), (C,)              key, value            `rwkv` package, RWKV-5.2

The `rwkv` package keeps one sequence.  Source: `RWKV.generate_zero_state` and the time mixes of
github.com/BlinkDL/ChatRWKV, rwkv_pip_package/src/rwkv/model.py.
"""

import numpy as np

from .arrays import to_array

_NAMES = ("att_shift", "wkv", "ffn_shift")
_KEY_MAJOR = {"rwkv-lm": False, "rwkv-x070": False, "rwkv-x060": True, "rwkv-x052": True}
LAYOUTS = tuple(_KEY_MAJOR)


def _check_layout(layout):
    if layout not in _KEY_MAJOR:
        raise ValueError(f"layout is {layout!r}; allowed are {', '.join(map(repr, LAYOUTS))}")
    return layout != "rwkv-lm", _KEY_MAJOR[layout]


def to_list(arrays, layout):
    """The list of a state's arrays, see `RWKVState.to_list`."""
    single, key_major = _check_layout(layout)
    if set(arrays) != set(_NAMES):
        raise ValueError(f"layout {layout!r} holds RWKV layers of one size only; this state has {', '.join(sorted(arrays))}")
    batch_size = arrays["wkv"].shape[1]
    if single and batch_size != 1:
        raise ValueError(f"layout {layout!r} holds one sequence and this state {batch_size}; choose one with select")
    values = []
    for layer in zip(*(arrays[name] for name in _NAMES)):
        for name, value in zip(_NAMES, layer):
            value = np.swapaxes(value, -1, -2) if name == "wkv" and key_major else value
            values.append(np.ascontiguousarray(value[0] if single else value))
    return values


def from_list(values, layout):
    """The arrays of a state, by name, from such a list, see `RWKVState.from_list`."""
    single, key_major = _check_layout(layout)
    values = [to_array(value, f"values[{i}]") for i, value in enumerate(values)]
    if not values or len(values) % 3:
        raise ValueError(f"a state has three arrays per layer, att_shift, wkv and ffn_shift, not {len(values)} in all")
    arrays = {}
    for first, name in enumerate(_NAMES):
        rows = values[first::3]
        ndim = (3 if name == "wkv" else 1) + (not single)
        for layer, row in enumerate(rows):
            if row.ndim != ndim or row.shape != rows[0].shape or row.dtype.kind not in "fiu":
                raise ValueError(
                    f"values[{3 * layer + first}], {name} of layer {layer}, is {row.dtype} of shape {row.shape}; layout {layout!r} has"
                    f" numbers in {ndim} axes there, the same in every layer"
                )
        stacked = np.stack(rows)
        stacked = stacked[:, None] if single else stacked
        arrays[name] = np.ascontiguousarray(np.swapaxes(stacked, -1, -2) if name == "wkv" and key_major else stacked)
    return arrays
