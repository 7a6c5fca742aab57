"""The models that are measured: sizes by name, and random weights of those sizes."""

import numpy as np

SHAPES = {
    "tiny": dict(n_layer=3, n_embd=128, vocab_size=1001, ctx_len=256, batch=4),
    "small": dict(n_layer=6, n_embd=512, vocab_size=8192, ctx_len=512, batch=4),
    "0.1b": dict(n_layer=12, n_embd=768, vocab_size=65536, ctx_len=512, batch=1),
}


def split(sizes):
    """(ModelConfig, rows of a batch) of a shape's sizes.  Raises ValueError as ModelConfig does."""
    from ..config import ModelConfig

    sizes = dict(sizes)
    batch = sizes.pop("batch", 1)
    return ModelConfig(**{"model_type": "x070", **sizes}), batch


def in_products(model):
    """(numbers in the matrices that every token of a layer is multiplied with, those of the head)."""
    layers = 0
    for row in model._core.manifest():
        name, shape = row["name"], [size for size in row["shape"] if size > 1]
        if len(shape) == 2 and name not in ("emb.weight", "head.weight") and not name.endswith(("r_k", "time_state", "time_faaaa", "time_decay")):
            layers += shape[0] * shape[1]
    return layers, model.config.vocab_size * model.config.n_embd


def random_model(config, seed=0):
    """A model none of whose matrices is zero, as some of a new model's are: nothing can then be left out, and int8 has a scale."""
    from ..model import RWKV

    model, rng = RWKV(config, seed=seed), np.random.default_rng(seed)
    for name, value in model.named_parameters().items():
        if value.squeeze().ndim == 2 and not value.any():
            value[...] = rng.standard_normal(value.shape, np.float32) * np.float32(0.5 / value.squeeze().shape[1] ** 0.5)
    return model


def batch_of(config, rows, tokens=None):
    """(ids, targets) (rows, tokens), uniform over the vocabulary but its first entry."""
    ids = np.random.default_rng(0).integers(1, config.vocab_size, (rows, (tokens or config.ctx_len) + 1), np.int32)
    return ids[:, :-1].copy(), ids[:, 1:].copy()
