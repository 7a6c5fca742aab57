"""Building the model a hybrid configuration describes, and letting go of what only training needs."""

import numpy as np

from ..config import ModelConfig
from ..model import RWKV, full_device
from ..trainer import trained_in
from .configurator import layer_count
from .runnable import check_settings, runnable_config
from .settings import setting

HYBRID = "hybrid_rwkv_transformer"


def setup_model(
    args=None,
    model_config=None,
    tokenizer=None,
    training_config=None,
    architecture_params=None,
    hybrid_configurator=None,
):
    """A freshly initialised model.

    args: namespace; `seed` (0) and `device` ("cpu") are read; on a CUDA device the model has the precision that training_config asks
    for, bf16 without one.  model_config: `ModelConfig`, `ModelConfig3BRWKV` or anything
    with their fields; a `ModelConfig` without a configurator is built as it is.  Otherwise: use_rwkv False gives attention
    layers only; attention_mechanism "hybrid_rwkv_transformer" with a hybrid_configurator gives its layers; else all
    layers are RWKV layers.  tokenizer: its vocabulary is the model's where the configuration's is smaller.
    training_config: what cannot be had (compile_model) is refused here already.
    architecture_params: `ffn_hidden_size`.  rwkv_time_mix_ratio and rwkv_att_scale scale the initial token-shift weights
    and the initial read-out of the RWKV layers.
    Returns `rwkvtune.RWKV`.  Raises ValueError (a setting that cannot be had), DeviceError.
    """
    from .engine import training_config_of

    if model_config is None:
        raise ValueError("model_config is None; give a ModelConfig or a ModelConfig3BRWKV")
    check_settings(training_config)
    config = _choose_layers(model_config, architecture_params, hybrid_configurator)
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        config = config.replace(vocab_size=int(tokenizer.vocab_size))
    device = full_device(setting(args, "device") or "cpu")
    precision = None if training_config is None else trained_in(training_config_of(training_config, model_config).precision, device)
    model = RWKV(config, seed=setting(args, "seed", 0) or 0, device=device, precision=precision)
    _scale_initial_weights(
        model, setting(model_config, "rwkv_time_mix_ratio", 1.0), setting(model_config, "rwkv_att_scale", 1.0)
    )
    return model


def _choose_layers(model_config, architecture_params, configurator):
    if isinstance(model_config, ModelConfig):
        return model_config if configurator is None else runnable_config(model_config, configurator.rwkv_layer_indices)
    count = layer_count(model_config)
    if not setting(model_config, "use_rwkv", True):
        rwkv = []
    elif configurator is not None and setting(model_config, "attention_mechanism", HYBRID) == HYBRID:
        rwkv = configurator.rwkv_layer_indices
        if configurator.num_layers != count:
            raise ValueError(
                f"hybrid_configurator is for {configurator.num_layers} layers but model_config has {count}"
            )
    else:
        rwkv = range(count)
    return runnable_config(model_config, rwkv, architecture_params, num_layers=count)


def _scale_initial_weights(model, time_mix_ratio, att_scale):
    """Token shift: x + (shift(x) - x) ratio mu.  Read-out: the group norm and the bonus of the current token times att_scale."""
    from .groups import part_of

    for name, value in (("rwkv_time_mix_ratio", time_mix_ratio), ("rwkv_att_scale", att_scale)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e6:
            raise ValueError(f"{name} is {value!r}; it must be a number of at least 0")
    weights = model.named_parameters()
    for name, value in weights.items():
        part = part_of(name)
        if part in ("time_mix", "channel_mix") and value.size == model.config.n_embd:
            value *= np.float32(time_mix_ratio)
        elif name.endswith(("att.ln_x.weight", "att.ln_x.bias", "att.r_k")):
            value *= np.float32(att_scale)
    model.load_state_dict(weights)  # of a device they are copies


def release_training_memory(model):
    """Give back gradients and activation buffers of training; the weights stay.

    The weights move to fresh memory: views of `named_parameters` taken before no longer show them, and a `Trainer` made
    before can no longer be used (it says so); make a new one to train on.  A model for inference is left as it is.
    Returns the model.
    """
    if not model.trainable:
        return model
    core = model._new_core()
    for name, value in model.named_parameters().items():
        core.write_parameter(name, value)
    model._core = core
    if model.state is not None:
        model.state = model.state.detached()
    return model
