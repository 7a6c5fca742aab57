"""The pipeline: its directory, its configuration, its checkpoints, and what it refuses."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from rwkvtune import (RWKV, AngleTokenizer, BinIdxDataset, DataConfig, FormatError, GenericTokenizer, IntegerTokenizer, ModelConfig,
                      RWKVTrainingPipeline, TrainingConfig, create_vocab_file_from_tokens)  # fmt: skip
from rwkvtune.lock import RunLock
from rwkvtune.pipeline import text_documents

SMALL = ModelConfig(model_type="x070", n_layer=1, n_embd=32, ctx_len=16, head_size_a=32)
QUICK = TrainingConfig(precision="fp32", micro_bsz=4, lr_init=3e-3, grad_cp=0)
DATA = np.random.default_rng(0).integers(0, 10, (30, 40))


def new(directory, tokenizer=None, **options):
    options = {"model_config": SMALL, "training_config": QUICK, **options}
    return RWKVTrainingPipeline(directory, tokenizer=tokenizer or IntegerTokenizer(9), **options)


def test_documented_example_in_small(tmp_path):
    pipe = RWKVTrainingPipeline(
        work_dir=str(tmp_path / "run"), model_config=ModelConfig(model_type="x070", n_layer=3, n_embd=64, vocab_size=1001, ctx_len=32),
        training_config=QUICK, tokenizer=IntegerTokenizer(max_value=999),
    )  # fmt: skip
    result = pipe.train(np.random.default_rng(0).integers(0, 1000, (20, 64)), num_epochs=2)
    out = tmp_path / "run" / "out"
    for name in (
        "rwkv-init.pth",
        "rwkv-0.pth",
        "rwkv-1.pth",
        "rwkv-final.pth",
        "train_log.txt",
        "loss.csv",
        "trainer_state.pth",
    ):
        assert (out / name).exists(), name
    for name in ("train.jsonl", "train.bin", "train.idx", "vocab.txt"):
        assert (tmp_path / "run" / "data" / name).exists(), name
    assert result["status"] == "finished" and result["checkpoint"] == out / "rwkv-final.pth"
    assert pipe.my_exit_tokens == 3 * 20 * 65
    assert result["steps"] == -(-2 * pipe.magic_prime // 4)
    assert RWKV.load(out / "rwkv-final.pth").config.vocab_size == 1001
    assert [path.name for path in pipe.list_checkpoints()] == [
        "rwkv-init.pth",
        "rwkv-0.pth",
        "rwkv-1.pth",
        "rwkv-final.pth",
    ]


def test_training_learns_and_logs(tmp_path):
    pattern = np.tile(np.arange(10), (30, 4))
    pipe = new(tmp_path)
    pipe.train(pattern, num_epochs=3)
    with open(pipe.output_dir / "loss.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second"]
    assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])
    assert int(rows[-1]["tokens"]) == 64 * len(rows)
    lines = (pipe.output_dir / "train_log.txt").read_text().splitlines()
    assert lines[0].startswith("NEW RUN 2") and lines[1].startswith("{") and len(lines) == 5
    number, loss, perplexity, lr, day, clock, inside = lines[2].split()
    assert (number, inside) == ("0", "0") and float(perplexity) == pytest.approx(np.exp(float(loss)), rel=1e-3)
    assert len(lr.split(".")[1]) == 8 and len(day.split("-")) == 3 and "." in clock
    first_epoch = [float(row["loss"]) for row in rows[: -(-pipe.magic_prime // 4)]]
    assert float(loss) == pytest.approx(np.mean(first_epoch), abs=1e-6)


def test_nothing_given_is_changed(tmp_path):
    model, training, data = SMALL.replace(), QUICK.replace(), DataConfig()
    before = [config.to_dict() for config in (model, training, data)]
    pipe = RWKVTrainingPipeline(tmp_path, model, training, data, IntegerTokenizer(9))
    assert pipe.model_config.vocab_size == 11 and model.vocab_size == 361
    pipe.train(DATA, num_epochs=1)
    assert [config.to_dict() for config in (model, training, data)] == before


def test_vocabulary_size(tmp_path):
    assert new(tmp_path / "a").model_config.vocab_size == 11
    assert new(tmp_path / "b", model_config=SMALL.replace(vocab_size=64)).model_config.vocab_size == 64
    assert new(tmp_path / "c", model_config=SMALL.replace(vocab_size=5)).model_config.vocab_size == 11
    assert RWKVTrainingPipeline(tmp_path / "d").model_config.vocab_size == 361


def test_reopening_reads_the_configuration_and_the_data(tmp_path, capsys):
    pipe = new(tmp_path, tokenizer=AngleTokenizer(), data_config=DataConfig(n_epochs_duplication=2))
    pipe.prepare_data(DATA)
    again = RWKVTrainingPipeline(tmp_path)
    assert again.data_prepared and again.magic_prime == pipe.magic_prime and type(again.tokenizer) is AngleTokenizer
    assert (again.model_config, again.training_config, again.data_config) == (
        pipe.model_config,
        pipe.training_config,
        pipe.data_config,
    )
    capsys.readouterr()
    changed = RWKVTrainingPipeline(tmp_path, training_config=QUICK.replace(lr_init=1e-3))
    assert "lr_init: 0.003 -> 0.001" in capsys.readouterr().out and changed.training_config.lr_init == 1e-3
    stored = json.loads((tmp_path / "configs" / "config.json").read_text())
    assert stored["training"]["lr_init"] == 1e-3 and stored["vocab_size"] == 361
    assert {"model_type", "n_layer", "n_embd", "ctx_len", "vocab_size", "head_size_a"} <= set(stored["model"])


def test_damaged_configuration(tmp_path):
    new(tmp_path)
    path = tmp_path / "configs" / "config.json"
    path.write_text("{")
    with pytest.raises(FormatError, match="config.json"):
        RWKVTrainingPipeline(tmp_path)
    path.write_text('{"training": {"lr": 1}}')
    with pytest.raises(FormatError, match="config.json.*'lr'"):
        RWKVTrainingPipeline(tmp_path)


def test_own_vocabulary_survives_reopening(tmp_path):
    create_vocab_file_from_tokens(["hello", "world", "foo", "bar", " "], str(tmp_path / "v.txt"))
    pipe = new(tmp_path / "run", tokenizer=GenericTokenizer(str(tmp_path / "v.txt")))
    (tmp_path / "d.jsonl").write_text('{"text": "hello world foo bar"}\n' * 30)
    result = pipe.prepare_data_from_jsonl(tmp_path / "d.jsonl")
    assert result["num_sequences"] == 90 and result["total_tokens"] == 90 * 8
    again = RWKVTrainingPipeline(tmp_path / "run")
    assert again.tokenizer.encode("foo hello") == pipe.tokenizer.encode("foo hello")
    with BinIdxDataset(str(result["binidx_prefix"])) as dataset:
        assert dataset.get(0).tolist() == [1, 5, 2, 5, 3, 5, 4, 0]


def test_prepare_from_files(tmp_path):
    np.save(tmp_path / "d.npy", DATA)
    pipe = new(tmp_path / "run")
    assert pipe.prepare_data_from_file(tmp_path / "d.npy")["num_sequences"] == 90
    np.save(tmp_path / "o.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(FormatError, match="o.npy"):
        pipe.prepare_data_from_file(tmp_path / "o.npy")
    with pytest.raises(FileNotFoundError, match="JSONL file not found: .*nowhere"):
        pipe.prepare_data_from_jsonl(tmp_path / "nowhere.jsonl")
    own = pipe.data_dir / "train.jsonl"
    assert pipe.prepare_data_from_jsonl(own, n_epochs=1)["num_sequences"] == 30


def test_held_out_documents(tmp_path):
    pipe = new(tmp_path, data_config=DataConfig(n_epochs_duplication=1, val_fraction=0.2))
    pipe.train(DATA, num_epochs=1)
    with BinIdxDataset(str(tmp_path / "data" / "val")) as dataset:
        assert dataset.num_items == 6 and (dataset.get(0)[:40] == DATA[24] + 1).all()
    assert (tmp_path / "out" / "val.csv").read_text().splitlines()[0] == "step,loss"
    with pytest.raises(ValueError, match="val_fraction"):
        new(tmp_path / "x", data_config=DataConfig(val_fraction=0.99)).prepare_data(DATA[:2])


def test_text_documents():
    text = "one\ntwo\n\nthree\n \n\nfour\n"
    assert text_documents(text) == ["one\ntwo", "three", "four"]
    assert text_documents(text, 14) == ["one\ntwo\n\nthree", "four"]
    assert text_documents("\n\n") == []


def test_order_of_calls(tmp_path):
    pipe = new(tmp_path)
    assert (
        not pipe.data_prepared
        and not pipe.model_initialized
        and pipe.magic_prime is None
        and pipe.get_latest_checkpoint() is None
    )
    with pytest.raises(RuntimeError, match="Data must be prepared before model initialization"):
        pipe.initialize_model()
    with pytest.raises(RuntimeError, match=r"Either provide data or call prepare_data\(\) first"):
        pipe.train()
    pipe.prepare_data(DATA)
    path = pipe.initialize_model()
    kept = path.read_bytes()
    assert pipe.model_initialized and pipe.initialize_model() == path and path.read_bytes() == kept
    with pytest.raises(RuntimeError, match="Prepared dataset is empty"):
        pipe.prepare_data(np.zeros((0, 4), int))
    with pytest.raises(ValueError, match="num_epochs"):
        pipe.train(num_epochs=0)


def test_too_little_data_for_the_context(tmp_path):
    pipe = new(tmp_path, model_config=SMALL.replace(ctx_len=4096))
    with pytest.raises(ValueError, match=r"Dataset too small for ctx_len=4096: total_tokens=3690"):
        pipe.train(DATA)


def test_a_run_that_is_there_is_not_picked_up_silently(tmp_path):
    pipe = new(tmp_path)
    pipe.train(DATA, num_epochs=1)
    with pytest.raises(RuntimeError, match=r"holds a run at step \d+; continue_training=True"):
        RWKVTrainingPipeline(tmp_path).train(num_epochs=2)


def test_lost_final_weights_come_back(tmp_path):
    pipe = new(tmp_path)
    final = pipe.train(DATA, num_epochs=1)["checkpoint"]
    kept = final.read_bytes()
    final.unlink()
    RWKVTrainingPipeline(tmp_path).train(num_epochs=1, continue_training=True)
    assert final.read_bytes() == kept


def test_numbered_weights_alone_can_be_continued(tmp_path):
    pipe = new(tmp_path)
    pipe.train(DATA, num_epochs=1)
    (pipe.output_dir / "trainer_state.pth").unlink()
    with pytest.raises(RuntimeError, match="rwkv-0.pth"):
        RWKVTrainingPipeline(tmp_path).train(num_epochs=1)
    assert RWKVTrainingPipeline(tmp_path).train(num_epochs=1, continue_training=True)["status"] == "finished"


def test_settings_a_run_cannot_change(tmp_path):
    new(tmp_path).train(DATA, num_epochs=1)
    for change in ({"micro_bsz": 8}, {"beta1": 0.5}, {"grad_clip": 2.0}):
        with pytest.raises(ValueError, match=f"{next(iter(change))}.*cannot change"):
            RWKVTrainingPipeline(tmp_path, training_config=QUICK.replace(**change)).train(
                num_epochs=2, continue_training=True
            )


def test_from_another_checkpoint(tmp_path):
    RWKV(SMALL.replace(n_layer=2, vocab_size=30), seed=7).save(tmp_path / "other.pth", dtype="bf16")
    pipe = new(tmp_path / "run")
    with pytest.raises(RuntimeError, match="Data must be prepared"):
        pipe.train_from_checkpoint(tmp_path / "other.pth")
    pipe.prepare_data(DATA)
    with pytest.raises(FileNotFoundError, match="Checkpoint not found"):
        pipe.train_from_checkpoint(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="unknown key 'lr'"):
        pipe.train_from_checkpoint(tmp_path / "other.pth", override_config={"lr": 1})
    overrides = {"ctx_len": 8, "lr_init": 1e-3}
    assert pipe.train_from_checkpoint(tmp_path / "other.pth", 1, override_config=overrides)["status"] == "finished"
    assert (pipe.model_config.n_layer, pipe.model_config.ctx_len, pipe.training_config.lr_init) == (2, 8, 1e-3)
    first = RWKV.load(pipe.output_dir / "rwkv-init.pth").named_parameters()
    other = RWKV.load(tmp_path / "other.pth").named_parameters()
    assert all(np.array_equal(first[name], other[name]) for name in first)


def test_vocabulary_larger_than_the_checkpoint(tmp_path):
    RWKV(SMALL.replace(vocab_size=8)).save(tmp_path / "other.pth")
    pipe = new(tmp_path / "run")
    pipe.prepare_data(DATA)
    with pytest.raises(RuntimeError, match="Vocab size mismatch: the tokenizer has 11 ids and the checkpoint 8"):
        pipe.train_from_checkpoint(tmp_path / "other.pth")
    assert pipe.model_config.vocab_size == 11 and not pipe.model_initialized


def test_two_runs_do_not_mix(tmp_path):
    pipe = new(tmp_path)
    pipe.prepare_data(DATA)
    with RunLock(tmp_path):
        code = "import sys; from rwkvtune import RWKVTrainingPipeline as P; P(sys.argv[1]).train(num_epochs=1)"
        process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert process.returncode == 1 and f"in use by process {os.getpid()}" in process.stderr
    assert pipe.train(num_epochs=1)["status"] == "finished"


def test_picture_of_the_loss(tmp_path):
    pytest.importorskip("matplotlib")
    new(tmp_path, data_config=DataConfig(val_fraction=0.1)).train(DATA, num_epochs=1)
    assert (tmp_path / "out" / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_wrong_kinds_of_configuration(tmp_path):
    with pytest.raises(ValueError, match="model_config is a dict"):
        RWKVTrainingPipeline(tmp_path, model_config={})


def test_examples_run(tmp_path, capsys):
    import runpy
    from pathlib import Path

    examples = Path(__file__).resolve().parents[2] / "examples"
    runpy.run_path(str(examples / "train_numbers.py"))["main"](tmp_path / "numbers", count=60, num_epochs=1)
    assert "[10, 13, 16, 19] ->" in capsys.readouterr().out
    runpy.run_path(str(examples / "stream_with_state.py"))["main"]()
    assert float(capsys.readouterr().out.split()[2]) < 1e-4
