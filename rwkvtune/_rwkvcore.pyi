"""The compiled core. Everything that costs time per token is here; policy is in Python.

Arrays are C-contiguous NumPy arrays of the stated dtype. `real` means float32 on the backends "cpu" and "ref",
float64 on "ref64". Errors: ValueError (arguments), MemoryError, OSError (with the path), FormatError (files),
NotImplementedError (an op missing on a backend).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

def info() -> dict[str, Any]:
    """{"isa", "isa_available", "threads", "cpus", "huge_pages", "compiler", "cuda_built", "cuda_devices", "cuda_reason"}"""

def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def device_memory(device: int) -> tuple[int, int]:
    """(bytes that can still be had, all bytes) of a CUDA device."""

# ---- ops by name, for tests -------------------------------------------------------------------------------------

def op_names() -> list[str]: ...
def op_fields(op: str) -> list[tuple[str, str]]:
    """[(field, kind)], kind one of "tensor", "tensors" (a list of up to 6), "int", "float", "ids"."""

def run_op(backend: str, op: str, direction: str, args: Mapping[str, Any], times: int = 0) -> list[float] | None:
    """Runs one op in place on the given arrays (a weight may be a pair as in convert_weight; dtype real unless the op's header says float64; ids int32); direction "fwd" or "bwd".
    The arrays' shapes are the tensors' shapes (at most 4 dimensions). Missing fields are absent tensors or zeros.
    For tests: shapes are not compared with each other, so wrong ones read and write outside the arrays."""

def columns_read() -> tuple[int, int]:
    """(columns that decoding has read of the matrices behind relu(k)^2, columns there were), of this process so far; a batch reads those that any row needs."""

def convert_weight(weight: tuple[str, np.ndarray], format: str, out: np.ndarray | None = None) -> np.ndarray:
    """A tensor in another format, written to out where that is given.  weight: (format, C-contiguous array); "fp32": float32, "bf16": its bits in uint16, "fp16": float16,
    "int8" and "int4": uint8 (rows, bytes of a row), see csrc/base/quant.h.  ValueError: numbers too large, or not finite in int8 and int4."""

def select_isa(name: str) -> str:
    """Switches the cpu backend to another instruction set ("scalar", "avx2", "avx512", "avx512vnni", "amx", "neon") if this machine has it; returns the one in use."""

# ---- model ------------------------------------------------------------------------------------------------------

class State:
    """The recurrent state of a batch, as the core keeps it. `rows()` gives (layer, name, array) with read-only zero-copy
    arrays: ("att_shift", (B,C)), ("wkv", (B,H,key,value)), ("ffn_shift", (B,C)): note wkv is key-major here; of attention
    ("key_cache", (B,past,G,N)), ("value_cache", (B,past,G,N))."""

    batch_size: int
    past: int  # tokens in the caches; 0 in a model without attention
    nbytes: int
    def rows(self) -> list[tuple[int, str, np.ndarray]]: ...
    def copy(self) -> State: ...
    def take(self, rows: Sequence[int]) -> State:
        """A new state of these sequences, in this order, any of them repeated."""
    def put(self, to: int, state: State, row: int) -> None:
        """Copies sequence `row` of a state of the same model and length over sequence `to` of this one."""
    def narrow(self, n: int) -> None:
        """The first n sequences only; a larger n, up to those it was made with, brings the others back."""

class Model:
    def __init__(self, config: Mapping[str, Any], backend: str = "cpu", weights: dict[str, tuple[str, np.ndarray]] | None = None, device: int = 0) -> None:
        """config: {"vocab_size", "n_embd", "ln0": bool, "time_state": bool, "rope": bool, "head_size_divisor", "layers":
        [{"time_mix": "x070", "channel_mix": "x070", "head_size", "n_kv_head", "dim_ffn", "d_decay", "d_aaa", "d_mv", "d_gate", "d_mix"}, ...]}.
        Parameters start as zeros.  weights: every parameter's (format, array) as in convert_weight, used where they lie and kept alive;
        the model is then for inference: init, parameters, gradients and training are ValueErrors."""
    num_parameters: int
    backend: str
    real: str  # "float32" or "float64"
    def init(self, seed: int) -> None:
        """The reference initialisation of every parameter, a function of (seed, parameter name) alone."""
    @classmethod
    def describe(cls, config: Mapping[str, Any]) -> list[dict[str, Any]]:
        """`manifest` of a model of this configuration, without making it: no memory for weights."""
    def manifest(self) -> list[dict[str, Any]]:
        """One row per parameter in checkpoint order: {"name", "shape", "decay": bool, "lr_scale": float, "optional": bool,
        "formats": those it may be held in}.
        optional: may be missing from a file because the model never uses it (layer-0 v0, v1, v2)."""
    def parameters(self) -> dict[str, np.ndarray]:
        """name -> writable zero-copy view, dtype real, the checkpoint's shape; keeps the model alive. On a device a copy."""
    def write_parameter(self, name: str, value: np.ndarray) -> None:
        """Replaces a parameter's numbers, on any device; value has as many, of any real dtype and shape."""
    def gradients(self) -> dict[str, np.ndarray]:
        """name -> zero-copy view of the gradient (allocated as zeros on first use). On a device a copy."""
    def zero_gradients(self) -> None: ...
    def new_state(self, batch_size: int) -> State:
        """The state before the first token: zeros, or the model's time_state."""
    def state_from(self, batch_size: int, rows: Sequence[tuple[int, str, np.ndarray]], past: int = 0) -> State: ...
    def forward(self, ids: np.ndarray, state: State | None = None, logits: str = "all") -> tuple[np.ndarray | None, State]:
        """ids int32 (B,T), each in [0,V). logits "all" -> (B,T,V), "last" -> (B,V), "none" -> None; dtype real. The given state is not changed."""
    def loss(self, ids: np.ndarray, targets: np.ndarray, state: State | None = None) -> tuple[float, int, State]:
        """(sum of cross-entropy over targets != -100, how many those are, final state); no (B,T,V) array is made."""
    def forward_backward(self, ids: np.ndarray, targets: np.ndarray, scale: float, l2: float, state: State | None = None,
                         dstate: State | None = None, grad_cp: int = 0) -> tuple[float, int, State, State]:
        """Adds scale * d(sum of cross-entropy) + L2Wrap (factor l2, 0 = off) to the gradients.
        dstate: gradient of the final state (None: zeros). Returns (loss sum, count, final state, gradient of the initial state)."""
    def activations(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The saved rows of a training forward: "blocks.0.att.r" etc. -> copy, for tracing."""
    def plan(self, batch_size: int, ctx_len: int, training: bool = True, grad_cp: int = 0) -> dict[str, int]:
        """Bytes, exactly as they will be allocated: {"parameters", "gradients", "moments", "activations", "state", "scratch", "total"}."""
    def allocated(self) -> dict[str, int]:
        """The same keys, as allocated now."""
    def held_on_device(self) -> int:
        """Bytes taken from the device now by this model, its trainers and its states; 0 on the CPU."""
    def step(self, ids: np.ndarray, state: State, logits: np.ndarray | None) -> None:
        """Reads ids int32 (b,T) into the first b sequences of the state, in place, after narrowing it to b.
        logits: float32, at least b rows of vocab_size, gets those after the last token; None where they are not wanted."""

class Sampler:
    """What drawing the tokens of one sequence depends on: options, tokens drawn, (seed, how many)."""

    def __init__(self, vocab_size: int, *, temperature: float = 1, top_p: float = 1, top_k: int = 0, min_p: float = 0, typical_p: float = 1,
                 repetition_penalty: float = 1, presence_penalty: float = 0, frequency_penalty: float = 0, penalty_decay: float = 1,
                 seed: int = 0, bias_tokens: np.ndarray | None = None, bias: np.ndarray | None = None, prompt: np.ndarray | None = None) -> None:
        """bias_tokens int32 (n,) and bias float32 (n,): added to those logits, -inf forbids.  prompt int32: its distinct tokens, which
        repetition_penalty applies to from the beginning."""

def draw(samplers: Sequence[Sampler], logits: np.ndarray, tokens: np.ndarray) -> None:
    """The next token of each sequence, in parallel: from its row of logits (n,V) float32, which penalties change, into tokens int32 (n,)."""

def sample(logits: np.ndarray, temperature: float, top_p: float, top_k: int, uniform: float, min_p: float = 0, typical_p: float = 1) -> int:
    """One draw from a row of logits with a given uniform number in [0,1), see csrc/model/sample.h."""

class Trainer:
    """Moments and scratch of training; keeps its model alive."""

    def __init__(self, model: Model, *, beta1: float, beta2: float, eps: float, weight_decay: float, grad_clip: float) -> None: ...
    step_count: int  # settable: Adam's t, number of applied steps
    loss_scale: float  # settable: what float16 losses are multiplied by; 1 elsewhere
    good_steps: int  # settable: since loss_scale last changed
    def moments(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(first, second) moments by parameter name, writable zero-copy views; on a device copies."""
    def masters(self) -> dict[str, np.ndarray]:
        """float32 weights by parameter name where the model's are narrower; else empty."""
    def write(self, kind: str, name: str, value: np.ndarray) -> None:
        """Replaces "first", "second" or "master" of a parameter."""
    def step(self, ids: np.ndarray, targets: np.ndarray, *, micro_bsz: int, lr: float, weight_decay: float, l2wrap: bool, grad_cp: int,
             trainable: Sequence[str] | None = None) -> dict[str, Any]:
        """One optimizer step over (B,T) int32 ids and targets, B cut into micro-batches of micro_bsz rows (the last may be shorter; gradients
        are those of the mean over the whole batch). {"loss", "grad_norm" (before clipping), "bad": None or the first non-finite tensor's name}.
        When bad is set nothing was updated."""
    def apply(self, loss: float, *, lr: float, weight_decay: float, trainable: Sequence[str] | None = None) -> dict[str, Any]:
        """The second half of a step: clipping and AdamW with the gradients that are in the model, times loss_scale. Returns what `step` does,
        and "again": a gradient overflowed, loss_scale is now half, and the gradients are to be computed with that."""
    def rules(self) -> dict[str, tuple[float, float | None]]:
        """Parameter name -> (multiple of the learning rate, weight decay); None is the step's weight decay."""
    def set_rule(self, name: str, lr_scale: float, weight_decay: float | None) -> None: ...
    def plan_and_allocate(self, batch_size: int, ctx_len: int, grad_cp: int) -> dict[str, int]:
        """Allocates everything a step needs (rows of one micro-batch) and returns the sizes, see Model.plan."""

# ---- tokenizers and data are described where they are wrapped, in rwkvtune/data ----
