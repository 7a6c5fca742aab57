"""Configurations: what a model is, how it is trained, how its data are prepared.

Widths that are not given follow the rule of their version, C = n_embd and q(z) = max(32, 32 * round-half-even(z / 32)):

          dim_ffn                 low-rank widths: decay  a              value          gate         mixing
x070      4 C                     q(2.5 sqrt C)           q(2.5 sqrt C)  q(1.7 sqrt C)  q(5 sqrt C)  -
x060      32 * floor(3.5 C / 32)  64, or 128 at C = 4096  -              -              -            32, or 64
x052      32 * floor(3.5 C / 32)  -                       -              -              -            -
attention 4 C                     -                       -              -              -            -
"""

import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from html import escape
from typing import Any

_ARCHITECTURES = {"x052": "rwkv5", "x060": "rwkv6", "x070": "rwkv7"}
VERSIONS = tuple(_ARCHITECTURES)
_CHANNEL_MIX = {"x052": "x052", "x060": "x060", "x070": "x070", "attention": "mlp"}
_TIME_MIX = {channel: time for time, channel in _CHANNEL_MIX.items()}
_MAX_LAYERS = 512
_PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "fp64")
_LAYER_KEYS = ("time_mix", "channel_mix", "head_size", "dim_ffn", "d_decay", "d_aaa", "d_mv", "d_gate", "d_mix", "n_kv_head")


def _low_rank(z):
    return max(32, 32 * round(z / 32))


def _x060_size(n_embd):
    """The released 7B has low-rank matrices twice as wide as all the others."""
    return 2 if n_embd == 4096 else 1


def _kv_heads(dim_kv, head_size):
    if dim_kv % head_size:
        raise ValueError(
            f"head_size_a is {head_size}; it must divide the {dim_kv} rows of att.k_proj.weight, which do not tell it:"
            " give head_size_a"
        )
    return dim_kv // head_size


def _ffn_width(kind, n_embd):
    return int(n_embd * 3.5) // 32 * 32 if kind in ("x052", "x060") else 4 * n_embd


def _check_int(name, value, low, extra=""):
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name} is {value!r}; it must be an integer{extra}")
    if value < low:
        raise ValueError(f"{name} is {value}; it must be at least {low}{extra}")
    return int(value)


def whole_number(name, value, low=1):
    """An argument as int.  Raises ValueError where it is no integer of at least `low`."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < low:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {low}")
    return int(value)


def _check_number(name, value, low=-math.inf, high=math.inf, open_high=False):
    if isinstance(value, bool) or not isinstance(value, (int, float)) and not hasattr(value, "__float__"):
        raise ValueError(f"{name} is {value!r}; it must be a number")
    value = float(value)
    if math.isinf(value) or not (low <= value <= high) or (open_high and value == high):
        bound = f"at least {low:g}" if math.isinf(high) else f"in [{low:g}, {high:g}{')' if open_high else ']'}"
        raise ValueError(f"{name} is {value:g}; it must be {bound}")
    return value


def _html_table(title, rows):
    """An HTML table of (name, value, whether it stands out) for notebooks."""
    cells = "".join(
        f"<tr><td style='text-align:left'><code>{escape(name)}</code></td>"
        f"<td style='text-align:left'>{'<b>' if marked else ''}{escape(str(value))}{'</b>' if marked else ''}</td></tr>"
        for name, value, marked in rows
    )
    return f"<table><caption style='text-align:left'>{escape(title)}</caption>{cells}</table>"


class _Replace:
    """`replace`, `to_dict` and the display in notebooks for the configurations."""

    def _repr_html_(self):
        """The fields as a table, those that are not the default in bold; widths that follow a rule are worked out."""
        rows = []
        for f in fields(self):
            value = getattr(self, f.name)
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            given = self.to_dict().get(f.name) != default
            if not f.name.startswith("_") and f.repr and value not in ("", None):
                rows.append((f.name, value, given))
        return _html_table(type(self).__name__, rows)

    def to_dict(self):
        """dict: every field by name, in plain Python values."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("_")}

    @classmethod
    def from_dict(cls, values):
        """The configuration with these fields, others at their defaults.  Raises ValueError naming an unknown field."""
        known = [f.name for f in fields(cls) if not f.name.startswith("_")]
        for name in values:
            if name not in known:
                raise ValueError(f"{cls.__name__} has no field {name!r}; it has {', '.join(known)}")
        return cls(**values)

    def replace(self, **changes):
        """A new configuration with some fields changed.  Raises ValueError as the constructor does."""
        return self.from_dict({**self.to_dict(), **changes})


@dataclass
class ModelConfig(_Replace):
    """The shape of a model.

    model_type: "x052", "x060" (default) or "x070".  n_layer, n_embd, vocab_size, ctx_len: sizes.
    head_size_a: channels of a head (64); must divide n_embd.  dim_att: must equal n_embd (0 = so).
    dim_ffn, dim_att_lora (decay and in-context rate), dim_gate_lora, dim_mv_lora: 0 = the version's rule.
    d_decay, d_aaa: the two halves of dim_att_lora apart, 0 = dim_att_lora.  d_decay, d_mix: x060's widths of the decay
    and of the mixing, 0 = the version's rule.  head_size_divisor: 8; x052's and x060's norm per head has
    eps = 1e-5 head_size_divisor^2.
    layers: a recipe, one entry per layer: "x070", "attention", or a dict with "time_mix", "channel_mix" and, where
    they differ, "head_size", "dim_ffn", "d_decay", "d_aaa", "d_mv", "d_gate", "d_mix", "n_kv_head".  n_layer then is its length.
    time_state: the initial states are parameters.  rope: rotary positions in attention layers.
    n_kv_head: heads of keys and values in attention layers, shared by all heads in groups; 0 = as many as heads.
    The remaining fields describe a released model and do not change it; an architecture_version that this package does
    not know yet is carried along as model_type, so that its configuration files can be read.
    Raises ValueError naming the field, its value and what is allowed.

    >>> config = ModelConfig(model_type="x070", n_layer=12, n_embd=768, vocab_size=65536)
    >>> config.dim_ffn, config.dim_att_lora, config.dim_mv_lora, config.dim_gate_lora
    (3072, 64, 32, 128)
    """

    model_type: str = "x060"
    n_layer: int | None = None
    n_embd: int = 128
    ctx_len: int = 1024
    vocab_size: int = 361
    head_size_a: int = 64
    dim_att: int = 0
    dim_ffn: int = 0
    dim_att_lora: int = 0
    dim_gate_lora: int = 0
    dim_mv_lora: int = 0
    d_decay: int = 0
    d_aaa: int = 0
    d_mix: int = 0
    head_size_divisor: int = 8
    layers: list | None = None
    time_state: bool = False
    rope: bool = True
    n_kv_head: int = 0
    ln0: bool | None = None
    architecture_version: str = ""
    model_name: str = "Unknown"
    description: str = ""
    model_file: str | None = None
    recommended_ctx_len: int = 1024
    recommended_batch_size: int = 4
    recommended_lr: float = 1e-4
    config_source: str = ""
    config_dict: dict[str, Any] = field(default_factory=dict, repr=False)
    _derived: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        if self.model_type not in (*VERSIONS, self.architecture_version):
            raise ValueError(f"model_type is {self.model_type!r}; allowed are {', '.join(VERSIONS)}")
        self.n_embd = _check_int("n_embd", self.n_embd, 1)
        self.vocab_size = _check_int("vocab_size", self.vocab_size, 1)
        self.ctx_len = _check_int("ctx_len", self.ctx_len, 1)
        self.head_size_a = _check_int("head_size_a", self.head_size_a, 1)
        self.head_size_divisor = _check_int("head_size_divisor", self.head_size_divisor, 1)
        self._check_recipe()
        self.n_layer = _check_int("n_layer", self.n_layer, 1)
        self._derive()
        if self.dim_att != self.n_embd:
            raise ValueError(f"dim_att is {self.dim_att}; it must equal n_embd, {self.n_embd} (or be 0)")
        self.n_kv_head = _check_int("n_kv_head", self.n_kv_head, 0, " (0 = as many as heads)")
        for number, layer in enumerate(self.layer_list()):
            if self.n_embd % layer["head_size"]:
                raise ValueError(
                    f"head_size_a is {layer['head_size']} in layer {number}; it must divide n_embd, {self.n_embd}"
                    f" (for example head_size_a={math.gcd(64, self.n_embd)})"
                )
            self._check_attention(number, layer)
        if not self.architecture_version:
            self.architecture_version = _ARCHITECTURES[self.model_type]

    def _check_attention(self, number, layer):
        heads, shared = self.n_embd // layer["head_size"], layer["n_kv_head"]
        if layer["time_mix"] == "attention" and heads % shared:
            raise ValueError(f"n_kv_head is {shared} in layer {number}; it must divide the number of heads, {heads}")
        if layer["time_mix"] == "attention" and self.rope and layer["head_size"] % 2:
            raise ValueError(
                f"head_size_a is {layer['head_size']} in layer {number}; rotary positions need an even number, or rope=False"
            )

    def _check_recipe(self):
        if self.layers is None:
            self.n_layer = _check_int("n_layer", 3 if self.n_layer is None else self.n_layer, 1)
            if self.n_layer > _MAX_LAYERS:
                raise ValueError(f"n_layer is {self.n_layer}; at most {_MAX_LAYERS} layers can be run")
            return
        if isinstance(self.layers, (str, dict)) or not len(self.layers):
            raise ValueError(
                f"layers is {self.layers!r}; it must be a list with one entry per layer, e.g. ['x070', 'x070']"
            )
        self.layers = [dict(entry) if isinstance(entry, dict) else entry for entry in self.layers]
        if self.n_layer not in (None, len(self.layers)):
            raise ValueError(f"n_layer is {self.n_layer} but layers has {len(self.layers)} entries; leave n_layer out")
        self.n_layer = len(self.layers)
        for number, entry in enumerate(self.layers):
            kinds = (entry.get("time_mix"), entry.get("channel_mix")) if isinstance(entry, dict) else (entry, None)
            allowed = (_CHANNEL_MIX, _TIME_MIX)
            for name, kind, known in zip(("time_mix", "channel_mix"), kinds, allowed):
                if kind is not None and kind not in known or kinds == (None, None):
                    raise ValueError(f"layers[{number}]: {name} is {kind!r}; allowed are {', '.join(known)}")
            for key in entry if isinstance(entry, dict) else ():
                if key not in _LAYER_KEYS:
                    raise ValueError(f"layers[{number}] has no key {key!r}; it has {', '.join(_LAYER_KEYS)}")

    def _derive(self):
        """Fills in the widths that were not given and remembers which, so that `replace` can derive them anew."""
        root = math.sqrt(self.n_embd)
        kind = self.model_type
        rules = {"dim_att": self.n_embd, "dim_ffn": _ffn_width(kind, self.n_embd), "dim_att_lora": _low_rank(2.5 * root),
                 "dim_gate_lora": _low_rank(5 * root), "dim_mv_lora": _low_rank(1.7 * root), "d_mix": 32 * _x060_size(self.n_embd)}  # fmt: skip
        for name in (*rules, "d_decay", "d_aaa"):
            if _check_int(name, getattr(self, name), 0, " (0 = the version's rule)") == 0:
                self._derived[name] = 1
                setattr(self, name, rules.get(name) or self.dim_att_lora)
        if "d_decay" in self._derived:
            self.d_decay = self._decay_width(self.model_type)

    def _decay_width(self, kind):
        """The low-rank width of the decay in layers of this kind."""
        if "d_decay" not in self._derived:
            return self.d_decay
        return 64 * _x060_size(self.n_embd) if kind == "x060" else self.dim_att_lora

    @classmethod
    def from_detected(cls, found, **overrides):
        """The configuration of a weight file.

        found: what `rwkvtune.checkpoint.detect` returns.  overrides: fields the weights do not tell.
        Raises ValueError where the sizes make no model.
        """
        widths = {"dim_att_lora": "dim_decay_lora", "d_decay": "dim_decay_lora", "d_aaa": "dim_aaa_lora", "d_mix": "time_mix_extra_dim",
                  "dim_mv_lora": "dim_mv_lora", "dim_gate_lora": "dim_gate_lora"}  # fmt: skip
        values = {
            name: found[name] for name in ("n_layer", "n_embd", "vocab_size", "head_size_a", "dim_att", "dim_ffn")
        }
        values |= {name: found[source] for name, source in widths.items()}
        decay_x060 = found["time_decay_extra_dim"]  # a width of x060's layers alone where there are others
        if found["model_type"] == "x060":
            values["d_decay"] = decay_x060
        values |= {"model_type": found["model_type"], "time_state": found["time_state"]}
        if found["model_type"] not in VERSIONS or None in (found["dim_ffn"], found["head_size_a"]):
            keys = {
                "time_mix": "time_mix",
                "channel_mix": "channel_mix",
                "dim_ffn": "dim_ffn",
                "head_size_a": "head_size",
            }
            values["layers"] = [
                {key: layer[name] for name, key in keys.items() if layer[name] is not None}
                | ({"d_decay": decay_x060} if layer["time_mix"] == "x060" and decay_x060 else {})
                for layer in found["layers"]
            ]
            kinds = [layer["time_mix"] for layer in found["layers"] if layer["time_mix"] in VERSIONS]
            values["model_type"] = max(kinds, default="x070")
            values["ln0"] = found["ln0"]
            head_size = overrides.get("head_size_a") or found["head_size_a"] or cls.head_size_a
            for entry, layer in zip(values["layers"], found["layers"]):
                if layer.get("dim_kv") is not None:
                    entry["n_kv_head"] = _kv_heads(layer["dim_kv"], head_size)
        return cls(**{name: value for name, value in (values | overrides).items() if value is not None})

    def layer_list(self):
        """list of dicts, one per layer, with every key that an entry of `layers` may have."""
        result = []
        for entry in self.layers or [self.model_type] * self.n_layer:
            given = entry if isinstance(entry, dict) else {"time_mix": entry}
            time_mix = given.get("time_mix") or _TIME_MIX[given["channel_mix"]]
            channel_mix = given.get("channel_mix") or _CHANNEL_MIX.get(time_mix, time_mix)
            by_rule = "dim_ffn" in self._derived
            base = {"time_mix": time_mix, "channel_mix": channel_mix, "head_size": self.head_size_a,
                    "dim_ffn": _ffn_width(channel_mix, self.n_embd) if by_rule else self.dim_ffn,
                    "d_decay": self._decay_width(time_mix),
                    "d_aaa": self.d_aaa, "d_mv": self.dim_mv_lora, "d_gate": self.dim_gate_lora, "d_mix": self.d_mix}  # fmt: skip
            for key, value in given.items():
                if value is not None and key not in ("time_mix", "channel_mix"):
                    base[key] = _check_int(f"{key} of a layer", value, 1)
            base["n_kv_head"] = base.get("n_kv_head") or self.n_kv_head or max(1, self.n_embd // base["head_size"])
            result.append(base)
        return result

    def to_core_dict(self):
        """dict: the description of the model that the compiled core takes."""
        layers = self.layer_list()
        ln0 = self.ln0 if self.ln0 is not None else any(layer["time_mix"] != "attention" for layer in layers)
        return {"vocab_size": int(self.vocab_size), "n_embd": int(self.n_embd), "ln0": bool(ln0), "time_state": bool(self.time_state),
                "head_size_divisor": self.head_size_divisor, "rope": bool(self.rope), "layers": layers}  # fmt: skip

    def to_train_config_dict(self):
        """dict: n_layer, n_embd, vocab_size, head_size_a, dim_att_lora, dim_gate_lora, dim_mv_lora."""
        names = ("n_layer", "n_embd", "vocab_size", "head_size_a", "dim_att_lora", "dim_gate_lora", "dim_mv_lora")
        return {name: getattr(self, name) for name in names}

    def to_dict(self):
        """dict: every field as it was given; widths that follow the rule are 0."""
        return {name: 0 if name in self._derived else value for name, value in super().to_dict().items()}

    def replace(self, **changes):
        """A new configuration with some fields changed; widths that followed the rule follow it again.

        Raises ValueError as the constructor does.
        """
        if "layers" in changes:
            changes.setdefault("n_layer", None if changes["layers"] else self.n_layer)
        return super().replace(**changes)

    @property
    def model_path(self):
        """Path of the weights named by the configuration file, or None."""
        return self.model_file

    @property
    def kinds(self):
        """The time mixes used, sorted: ["x070"] for a plain RWKV-7."""
        return sorted({layer["time_mix"] for layer in self.layer_list()})

    def summary(self):
        """str: one line for people."""
        kind = "+".join(self.kinds)
        return (
            f"{kind}, {self.n_layer} layers, {self.n_embd} channels, {self.vocab_size} tokens, context {self.ctx_len}"
        )


@dataclass
class TrainingConfig(_Replace):
    """How a model is trained.

    lr_init, lr_final: first and last learning rate of the cosine.  warmup_steps: 10.  micro_bsz: sequences of a
    micro-batch.  accumulate_grad_batches: micro-batches of a step (1).  grad_cp: 1 = recompute activations, less
    memory for more time; results do not change.  beta1, beta2, adam_eps, weight_decay: AdamW; weight_decay_final:
    > 0 = the decay goes there geometrically.  grad_clip: largest gradient norm, 0 = no limit.  l2wrap: the reference
    trainer's small pull on the largest logit.  precision: "bf16" (default), "fp16", "fp32"; the CPU trains in
    float32 whichever it is and says so.  strategy: accepted, one device needs none.  epoch_save: checkpoint every so
    many epochs.  save_every_steps, save_every_seconds: how often the resume state is written, 0 = not on that account.
    eval_every_steps: validation loss every so many steps, 0 = at each checkpoint.  random_seed: of the initialisation
    and of sampling; negative = a fresh one, recorded.  train_type: "", "states" (trains the initial states only) or
    "infctx" (samples of any length in memory of chunk_ctx tokens: the state is carried through the sample, gradients are
    cut every chunk_ctx tokens, 512).
    Raises ValueError naming the field, its value and what is allowed.
    """

    lr_init: float = 6e-4
    lr_final: float = 6e-5
    micro_bsz: int = 16
    grad_cp: int = 1
    precision: str = "bf16"
    warmup_steps: int = 10
    beta1: float = 0.9
    beta2: float = 0.99
    adam_eps: float = 1e-18
    weight_decay: float = 0.001
    weight_decay_final: float = -1.0
    epoch_save: int = 1
    strategy: str = "deepspeed_stage_1"
    grad_clip: float = 1.0
    accumulate_grad_batches: int = 1
    l2wrap: bool = True
    random_seed: int = 0
    train_type: str = ""
    save_every_steps: int = 0
    save_every_seconds: float = 60.0
    eval_every_steps: int = 0
    chunk_ctx: int = 512

    def __post_init__(self):
        for name in ("lr_init", "lr_final", "adam_eps", "weight_decay", "grad_clip", "save_every_seconds"):
            setattr(self, name, _check_number(name, getattr(self, name), 0.0))
        for name in ("beta1", "beta2"):
            setattr(self, name, _check_number(name, getattr(self, name), 0.0, 1.0, open_high=True))
        self.weight_decay_final = _check_number("weight_decay_final", self.weight_decay_final)
        for name, low in (("micro_bsz", 1), ("accumulate_grad_batches", 1), ("grad_cp", 0), ("warmup_steps", -1), ("epoch_save", 0),
                          ("save_every_steps", 0), ("eval_every_steps", 0), ("chunk_ctx", 1)):  # fmt: skip
            setattr(self, name, _check_int(name, getattr(self, name), low))
        self.random_seed = _check_int("random_seed", self.random_seed, -(2**63))
        if not self.adam_eps:
            raise ValueError("adam_eps is 0; it must be larger, such as 1e-18")
        if self.grad_cp > 1:
            raise ValueError(f"grad_cp is {self.grad_cp}; it must be 0 or 1")
        if self.precision not in _PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; allowed are {', '.join(_PRECISIONS)}")
        if self.train_type not in ("", "normal", "none", "state", "states", "infctx"):
            raise ValueError(f"train_type is {self.train_type!r}; allowed are '', 'states' and 'infctx'")

    def tokens_at_once(self, ctx_len):
        """int: tokens of a sample of `ctx_len` that a training step holds at a time."""
        return min(self.chunk_ctx, ctx_len) if self.train_type == "infctx" else ctx_len

    @property
    def batch_size(self):
        """Sequences of one optimizer step."""
        return self.micro_bsz * self.accumulate_grad_batches


@dataclass
class DataConfig(_Replace):
    """How data are prepared.

    sequence_length: cut of one-dimensional number data (1024).  n_epochs_duplication: how often the documents are
    repeated, each time in another order (3).  shuffle: whether the order changes.  random_seed: of the shuffling.
    val_fraction: share of the documents, taken from the end, kept out of training for the validation loss (0).
    Raises ValueError naming the field, its value and what is allowed.
    """

    sequence_length: int = 1024
    n_epochs_duplication: int = 3
    shuffle: bool = True
    random_seed: int = 0
    val_fraction: float = 0.0

    def __post_init__(self):
        self.sequence_length = _check_int("sequence_length", self.sequence_length, 1)
        if not isinstance(self.shuffle, bool):
            raise ValueError(f"shuffle is {self.shuffle!r}; it must be True or False")
        self.n_epochs_duplication = _check_int("n_epochs_duplication", self.n_epochs_duplication, 1)
        self.random_seed = _check_int("random_seed", self.random_seed, -(2**63))
        self.val_fraction = _check_number("val_fraction", self.val_fraction, 0.0, 1.0, open_high=True)
