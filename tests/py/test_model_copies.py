"""Copies of a model, and a model sent to another process, are models of their own."""

import copy
import pickle

import numpy as np
import pytest
from helpers import assert_same_bits, small_model, some_ids

from rwkvtune import RWKV, ModelConfig

WAYS = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}


@pytest.mark.parametrize("way", WAYS)
def test_copy_gives_the_same_and_is_independent(way):
    model = small_model()
    model.set_chunk_size(5)
    _, model.state = model.process_with_state([1, 2, 3])
    other = WAYS[way](model)
    ids = some_ids(2, 9)
    assert_same_bits(other(ids).logits, model(ids).logits, "logits")
    assert_same_bits(other.forward_chunked(ids).logits, model.forward_chunked(ids).logits, "in chunks")
    assert_same_bits(other.process_with_state([4], other.state)[0], model.process_with_state([4], model.state)[0], "state")
    assert other.config == model.config and other._chunk_size == 5
    before = model(ids).logits
    for value in other.named_parameters().values():
        value += 1
    other.config.ctx_len = 7
    assert_same_bits(model(ids).logits, before, "the original")
    assert model.config.ctx_len == 64


def test_precision_and_backend_are_kept():
    model = RWKV(ModelConfig(model_type="x070", n_layer=1, n_embd=32, vocab_size=9, head_size_a=32), backend="ref", precision="fp64")
    other = copy.deepcopy(model)
    assert (other.backend, other.precision) == ("ref", "fp64")
    assert all(value.dtype == np.float64 for value in other.named_parameters().values())
