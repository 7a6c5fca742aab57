"""The trainer: steps, its state on the disk, numbers that are not finite."""

import math
import warnings

import numpy as np
import pytest

from rwkvtune import RWKV, FormatError, ModelConfig, Trainer, TrainingConfig, evaluate
from rwkvtune import trainer as trainer_module

V = 23


def new_trainer(seed=0, **changes):
    config = ModelConfig(model_type="x070", n_layer=2, n_embd=64, vocab_size=V, ctx_len=16, head_size_a=32)
    return Trainer(RWKV(config, seed=seed), TrainingConfig(**{"precision": "fp32", "micro_bsz": 4, **changes}))


def batch(number, rows=8):
    ids = np.random.default_rng(number).integers(0, V, (rows, 17))
    return ids[:, :-1], ids[:, 1:]


def weights(trainer):
    return {name: value.copy() for name, value in trainer.model.named_parameters().items()}


def same(first, second):
    return all(np.array_equal(first[name], second[name]) for name in first)


def test_steps_learn():
    trainer = new_trainer()
    x, y = batch(0)
    results = [trainer.step(x, y, lr=3e-3) for _ in range(30)]
    assert all(isinstance(value, float) and math.isfinite(value) for pair in results for value in pair)
    assert results[0][0] == pytest.approx(math.log(V), abs=0.2)
    assert results[-1][0] < results[0][0] - 0.5
    assert (trainer.steps, trainer.applied_steps, trainer.tokens) == (30, 30, 30 * 8 * 16)


def test_loss_is_that_before_the_step_and_the_norm_that_before_clipping():
    trainer = new_trainer(l2wrap=False, grad_clip=0.01)
    x, y = batch(0)
    loss, grads = trainer.model.loss_and_grads(x, y)
    norm = math.sqrt(sum(float((value.astype(np.float64) ** 2).sum()) for value in grads.values()))
    result = trainer.step(x, y)
    assert result[0] == pytest.approx(loss, rel=1e-6) and result[1] == pytest.approx(norm, rel=1e-5)


def test_micro_batches_give_the_mean_over_all_targets():
    x, y = batch(1)
    y = y.copy()
    y[:3, 4:] = -100  # micro-batches with different numbers of targets
    one, many = new_trainer(micro_bsz=8), new_trainer(micro_bsz=3)
    assert many.step(x, y) == pytest.approx(one.step(x, y), rel=1e-5)
    for name, value in one.model.named_parameters().items():
        assert np.allclose(value, many.model.named_parameters()[name], atol=2e-3), name


def test_learning_rate_zero_changes_nothing():
    trainer = new_trainer()
    before = weights(trainer)
    trainer.step(*batch(0), lr=0.0)
    assert same(before, weights(trainer))


def test_save_and_resume_is_bit_exact(tmp_path):
    straight = new_trainer()
    for number in range(4):
        straight.step(*batch(number), lr=1e-3)
    straight.position = {"anything": [1, "two", {"three": 3.5}]}
    straight.save(tmp_path / "state")
    resumed = Trainer.resume(tmp_path / "state")
    assert (resumed.steps, resumed.tokens, resumed.applied_steps, resumed.position) == (
        4,
        4 * 128,
        4,
        straight.position,
    )
    assert resumed.config == straight.config and resumed.model.config.to_dict() == straight.model.config.to_dict()
    for number in range(4, 8):
        assert straight.step(*batch(number), lr=1e-3) == resumed.step(*batch(number), lr=1e-3)
    assert same(weights(straight), weights(resumed))
    moments = [trainer._core.moments() for trainer in (straight, resumed)]
    assert all(same(moments[0][kind], moments[1][kind]) for kind in (0, 1))


def test_resume_refuses_what_is_no_state(tmp_path):
    trainer = new_trainer()
    trainer.model.save(tmp_path / "weights.pth")
    with pytest.raises(FormatError, match="weights.pth.*RWKV.load"):
        Trainer.resume(tmp_path / "weights.pth")
    (tmp_path / "junk").write_bytes(b"junk" * 100)
    with pytest.raises(FormatError, match="junk"):
        Trainer.resume(tmp_path / "junk")
    with pytest.raises(FileNotFoundError):
        Trainer.resume(tmp_path / "nowhere")
    trainer.save(tmp_path / "state")
    whole = (tmp_path / "state").read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError):
        Trainer.resume(tmp_path / "half")


def test_steps_that_are_not_finite_are_skipped_and_named():
    trainer = new_trainer()
    trainer.step(*batch(0))
    view = trainer.model.named_parameters()["blocks.1.ffn.key.weight"]
    kept = view[0, 0]
    view[0, 0] = np.inf
    before = weights(trainer)
    for number in range(4):
        with pytest.warns(RuntimeWarning, match=f"step {number + 2} was skipped.*not finite"):
            trainer.step(*batch(0))
    assert same(before, weights(trainer)) and trainer.applied_steps == 1 and trainer.steps == 5
    with pytest.raises(FloatingPointError, match="5 such steps in a row.*lr_init.*backend='ref'"):
        trainer.step(*batch(0))
    view[0, 0] = kept
    loss, _ = trainer.step(*batch(0))
    assert math.isfinite(loss) and trainer.applied_steps == 2


def test_a_good_step_forgets_the_bad_ones():
    trainer = new_trainer()
    view = trainer.model.named_parameters()["head.weight"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            for _ in range(4):
                kept, view[1, 1] = float(view[1, 1]), np.nan
                trainer.step(*batch(0))
                view[1, 1] = kept
            trainer.step(*batch(0))
    assert trainer.applied_steps == 3


def test_narrow_precision_is_said_once(monkeypatch, capsys):
    monkeypatch.setattr(trainer_module, "_said", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is the default, so this is information
        new_trainer(precision="bf16")
        assert "bf16" in (said := capsys.readouterr().err) and "float32" in said and said.count("\n") == 1
        new_trainer(precision="bf16")
        new_trainer(precision="fp32")
    assert capsys.readouterr().err == ""


def test_state_tuning_trains_the_initial_states_only(tmp_path):
    config = ModelConfig(model_type="x070", n_layer=2, n_embd=64, vocab_size=V, head_size_a=32, time_state=True)
    trainer = Trainer(RWKV(config), TrainingConfig(precision="fp32", train_type="states"))
    for name, value in trainer.model.named_parameters().items():
        if "time_state" not in name:
            value += 0.1 * np.random.default_rng(len(name)).standard_normal(value.shape, np.float32)
    before = weights(trainer)
    for _ in range(2):
        trainer.step(*batch(0), lr=1e-2)
    changed = {name for name, value in weights(trainer).items() if not np.array_equal(value, before[name])}
    assert changed == {f"blocks.{layer}.att.time_state" for layer in range(2)}
    trainer.model.save(tmp_path / "m.pth")
    assert RWKV.load(tmp_path / "m.pth").config.time_state
    with pytest.raises(ValueError, match="time_state=True"):
        new_trainer(train_type="states")


def test_wrong_arguments():
    with pytest.raises(ValueError, match="must be an RWKV"):
        Trainer("model")
    trainer = new_trainer()
    x, y = batch(0)
    with pytest.raises(ValueError, match=rf"ids\[0, 0\] is {V}"):
        trainer.step(np.full_like(x, V), y)
    assert trainer.steps == 0


def test_evaluate_carries_the_state():
    model = new_trainer().model
    for value in model.named_parameters().values():
        value += 0.05 * np.random.default_rng(value.size).standard_normal(value.shape, np.float32)
    text = np.random.default_rng(9).integers(0, V, 200)
    loss, count = evaluate(model, text)
    assert count == 199 and loss == pytest.approx(model.loss(text[:-1], text[1:]), rel=1e-6)
    assert evaluate(model, text, chunk=7)[0] == pytest.approx(loss, rel=1e-5)
    tail, tail_count = evaluate(model, text[50:], context=text[:50], chunk=64)
    targets = text[1:].copy()
    targets[:49] = -100
    assert tail_count == 150 and tail == pytest.approx(model.loss(text[:-1], targets), rel=1e-5)
    with pytest.raises(ValueError, match="two tokens"):
        evaluate(model, [1])
