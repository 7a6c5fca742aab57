"""Own learning rates and weight decays by parameter name, and steps in chunks."""

import json
import math

import numpy as np
import pytest
from helpers import small_model, some_ids

from rwkvtune import FormatError, Trainer, TrainingConfig
from rwkvtune.checkpoint import read_pth, write_pth

LR, EPS = 1e-2, 1e-18


def trainer_of(**changes):
    return Trainer(small_model(), TrainingConfig(**{"precision": "fp32", "micro_bsz": 2, "grad_cp": 0, **changes}))


def batch(seed=0, rows=2, length=24):
    ids = some_ids(rows, length + 1, seed=seed)
    return ids[:, :-1], ids[:, 1:]


def copies(model):
    return {name: value.astype(np.float64) for name, value in model.named_parameters().items()}


def test_first_step_is_adamw_with_each_parameters_own_numbers():
    """After one step m/(1-b1) = g and v/(1-b2) = g^2, so p' = p - lr (g/(|g| + eps) + wd p): sign(g) where g is not 0."""
    trainer = trainer_of(weight_decay=0.25, l2wrap=False)
    names = list(trainer.model.named_parameters())
    first, second = names[::3], names[1::3]
    rest_before = {name: rule for name, rule in trainer.parameter_rules.items() if name not in (*first, *second)}
    trainer.set_parameter_groups(
        [
            {"params": first, "lr_scale": 1.8, "weight_decay": 0.125},
            {"params": second, "lr_scale": 0.5, "weight_decay": None},
        ]
    )
    assert {name: trainer.parameter_rules[name] for name in rest_before} == rest_before
    before, (x, y) = copies(trainer.model), batch()
    _, gradients = trainer.model.loss_and_grads(x, y)
    trainer.step(x, y, lr=LR)
    after = copies(trainer.model)
    for name in names:
        scale, decay = trainer.parameter_rules[name]
        decay = 0.25 if decay is None else decay
        want = before[name] - LR * scale * (np.sign(gradients[name]) + decay * before[name])
        # float32: rounding of p and of the quotient, each at most 2^-23 of its own size, four operations
        assert np.allclose(after[name], want, rtol=0, atol=4 * 2.0**-23 * (np.abs(before[name]).max() + LR * scale)), (
            name
        )
    assert trainer.parameter_rules[first[0]] == (1.8, 0.125) and trainer.parameter_rules[second[0]] == (0.5, None)


def test_rules_of_a_fresh_trainer_are_those_of_the_manifest():
    trainer = trainer_of()
    for row in trainer.model._core.manifest():
        assert trainer.parameter_rules[row["name"]] == (row["lr_scale"], None if row["decay"] else 0.0)


def test_groups_keep_the_moments_and_are_restored(tmp_path):
    trainer = trainer_of()
    for seed in range(3):
        trainer.step(*batch(seed), lr=LR)
    moments = [{name: value.copy() for name, value in kind.items()} for kind in trainer._core.moments()]
    trainer.set_parameter_groups([{"params": ["emb.weight", "blocks.0.att.w0"], "lr_scale": 0.25, "weight_decay": 0.5}])
    for before, now in zip(moments, trainer._core.moments()):
        assert all(np.array_equal(before[name], now[name]) for name in before)
    trainer.save(tmp_path / "state")
    resumed = Trainer.resume(tmp_path / "state")
    assert resumed.parameter_rules == trainer.parameter_rules
    assert resumed.step(*batch(7), lr=LR) == trainer.step(*batch(7), lr=LR)
    ours, theirs = copies(trainer.model), copies(resumed.model)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "group, words",
    [
        ({"params": ["nowhere"]}, "no parameter 'nowhere'"),
        ({"params": ["emb.weight", "emb.weight"]}, "'emb.weight' is in two groups"),
        ({"params": ["emb.weight"], "lr_scale": -1}, "lr_scale is -1"),
        ({"params": ["emb.weight"], "lr_scale": float("nan")}, "lr_scale is nan"),
        ({"params": ["emb.weight"], "lr_scale": None}, "lr_scale is None"),
        ({"params": ["emb.weight"], "weight_decay": float("inf")}, "weight_decay is inf"),
        ({"params": ["emb.weight"], "weight_decay": "much"}, "weight_decay is 'much'"),
        ({"params": ["emb.weight"], "lr": 1e-3}, "keys"),
        ({"lr_scale": 1.0}, "keys"),
    ],
)
def test_wrong_groups_change_nothing(group, words):
    trainer = trainer_of()
    before = trainer.parameter_rules
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        trainer.set_parameter_groups([{"params": ["head.weight"], "lr_scale": 3.0}, group])
    assert trainer.parameter_rules == before


@pytest.mark.parametrize(
    "rules", [{"nowhere": [1.0, None]}, {"emb.weight": [-1.0, None]}, {"emb.weight": []}, {"emb.weight": 3}, []]
)
def test_a_state_with_wrong_rules_is_refused(tmp_path, rules):
    trainer = trainer_of()
    trainer.save(tmp_path / "state")
    tensors = dict(read_pth(tmp_path / "state"))
    about = json.loads(tensors["about"].numpy().tobytes()) | {"rules": rules}
    tensors["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    write_pth(tmp_path / "wrong", tensors)
    with pytest.raises(FormatError, match="wrong"):
        Trainer.resume(tmp_path / "wrong")


def test_one_chunk_is_a_plain_step():
    one, other = trainer_of(), trainer_of()
    x, y = batch()
    loss, norm, _ = one.step_chunked(x, y, chunk_size=24, lr=LR)
    assert (loss, norm) == other.step(x, y, lr=LR)
    ours, theirs = copies(one.model), copies(other.model)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert (one.steps, one.applied_steps, one.tokens) == (1, 1, 48)


@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_chunks_give_the_gradient_cut_at_their_beginnings(chunk):
    """One step with beta = 0 and a huge eps moves p by -lr g/eps, so the applied gradient can be read off."""
    trainer = Trainer(small_model(), TrainingConfig(precision="fp32", beta1=0, beta2=0, adam_eps=1e4, weight_decay=0,
                                                   grad_clip=0, l2wrap=False, grad_cp=0))  # fmt: skip
    x, y = batch()
    y = y.copy()
    y[0, 3:9] = -100
    trainer.model.set_chunk_size(chunk)
    want_loss, want = trainer.model.loss_and_grads(x, y, chunked="truncated")
    before = copies(trainer.model)
    rules, lr = trainer.parameter_rules, 1e4
    loss, norm, state = trainer.step_chunked(x, y, chunk, lr=lr)
    assert loss == pytest.approx(want_loss, rel=1e-6)
    assert norm == pytest.approx(
        math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in want.values())), rel=1e-5
    )
    for name, value in copies(trainer.model).items():
        step = (before[name] - value) / rules[name][0]
        tolerance = 2.0**-22 * np.abs(before[name]).max() + 1e-4 * np.abs(want[name]).max() + 1e-7
        assert np.allclose(step, want[name], rtol=0, atol=tolerance), name
    reference = small_model().process_with_state(x)[1].to_numpy()
    for name, value in state.to_numpy().items():
        assert np.allclose(value, reference[name], atol=1e-4), name


def test_the_state_is_carried_from_step_to_step():
    first, second = trainer_of(), trainer_of()
    ids = some_ids(2, 49)
    x, y = ids[:, :-1], ids[:, 1:]
    whole, _, _ = first.step_chunked(x, y, 24, lr=0.0)
    a, _, state = second.step_chunked(x[:, :24], y[:, :24], 24, lr=0.0)
    b, _, _ = second.step_chunked(x[:, 24:], y[:, 24:], 24, state=state, lr=0.0)
    forgotten, _, _ = second.step_chunked(x[:, 24:], y[:, 24:], 24, lr=0.0)
    assert (a + b) / 2 == pytest.approx(whole, rel=1e-6)
    assert abs(forgotten - b) > 1e-4


def test_memory_of_a_chunked_step_is_that_of_a_chunk():
    long = small_model(), small_model()
    x, y = batch(length=512)
    Trainer(long[0], TrainingConfig(precision="fp32", grad_cp=0)).step_chunked(x, y, 32)
    Trainer(long[1], TrainingConfig(precision="fp32", grad_cp=0)).step(x, y)
    chunked, plain = (model._core.allocated()["activations"] for model in long)
    assert chunked <= plain / 8


def test_bad_chunk_sizes():
    with pytest.raises(ValueError, match="chunk_size is 0"):
        trainer_of().step_chunked(*batch(), chunk_size=0)


def test_description_of_a_model_without_making_it():
    model = small_model()
    assert type(model._core).describe(model.config.to_core_dict()) == model._core.manifest()
    with pytest.raises(ValueError, match="lacks"):
        type(model._core).describe({})
