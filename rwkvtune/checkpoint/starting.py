"""Weights of any origin as the start of training: what they are, their tensors, whether they fit."""

from dataclasses import asdict, dataclass, fields

_COMPARED = ("model_type", "n_layer", "n_embd", "head_size_a", "dim_att", "dim_ffn")


@dataclass
class DetectedModelConfig:
    """What the weights of a file tell about their model; None is what they do not tell.

    n_layer, n_embd, vocab_size, model_type, head_size_a, dim_att, dim_ffn, the low-rank widths dim_decay_lora,
    dim_aaa_lora, dim_mv_lora, dim_gate_lora (x070), time_mix_extra_dim, time_decay_extra_dim (x060), ctx_len, layers, ln0,
    time_state, layer0_value_residual, dtype: as `rwkvtune.inspect_checkpoint` gives them.
    """

    n_layer: int
    n_embd: int
    vocab_size: int
    model_type: str
    head_size_a: int | None = None
    dim_att: int | None = None
    dim_ffn: int | None = None
    dim_decay_lora: int | None = None
    dim_aaa_lora: int | None = None
    dim_mv_lora: int | None = None
    dim_gate_lora: int | None = None
    time_mix_extra_dim: int | None = None
    time_decay_extra_dim: int | None = None
    ctx_len: int | None = None
    layers: list | None = None
    ln0: bool = True
    time_state: bool = False
    layer0_value_residual: bool = False
    dtype: str | None = None

    def to_dict(self):
        """dict: every field by name."""
        return asdict(self)

    def to_model_config(self, **overrides):
        """The `ModelConfig` of the weights.  overrides: its fields that weights do not tell, such as ctx_len."""
        from ..config import ModelConfig

        own = {} if self.ctx_len is None else {"ctx_len": self.ctx_len}
        return ModelConfig.from_detected(self.to_dict(), **(own | overrides))


def load_checkpoint_for_training(path, override_config=None):
    """Open a weight file to train from it.

    path: a `.pth` or `.safetensors` file.  override_config: dict of fields of `DetectedModelConfig` that the weights do
    not tell, such as ctx_len; each is printed.
    Returns (state_dict, detected): a mapping name -> `LazyTensor`, whose numbers are read when `numpy()` asks for them
    (`RWKV.load_state_dict` takes it as it is), and a `DetectedModelConfig`.
    Raises FileNotFoundError, FormatError (no weights, or of no supported model), ValueError (an unknown field, or one
    that contradicts the weights).
    """
    from . import detect, inspect_checkpoint, read_checkpoint
    from .detect import precision_of

    inspect_checkpoint(path)  # a missing or unreadable file, in its words
    state_dict = read_checkpoint(path)
    found = detect(state_dict.shapes) | {"dtype": precision_of(state_dict.dtypes.values())}
    for name, value in (override_config or {}).items():
        if name not in (f.name for f in fields(DetectedModelConfig)):
            known = ", ".join(f.name for f in fields(DetectedModelConfig))
            raise ValueError(f"override_config has an unknown key {name!r}; there are {known}")
        if found[name] not in (None, value):
            raise ValueError(f"override_config: {name} is {value!r}, but the weights in {path} say {found[name]!r}; leave it out")
        print(f"  Override: {name} = {value}")
        found[name] = value
    return state_dict, DetectedModelConfig(**found)


def validate_checkpoint_compatibility(detected, expected):
    """Whether weights fit what is wanted.

    detected: `DetectedModelConfig`.  expected: dict, or `ModelConfig`, with any of vocab_size, model_type, n_layer, n_embd,
    head_size_a, dim_att, dim_ffn; what is absent, and what the weights do not tell, is not compared.
    Returns (True, []), or (False, list of sentences): the vocabulary alone where that differs, as nothing else matters
    then, otherwise every size that differs.
    """
    wanted = expected if isinstance(expected, dict) else {name: getattr(expected, name) for name in ("vocab_size", *_COMPARED)}

    def differs(name):
        mine = getattr(detected, name)
        return name in wanted and mine is not None and mine != wanted[name]

    if differs("vocab_size"):
        pair = f"vocab_size of the checkpoint is {detected.vocab_size}, wanted is {wanted['vocab_size']}"
        return False, [f"{pair}: use the tokenizer it was trained with"]
    warnings = [f"{name} of the checkpoint is {getattr(detected, name)}, wanted is {wanted[name]}" for name in _COMPARED if differs(name)]
    return not warnings, warnings
