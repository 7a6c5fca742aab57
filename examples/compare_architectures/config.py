"""What is compared: the sizes of each model, and one training configuration that all of them share.

Presets of the sizes, with the parameters they give:

preset   rwkv                     gpt2                     hybrid
small    5 x 128     1,225,344    6 x 128     1,248,768    5 x 128     1,221,504    bytes, 256 tokens: minutes on two processor cores
equal    16 x 576  125,367,552    17 x 576  125,672,832    16 x 576  123,528,960    GPT-2's vocabulary, 1024 tokens
named    16 x 576  125,367,552    12 x 768  162,240,000    16 x 576  123,528,960    the same, gpt2 having the shape that GPT-2 small has

GPT-2 small itself has 124,475,904 parameters with this vocabulary: it uses its embedding a second time as the output matrix, and
learned positions and biases.  Here the output matrix is one of its own in every model, so that none is favoured; that is 38.6 million more.
"""

from dataclasses import asdict, dataclass, field, fields, replace

from rwkvtune import ModelConfig, TrainingConfig
from rwkvtune.hybrid import parameter_count

MODEL_TYPES = ("rwkv", "gpt2", "hybrid")


@dataclass
class RWKVConfig:
    """An RWKV model.

    vocab_size, ctx_len, n_layer, n_embd, head_size: sizes; head_size must divide n_embd, which gives n_head.
    version: "x070", "x060" or "x052".  grad_cp: 1 = compute activations again in the backward, less memory for more time.
    init: "rwkv_lm", RWKV-LM's initialisation, or "uniform", an older one; see models.py.  Raises ValueError.
    """

    vocab_size: int = 50304
    ctx_len: int = 1024
    n_layer: int = 16
    n_embd: int = 576
    head_size: int = 64
    version: str = "x070"
    grad_cp: int = 0
    init: str = "rwkv_lm"
    model_type = "rwkv"

    def __post_init__(self):
        if self.head_size < 1 or self.n_embd % self.head_size:
            raise ValueError(f"head_size is {self.head_size}; it must divide n_embd, {self.n_embd}")
        if self.init not in ("rwkv_lm", "uniform") or (self.init == "uniform" and self.version != "x070"):
            raise ValueError(f"init is {self.init!r}; allowed are 'rwkv_lm' and, for x070, 'uniform'")
        self.n_head = self.n_embd // self.head_size

    def layers(self):
        """list: the kind of every layer, as `rwkvtune.ModelConfig` takes it."""
        return [self.version] * self.n_layer

    def widths(self):
        """dict: the widths of RWKV-7's low-rank matrices, 1.8, 1.3 and 0.6 being the factors of its small models."""
        root = self.n_embd**0.5
        rounded = {"dim_att_lora": 1.8 * root, "dim_mv_lora": 1.3 * root, "dim_gate_lora": 0.6 * self.n_embd**0.8}
        return {name: max(32, 32 * round(width / 32)) for name, width in rounded.items()}

    def core(self):
        """`rwkvtune.ModelConfig` of this model."""
        return ModelConfig(
            model_type=self.version, layers=self.layers(), n_embd=self.n_embd, vocab_size=self.vocab_size, ctx_len=self.ctx_len,
            head_size_a=self.head_size, **(self.widths() if self.version == "x070" else {}),
        )  # fmt: skip

    def num_parameters(self):
        """(all, in the layers): the rest are embedding, output matrix and norms."""
        core = self.core()
        return parameter_count(core), parameter_count(core, *range(self.n_layer))


@dataclass
class GPT2Config(RWKVConfig):
    """A transformer of GPT-2's kind: norm first, GELU, four times as wide inside; GPT-2 small's 12 layers of 768 by default.

    Not as in GPT-2: rotary positions, where it has learned ones; no biases; a separate output matrix.
    """

    n_layer: int = 12
    n_embd: int = 768
    model_type = "gpt2"

    def layers(self):
        return ["attention"] * self.n_layer

    def widths(self):
        return {}


@dataclass
class HybridConfig(RWKVConfig):
    """RWKV layers at even places and attention layers at odd ones.  attention_ffn: the latter's inner width, 0 = 4 n_embd."""

    attention_ffn: int = 0
    model_type = "hybrid"

    def layers(self):
        attention = {"time_mix": "attention", "dim_ffn": self.attention_ffn or None}
        return [attention if layer % 2 else self.version for layer in range(self.n_layer)]


@dataclass
class BaseTrainingConfig:
    """How every model is trained.

    total_batch_size: tokens of an optimizer step, run in micro-batches of micro_batch_size sequences of sequence_length tokens.
    learning_rate, min_lr_ratio, warmup_steps, max_steps: see `optimization.get_lr`.  betas, eps, weight_decay: AdamW's.
    grad_clip: largest norm of the gradient.  l2wrap: RWKV-LM's small pull on the largest logit.
    eval_interval, checkpoint_interval: steps between two of them.
    """

    total_batch_size: int = 524288
    micro_batch_size: int = 16
    sequence_length: int = 1024
    learning_rate: float = 6e-4
    min_lr_ratio: float = 0.1
    warmup_steps: int = 715
    max_steps: int = 19073
    betas: tuple = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    l2wrap: bool = True
    eval_interval: int = 500
    checkpoint_interval: int = 2500

    def accumulation_steps(self):
        """int: micro-batches of an optimizer step.  Raises ValueError where they do not come out even."""
        micro = self.micro_batch_size * self.sequence_length
        if micro < 1 or self.total_batch_size < 1 or self.total_batch_size % micro:
            raise ValueError(
                f"total_batch_size is {self.total_batch_size}; it must be a multiple of micro_batch_size * sequence_length,"
                f" {self.micro_batch_size} * {self.sequence_length} = {micro}"
            )
        return self.total_batch_size // micro

    def core(self, grad_cp=0):
        """`rwkvtune.TrainingConfig` of this training."""
        return TrainingConfig(
            lr_init=self.learning_rate, lr_final=self.learning_rate * self.min_lr_ratio, micro_bsz=self.micro_batch_size,
            accumulate_grad_batches=self.accumulation_steps(), grad_cp=grad_cp, precision="fp32", beta1=self.betas[0],
            beta2=self.betas[1], adam_eps=self.eps, weight_decay=self.weight_decay, grad_clip=self.grad_clip, l2wrap=self.l2wrap,
        )  # fmt: skip


class RWKVTrainingConfig(BaseTrainingConfig):
    """The same numbers as `GPT2TrainingConfig`: what RWKV-LM recommends would make the comparison one of settings."""


class GPT2TrainingConfig(BaseTrainingConfig):
    """The numbers GPT-2 small is usually trained with."""


class HybridTrainingConfig(BaseTrainingConfig):
    """The same numbers."""


@dataclass
class DataConfig:
    """data_root: directory of .npy shards, names with "train" or "val".  eot_token: ends a document.  val_loss_steps: micro-batches."""

    data_root: str = "data"
    eot_token: int = 50256
    val_loss_steps: int = 20


@dataclass
class SystemConfig:
    """seed: of weights and order.  resume_training: go on with the newest checkpoint.  use_grad_checkpointing: grad_cp."""

    seed: int = 1337
    resume_training: bool = True
    use_grad_checkpointing: bool = False
    log_dir: str = "log"


_MODELS = {"rwkv": RWKVConfig, "gpt2": GPT2Config, "hybrid": HybridConfig}
_TRAINING = {"rwkv": RWKVTrainingConfig, "gpt2": GPT2TrainingConfig, "hybrid": HybridTrainingConfig}
_SMALL = dict(vocab_size=257, ctx_len=256, n_embd=128)
_SIZES = {
    "named": {"rwkv": {}, "gpt2": {}, "hybrid": {}},
    "equal": {"rwkv": {}, "gpt2": dict(n_layer=17, n_embd=576), "hybrid": {}},
    "small": {"rwkv": dict(n_layer=5), "gpt2": dict(n_layer=6), "hybrid": dict(n_layer=5, attention_ffn=640)},
}
_SMALL_TRAINING = dict(total_batch_size=2048, micro_batch_size=8, sequence_length=256, learning_rate=4e-3, warmup_steps=40, max_steps=600,
                       eval_interval=50, checkpoint_interval=200)  # fmt: skip
PRESETS = tuple(_SIZES)


def _choice(what, name, table):
    if name not in table:
        raise ValueError(f"Unknown {what}: {name!r}; allowed are {', '.join(table)}")
    return table[name]


def get_model_specific_config(model_type, preset="equal"):
    """The sizes of a model: `RWKVConfig`, `GPT2Config` or `HybridConfig`.  Raises ValueError (unknown model type, preset)."""
    kind = _choice("model type", model_type, _MODELS)
    return kind(**(_SMALL if preset == "small" else {}) | _choice("preset", preset, _SIZES)[model_type])


def get_model_training_config(model_type, preset="equal"):
    """How it is trained: the same numbers for every model.  Raises ValueError (unknown model type, preset)."""
    kind = _choice("model type", model_type, _TRAINING)
    _choice("preset", preset, _SIZES)
    return kind(**_SMALL_TRAINING if preset == "small" else {})


@dataclass
class Config:
    """Everything about one run.  Parts: model_specific, model_training, data, system."""

    model_specific: RWKVConfig
    model_training: BaseTrainingConfig
    data: DataConfig = field(default_factory=DataConfig)
    system: SystemConfig = field(default_factory=SystemConfig)

    @classmethod
    def of(cls, model_type, preset="equal"):
        """The configuration of a model and a preset.  Raises ValueError."""
        small = dict(eot_token=0, data_root="data_small") if preset == "small" else {}
        return cls(get_model_specific_config(model_type, preset), get_model_training_config(model_type, preset), DataConfig(**small))

    def with_settings(self, settings):
        """A configuration with some settings changed, whatever part they are in; None leaves a setting as it is.

        settings: dict name -> value.  ctx_len and sequence_length are one.  Raises ValueError (an unknown name, a value).
        """
        given = {name: value for name, value in settings.items() if value is not None}
        if "ctx_len" in given:
            given["sequence_length"] = given["ctx_len"]
        parts, used = {}, set()
        for part in fields(self):
            old = getattr(self, part.name)
            changes = {f.name: given[f.name] for f in fields(old) if f.name in given}
            parts[part.name] = replace(old, **changes)
            used |= set(changes)
        if set(given) - used:
            raise ValueError(f"{self.model_specific.model_type} has no setting {', '.join(sorted(set(given) - used))}")
        return Config(**parts)

    def to_dict(self):
        """dict of dicts, plain values."""
        return {"model_type": self.model_specific.model_type, **asdict(self)}
