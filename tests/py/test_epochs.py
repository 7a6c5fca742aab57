"""What num_epochs means, which checkpoints there are, and what the logs say."""

import ast
import csv
import os
import re
import shutil

import numpy as np
import pytest

from rwkvtune import DataConfig, IntegerTokenizer, ModelConfig, RWKVTrainingPipeline, Trainer, TrainingConfig
from rwkvtune.loop import BinIdxBatches

SMALL = ModelConfig(model_type="x070", n_layer=1, n_embd=32, ctx_len=16, head_size_a=32)
QUICK = TrainingConfig(precision="fp32", micro_bsz=4, lr_init=3e-3, lr_final=3e-4, warmup_steps=5, grad_cp=0)
DATA = np.random.default_rng(0).integers(0, 10, (30, 40))


def new(directory, training=QUICK, **options):
    return RWKVTrainingPipeline(directory, SMALL, training, tokenizer=IntegerTokenizer(9), **options)


def rows(pipe, name="loss.csv"):
    with open(pipe.output_dir / name, newline="") as file:
        return list(csv.DictReader(file))


def names(pipe):
    return [path.name[5:-4] for path in pipe.list_checkpoints()]


def test_an_epoch_is_one_pass_over_the_data(tmp_path, monkeypatch):
    """Every place of the data is seen as often as num_epochs says, up to what fills the last batch."""
    seen = []
    real = BinIdxBatches.__call__

    def call(self, step):
        ids, targets = real(self, step)
        seen.extend(row.tobytes() for row in ids)
        return ids, targets

    monkeypatch.setattr(BinIdxBatches, "__call__", call)
    pipe = new(tmp_path, data_config=DataConfig(n_epochs_duplication=1))
    result = pipe.train(DATA, num_epochs=np.int64(3))
    p = pipe.magic_prime
    assert 1230 // 16 - 6 <= p <= 1230 // 16 - 1 and result["steps"] == -(-3 * p // 4) and len(seen) == 4 * result["steps"]
    passes = [seen[epoch * p : (epoch + 1) * p] for epoch in range(3)]
    assert len(set(passes[0])) == p and all(sorted(one) == sorted(passes[0]) for one in passes)
    assert names(pipe) == ["init", "0", "1", "2", "final"]
    assert [row["step"] for row in rows(pipe)] == [str(n) for n in range(1, result["steps"] + 1)]


def test_learning_rate_spans_the_epochs_that_were_asked_for(tmp_path):
    pipe = new(tmp_path)
    steps = pipe.train(DATA, num_epochs=2)["steps"]
    lr = [float(row["lr"]) for row in rows(pipe)]
    assert lr[0] == pytest.approx(3e-3 * 0.01) and max(lr) == pytest.approx(3e-3, rel=0.01)
    assert 3e-4 <= lr[-1] < 3e-4 * 1.01 and len(lr) == steps and all(a >= b for a, b in zip(lr[5:], lr[6:]))
    pipe = RWKVTrainingPipeline(tmp_path)
    pipe.train(num_epochs=4, continue_training=True)
    longer = [float(row["lr"]) for row in rows(pipe)]
    assert longer[:steps] == lr and len(longer) == -(-4 * pipe.magic_prime // 4)
    half = 3e-3 * (0.55 + 0.45 * np.cos(np.pi * (steps - 5) / (len(longer) - 5)))
    assert longer[steps] == pytest.approx(half, rel=1e-6)  # on the curve of the longer run, without another warm-up


@pytest.mark.parametrize(("every", "kept"), [(1, ["0", "1", "2", "3"]), (2, ["0", "2", "3"]), (0, [])])
def test_which_epochs_are_kept(tmp_path, every, kept):
    pipe = new(tmp_path, QUICK.replace(epoch_save=every), data_config=DataConfig(n_epochs_duplication=1))
    pipe.train(DATA, num_epochs=4)
    assert names(pipe) == ["init", *kept, "final"]


def test_order_of_checkpoints(tmp_path):
    """By number and not by name; names that are not ours are passed over."""
    pipe = new(tmp_path)
    assert pipe.list_checkpoints() == [] and pipe.get_latest_checkpoint() is None
    for n, name in enumerate(("init", "9", "10", "foo", "2", "final", "1x", "-1")):
        path = tmp_path / "out" / f"rwkv-{name}.pth"
        path.write_bytes(b"")
        os.utime(path, ns=(n, n))
    assert names(pipe) == ["init", "2", "9", "10", "final"]
    os.utime(tmp_path / "out" / "rwkv-10.pth", ns=(99, 99))
    assert names(pipe) == ["init", "2", "9", "final", "10"] and pipe.get_latest_checkpoint().name == "rwkv-10.pth"


def test_final_weights_that_were_overtaken(tmp_path):
    """A longer run that stopped after its next epoch: by the steps in its state, whatever the times of the files say."""
    pipe = new(tmp_path / "a", data_config=DataConfig(n_epochs_duplication=1))
    pipe.train(DATA, num_epochs=1)
    per_pass = pipe.magic_prime / 4
    RWKVTrainingPipeline(tmp_path / "a").train(max_steps=int(2.5 * per_pass), continue_training=True)
    assert names(pipe) == ["init", "0", "1", "final"]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    longer = RWKVTrainingPipeline(tmp_path / "b")
    real = Trainer.save_weights
    try:  # stops when the final weights of the longer run are to be written

        def save(self, path, dtype=None):
            if path.name == "rwkv-final.pth":
                raise OSError("no space")
            real(self, path, dtype)

        Trainer.save_weights = save
        with pytest.raises(OSError, match="no space"):
            longer.train(num_epochs=3, continue_training=True)
    finally:
        Trainer.save_weights = real
    for path in (tmp_path / "b" / "out").iterdir():
        os.utime(path, ns=(5, 5))
    assert names(longer)[-2:] == ["final", "2"]
    assert longer.train(num_epochs=3, continue_training=True)["status"] == "finished" and names(longer)[-2:] == ["2", "final"]


def test_numbered_weights_go_on_at_their_epoch(tmp_path, capsys):
    """Without a state the optimizer is fresh, but samples, learning rate and numbers continue; no file is overwritten."""
    pipe = new(tmp_path, data_config=DataConfig(n_epochs_duplication=1))
    pipe.train(DATA, num_epochs=2)
    (pipe.output_dir / "trainer_state.pth").unlink()
    kept = {name: (pipe.output_dir / f"rwkv-{name}.pth").read_bytes() for name in ("0", "1")}
    capsys.readouterr()
    again = RWKVTrainingPipeline(tmp_path)
    result = again.train(num_epochs=3, continue_training=True)
    said = capsys.readouterr().out
    assert "going on after epoch 1 with the weights of rwkv-1.pth and a fresh optimizer" in said
    p = pipe.magic_prime
    assert result["steps"] == -(-3 * p // 4) and f"continuing after step {-(-2 * p // 4)}" in said
    assert {name: (pipe.output_dir / f"rwkv-{name}.pth").read_bytes() for name in kept} == kept
    assert names(again) == ["init", "0", "1", "2", "final"]
    last = rows(again)[-1]
    assert int(last["step"]) == result["steps"] and int(last["tokens"]) == 64 * result["steps"]


def test_what_is_said_at_the_start(tmp_path, capsys):
    pipe = new(tmp_path)
    pipe.train(DATA, num_epochs=1)
    said = capsys.readouterr().out
    assert "a pass sees each of the 30 documents 3 times (n_epochs_duplication=3)" in said
    assert f"{-(-pipe.magic_prime // 4)} steps of 4 x 16 tokens" in said and "lr 0.003 -> 0.0003" in said
    RWKVTrainingPipeline(tmp_path).train(num_epochs=1, continue_training=True)
    assert "nothing is left to do: num_epochs counts from the beginning of the run" in capsys.readouterr().out
    new(tmp_path / "b", data_config=DataConfig(n_epochs_duplication=1)).train(DATA, num_epochs=1)
    assert "n_epochs_duplication" not in capsys.readouterr().out


def test_logs_of_a_run_and_of_its_continuation(tmp_path, capsys):
    pipe = new(tmp_path, data_config=DataConfig(n_epochs_duplication=1))
    pipe.train(DATA, num_epochs=2)
    pipe = RWKVTrainingPipeline(tmp_path)
    pipe.train(num_epochs=4, continue_training=True)
    head = re.compile(r"NEW RUN \d{4}-\d\d-\d\d-\d\d-\d\d-\d\d")
    line = re.compile(r"(\d+) (\d+\.\d{6}) (\d+\.\d{4}) (\d\.\d{8}) \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6} (\d+)")
    lines = (pipe.output_dir / "train_log.txt").read_text().splitlines()
    assert [n for n, text in enumerate(lines) if head.fullmatch(text)] == [0, 4]
    arguments = ast.literal_eval(lines[1])
    assert (arguments["num_epochs"], arguments["lr_init"], arguments["n_layer"]) == (2, 3e-3, 1)
    epochs = [line.fullmatch(lines[n]).groups() for n in (2, 3, 6, 7)]
    assert [(epoch[0], epoch[4]) for epoch in epochs] == [("0", "0"), ("1", "1"), ("2", "0"), ("3", "1")]
    table, p = rows(pipe), pipe.magic_prime
    assert list(table[0]) == ["step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second"]
    for epoch, loss, perplexity, lr, _ in epochs:
        part = table[-(-int(epoch) * p // 4) : -(-(int(epoch) + 1) * p // 4)]
        assert float(loss) == pytest.approx(np.mean([float(row["loss"]) for row in part]), abs=1e-6)
        assert float(perplexity) == pytest.approx(np.exp(float(loss)), rel=1e-4) and float(lr) == pytest.approx(float(part[-1]["lr"]), abs=1e-8)
    bar = capsys.readouterr().err
    assert re.search(r"loss \d\.\d+, lr \d\.\d+e-\d+, [\d,]+ tok/s", bar) and "step/s" in bar


@pytest.mark.parametrize("strategy", ["auto", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_3"])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_settings_for_other_machines_are_accepted(tmp_path, strategy, precision):
    """And change no number."""
    config = QUICK.replace(strategy=strategy, precision=precision)
    pipe = RWKVTrainingPipeline(tmp_path / "a", SMALL, config, tokenizer=IntegerTokenizer(9))
    pipe.train(DATA, max_steps=2)
    new(tmp_path / "b").train(DATA, max_steps=2)
    one, two = ((tmp_path / name / "out" / "rwkv-final.pth").read_bytes() for name in "ab")
    assert one == two
