"""Which layers of a model are RWKV layers and which are transformer (attention) layers."""

import json
import math
from fractions import Fraction

from ..atomic import atomic_write
from ..config import whole_number
from .settings import change_setting, setting

_DEFAULT_LAYERS = 12
PATTERNS = ("alternating", "block", "deepstart", "deepend")


def layer_count(model_config):
    """int: `num_layers` or `n_layer` of a configuration, or the length of its `layers`; 12 where it has none of them.  Raises ValueError."""
    for name in ("num_layers", "n_layer"):
        value = setting(model_config, name)
        if value is not None:
            return whole_number(name, value)
    return len(setting(model_config, "layers") or ()) or _DEFAULT_LAYERS


def pattern_indices(pattern, num_layers, rwkv_ratio=0.5):
    """The RWKV layers of a named pattern, ceil(rwkv_ratio * num_layers) of them.

    pattern: "alternating" (spread evenly, the first layer is one: at a half, the even layers), "block" (one run in the
    middle of the stack), "deepstart" (the first layers), "deepend" (the last, deepest layers).
    Returns sorted list of int.  Raises ValueError naming the argument.

    >>> pattern_indices("alternating", 6), pattern_indices("block", 6), pattern_indices("deepend", 6)
    ([0, 2, 4], [1, 2, 3], [3, 4, 5])
    """
    if pattern not in PATTERNS:
        raise ValueError(f"pattern is {pattern!r}; allowed are {', '.join(PATTERNS)}")
    if isinstance(rwkv_ratio, bool) or not isinstance(rwkv_ratio, (int, float)) or not 0 <= rwkv_ratio <= 1:
        raise ValueError(f"rwkv_ratio is {rwkv_ratio!r}; it must be a number in [0, 1]")
    ratio = Fraction(rwkv_ratio).limit_denominator(10_000)  # so that 0.1 of 30 layers are 3
    count = math.ceil(ratio * num_layers)
    if pattern == "alternating":
        return [i for i in range(num_layers) if math.ceil((i + 1) * ratio) > math.ceil(i * ratio)]
    start = {"block": (num_layers - count) // 2, "deepstart": 0, "deepend": num_layers - count}[pattern]
    return list(range(start, start + count))


def _checked(name, indices, num_layers):
    """Sorted list of distinct layer numbers.  Raises ValueError naming the first that is wrong."""
    try:
        given = list(indices)
    except TypeError:
        raise ValueError(f"{name} is {indices!r}; it must be a list of layer numbers") from None
    for index in given:
        if isinstance(index, bool) or not hasattr(index, "__index__"):
            raise ValueError(f"{name} holds {index!r}; layer numbers are integers")
        if not 0 <= index < num_layers:
            raise ValueError(f"{name} holds {index}; this model's layers are 0 to {num_layers - 1}")
    result = sorted(int(index) for index in given)
    for before, index in zip(result, result[1:]):
        if before == index:
            raise ValueError(f"{name} holds layer {index} twice")
    return result


def _complement(indices, num_layers):
    return sorted(set(range(num_layers)) - set(indices))


class HybridModelConfigurator:
    """Decides for every layer whether it is an RWKV layer or a transformer layer.

    model_config: a `rwkvtune.ModelConfig`, a `ModelConfig3BRWKV`, or any object or dict with `num_layers` (or `n_layer`;
    default 12).  Its `rwkv_layer_indices` or its `layers` recipe is the beginning; without them the even layers are RWKV
    layers and the odd ones transformer layers.  architecture_params: further sizes, see `runnable_config`.
    rwkv_layer_indices, transformer_layer_indices: sorted lists; together every layer once.
    Raises ValueError (a list that is no division of the layers).

    >>> from rwkvtune import HybridModelConfigurator, ModelConfig
    >>> configurator = HybridModelConfigurator(ModelConfig(model_type="x070", n_layer=4, n_embd=64))
    >>> configurator.configure_layer_architecture(rwkv_layer_indices=[2, 3])
    >>> configurator.get_layer_distribution()["transformer_indices"], configurator.get_layer_type(3)
    ([0, 1], 'rwkv')
    """

    def __init__(self, model_config=None, architecture_params=None):
        self.model_config, self.architecture_params = model_config, architecture_params
        self.num_layers = layer_count(model_config)
        indices = setting(model_config, "rwkv_layer_indices")
        if indices is None and setting(model_config, "layers"):
            kinds = [entry if isinstance(entry, str) else entry["time_mix"] for entry in setting(model_config, "layers")]
            if len(kinds) != self.num_layers:
                raise ValueError(f"layers has {len(kinds)} entries for {self.num_layers} layers")
            indices = [i for i, kind in enumerate(kinds) if kind != "attention"]
        self._set(_checked("rwkv_layer_indices", self._by_default() if indices is None else indices, self.num_layers))

    def _by_default(self):
        """Alternating; a `hybrid_attention_ratio` in architecture_params sets the share of transformer layers."""
        share = setting(self.architecture_params, "hybrid_attention_ratio")
        share = 0.5 if share is None else share
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ValueError(f"hybrid_attention_ratio is {share!r}; it must be a number in [0, 1]")
        return pattern_indices("alternating", self.num_layers, 1 - share)

    def _set(self, rwkv):
        self.rwkv_layer_indices = rwkv
        self.transformer_layer_indices = _complement(rwkv, self.num_layers)

    # ---- choosing ----

    def configure_layer_architecture(
        self, rwkv_layer_indices=None, transformer_layer_indices=None, pattern=None, rwkv_ratio=0.5
    ):
        """Set which layers are which.

        rwkv_layer_indices, transformer_layer_indices: iterables of layer numbers; one of the two may be left out and is
        then the rest.  pattern, rwkv_ratio: instead of lists, see `pattern_indices`.  Nothing given: even layers RWKV.
        A `rwkv_layer_indices` of the model configuration is set as well.
        Raises ValueError (a layer in neither list, in both, twice, negative or too large; a pattern), nothing changed.
        """
        rwkv, transformer, n = rwkv_layer_indices, transformer_layer_indices, self.num_layers
        if pattern is not None:
            if rwkv is not None or transformer is not None:
                raise ValueError("give either pattern or lists of layers, not both")
            rwkv = pattern_indices(pattern, n, rwkv_ratio)
        if rwkv is None:
            rwkv = (
                self._by_default()
                if transformer is None
                else _complement(_checked("transformer_layer_indices", transformer, n), n)
            )
        rwkv = _checked("rwkv_layer_indices", rwkv, n)
        if transformer is not None:
            transformer = _checked("transformer_layer_indices", transformer, n)
            both = sorted(set(rwkv) & set(transformer))
            if both:
                raise ValueError(f"layer {both[0]} is in both rwkv_layer_indices and transformer_layer_indices")
            missing = sorted(set(range(n)) - set(rwkv) - set(transformer))
            if missing:
                raise ValueError(
                    f"layer {missing[0]} is in neither list; every layer from 0 to {n - 1} must be in one of them"
                )
        self._set(rwkv)
        self.update_model_config()

    def optimize_for_sequence_length(self, seq_length=8192):
        """Set the layers by a rule of thumb; longer sequences get more RWKV layers.

        seq_length: tokens.  Above 8192: the first 80 % of the layers are RWKV layers.  Above 2048: 60 %, the first of those
        whose number is no multiple of 5.  Up to 2048: the first 40 %.
        Returns self.  Raises ValueError.

        >>> HybridModelConfigurator({"num_layers": 20}).optimize_for_sequence_length(2048).rwkv_layer_indices
        [0, 1, 2, 3, 4, 5, 6, 7]
        """
        length, n = whole_number("seq_length", seq_length), self.num_layers
        if length > 8192:
            rwkv = range(8 * n // 10)
        elif length > 2048:
            rwkv = [i for i in range(n) if i % 5][: 6 * n // 10]
        else:
            rwkv = range(4 * n // 10)
        self.configure_layer_architecture(rwkv_layer_indices=rwkv)
        return self

    # ---- telling ----

    def get_layer_type(self, layer):
        """ "rwkv" or "transformer".  layer: its number.  Raises ValueError where there is no such layer."""
        return "rwkv" if _checked("layer", [layer], self.num_layers)[0] in self.rwkv_layer_indices else "transformer"

    def get_layer_distribution(self):
        """dict: total_layers, rwkv_layers, transformer_layers (counts), rwkv_percentage, transformer_percentage
        (float, 0 to 100), rwkv_indices, transformer_indices (sorted lists)."""
        rwkv, transformer = len(self.rwkv_layer_indices), len(self.transformer_layer_indices)
        return {
            "total_layers": self.num_layers, "rwkv_layers": rwkv, "transformer_layers": transformer,
            "rwkv_percentage": 100.0 * rwkv / self.num_layers, "transformer_percentage": 100.0 * transformer / self.num_layers,
            "rwkv_indices": list(self.rwkv_layer_indices), "transformer_indices": list(self.transformer_layer_indices),
        }  # fmt: skip

    def update_model_config(self):
        """Write the choice into the model configuration's `rwkv_layer_indices`, where it has one.  Returns the configuration.

        A `rwkvtune.ModelConfig` is never changed: `to_model_config` gives a new one.
        """
        change_setting(self.model_config, "rwkv_layer_indices", list(self.rwkv_layer_indices))
        return self.model_config

    def export_config(self, path):
        """Write the choice as JSON, at once or not at all: num_layers, rwkv_layer_indices, transformer_layer_indices,
        rwkv_ratio.  Returns the path.  Raises OSError with the path."""
        stored = {
            "num_layers": self.num_layers, "rwkv_layer_indices": self.rwkv_layer_indices,
            "transformer_layer_indices": self.transformer_layer_indices,
            "rwkv_ratio": len(self.rwkv_layer_indices) / self.num_layers,
        }  # fmt: skip
        with atomic_write(path, "w") as file:
            file.write(json.dumps(stored, indent=2) + "\n")
        return path

    def to_model_config(self, **changes):
        """The `rwkvtune.ModelConfig` of this choice, which `rwkvtune.RWKV` builds.

        changes: fields set over the configuration's, vocab_size or ctx_len for example.  RWKV layers are of the
        configuration's model_type (x070 where it has none).  Raises ValueError as `ModelConfig` does.
        """
        from .runnable import runnable_config

        return runnable_config(
            self.model_config, self.rwkv_layer_indices, self.architecture_params, num_layers=self.num_layers, **changes
        )

    def __repr__(self):
        kinds = "".join("R" if self.get_layer_type(i) == "rwkv" else "T" for i in range(self.num_layers))
        return f"HybridModelConfigurator({kinds})"
