"""What a step must not depend on: leftover gradients, which embeddings are known to be unused; and what it must not do: fault."""

import resource

import numpy as np
import pytest

from rwkvtune import RWKV, ModelConfig, Trainer, TrainingConfig

from test_trainer import same, weights

VERSIONS = ["x052", "x060", "x070"]


def new_trainer(version="x070", **changes):
    sizes = dict(n_layer=2, n_embd=64, vocab_size=300, ctx_len=16, head_size_a=32) | changes.pop("sizes", {})
    config = {"precision": "fp32", "micro_bsz": 2, "weight_decay": 0.1, **changes}
    return Trainer(RWKV(ModelConfig(model_type=version, **sizes), seed=3), TrainingConfig(**config))


def batch(number, low=0, high=300):
    ids = np.random.default_rng(number).integers(low, high, (4, 17))
    return ids[:, :-1], ids[:, 1:]


@pytest.mark.parametrize("version", VERSIONS)
def test_leftover_gradients_do_not_matter(version):
    clean, dirty = new_trainer(version), new_trainer(version)
    for value in dirty.model._core.gradients().values():
        value[...] = np.nan
    for number in range(3):
        assert clean.step(*batch(number)) == dirty.step(*batch(number))
    assert same(weights(clean), weights(dirty))


@pytest.mark.parametrize("weight_decay", [0, 0.1])
def test_knowing_which_embeddings_are_unused_changes_nothing(weight_decay):
    """Rows that are never used, that are used for a while, and that are used late."""
    sparse, dense = new_trainer(weight_decay=weight_decay), new_trainer(weight_decay=weight_decay)
    dense.model._core.gradients()  # others may write them now, so nothing is known of any row
    for number in range(8):
        x, y = batch(number, *((0, 120) if number < 3 else (80, 200)))
        assert sparse.step(x, y) == dense.step(x, y)
        if number == 5:
            sparse._core.moments()
    assert same(weights(sparse), weights(dense))
    for mine, theirs in zip(sparse._core.moments(), dense._core.moments()):
        assert same(mine, theirs)
    assert same(sparse.model._core.gradients(), dense.model._core.gradients())


def test_gradients_add_up_after_a_step():
    """A backward of its own between two steps starts from zeros, and the step after it does not see it."""
    stepped, disturbed = new_trainer(), new_trainer()
    for number in range(2):
        stepped.step(*batch(number))
        disturbed.step(*batch(number))
        loss, grads = disturbed.model.loss_and_grads(*batch(7))
        again, same_grads = disturbed.model.loss_and_grads(*batch(7))
        assert loss == again and same(grads, same_grads)
    assert same(weights(stepped), weights(disturbed))


def test_steps_touch_no_new_memory():
    trainer = new_trainer(sizes=dict(n_embd=256, ctx_len=64, vocab_size=2000))
    ids = np.random.default_rng(0).integers(0, 2000, (4, 65))
    x, y = np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])
    for _ in range(3):
        trainer.step(x, y)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        trainer.step(x, y)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 100  # Python's own; the activations of one step alone are 4000 pages
