"""From settings to a model that runs: `rwkvtune.ModelConfig`, parameter counts, and what each setting does here."""

import math
from dataclasses import fields

from .. import _rwkvcore
from ..config import VERSIONS, ModelConfig
from .settings import setting

# Settings that describe something the layers here do not have: the value at which they say nothing, and why.
_NEUTRAL = {
    "rwkv_use_linear_att": (True, "an RWKV layer is linear attention; make it an attention layer instead"),
    "rwkv_ffn_scale": (1.0, "the channel mix has no such factor"),
    "rwkv_use_gated_residual": (False, "the residual has no gate"),
    "rwkv_gate_init": (0.0, "the residual has no gate"),
    "rwkv_use_glu": (False, "the channel mix is the squared ReLU of RWKV"),
    "rwkv_time_decay_base": (1.0, "decays are initialised by the rule of their version"),
    "rwkv_recurrent_scaling": (1.0, "decays are initialised by the rule of their version"),
    "tie_word_embeddings": (False, "embedding and head are separate weights"),
    "layer_norm_epsilon": (1e-5, "layer norms use 1e-5"),
    "initializer_range": (0.02, "weights are initialised by the rule of their version"),
    "use_scaled_init": (True, "weights are initialised by the rule of their version"),
    "rwkv_time_shift": (True, "every RWKV layer has its token shift"),
    "use_episodic_memory": (False, "there is no such memory beside the state"),
    "use_working_memory": (False, "there is no such memory beside the state"),
    "cpu_offload": (False, "the model, its gradients and its moments lie where it computes"),
    "rwkv_cpu_offload_ratio": (0.0, "the model, its gradients and its moments lie where it computes"),
    "use_offload": (False, "the model, its gradients and its moments lie where it computes"),
    "use_cpu_offload": (False, "the model, its gradients and its moments lie where it computes"),
    "use_sharded_ddp": (False, "training runs in one process"),
    "use_fsdp": (False, "training runs in one process"),
    "compile_model": (False, "the kernels are compiled already"),
    "dynamo_backend": (None, "the kernels are compiled already"),
}
_USED = {
    "hidden_size": "n_embd", "num_layers": "n_layer", "vocab_size": "vocab_size", "max_position_embeddings": "ctx_len",
    "num_attention_heads": "heads of attention layers", "rwkv_version": "the RWKV version of the RWKV layers",
    "rwkv_head_size": "head_size_a", "ffn_hidden_size": "dim_ffn",
    "use_rwkv": "False: attention layers only", "rwkv_layer_indices": "which layers are RWKV layers",
    "attention_mechanism": "whether setup_model makes a hybrid", "num_kv_groups": "key and value heads of attention layers",
    "use_grouped_query_attention": "whether num_kv_groups counts", "rwkv_chunk_size": "set_chunk_size",
    "rwkv_time_mix_ratio": "factor of the initial token-shift weights of RWKV layers",
    "rwkv_att_scale": "factor of the initial read-out of the time mix",
    "rwkv_state_compression": "enable_state_compression", "use_gradient_checkpointing": "grad_cp",
    "activation_checkpointing": "grad_cp", "checkpoint_every_n_layers": "grad_cp: every layer is a checkpoint, whatever n",
    "use_mixed_precision": "precision", "mixed_precision_dtype": "precision", "max_memory_MB": "chunk size by memory",
    "gradient_accumulation_steps": "accumulate_grad_batches", "rwkv_backward_pass_length": "most tokens of a chunk in train_step_rwkv",
    "rwkv_lr_multiplier": "parameter groups", "rwkv_att_weight_decay": "parameter groups",
    "rwkv_ffn_weight_decay": "parameter groups",
    "optimize_memory_use": "whether optimize_rwkv_training_setup changes chunk size and checkpointing",
    "hybrid_attention_ratio": "share of attention layers where no layers are named",
}  # fmt: skip
_ALWAYS = {
    "use_cache": "states and key-value caches are always kept", "use_flash_attention": "attention always takes memory linear in length",
    "hybrid_use_flash_attention": "attention always takes memory linear in length",
    "mem_efficient_linear": "nothing is copied for a matrix product", "low_cpu_mem_usage": "weights are read one tensor at a time",
    "rwkv_token_streaming": "process_with_state takes any number of tokens", "use_fused_adam": "AdamW is one kernel",
    "use_fused_layer_norm": "layer norm is one kernel", "rwkv_optimize_backward": "the backward is one pass per chunk",
    "optimize_grouping": "parameters are updated in one loop",
}  # fmt: skip
_WITHOUT_EFFECT = {
    "dropout": "there is no dropout", "attention_dropout": "there is no dropout",
    "rwkv_chunk_overlap": "chunks need no overlap: the state carries everything", "use_adaptive_chunking": "chunks are of one size",
    "transformer_window_size": "attention sees the whole context", "use_sliding_window": "attention sees the whole context",
    "use_8bit_kv_cache": "keys and values are kept in float32", "use_alibi": "positions are rotary",
    "optimize_for_inference": "call TrainingEngine.prepare_for_inference or RWKVIntegrator.optimize_for_inference",
    "target_vram_gb": "memory follows from the sizes; RWKV.plan tells it", "optimize_cuda_kernels": "there is one set of kernels",
}  # fmt: skip


def settings_report(*sources):
    """list of (setting, value, what it does here): "used: ...", "always: ...", "no effect: ...", "refused: ...".

    sources: the configuration objects.  A setting this package has never heard of is "no effect: unknown".
    """
    rows = []
    for source in sources:
        names = [f.name for f in fields(source)] if hasattr(source, "__dataclass_fields__") else sorted(vars(source))
        for name in names:
            rows.append((name, getattr(source, name), _what_it_does(name, getattr(source, name))))
    return rows


def _what_it_does(name, value):
    for word, table in (("used", _USED), ("always", _ALWAYS), ("no effect", _WITHOUT_EFFECT)):
        if name in table:
            return f"{word}: {table[name]}"
    if name in _NEUTRAL:
        neutral, why = _NEUTRAL[name]
        return f"{'always' if value == neutral else 'refused'}: {why}"
    return "no effect: unknown"


def check_settings(*sources):
    """Raises ValueError naming the first setting that asks for what no layer here does."""
    for source in sources:
        for name, (neutral, why) in _NEUTRAL.items():
            value = setting(source, name, neutral)
            if value != neutral:
                raise ValueError(f"{name} is {value!r}, which cannot be had: {why}; leave it at {neutral!r}")


_SAME_NAME = ("rope", "n_kv_head", "ln0", "time_state", "head_size_divisor")  # of `ModelConfig`, in any configuration


def runnable_config(model_config, rwkv_layer_indices=None, architecture_params=None, num_layers=None, **changes):
    """The `rwkvtune.ModelConfig` of a configuration with these RWKV layers; all others are attention layers.

    model_config: a `ModelConfig`, a `ModelConfig3BRWKV`, or an object or dict with `hidden_size`, `num_layers` and the
    like.  rwkv_layer_indices: default: its own.  architecture_params: `ffn_hidden_size`.  changes: fields set over it.
    Raises ValueError (a setting that cannot be had, sizes).

    >>> from rwkvtune.hybrid import ModelConfig3BRWKV, runnable_config
    >>> config = runnable_config(ModelConfig3BRWKV(), range(32))
    >>> config.n_layer, config.n_embd, config.kinds
    (32, 2560, ['x070'])
    """
    if isinstance(model_config, ModelConfig):
        return _with_layers(model_config, rwkv_layer_indices, changes)
    check_settings(model_config, architecture_params)
    hidden = changes.pop("n_embd", None) or setting(model_config, "hidden_size") or setting(model_config, "n_embd", 128)
    count = num_layers or setting(model_config, "num_layers") or setting(model_config, "n_layer") or 12
    if rwkv_layer_indices is None:
        rwkv_layer_indices = setting(model_config, "rwkv_layer_indices")
    named = setting(model_config, "model_type")  # other programs say "gpt2" or "rwkv" there
    version = changes.get("model_type") or setting(model_config, "rwkv_version") or (named if named in VERSIONS else "x070")
    values = {name: setting(model_config, name) for name in _SAME_NAME if setting(model_config, name) is not None} | {
        "model_type": version, "n_embd": hidden, "vocab_size": setting(model_config, "vocab_size", 50257),
        "ctx_len": setting(model_config, "max_position_embeddings") or setting(model_config, "ctx_len", 1024),
        "head_size_a": setting(model_config, "rwkv_head_size") or setting(model_config, "head_size_a") or math.gcd(hidden, 64),
        "dim_ffn": setting(architecture_params, "ffn_hidden_size") or setting(model_config, "dim_ffn") or 0,
    }  # fmt: skip
    recipe = setting(model_config, "layers")
    if recipe:
        return _with_layers(ModelConfig(**values, layers=list(recipe)), rwkv_layer_indices, changes)
    rwkv = set(range(0, count, 2) if rwkv_layer_indices is None else rwkv_layer_indices)
    attention = _attention_layer(model_config, hidden)
    values["layers"] = [version if i in rwkv else dict(attention) for i in range(count)]
    return ModelConfig(**values | changes)


def _attention_layer(model_config, hidden):
    """The recipe's entry of an attention layer."""
    heads = setting(model_config, "num_attention_heads")
    entry = {"time_mix": "attention"}
    if heads:
        if hidden % heads:
            raise ValueError(f"num_attention_heads is {heads}; it must divide the hidden size, {hidden}")
        entry["head_size"] = hidden // heads
    groups = setting(model_config, "num_kv_groups")
    if groups and setting(model_config, "use_grouped_query_attention", True):
        if heads and heads % groups:
            raise ValueError(f"num_kv_groups is {groups}; it must divide num_attention_heads, {heads}")
        entry["n_kv_head"] = groups
    return entry


def _with_layers(config, rwkv_layer_indices, changes):
    """A `ModelConfig` whose layers become what the indices say; an entry that is so already stays as it is."""
    if rwkv_layer_indices is None:
        return config.replace(**changes)
    rwkv, before = set(rwkv_layer_indices), config.layers or [config.model_type] * config.n_layer
    if config.layers is None and len(rwkv) == config.n_layer:
        return config.replace(**changes)
    kinds = [layer["time_mix"] for layer in config.layer_list()]
    layers = []
    for number, (entry, kind) in enumerate(zip(before, kinds)):
        fits = (kind != "attention") == (number in rwkv)
        layers.append(entry if fits else config.model_type if number in rwkv else "attention")
    return config.replace(layers=layers, **changes)


def parameter_count(config, *layers):
    """int: numbers in the weights of a model, which is not made.

    config: `rwkvtune.ModelConfig`.  layers: count these layers only.

    >>> from rwkvtune import ModelConfig
    >>> parameter_count(ModelConfig(model_type="x070", n_layer=12, n_embd=768, vocab_size=65536))
    191084544
    """
    rows = _rwkvcore.Model.describe(config.to_core_dict())
    starts = tuple(f"blocks.{layer}." for layer in layers)
    return sum(math.prod(row["shape"]) for row in rows if not layers or row["name"].startswith(starts))
