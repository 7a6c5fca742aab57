"""The models that are compared, each made with the initial weights of its own kind."""

import numpy as np

from rwkvtune import RWKV


def create_rwkv_from_config(config):
    """A fresh RWKV or hybrid model.

    config: `config.Config`.  Returns `rwkvtune.RWKV`: model(ids, targets) gives (logits, loss), for sequences of any length.
    """
    wanted = config.model_specific
    model = RWKV(wanted.core(), seed=config.system.seed)
    if wanted.init == "uniform":
        initialise_uniform(model, config.system.seed)
    return model


def create_gpt2_from_config(config):
    """A fresh transformer; embedding and output matrix begin as GPT-2's do, from N(0, 0.02^2).

    RWKV's begin otherwise, the embedding because a norm follows it, which a transformer does not have.
    """
    model = RWKV(config.model_specific.core(), seed=config.system.seed)
    rng, weights = np.random.default_rng(config.system.seed), model.named_parameters()
    for name in ("emb.weight", "head.weight"):
        weights[name][...] = 0.02 * rng.standard_normal(weights[name].shape, np.float32)
    return model


def create_model(config):
    """The fresh model of a configuration."""
    return create_gpt2_from_config(config) if config.model_specific.model_type == "gpt2" else create_rwkv_from_config(config)


def initialise_uniform(model, seed):
    """RWKV-7's layers as earlier implementations began: uniform matrices, linear decay ramp, all gates in one position.

    model: `rwkvtune.RWKV` of x070 layers, among others.  Embedding, output matrix, norms and low-rank matrices stay.
    """
    n_layer, n_embd = model.config.n_layer, model.config.n_embd
    rng, channel, bound = np.random.default_rng(seed), np.arange(n_embd), 0.5 / n_embd**0.5
    weights = model.named_parameters()
    for layer in range(n_layer):
        if f"blocks.{layer}.att.w0" not in weights:
            continue
        done, left = layer / max(1, n_layer - 1), 1 - layer / n_layer
        place = channel / n_embd
        values = {
            "x_k": 1 - (place ** (0.9 * left) + 0.4 * done), "x_v": 1 - (place ** (0.4 * left) + 0.6 * done),
            "w0": -6.5 + 5 * (channel / (n_embd - 1)) ** (0.85 + done**0.5), "a0": 0, "v0": 1, "k_k": 0.85, "k_a": 1, "r_k": 0,
        }  # fmt: skip
        for name, value in values.items():
            weights[f"blocks.{layer}.att.{name}"][...] = value
        for name, size in (("att.receptance", 1), ("att.value", 1), ("att.key", 0.1), ("ffn.key", 1)):
            matrix = weights[f"blocks.{layer}.{name}.weight"]
            matrix[...] = rng.uniform(-size * bound, size * bound, matrix.shape)
