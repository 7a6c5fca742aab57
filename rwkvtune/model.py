"""The model a user holds: building, loading, calling, gradients, state, generation."""

import math
import os
import warnings
from collections import namedtuple
from threading import Lock

import numpy as np

from . import _rwkvcore
from .arrays import IGNORED, ids_and_targets, to_array, token_ids
from .checkpoint.lazy_tensor import to_format
from .config import ModelConfig, whole_number
from .cuda_library import load_cublas
from .errors import DeviceError, FormatError
from .state import RWKVState, rows_to_arrays, to_core
from .state_codec import check_encoding
from .weights import HeldParameters, file_formats, held_formats, hold, precision_of, stored_tensor

_BACKENDS = ("cpu", "ref")
_PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "int8", "int4", "fp64")
_DEVICE_PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
_DEVICE_HELD = ("int8", "int4", "file")  # on a device for inference only, with bf16 activations
UNTOLD = ("ctx_len", "head_size_divisor", "head_size_a", "rope")  # of a ModelConfig, what weights do not tell
_L2WRAP = 1e-4
_FP16_SCALE = 65536.0
_TIME_STATE = "att.time_state"


class ModelOutput(namedtuple("ModelOutput", "logits loss")):
    """logits (B,T,V), and loss: a float, or None without targets.  By attribute, by name, or `logits, loss = out`."""

    __slots__ = ()

    def __getitem__(self, key):
        if not isinstance(key, str):
            return super().__getitem__(key)
        if key not in self._fields:
            raise KeyError(key)
        return getattr(self, key)

    def keys(self):
        """The names, for `dict(out)`."""
        return self._fields


def full_device(device):
    """The device by its full name: "cpu" or "cuda:N"; "auto" is the first CUDA device where there is one."""
    if device == "auto":
        device = "cuda" if _rwkvcore.info()["cuda_devices"] else "cpu"
    if device == "cpu":
        return device
    kind, colon, index = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind != "cuda" or colon and not index.isdecimal():
        raise ValueError(f"device is {device!r}; allowed are 'cpu', 'auto', 'cuda' and 'cuda:N'")
    devices, number = _rwkvcore.info()["cuda_devices"], int(index or 0)
    if not devices:
        reason = _rwkvcore.info()["cuda_reason"] or "there is no CUDA device"
        raise DeviceError(f"device {device!r} cannot be used: {reason}; device='cpu' works everywhere")
    if number >= devices:
        raise DeviceError(f"device {device!r} does not exist; there are {devices}, from 'cuda:0'")
    load_cublas()
    return f"cuda:{number}"


def core_backend(backend, precision, device="cpu"):
    """The core's name of a backend.  Raises ValueError (backend, precision)."""
    if backend not in _BACKENDS:
        raise ValueError(f"backend is {backend!r}; allowed are {', '.join(map(repr, _BACKENDS))}")
    if precision not in (*_PRECISIONS, "file"):
        raise ValueError(f"precision is {precision!r}; allowed are {', '.join(map(repr, _PRECISIONS))}")
    if precision == "fp64" and backend != "ref":
        raise ValueError("precision 'fp64' exists on backend='ref' only")
    if device != "cpu":
        if backend != "cpu":
            raise ValueError(f"backend {backend!r} runs on device='cpu' only")
        if precision not in (*_DEVICE_PRECISIONS, *_DEVICE_HELD):
            allowed = ", ".join(map(repr, (*_DEVICE_PRECISIONS, *_DEVICE_HELD)))
            raise ValueError(f"precision {precision!r} exists on device='cpu' only; on a CUDA device allowed are {allowed}")
        return "cuda-bf16" if precision in _DEVICE_HELD else f"cuda-{precision}"
    if precision == "tf32":
        raise ValueError("precision 'tf32' exists on device='cuda' only")
    return "ref64" if precision == "fp64" else backend


def default_precision(device):
    """That of a model on this device if nobody says: float32 on the CPU, 16 bits where they are faster."""
    return "fp32" if device == "cpu" else "bf16"


def _cross_entropy(logits, targets):
    """Mean of logsumexp(z) - z[target] over the targets that count, summed in float64, some rows at a time."""
    logits, targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    rows = np.flatnonzero(targets != IGNORED)
    total = 0.0
    step = max(1, (1 << 20) // logits.shape[1])
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        z = logits[part].astype(np.float64)
        top = z.max(axis=1)
        total += float(
            (np.log(np.exp(z - top[:, None]).sum(axis=1)) + top - z[np.arange(len(part)), targets[part]]).sum()
        )
    return total / len(rows)


def _count(targets):
    count = int((targets != IGNORED).sum())
    if count == 0:
        raise ValueError(f"every target is {IGNORED}: there is nothing to predict")
    return count


def check_runnable(config):
    """Raises NotImplementedError, as `RWKV(config)` would, before anything large is made: kinds of layer this build lacks."""
    one_each = [{"time_mix": kind} if kind != "attention" else kind for kind in config.kinds]
    RWKV(ModelConfig(model_type=config.model_type, layers=one_each, n_embd=config.head_size_a, vocab_size=1, head_size_a=config.head_size_a, rope=config.rope))


class RWKV:
    """An RWKV language model.

    config: `ModelConfig`.  seed: of the reference initialisation.  device: "cpu" (default), "cuda", "cuda:N", or "auto": a
    CUDA device where there is one.
    precision: on the CPU "fp32" (default); "bf16", "fp16", "int8", "int4": a model for inference whose weights are held in that
    format (docs/weight_formats.md); "fp64" with backend="ref".  On a CUDA device "bf16" (default), "fp16": weights and
    activations of that type, sums in float32; "fp32"; "tf32": float32 but for matrix products; "int8", "int4": a model for inference
    with such matrices and bf16 activations.
    backend: "cpu" (default, fast) or "ref" (the textbook implementation, slow); both are the CPU's.
    Raises ValueError (an argument), DeviceError (no such device here), NotImplementedError (a kind of layer that
    this build lacks).

    >>> from rwkvtune import RWKV, ModelConfig
    >>> model = RWKV(ModelConfig(model_type="x070", n_layer=1, n_embd=64, vocab_size=10))
    >>> model([[1, 2, 3]]).logits.shape
    (1, 3, 10)
    """

    def __init__(self, config, seed=0, device="cpu", precision=None, backend="cpu"):
        if precision == "file":
            raise ValueError("precision 'file' is for RWKV.load: a new model has no file")
        self._build(config, device, precision, backend)
        own = self._core or _rwkvcore.Model(config.to_core_dict(), backend)
        own.init(int(seed))
        if not self.trainable:
            self._hold(own.parameters())

    def _build(self, config, device, precision, backend):
        """Everything but the numbers of the weights; a model for inference gets its core with them, from `_hold`."""
        if not isinstance(config, ModelConfig):
            raise ValueError(f"config is a {type(config).__name__}; it must be a ModelConfig")
        self.config, self.device, self.backend = config, full_device(device), backend
        self.precision = precision or default_precision(self.device)
        self._core = self._weights = None
        core_backend(backend, self.precision, self.device)
        try:
            self._rows = _rwkvcore.Model.describe(config.to_core_dict())
            if self.trainable:
                self._core = self._new_core()
        except NotImplementedError as error:
            raise NotImplementedError(
                f"this version of rwkvtune cannot run layers of kind {' and '.join(config.kinds)} yet ({error});"
                " ModelConfig(model_type='x070', ...) makes an RWKV-7 model, which it can"
            ) from error
        self._chunk_size = 1024
        self._gradients_in_use = Lock()
        self._state_compression = self._state = None

    def _new_core(self, weights=None):
        """A core of this model's configuration, backend and device: for inference with these weights, else with memory for its own but
        without their numbers."""
        index = 0 if self.device == "cpu" else int(self.device.split(":")[1])
        backend = core_backend(self.backend, "file" if weights else self.precision, self.device)
        return _rwkvcore.Model(self.config.to_core_dict(), backend, weights, device=index)

    def _hold(self, tensors):
        """Takes the weights of a model for inference, in the formats of its precision."""
        formats = held_formats(self._rows, tensors, self.precision)
        self._take(hold(self._rows, tensors, formats))
        if self.precision == "file":
            found = precision_of(self._rows, formats)
            self.precision = found if self.device == "cpu" or {"int8", "int4"} & set(formats.values()) else "bf16"

    def _take(self, weights):
        self._weights, self._core = weights, self._new_core(weights)

    @property
    def trainable(self):
        """bool: the weights are numbers of the model's own, which training may write: all but those held for inference."""
        own = ("fp32", "fp64") if self.device == "cpu" else _DEVICE_PRECISIONS
        return self._weights is None and self.precision in own

    def __repr__(self):
        return f"RWKV({self.config.summary()}, {self.num_parameters:,} parameters, {self.precision} on {self.device})"

    def __reduce__(self):
        """Copies and pickles are models of their own: configuration, weights and `state`, nothing else is kept."""
        state = None if self.state is None else self.state.detached()
        weights = self._weights or {name: value.copy() for name, value in self.named_parameters().items()}
        settings = (self.precision, self._chunk_size, self._state_compression, state)
        precision = self.precision if self.trainable else "file"
        return _rebuilt, (self.config.to_dict(), precision, self.backend, settings, weights, self.device)

    # ---- weights ----

    @classmethod
    def load(cls, path, device="cpu", precision=None, backend="cpu", config=None, time_state=None, verify=None, **overrides):
        """A model from a weight file; version and sizes are read from its tensors.

        path: `.pth` (as torch or RWKV-LM write it) or `.safetensors`.  device, backend: as in `RWKV`.
        precision: as in `RWKV`, or "file": each weight as the file has it.  On the CPU all but "fp32" and "fp64" give a model for
        inference; what the file holds in the format wanted is then read where it lies, in the mapped file.  On a device "int8", "int4" and
        "file" do: quantised matrices as they are, everything else as bf16.
        overrides: what weights do not tell: ctx_len, head_size_divisor, head_size_a and rope of attention layers.
        config: a ModelConfig that the file must fit, instead of reading the sizes from it.
        time_state: a second file, whose trained initial states (blocks.N.att.time_state, one per RWKV layer, (H, value, key))
        the model begins its texts from; saving the model merges the two.
        verify: whether the checksums of a `.pth` file are checked, which reads all of it; default: where its weights are copied and
        not mapped ("fp32", "fp64").  `.safetensors` files have no checksums.
        Raises FileNotFoundError, FormatError (not a weight file; a wrong checksum; tensors missing, unexpected or misshapen, all named), ValueError
        (an argument; numbers too large for the precision).
        """
        from .checkpoint import read_checkpoint

        if not os.path.exists(path):
            raise FileNotFoundError(f"weights not found: {path}")
        device = full_device(device)
        precision = precision or default_precision(device)
        copied = device != "cpu" or precision in ("fp32", "fp64")
        tensors, source = read_checkpoint(path, copied if verify is None else verify), path
        if time_state is not None:
            tensors, source = {**tensors, **_initial_states(time_state, tensors)}, f"{path} with {time_state}"
            config = None if config is None else config.replace(time_state=True)
        if config is None:
            config = config_of(tensors, source, **overrides)
        elif overrides:
            raise ValueError(f"give either config or {', '.join(overrides)}, not both")
        model = cls.__new__(cls)
        model._build(config, device, precision, backend)
        model._fill(tensors, source)
        return model

    def load_state_dict(self, tensors):
        """Replace the weights.  tensors: mapping name -> array of its shape.  Raises FormatError as `load` does.

        A model for inference turns them into its precision; states made before belong to the old weights.
        """
        self._fill({name: to_array(value, name) for name, value in tensors.items()}, "the given weights")
        self._state = None if self._state is None else self._state.detached()

    def _fill(self, tensors, source):
        """Takes weights, after all names and shapes have been compared.

        Tensors the model never uses (v0, v1, v2 of its first layer) may be missing and then stay zero.
        """
        problems, wanted = [], {}
        for row in self._rows:
            name, shape = row["name"], tuple(row["shape"])
            wanted[name] = shape
            if name not in tensors:
                if not row["optional"]:
                    problems.append(f"missing {name} {shape}")
            elif math.prod(tensors[name].shape) != math.prod(shape) or _squeezed(tensors[name].shape) != _squeezed(
                shape
            ):
                problems.append(f"{name} has shape {tuple(tensors[name].shape)}, the model's is {shape}")
        problems += [f"unexpected {name} {tuple(tensors[name].shape)}" for name in tensors if name not in wanted]
        if problems:
            more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise FormatError(
                f"{source} does not fit this model ({self.config.summary()}): {'; '.join(problems[:8])}{more}"
            )
        if not self.trainable:
            self._hold(tensors)
            return
        views = self._core.parameters() if self.device == "cpu" and self.precision == "fp32" else {}
        real = self._core.real
        for name in wanted:
            if name in tensors:
                value = tensors[name]
                if name in views:
                    to_format(value, "fp32", views[name])
                else:
                    self._core.write_parameter(name, value.numpy(real) if hasattr(value, "raw") else np.asarray(value, real))

    def save(self, path, dtype=None):
        """Write the weights under RWKV-LM's names and shapes, at once or not at all.

        path: ends in `.pth` (torch.load reads it) or `.safetensors`.  dtype: "fp32", "bf16", "fp16", or for `.safetensors` "int8",
        "int4", which concern the matrices; default: the model's precision.
        Raises ValueError (path, dtype), OSError with the path.
        """
        held = self._weights and {name: stored_tensor(weight) for name, weight in self._weights.items()}
        self._write(path, held or self.named_parameters(), dtype)

    def save_time_state(self, path, dtype=None):
        """Write the initial states alone: blocks.N.att.time_state of every RWKV layer, (H, value, key), as RWKV-LM and
        RWKV-PEFT name and lay them out.

        path, dtype: as in `save`.  Raises ValueError (also a model without initial states), OSError with the path.
        """
        states = {name: value for name, value in self.named_parameters().items() if name.endswith(_TIME_STATE)}
        if not states:
            raise ValueError("the model has no initial states; ModelConfig(time_state=True) or RWKV.load(..., time_state=FILE) makes them")
        self._write(path, states, dtype)

    def _write(self, path, tensors, dtype):
        from .checkpoint import write_pth, write_safetensors

        writers = {".pth": write_pth, ".safetensors": write_safetensors}
        ending = os.path.splitext(os.fspath(path))[1]
        if ending not in writers:
            raise ValueError(
                f"path is {os.fspath(path)!r}; its ending decides the format and must be .pth or .safetensors"
            )
        precision = dtype or {"fp64": None, "mixed": None, "tf32": "fp32"}.get(self.precision, self.precision)
        if precision in ("int8", "int4"):
            precision = file_formats(self._rows, tensors, precision)
        writers[ending](path, tensors, dtype=precision)

    def named_parameters(self):
        """RWKV-LM's name -> array in RWKV-LM's shape.

        A dict of float32 views (float64 in fp64): writing to one changes the model.  Of a model for inference (`trainable` is
        False) a mapping that makes a read-only float32 array whenever one is looked up.  On a CUDA device the arrays are copies:
        `load_state_dict({**model.named_parameters(), name: array})` writes.
        """
        return self._core.parameters() if self._weights is None else HeldParameters(self._weights)

    @property
    def num_parameters(self):
        """int: numbers in all weights."""
        return self._core.num_parameters

    # ---- forward and backward ----

    def __call__(self, ids, targets=None, state=None):
        """Logits of every position, and the loss where targets are given.

        ids: integers (B,T), (T,) or one.  targets: same shape, the id to predict at each place, -100 = does not count.
        state: `RWKVState` to continue from (default: the beginning).
        Returns `ModelOutput`: logits (B,T,V) float32; loss: mean cross-entropy (float) or None.
        Raises ValueError (an id out of range, with its place; shapes; no target counts).
        """
        if targets is None:
            ids = token_ids(ids, self.config.vocab_size)
        else:
            ids, targets = ids_and_targets(ids, targets, self.config.vocab_size)
            _count(targets)
        logits, _ = self._core.forward(ids, to_core(state, self._core, len(ids)), "all")
        return ModelOutput(logits, None if targets is None else _cross_entropy(logits, targets))

    def loss(self, ids, targets, state=None):
        """Mean cross-entropy (float) without ever holding all logits; arguments as in a call."""
        ids, targets = ids_and_targets(ids, targets, self.config.vocab_size)
        _count(targets)
        total, count, _ = self._core.loss(ids, targets, to_core(state, self._core, len(ids)))
        return total / count

    def loss_and_grads(self, ids, targets, l2wrap=False, chunked=None, state=None):
        """The loss and its gradient with respect to every weight.

        ids, targets: as in a call.  l2wrap: add the reference trainer's term, 1e-4/(B*T) times the largest logit.
        chunked: None (default); "full": in chunks of `set_chunk_size`, less memory, same gradients; "truncated": the
        state between chunks is taken as constant.  state: where to start; its gradient is returned as well.
        In float16 the loss is multiplied by the largest power of two up to 65536 with which no gradient overflows, and the gradients
        are divided by it again: what is returned is the gradient of the loss itself.
        Returns (loss, dict name -> float32 array of the parameter's shape), with a state also "state.att_shift"
        (L,B,C), "state.wkv" (L,B,H,value,key), "state.ffn_shift" (L,B,C), in general of every array of the state.  Raises ValueError as a call does.
        """
        if chunked not in (None, "full", "truncated"):
            raise ValueError(f"chunked is {chunked!r}; allowed are None, 'full' and 'truncated'")
        ids, targets = ids_and_targets(ids, targets, self.config.vocab_size)
        count, start = _count(targets), to_core(state, self._core, len(ids))
        size, scale = self._chunk_size if chunked else ids.shape[1], _FP16_SCALE if self.precision == "fp16" else 1.0
        run = self._cut_backward if chunked == "truncated" else self._backward
        while True:
            factors = (scale / count, scale * _L2WRAP / ids.size if l2wrap else 0.0)
            with self._gradients_in_use:
                self._core.zero_gradients()
                total, _, dstate = run(ids, targets, factors, start, size)
                grads = {name: value.copy() for name, value in self._core.gradients().items()}
            if state is not None:
                grads.update({f"state.{name}": value for name, value in rows_to_arrays(dstate.rows()).items()})
            if scale == 1 or all(np.isfinite(value).all() for value in grads.values()):
                return total / count, {name: value / scale for name, value in grads.items()} if scale != 1 else grads
            scale /= 2

    def _backward(self, ids, targets, factors, start, size):
        """(sum of the loss, None, gradient of the initial state); chunks run from the last to the first, each handing the
        gradient of its initial state to the one before."""
        pieces = [slice(at, at + size) for at in range(0, ids.shape[1], size)]
        states = [start]
        for piece in pieces[:-1]:
            states.append(self._core.forward(np.ascontiguousarray(ids[:, piece]), states[-1], "none")[1])
        total, dstate = 0.0, None
        for piece, before in zip(reversed(pieces), reversed(states)):
            x, y = np.ascontiguousarray(ids[:, piece]), np.ascontiguousarray(targets[:, piece])
            loss, _, _, dstate = self._core.forward_backward(x, y, *factors, before, dstate)
            total += loss
        return total, None, dstate

    def _cut_backward(self, ids, targets, factors, state, size, grad_cp=0):
        """(sum of the loss, state after the last token, gradient of the initial state as the first chunk sees it).

        Chunks run from the first to the last; of each only the state it leaves behind is kept.
        """
        total, dstate = 0.0, None
        for at in range(0, ids.shape[1], size):
            x, y = (np.ascontiguousarray(part[:, at : at + size]) for part in (ids, targets))
            loss, _, state, dbefore = self._core.forward_backward(x, y, *factors, state, None, grad_cp)
            total, dstate = total + loss, dbefore if dstate is None else dstate
        return total, state, dstate

    def _gradients_truncated(self, ids, targets, chunk_size, state, l2wrap, grad_cp, scale):
        """(mean loss, state after the last token); scale times the gradient, cut at the chunks' beginnings, is left in the core."""
        size, count = whole_number("chunk_size", chunk_size), _count(targets)
        factors = (scale / count, scale * _L2WRAP / ids.size if l2wrap else 0.0)
        with self._gradients_in_use:
            self._core.zero_gradients()
            total, after, _ = self._cut_backward(ids, targets, factors, to_core(state, self._core, len(ids)), size, grad_cp)
        return total / count, RWKVState(after, self._core)

    # ---- state ----

    def init_state(self, batch_size=1):
        """`RWKVState` of `batch_size` sequences before their first token: zeros, or the trained initial states."""
        if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__") or not 1 <= batch_size < 2**31:
            raise ValueError(f"batch_size is {batch_size!r}; it must be an integer of at least 1")
        return RWKVState(self._core.new_state(int(batch_size)), self._core)

    def reset_state(self, batch_size=1):
        """Sets `model.state` to `init_state(batch_size)`; the attribute is for you, no method reads it."""
        self.state = self.init_state(batch_size)

    @property
    def state(self):
        """`RWKVState` or None (at first): a place to keep one, which also takes a dict of arrays.  No method reads it."""
        return self._state

    @state.setter
    def state(self, value):
        if value is not None and not isinstance(value, RWKVState):
            value = RWKVState.from_numpy(value)
        self._state = None if value is None else self._kept(value)

    def enable_state_compression(self, dtype="fp16"):
        """Keep states in fewer bytes: those that `process_with_state` returns, and `model.state`.

        dtype: "fp16", "bf16" or "int8", see `RWKVState.compressed`.  Numbers are rounded where one call hands the state to
        the next; within a call, in `forward_chunked`, in training and in `generate` nothing is.
        Returns the model.  Raises ValueError (dtype, a number in `model.state` that is not finite), then nothing changes.
        """
        check_encoding(dtype)
        self._state = None if self._state is None else self._state.compressed(dtype)
        self._state_compression = dtype
        return self

    def disable_state_compression(self):
        """Keep states as they are again; `model.state` gets plain arrays.  Returns the model."""
        self._state_compression = None
        self._state = None if self._state is None else self._state.decompressed()
        return self

    @property
    def state_compression(self):
        """None, or the dtype that `enable_state_compression` set."""
        return self._state_compression

    def _kept(self, state):
        return state.compressed(self._state_compression) if self._state_compression else state

    def process_with_state(self, ids, state=None):
        """Continue sequences.  ids: (B,T), (T,) or one integer, T >= 1.  state: None = the beginning.

        Returns (logits (B,T,V) float32, the state after the last token); the given state is unchanged.  Any split of a
        sequence gives the same logits (of int8 and int4 models: see docs/weight_formats.md).  Raises ValueError as a call does.
        """
        ids = token_ids(ids, self.config.vocab_size)
        logits, after = self._core.forward(ids, to_core(state, self._core, len(ids)), "all")
        return logits, self._kept(RWKVState(after, self._core))

    def set_chunk_size(self, chunk_size):
        """Tokens of a chunk in `forward_chunked` and `loss_and_grads(chunked=...)`, at first 1024.  Raises ValueError."""
        self._chunk_size = whole_number("chunk_size", chunk_size)

    @property
    def chunk_size(self):
        """int: what `set_chunk_size` set."""
        return self._chunk_size

    def forward_chunked(self, ids, labels=None):
        """A call in chunks of `set_chunk_size` tokens: same logits and loss, same `ModelOutput`, same errors."""
        ids = token_ids(ids, self.config.vocab_size)
        if labels is not None:
            ids, labels = ids_and_targets(ids, labels, self.config.vocab_size)
            _count(labels)
        state, parts = None, []
        for at in range(0, ids.shape[1], self._chunk_size):
            logits, state = self._core.forward(np.ascontiguousarray(ids[:, at : at + self._chunk_size]), state, "all")
            parts.append(logits)
        logits = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
        return ModelOutput(logits, None if labels is None else _cross_entropy(logits, labels))

    # ---- generation ----

    def generate(self, prompt_ids, max_new_tokens=100, temperature=1.0, top_p=0.9, top_k=0, seed=0, presence_penalty=0.0,
                 frequency_penalty=0.0, stop_tokens=(), state=None, stream=None, penalty_decay=0.996, **sampling):  # fmt: skip
        """Sample a continuation; the same arguments give the same tokens.  `Generator` writes text, and many at once.

        prompt_ids: at least one id.  temperature: 0 = always the likeliest.  top_p: smallest set of likeliest tokens
        with that much probability.  top_k: at most so many, 0 = all.  presence_penalty, frequency_penalty: taken from the
        logits of tokens already generated, fading by penalty_decay per token.  stop_tokens: ids that end the text.
        state: `RWKVState` before the prompt.  stream: a function called with each id (returning True stops), or True
        for an iterator over the ids.  sampling: the other fields of `SamplingOptions`.
        Returns list of the new ids, without the prompt.  Raises ValueError naming the argument.
        """
        from .generation import Generator

        prompt = token_ids(prompt_ids, self.config.vocab_size, "prompt_ids")
        if len(prompt) != 1:
            raise ValueError(f"prompt_ids has {len(prompt)} rows; generate continues one sequence")
        if stream is not None and stream is not True and not callable(stream):
            raise ValueError(f"stream is {stream!r}; allowed are None, True and a function of one id")
        pieces = Generator(self).generate(
            prompt[0], max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, stop_tokens=stop_tokens,
            presence_penalty=presence_penalty, frequency_penalty=frequency_penalty, penalty_decay=penalty_decay, state=state,
            stream=True, **sampling,
        )  # fmt: skip
        ids = (piece.token for piece in pieces if piece.token is not None)
        if stream is True:
            return ids
        new = []
        for token in ids:
            new.append(token)
            if stream is not None and stream(token):
                break
        return new

    def plan(self, batch_size=1, ctx_len=None, training=True, grad_cp=0):
        """dict: bytes that this takes: parameters, gradients, moments, activations, state, scratch, total.

        batch_size, ctx_len: of a micro-batch (default: config.ctx_len tokens).  training: of steps of a `Trainer` that updates all
        weights, else of a call.  grad_cp: as in `TrainingConfig`.  moments: those of AdamW, and the float32 masters of a model
        of 16 bits.  scratch: of the threads, at most; on a device of its ops and its matrix library.
        """
        return self._core.plan(int(batch_size), int(ctx_len or self.config.ctx_len), bool(training), int(grad_cp))


def _rebuilt(config, precision, backend, settings, weights, device="cpu"):
    """The model of `RWKV.__reduce__`."""
    model = RWKV.__new__(RWKV)
    model._build(ModelConfig.from_dict(config), device, precision, backend)
    if model.trainable:
        for name, value in weights.items():
            model._core.write_parameter(name, value)
    else:
        model._take(weights)
    model.precision, model._chunk_size, model._state_compression, model._state = settings
    return model


def _initial_states(path, base):
    """The initial states in a weight file, of state tuning or of a whole model, for the tensors `base` of a model.

    Raises FileNotFoundError, FormatError.
    """
    from .checkpoint import read_checkpoint

    if not os.path.exists(path):
        raise FileNotFoundError(f"initial states not found: {path}")
    states = {name: tensor for name, tensor in read_checkpoint(path).items() if name.endswith(_TIME_STATE)}
    if not states:
        raise FormatError(f"{path} holds no initial states; they are called blocks.N.{_TIME_STATE}")
    for name in states:
        if name.replace(_TIME_STATE, "ln1.weight") not in base:
            raise FormatError(f"{path}: {name} is of a layer that the model does not have; it belongs to a larger one")
    return states


def _squeezed(shape):
    return tuple(size for size in shape if size != 1)


def config_of(tensors, source, **overrides):
    """`ModelConfig` of a weight file from its tensors' shapes.

    tensors: mapping name -> anything with a shape.  source: its name, for messages.  overrides: fields set over it.
    Raises FormatError (no model this package knows), ValueError (an override).
    """
    from .checkpoint import detect

    found = detect({name: tuple(value.shape) for name, value in tensors.items()})
    for name in overrides:
        if name not in UNTOLD:
            raise ValueError(
                f"{name} cannot be given for {source}: it is read from the weights; allowed are {', '.join(UNTOLD)}"
            )
    try:
        config = ModelConfig.from_detected(
            found, **{name: value for name, value in overrides.items() if value is not None}
        )
    except ValueError as error:
        raise FormatError(f"{source}: {error}") from error
    if config.kinds == ["attention"] and overrides.get("head_size_a") is None:
        warnings.warn(f"{source}: weights of attention do not tell its head size; 64 is taken, give head_size_a where it is another", stacklevel=3)
    return config
