"""What the tests of hybrid models share."""

import numpy as np

from rwkvtune import RWKV, ModelConfig, create_byte_vocab_file
from rwkvtune.data.tokenizers import GenericTokenizer

TEXT = "".join(f"line {i}: the quick brown fox jumps over {i % 7} lazy dogs; " for i in range(60))
RECIPES = [["x070", "x070"], ["x070", "attention"], ["attention", "x060"]]


def byte_tokenizer(directory):
    path = directory / "vocab.txt"
    create_byte_vocab_file(str(path))
    return GenericTokenizer(str(path))


def small(layers=("x070", "x070"), seed=1, spread=0.2, **more):
    """A model in which every parameter matters."""
    sizes = dict(n_embd=64, vocab_size=257, ctx_len=64, head_size_a=32) | more
    model = RWKV(ModelConfig(model_type="x070", layers=list(layers), **sizes), seed=seed)
    rng = np.random.default_rng(seed)
    for value in model.named_parameters().values():
        value += spread * rng.standard_normal(value.shape) / np.sqrt(value.shape[-1] if value.ndim == 2 else 16)
    return model


def write_text(directory, name="train.txt", text=TEXT):
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return str(path)
