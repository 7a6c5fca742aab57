"""Callbacks of a training run: what they are told, TensorBoard's files read back, what Weights & Biases is sent."""

import csv
import os
import re
import subprocess
import sys
import types

import numpy as np
import pytest

from rwkvtune import Callback, DataConfig, IntegerTokenizer, ModelConfig, RWKVTrainingPipeline, TrainingConfig
from rwkvtune.cli import main


def pipeline(place, **more):
    return RWKVTrainingPipeline(
        place, ModelConfig(model_type="x070", n_layer=1, n_embd=32, head_size_a=32, ctx_len=8),
        TrainingConfig(precision="fp32", micro_bsz=4, eval_every_steps=3, weight_decay=0.1), DataConfig(n_epochs_duplication=1, val_fraction=0.2),
        IntegerTokenizer(9), **more,
    )  # fmt: skip


def numbers():
    return np.random.default_rng(0).integers(0, 10, (20, 16))


def rows(place, name):
    with open(place / "out" / name, newline="") as file:
        return list(csv.DictReader(file))


class Recorder(Callback):
    def __init__(self):
        self.begun, self.steps, self.validations, self.ends = [], [], [], 0

    def on_begin(self, run):
        self.begun.append((run.out.name, run.trainer.steps, run.arguments["ctx_len"]))

    def on_step(self, step, values):
        self.steps.append((step, values))

    def on_validation(self, step, loss):
        self.validations.append((step, loss))

    def on_end(self):
        self.ends += 1


def test_what_a_callback_is_told(tmp_path):
    recorder, pipe = Recorder(), pipeline(tmp_path)
    pipe.train(numbers(), max_steps=7, callbacks=[recorder, Callback()])
    assert recorder.begun == [("out", 0, 8)] and recorder.ends == 1
    written = rows(tmp_path, "loss.csv")
    assert [step for step, _ in recorder.steps] == [int(row["step"]) for row in written] == list(range(1, 8))
    for (_, values), row in zip(recorder.steps, written):
        assert all(values[name] == float(row[name]) for name in ("loss", "lr", "grad_norm", "tokens"))
        assert values["wd"] == 0.1 and round(values["tokens_per_second"], 1) == float(row["tokens_per_second"])
    assert recorder.validations == [(int(row["step"]), float(row["loss"])) for row in rows(tmp_path, "val.csv")]
    assert [step for step, _ in recorder.validations] == [3, 6, 7]


def test_an_error_in_a_callback_ends_the_run(tmp_path):
    class Stop(Recorder):
        def on_step(self, step, values):
            raise ValueError("that is enough")

    stop, other = Stop(), Recorder()
    with pytest.raises(ValueError, match="that is enough"):
        pipeline(tmp_path).train(numbers(), max_steps=7, callbacks=[stop, other])
    assert stop.ends == other.ends == 1
    again = Recorder()
    assert pipeline(tmp_path).train(max_steps=7, continue_training=True, callbacks=[again])["status"] == "finished"
    assert [step for step, _ in again.steps][-1] == 7


def test_tensorboard(tmp_path):
    """Every number, read back by TensorBoard's own reader; after a resume each step is there once."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from rwkvtune import TensorBoardCallback

    pipe = pipeline(tmp_path)
    pipe.train(numbers(), max_steps=7, callbacks=[TensorBoardCallback()])
    pipe.train(max_steps=9, continue_training=True, callbacks=[TensorBoardCallback()])
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "lr", "wd", "grad_norm", "tokens_per_second", "val_loss"}
    for name, file, column in (("loss", "loss.csv", "loss"), ("lr", "loss.csv", "lr"), ("val_loss", "val.csv", "loss")):
        read = [(event.step, event.value) for event in events.Scalars(name)]
        assert read == [(int(row["step"]), np.float32(row[column])) for row in rows(tmp_path, file)], name


def test_tensorboard_forgets_steps_that_come_again(tmp_path):
    """A kill after step 5 whose last saved state is that of step 3: steps 4 and 5 are made twice."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from rwkvtune import TensorBoardCallback

    for done, steps in ((0, range(1, 6)), (3, range(4, 7))):
        callback = TensorBoardCallback(tmp_path)
        callback.on_begin(types.SimpleNamespace(trainer=types.SimpleNamespace(steps=done)))
        for step in steps:
            callback.on_step(step, {"loss": 100.0 * done + step, "tokens": 1})
        callback.on_end()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 3), (4, 304), (5, 305), (6, 306)]


@pytest.fixture
def stand_in(monkeypatch):
    """A module in the place of wandb that records what it is told."""
    calls = []

    class Run:
        def log(self, values, step):
            calls.append(("log", step, values))

        def finish(self):
            calls.append(("finish",))

    def init(**options):
        calls.append(("init", options))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return calls


def test_wandb_is_sent_the_names_of_rwkv_lm(tmp_path, stand_in):
    """S3-39e: the run's name; S3-50: loss, lr, wd, Gtokens, kt/s by real step"""
    pipe = pipeline(tmp_path, wandb_project="my project")
    pipe.train(numbers(), max_steps=3)
    (kind, options), *logs, last = stand_in
    assert kind == "init" and options["project"] == "my project" and last == ("finish",)
    assert re.fullmatch(r"11 ctx8 L1 D32 \d{4}-\d\d-\d\d-\d\d-\d\d-\d\d", options["name"])
    assert options["config"]["lr_init"] == 6e-4 and options["dir"] == str(tmp_path / "out")
    training = [(step, values) for _, step, values in logs if "loss" in values]
    assert [step for step, _ in training] == [1, 2, 3]
    for (_, values), row in zip(training, rows(tmp_path, "loss.csv")):
        assert values == {"loss": float(row["loss"]), "lr": float(row["lr"]), "wd": 0.1, "Gtokens": int(row["tokens"]) / 1e9,
                          "kt/s": pytest.approx(float(row["tokens_per_second"]) / 1e3, abs=1e-4)}  # fmt: skip
    assert [(step, values) for _, step, values in logs if "loss" not in values] == [(3, {"val_loss": float(rows(tmp_path, "val.csv")[0]["loss"])})]


@pytest.fixture
def train_argv(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("n.npy", numbers())
    assert main(["prepare", "n.npy", "train", "--tokenizer", "integer:9"]) == 0
    capsys.readouterr()
    return ["train", "--data_file", "train", "--vocab_size", "11", "--n_layer", "1", "--n_embd", "32", "--head_size", "32", "--ctx_len", "8",
            "--micro_bsz", "4", "--my_exit_tokens", "128"]  # fmt: skip


def test_flags_of_the_command(tmp_path, train_argv, stand_in, capsys):
    pytest.importorskip("tensorboard")
    assert main([*train_argv, "--wandb", "p", "--tensorboard"]) == 0
    assert "without effect" not in capsys.readouterr().err
    assert [call[1] for call in stand_in if call[0] == "log"] == [1, 2, 3, 4]
    assert len(list((tmp_path / "out" / "tensorboard").iterdir())) == 1


def test_wandb_that_refuses(train_argv, monkeypatch, capsys):
    class Refusal(Exception):
        pass

    def init(**options):
        raise Refusal("api_key not configured")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    assert main([*train_argv, "--wandb", "p"]) == 2
    error = capsys.readouterr().err
    assert "api_key not configured; WANDB_MODE=offline" in error and error.count("\n") == 1
    assert main(train_argv) == 0  # nothing stands in the way of the same run without it


@pytest.mark.parametrize("flag, package", [(["--wandb", "p"], "wandb"), (["--tensorboard"], "tensorboard")])
def test_not_installed(tmp_path, train_argv, monkeypatch, capsys, flag, package):
    """One line, and nothing is written."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main([*train_argv, *flag]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"pip install {package}" in error and not (tmp_path / "out").exists()


def test_wandb_itself(tmp_path, train_argv):
    """Where wandb is installed: a run that stays on this machine."""
    pytest.importorskip("wandb")
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    done = subprocess.run([sys.executable, "-m", "rwkvtune", *train_argv, "--wandb", "p"], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "out" / "wandb").glob("offline-run-*")
    assert any(path.suffix == ".wandb" and path.stat().st_size > 500 for path in run.iterdir())
