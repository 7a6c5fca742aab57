"""Learning-rate schedules against series recorded from the reference trainers."""

import json
import math

import pytest

from rwkvtune.schedule import Schedule


def _schedule(config):
    names = ("lr_init", "lr_final", "warmup_steps", "ctx_len", "real_bsz", "epoch_begin", "epoch_steps", "epoch_count", "weight_decay",
             "weight_decay_final")  # fmt: skip
    return Schedule(
        exit_tokens=config["my_exit_tokens"],
        epoch_decay_begin=config["my_pile_edecay"],
        **{name: config[name] for name in names},
    )


def test_recorded_series(shared):
    series = json.loads((shared / "golden/dev/train/lr_schedules.json").read_text())
    rows = 0
    for name, case in series.items():
        schedule = _schedule(case["config"])
        for row in case["rows"]:
            values = dict(zip(case["columns"], row))
            step = values["global_step"]
            assert schedule.lr(step) == pytest.approx(values["lr"], rel=1e-12, abs=1e-18), (name, step)
            assert schedule.wd(step) == pytest.approx(values["wd"], rel=1e-12), (name, step)
            rows += 1
    assert rows > 100


def test_cosine_by_hand():
    schedule = Schedule(lr_init=1.0, lr_final=0.1, warmup_steps=0, exit_tokens=100, ctx_len=1, real_bsz=1)
    assert schedule.lr(0) == 1.0
    assert schedule.lr(50) == pytest.approx(0.55)
    assert schedule.lr(25) == pytest.approx(0.55 + 0.45 * math.cos(math.pi / 4))
    assert schedule.lr(100) == pytest.approx(0.1)
    assert schedule.lr(1000) == pytest.approx(0.1)
    assert not schedule.finished(99) and schedule.finished(100)


def test_warmup_starts_at_one_percent():
    schedule = Schedule(lr_init=1.0, lr_final=1.0, warmup_steps=10)
    assert schedule.lr(0) == pytest.approx(0.01)
    assert schedule.lr(5) == pytest.approx(0.01 + 0.99 / 2)
    assert schedule.lr(10) == 1.0


def test_schedule_without_length_does_not_divide_by_zero():
    assert Schedule(lr_init=1.0, lr_final=0.5, warmup_steps=10, exit_tokens=5).lr(20) == pytest.approx(0.5)
    assert Schedule(lr_init=0.0, lr_final=0.0, exit_tokens=5).lr(3) == 0.0
