"""examples/compare_architectures: the sizes compared, the optimizer, data, training, resume and the figure."""

import doctest
import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from rwkvtune import RWKV, Trainer

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "compare_architectures"
TINY = ["--preset", "small", "--n_layer", "2", "--n_embd", "64", "--ctx_len", "16", "--micro_batch_size", "2", "--total_batch_size", "64",
        "--warmup_steps", "2", "--max_steps", "6", "--eval_interval", "2", "--checkpoint_interval", "3", "--val_loss_steps", "3"]  # fmt: skip
MODELS = ("rwkv", "gpt2", "hybrid")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """No variables from outside, and none left behind."""
    for name in ("RWKV_HEAD_SIZE", "RWKV_HEAD_SIZE_A", "RWKV_MY_TESTING", "RWKV_CTXLEN", "RWKV_JIT_ON", "RWKV_TRAIN_TYPE", "RWKV_FLOAT_MODE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def example(monkeypatch):
    """The modules of the example by name."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    return lambda name: importlib.import_module(name)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    words = np.random.default_rng(0).choice(["the", "fox", "jumps", "over", "lazy", "dogs", "é"], (120, 90))
    path.write_text("\n\n".join(" ".join(row) for row in words), encoding="utf-8")
    return path


@pytest.fixture
def run(example, text, tmp_path):
    """run(model, *arguments) trains in tmp_path and returns the exit code."""

    def call(model, *arguments, log="log"):
        line = ["--model", model, "--text", str(text), "--data_root", str(tmp_path / "data"), "--log_dir", str(tmp_path / log)]
        return example("train").main([*line, *TINY, *map(str, arguments)])

    return call


def weights(path):
    return {name: value.copy() for name, value in Trainer.resume(path).model.named_parameters().items()}


def assert_same_weights(one, other):
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), name


# ---- what is compared ----


def rwkv7_parameters(n_layer, C, V, decay, value, gate):
    """The count written out: six mixes, w0 a0 v0 k_k k_a, r_k, ln_x; matrices; low-rank pairs; the channel mix; two norms."""
    att = (6 + 5 + 1 + 2) * C + 4 * C * C + 2 * C * (decay + decay + value + gate)
    return n_layer * (att + C + 8 * C * C + 4 * C) + 2 * V * C + 4 * C


def gpt2_parameters(n_layer, C, V):
    return n_layer * (12 * C * C + 4 * C) + 2 * V * C + 2 * C


def test_parameter_counts(example):
    config = example("config")
    wanted = {
        ("rwkv", "equal"): rwkv7_parameters(16, 576, 50304, 32, 32, 96), ("gpt2", "equal"): gpt2_parameters(17, 576, 50304),
        ("gpt2", "named"): gpt2_parameters(12, 768, 50304), ("rwkv", "small"): rwkv7_parameters(5, 128, 257, 32, 32, 32),
        ("gpt2", "small"): gpt2_parameters(6, 128, 257),
    }  # fmt: skip
    assert wanted["rwkv", "equal"] == 125_367_552
    for (model, preset), count in wanted.items():
        assert config.get_model_specific_config(model, preset).num_parameters()[0] == count
        assert f"{count:,}" in config.__doc__
    assert config.RWKVConfig().num_parameters()[0] == 125_367_552 and config.GPT2Config().num_parameters()[0] == wanted["gpt2", "named"]


@pytest.mark.parametrize("preset", ["equal", "small"])
def test_models_are_of_one_size(example, preset):
    """Within 2 % of RWKV's."""
    config = example("config")
    counts = [config.get_model_specific_config(model, preset).num_parameters()[0] for model in MODELS]
    assert all(abs(count / counts[0] - 1) <= 0.02 for count in counts)
    assert all(f"{count:,}" in config.__doc__ for count in counts)


def test_fields_of_the_configurations(example):
    config = example("config")
    rwkv = config.RWKVConfig()
    assert (rwkv.vocab_size, rwkv.ctx_len, rwkv.n_layer, rwkv.n_embd, rwkv.head_size, rwkv.n_head, rwkv.model_type) == (50304, 1024, 16, 576, 64, 9, "rwkv")
    with pytest.raises(ValueError, match="head_size is 60; it must divide n_embd, 576"):
        config.RWKVConfig(head_size=60)
    for function in (config.get_model_specific_config, config.get_model_training_config):
        with pytest.raises(ValueError, match="Unknown model type: 'mamba'; allowed are rwkv, gpt2, hybrid"):
            function("mamba")
        with pytest.raises(ValueError, match="Unknown preset"):
            function("rwkv", "huge")
    whole = config.Config.of("rwkv")
    assert isinstance(whole.model_specific, config.RWKVConfig) and isinstance(whole.model_training, config.RWKVTrainingConfig)
    assert (whole.data.val_loss_steps, whole.system.seed, whole.system.resume_training) == (20, 1337, True)
    with pytest.raises(ValueError, match="gpt2 has no setting attention_ffn"):
        config.Config.of("gpt2").with_settings({"attention_ffn": 3})
    changed = whole.with_settings({"ctx_len": 512, "seed": None})
    assert changed.model_specific.ctx_len == changed.model_training.sequence_length == 512 and changed.system.seed == 1337


@pytest.mark.parametrize("preset", ["named", "equal", "small"])
def test_training_is_the_same_for_all(example, preset):
    config = example("config")
    rwkv, gpt2, hybrid = (asdict(config.get_model_training_config(model, preset)) for model in MODELS)
    assert rwkv == gpt2 == hybrid
    if preset != "small":
        assert rwkv == {"total_batch_size": 524288, "micro_batch_size": 16, "sequence_length": 1024, "learning_rate": 6e-4, "min_lr_ratio": 0.1,
                        "warmup_steps": 715, "max_steps": 19073, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "grad_clip": 1.0,
                        "l2wrap": True, "eval_interval": 500, "checkpoint_interval": 2500}  # fmt: skip


def test_batches_that_do_not_come_out_even(example, run, capsys):
    training = example("config").BaseTrainingConfig()
    assert training.accumulation_steps() == 524288 // (16 * 1024)
    assert run("rwkv", "--total_batch_size", 72) == 1
    assert "total_batch_size is 72; it must be a multiple of micro_batch_size * sequence_length, 2 * 16 = 32" in capsys.readouterr().err


# ---- initial weights ----


def test_gpt2_begins_as_gpt2(example):
    whole = example("config").Config.of("gpt2", "small")
    model = example("models").create_model(whole)
    for name, value in model.named_parameters().items():
        deep = name.endswith(("o_proj.weight", "ffn.proj.weight"))
        if value.ndim == 2:  # the standard deviation of n numbers strays by its 1/sqrt(2n) part; five of these
            want = 0.02 / math.sqrt(2 * 6) if deep else 0.02
            assert abs(value.std() / want - 1) < 5 / math.sqrt(2 * value.size), name
    ids = np.random.default_rng(0).integers(0, 257, (2, 64))
    # Logits are sums over 128 channels of unit variance times 0.02: variance 0.05, and half of that is added to ln 257.
    assert abs(model.loss(ids, np.roll(ids, 3, 1)) - math.log(257) - 0.0256) < 0.1


def test_rwkv_begins_as_in_rwkv_lm_or_uniform(example):
    config, models = example("config"), example("models")
    whole = config.Config.of("rwkv", "small")
    plain, library = models.create_model(whole).named_parameters(), RWKV(whole.model_specific.core(), seed=1337).named_parameters()
    assert all(np.array_equal(plain[name], library[name]) for name in plain)
    weights = models.create_model(whole.with_settings({"init": "uniform"})).named_parameters()
    bound = 0.5 / math.sqrt(128)
    for name, factor in (("att.receptance", 1), ("att.value", 1), ("att.key", 0.1), ("ffn.key", 1)):
        value = weights[f"blocks.3.{name}.weight"]
        assert 0.99 * factor * bound < np.abs(value).max() <= factor * bound  # of 16384 numbers one is in the last hundredth
        assert abs(value.std() / (factor * bound / math.sqrt(3)) - 1) < 0.03
    for layer in (0, 4):
        part = {name: weights[f"blocks.{layer}.att.{name}"].ravel() for name in ("w0", "x_k", "x_v", "x_r", "a0", "k_k", "k_a", "r_k", "output.weight")}
        done, left, at = layer / 4, 1 - layer / 5, 40
        assert part["w0"][at] == pytest.approx(-7 + 5 * (at / 127) ** (0.85 + math.sqrt(done)) + 0.5, rel=1e-6)
        assert part["x_k"][at] == pytest.approx(1 - ((at / 128) ** (0.9 * left) + 0.4 * done), rel=1e-5)
        assert part["x_v"][at] == pytest.approx(1 - ((at / 128) ** (0.4 * left) + 0.6 * done), rel=1e-5)
        assert part["x_r"][at] == pytest.approx(1 - (at / 128) ** (0.2 * left), rel=1e-5)
        assert not part["a0"].any() and not part["r_k"].any() and not part["output.weight"].any()
        assert (part["k_k"] == np.float32(0.85)).all() and (part["k_a"] == 1).all()
    assert np.abs(weights["emb.weight"]).max() <= 1e-4
    one_layer = models.create_model(whole.with_settings({"init": "uniform", "n_layer": 1})).named_parameters()
    assert all(np.isfinite(value).all() for value in one_layer.values())
    with pytest.raises(ValueError, match="init is 'uniform'"):
        config.RWKVConfig(init="uniform", version="x060")


@pytest.mark.parametrize("model", MODELS)
def test_any_length(example, model):
    """Longer than ctx_len, odd, a single token; what comes later changes nothing before it."""
    model = example("models").create_model(example("config").Config.of(model, "small").with_settings({"ctx_len": 16}))
    ids = np.random.default_rng(3).integers(0, 257, (2, 61))
    whole, loss = model(ids, np.roll(ids, -1, 1))
    assert whole.shape == (2, 61, 257) and np.isfinite(loss)
    for length in (1, 15, 17, 50):
        part, none = model(ids[:, :length])
        # float32 sums of 128 terms in another order: 128 roundings of 6e-8, of logits no larger than 4, through a few layers
        assert none is None and np.abs(part - whole[:, :length]).max() < 2e-4


# ---- the optimizer ----

DECAYED = {
    "rwkv": r"(emb|head|blocks\.\d\.(att\.(receptance|key|value|output)|ffn\.(key|value)))\.weight|blocks\.\d\.att\.[wavg][12]",
    "gpt2": r"(emb|head|blocks\.\d\.(att\.[qkvo]_proj|ffn\.(fc|proj)))\.weight",
}
DECAYED["hybrid"] = "|".join(DECAYED.values())


@pytest.mark.parametrize("model", MODELS)
def test_matrices_decay_and_vectors_do_not(example, model):
    whole = example("config").Config.of(model, "small")
    lines = []
    trainer = example("optimization").configure_optimizers(example("models").create_model(whole), whole.model_training, model, report=lines.append)
    rules, parameters = trainer.parameter_rules, trainer.model.named_parameters()
    for name, (scale, decay) in rules.items():
        assert decay == (0.1 if re.fullmatch(DECAYED[model], name) else 0.0), name
        assert scale == (2.0 if name.endswith("att.w0") else 1.0), name
    line = re.compile(rf"{model.upper()} Optimizer: Found (\d+) tensors / ([\d,]+) params in (\w+) \(lr x(\d), wd (0\.1|0)\)")
    found = [line.fullmatch(text).groups() for text in lines]
    assert sum(int(count) for count, *_ in found) == len(parameters)
    assert sum(int(size.replace(",", "")) for _, size, *_ in found) == trainer.model.num_parameters
    assert {group[2:] for group in found} >= {("decay", "1", "0.1"), ("no_decay", "1", "0")}
    assert (("no_decay_2x", "2", "0") in {group[2:] for group in found}) == (model != "gpt2")


@pytest.mark.parametrize("version", ["x060", "x052"])
def test_vectors_of_older_versions_do_not_decay(example, version):
    """time_decay and time_faaaa are (H, N), token shifts (1, 1, C): vectors of the channels, each."""
    whole = example("config").Config.of("rwkv", "small").with_settings({"version": version})
    trainer = example("optimization").configure_optimizers(example("models").create_model(whole), whole.model_training, report=lambda text: None)
    decayed = {name for name, (_, decay) in trainer.parameter_rules.items() if decay}
    assert decayed == {name for name in trainer.parameter_rules if re.search(r"(emb|head|receptance|key|value|output|gate)\.weight$", name)}


def test_decay_reaches_the_step(example):
    """One step with and without weight decay: vectors get the same bits, matrices shrink by lr * decay."""
    after, start = [], None
    for weight_decay in (0.0, 0.5):
        whole = example("config").Config.of("rwkv", "small").with_settings({"n_layer": 2, "weight_decay": weight_decay})
        model = example("models").create_model(whole)
        start = {name: value.copy() for name, value in model.named_parameters().items()}
        trainer = example("optimization").configure_optimizers(model, whole.model_training, report=lambda text: None)
        ids = np.random.default_rng(0).integers(0, 257, (2, 33))
        trainer.step(ids[:, :-1], ids[:, 1:], lr=0.01)
        after.append({name: value.copy() for name, value in model.named_parameters().items()})
    for name, value in start.items():
        if re.fullmatch(DECAYED["rwkv"], name):
            shrunk = after[0][name].astype(float) - after[1][name]
            assert np.allclose(shrunk, 0.01 * 0.5 * value, atol=3e-7 * max(1, np.abs(value).max())), name
        else:
            assert after[0][name].tobytes() == after[1][name].tobytes(), name


def test_learning_rate(example):
    get_lr, training = example("optimization").get_lr, example("config").BaseTrainingConfig()
    assert get_lr(0, training) == pytest.approx(6e-4 / 715) and get_lr(714, training) == pytest.approx(6e-4)
    middle = (715 + 19073) // 2
    assert get_lr(middle, training) == pytest.approx((6e-4 + 6e-5) / 2) and get_lr(19073, training) == pytest.approx(6e-5)
    assert get_lr(19074, training) == get_lr(10**9, training) == pytest.approx(6e-5)
    rates = [get_lr(step, training) for step in range(0, 19073, 100)]
    assert rates[8:] == sorted(rates[8:], reverse=True)
    failed, tried = doctest.testmod(example("optimization"))
    assert tried >= 4 and not failed


# ---- data ----


def write_shards(directory, lengths=(37, 53, 29)):
    """Shards of documents that end in 0; the last document of each shard has no end."""
    directory.mkdir(exist_ok=True)
    rng, shards = np.random.default_rng(1), []
    for number, length in enumerate(lengths):
        ids = rng.integers(1, 200, length).astype(np.uint16)
        ids[[5, 6, 20]] = 0
        np.save(directory / f"some_train_{number}.npy", ids)
        shards.append(ids)
    np.save(directory / "some_val_0.npy", np.arange(1, 51, dtype=np.int64))
    return shards


def stream(loader, steps):
    return np.concatenate([loader(step)[0].ravel() for step in range(steps)])


def test_an_epoch_is_every_document_once(example, tmp_path):
    shards = write_shards(tmp_path / "d")
    loader = example("dataloader").ShardLoader(tmp_path / "d", "train", (1, 7), 257, eot_token=0, seed=5)
    assert loader.tokens == 119 == 7 * 17
    epochs = [stream(loader, 51)[119 * epoch : 119 * (epoch + 1)] for epoch in range(3)]
    pieces = [tuple(part) for ids in shards for part in np.split(ids, np.flatnonzero(ids == 0) + 1)]
    assert len(pieces) == 12
    for epoch in epochs:
        assert sorted(epoch) == sorted(np.concatenate(shards))
        whole = ",".join(map(str, epoch))
        assert all(",".join(map(str, piece)) in whole for piece in pieces)
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
    again = example("dataloader").ShardLoader(tmp_path / "d", "train", (1, 7), 257, eot_token=0, seed=5)
    assert np.array_equal(again(40)[0], loader(40)[0])  # any step at once, without those before
    other = example("dataloader").ShardLoader(tmp_path / "d", "train", (1, 7), 257, eot_token=0, seed=6)
    assert not np.array_equal(stream(other, 17), epochs[0])


def test_batches_are_shifted_and_go_on_over_shards_and_epochs(example, tmp_path):
    write_shards(tmp_path / "d")
    loader = example("dataloader").ShardLoader(tmp_path / "d", "train", (2, 5), 257, eot_token=0, seed=None)
    endless = np.tile(np.concatenate([np.load(path) for path in sorted((tmp_path / "d").glob("*train*"))]), 3)
    for step in range(30):
        ids, targets = loader(step)
        assert ids.shape == targets.shape == (2, 5)
        assert np.array_equal(ids.ravel(), endless[10 * step : 10 * step + 10])
        assert np.array_equal(targets.ravel(), endless[10 * step + 1 : 10 * step + 11])
        place = loader.position(step)
        assert np.load(tmp_path / "d" / place["current_shard"])[place["current_position"]] == ids[0, 0]
        assert place["epoch"] == 10 * step // 119


def test_val_is_in_order_and_separate(example, tmp_path):
    write_shards(tmp_path / "d")
    loader = example("dataloader").ShardLoader(tmp_path / "d", "val", (1, 10), 257, eot_token=0)
    assert np.array_equal(stream(loader, 5), np.arange(1, 51))


def test_text_becomes_shards_that_hold_all_of_it(example, text, tmp_path):
    example("dataloader").write_shards(text.read_text(encoding="utf-8"), tmp_path / "made")
    documents = []
    for split in ("train", "val"):
        ids = np.load(tmp_path / "made" / f"{split}_000.npy")
        parts = np.split(ids, np.flatnonzero(ids == 0) + 1)[:-1]
        documents += [bytes((part[:-1] - 1).astype(np.uint8)).decode() for part in parts]
    assert "\n\n".join(documents) == text.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="the text gives 1 documents"):
        example("dataloader").write_shards("short", tmp_path / "made")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"no numpy at all", "bad_train.npy: not a .npy file of numbers"),
        (b"", "bad_train.npy: not a .npy file of numbers"),
        (np.zeros((2, 3), np.uint16), r"bad_train.npy: shape \(2, 3\), uint16; a shard is one row of integers"),
        (np.zeros(5), r"bad_train.npy: shape \(5,\), float64"),
        (np.zeros(0, np.int32), r"bad_train.npy: shape \(0,\), int32"),
        (np.array([print, 1], object), "bad_train.npy: not a .npy file of numbers"),
        (np.array([1, 257, 3, 4, 5, 6]), "bad_train.npy: ids from 1 to 257; the vocabulary is 0 to 256"),
        (np.array([1, 2, -3, 4, 5, 6]), "bad_train.npy: ids from -3 to 5"),
        (np.array([1, 2**32, 3, 4, 5, 6]), "bad_train.npy: ids from 1 to 4294967296"),
    ],
)
def test_bad_shards(example, tmp_path, content, message):
    path = tmp_path / "bad_train.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        example("dataloader").ShardLoader(tmp_path, "train", (1, 4), 257, eot_token=0)(0)


def test_no_shards(run, example, tmp_path, capsys):
    line = ["--model", "rwkv", "--preset", "small", "--data_root", str(tmp_path / "none"), "--log_dir", str(tmp_path / "log")]
    assert example("train").main(line) == 1
    assert "none holds no .npy file with 'train' in its name; put token shards there or give --text" in capsys.readouterr().err


# ---- training ----

STEP = (r"step: +(\d+) \| loss: (\d+\.\d{6}) \| lr: (\d\.\d{4}e-\d\d) \| norm: (\d+\.\d{4}) \| dt: \d+\.\d\dms \| tok/sec: \d+\.\d\d"
        r" \| mem: \d+\.\d\dGB")  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_trains_and_logs(run, example, tmp_path, capsys, model):
    assert run(model) == 0
    shown, out = capsys.readouterr().out, tmp_path / "log" / model
    parameters = json.loads((out / "results.json").read_text())["parameters"]
    assert f"--- Fresh Model '{model}' ---\n--- Trainable Parameters: {parameters:,} ---" in shown
    steps = [match.groups() for match in re.finditer(f"^{STEP}$", shown, re.MULTILINE)]
    assert [int(step[0]) for step in steps] == list(range(6))
    training = example("config").Config.of(model, "small").with_settings({"warmup_steps": 2, "max_steps": 6}).model_training
    assert [step[2] for step in steps] == [f"{example('optimization').get_lr(n, training):.4e}" for n in range(6)]
    lines = (out / "log.txt").read_text().splitlines()
    assert [line.split()[:2] for line in lines] == [["1", "train"], ["2", "train"], ["2", "val"], ["3", "train"], ["4", "train"], ["4", "val"],
                                                    ["5", "train"], ["6", "train"], ["6", "val"]]  # fmt: skip
    assert [line.split()[2] for line in lines if "train" in line] == [step[1] for step in steps]
    assert all(re.fullmatch(r"\d+ (train \d+\.\d{6}|val \d+\.\d{4})", line) for line in lines)
    assert float(lines[-2].split()[2]) < float(lines[0].split()[2])
    assert sorted(path.name for path in out.glob("model_*")) == ["model_00003.pth", "model_00006.pth"]
    position = example("train").read_position(out / "model_00003.pth")["position"]
    assert position["step"] == 3 and position["config"]["model_type"] == model and set(position["train_loader"]) == {"epoch", "current_shard", "current_position"}
    assert ("Setting environment variables for RWKV..." in shown) == (model != "gpt2")


def test_validation_is_the_mean_of_the_first_batches(run, example, tmp_path):
    assert run("rwkv") == 0
    trainer = Trainer.resume(tmp_path / "log" / "rwkv" / "model_00006.pth")
    ids = np.load(tmp_path / "data" / "val_000.npy").astype(int)
    losses = []
    for batch in range(3):
        x, y = ids[32 * batch : 32 * batch + 32].reshape(2, 16), ids[32 * batch + 1 : 32 * batch + 33].reshape(2, 16)
        z = trainer.model(x).logits.astype(float)
        losses.append(np.mean(np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, y[..., None], -1)[..., 0]))
    assert float((tmp_path / "log" / "rwkv" / "log.txt").read_text().split()[-1]) == pytest.approx(np.mean(losses), abs=6e-5)


def test_micro_batches_do_not_change_the_step(run, tmp_path):
    """The loss of the first step is of equal weights: the same but for the order of float32 sums; one micro-batch or two."""
    assert run("hybrid", log="two") == run("hybrid", "--micro_batch_size", 4, log="one") == 0
    two, one = (float((tmp_path / log / "hybrid" / "log.txt").read_text().split()[2]) for log in ("two", "one"))
    assert two == pytest.approx(one, abs=2e-6 + 1e-6 * one)


@pytest.mark.parametrize("model", ["rwkv", "gpt2"])
def test_goes_on_after_ctrl_c_to_the_same_bits(run, example, monkeypatch, tmp_path, capsys, model):
    assert run(model, log="whole") == 0
    train, handler = example("train"), signal.getsignal(signal.SIGINT)
    real = train.get_lr

    def interrupted(step, training):
        if step == 3:
            signal.raise_signal(signal.SIGINT)
        return real(step, training)

    monkeypatch.setattr(train, "get_lr", interrupted)
    assert run(model) == 130
    out = tmp_path / "log" / model
    assert sorted(path.name for path in out.glob("model_*")) == ["model_00003.pth", "model_00004.pth"]
    monkeypatch.setattr(train, "get_lr", real)
    capsys.readouterr()
    assert run(model) == 0
    shown = capsys.readouterr().out
    assert f"Resuming training from step 4\n--- Resumed Model '{model}' ---" in shown
    assert_same_weights(out / "model_00006.pth", tmp_path / "whole" / model / "model_00006.pth")
    assert (out / "log.txt").read_text() == (tmp_path / "whole" / model / "log.txt").read_text()
    assert signal.getsignal(signal.SIGINT) is handler


def test_goes_on_from_an_older_checkpoint(run, tmp_path):
    """As after a kill: lines of later steps are made once more, not twice."""
    assert run("rwkv") == 0
    out, copy = tmp_path / "log" / "rwkv", tmp_path / "killed" / "rwkv"
    shutil.copytree(out, copy)
    (copy / "model_00006.pth").unlink()
    assert run("rwkv", log="killed") == 0
    assert_same_weights(out / "model_00006.pth", copy / "model_00006.pth")
    assert (copy / "log.txt").read_text() == (out / "log.txt").read_text()
    assert len((copy / "loss.csv").read_text().splitlines()) == 7


def test_the_newest_checkpoint_is_that_of_most_steps(example, tmp_path):
    for name in ("model_99999.pth", "model_100000.pth", "model_last.pth", "model_200000.pth.tmp"):
        (tmp_path / name).touch()
    assert example("train").newest_checkpoint(tmp_path).name == "model_100000.pth"


def test_a_changed_configuration_on_resume(run, tmp_path, capsys):
    assert run("rwkv") == 0
    before = (tmp_path / "log" / "rwkv" / "model_00006.pth").read_bytes()
    assert run("rwkv", "--n_layer", 3) == 1
    assert "n_layer 2 (now 3); restore that, choose another --log_dir, or start again with --fresh" in capsys.readouterr().err
    assert run("rwkv", "--total_batch_size", 96) == 1
    assert "batch [4, 16] (now [6, 16])" in capsys.readouterr().err
    assert run("rwkv", "--seed", 7) == 1
    assert (tmp_path / "log" / "rwkv" / "model_00006.pth").read_bytes() == before
    capsys.readouterr()
    assert run("rwkv", "--max_steps", 8, "--learning_rate", 1e-4) == 0
    shown = capsys.readouterr().out
    assert "learning_rate 0.004 (now 0.0001), max_steps 6 (now 8); from now on the new values hold" in shown
    assert (tmp_path / "log" / "rwkv" / "model_00008.pth").exists()
    assert run("rwkv", "--n_layer", 3, "--fresh") == 0
    assert "Fresh Model" in capsys.readouterr().out
    assert not (tmp_path / "log" / "rwkv" / "model_00008.pth").exists()


def test_checkpoints_of_others_are_refused(run, example, tmp_path, capsys):
    out = tmp_path / "log" / "rwkv"
    out.mkdir(parents=True)
    model = example("models").create_model(example("config").Config.of("rwkv", "small"))
    Trainer(model).save(out / "model_00001.pth")
    assert run("rwkv") == 1
    assert "is no checkpoint of this script" in capsys.readouterr().err
    (out / "model_00001.pth").write_bytes(b"damaged")
    assert run("rwkv") == 1
    assert "model_00001.pth" in capsys.readouterr().err


def test_grad_checkpointing_changes_no_result(run, tmp_path):
    assert run("rwkv") == run("rwkv", "--use_grad_checkpointing", log="less") == 0
    chosen = [Trainer.resume(tmp_path / log / "rwkv" / "model_00003.pth").config.grad_cp for log in ("log", "less")]
    assert chosen == [0, 1]
    assert_same_weights(tmp_path / "log" / "rwkv" / "model_00006.pth", tmp_path / "less" / "rwkv" / "model_00006.pth")


# ---- environment ----


def test_environment_variables(run, monkeypatch, tmp_path, capsys):
    for name, value in (("RWKV_HEAD_SIZE", "32"), ("RWKV_MY_TESTING", "x060"), ("RWKV_CTXLEN", "32"), ("RWKV_JIT_ON", "0")):
        monkeypatch.setenv(name, value)
    assert run("rwkv", "--max_steps", 1) == 0  # --ctx_len 16 of the command line wins
    assert "  RWKV_HEAD_SIZE=32\n  RWKV_MY_TESTING=x060\n  RWKV_CTXLEN=16\n  RWKV_JIT_ON=0\n" in capsys.readouterr().out
    sizes = json.loads((tmp_path / "log" / "rwkv" / "results.json").read_text())["config"]["model_specific"]
    assert (sizes["head_size"], sizes["version"], sizes["ctx_len"]) == (32, "x060", 16)
    assert run("rwkv", "--head_size", 16, "--version", "x070", "--max_steps", 1, log="flags") == 0
    assert "  RWKV_HEAD_SIZE=16\n  RWKV_MY_TESTING=x070\n" in capsys.readouterr().out
    monkeypatch.setenv("RWKV_HEAD_SIZE", "many")
    assert run("rwkv", log="bad") == 1
    assert "environment variable RWKV_HEAD_SIZE is 'many'; it must be a number of at least 1" in capsys.readouterr().err


def test_context_length_of_the_environment(example, monkeypatch):
    train = example("train")
    monkeypatch.setenv("RWKV_CTXLEN", "128")
    for model in MODELS:
        config = train.configuration(train.parse(["--model", model]))
        assert config.model_specific.ctx_len == config.model_training.sequence_length == 128
    monkeypatch.delenv("RWKV_CTXLEN")
    assert train.configuration(train.parse(["--model", "rwkv"])).model_specific.ctx_len == 1024  # nothing was kept from import


def test_options_of_rwkv_are_refused_for_gpt2(run, capsys):
    assert run("gpt2", "--version", "x060") == 1
    assert "gpt2 has none; leave them out" in capsys.readouterr().err


def test_import_reads_no_variable_and_loads_no_framework(tmp_path):
    code = "import os, sys; before = dict(os.environ); import train, compare; assert before == dict(os.environ)\n"
    code += "print(sorted({'torch', 'lightning', 'pytorch_lightning', 'deepspeed', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=EXAMPLE, env=os.environ | {"RWKV_HEAD_SIZE": "no number"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


# ---- questions and the comparison ----


def test_questions(run, example, tmp_path, capsys):
    path = tmp_path / "questions.jsonl"
    rows = [{"ctx": "the fox", "endings": ["jumps", "\x01\x02\x03"], "label": 0}, {"ctx": [5, 6], "endings": [[9], [9, 3], [4]], "label": "2"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = example("choices").read_questions(path, 257)
    assert questions[0][1][0] == [byte + 1 for byte in b" jumps"] and questions[1] == ([5, 6], [[9], [9, 3], [4]], 2)
    model = example("models").create_model(example("config").Config.of("gpt2", "small"))
    chosen = []
    for context, endings, _ in questions:
        z = [model([context + ending]).logits[0].astype(float) for ending in endings]
        means = [np.mean([np.log(np.exp(row[at - 1]).sum()) - row[at - 1][ids[at]] for at in range(len(context), len(ids))])
                 for row, ids in zip(z, (context + ending for ending in endings))]  # fmt: skip
        chosen.append(int(np.argmin(means)))
    for right in range(3):  # of the two questions
        labelled = [(context, endings, best if number < right else 1 - best) for number, ((context, endings, _), best) in enumerate(zip(questions, chosen))]
        assert example("choices").accuracy(model, labelled) == right / 2
    assert run("gpt2", "--questions", path) == 0
    assert re.search(r"^6 hella [01]\.\d{4}$", (tmp_path / "log" / "gpt2" / "log.txt").read_text(), re.MULTILINE)
    with pytest.raises(ValueError, match="line 1: no question .*give lists of token ids"):
        example("choices").read_questions(path, 50304)


@pytest.mark.parametrize("line", ["{", "[]", '{"ctx": "a"}', '{"ctx": "a", "endings": [], "label": 0}', '{"ctx": "a", "endings": ["b"], "label": 1}',
                                  '{"ctx": "", "endings": ["b"], "label": 0}', '{"ctx": 3, "endings": ["b"], "label": 0}'])  # fmt: skip
def test_bad_questions(example, tmp_path, line):
    path = tmp_path / "q.jsonl"
    path.write_text('{"ctx": "a", "endings": ["b"], "label": 0}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"q.jsonl, line 2: no question with ctx, endings and label"):
        example("choices").read_questions(path, 257)


def test_comparison(run, example, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    compare = example("compare")
    assert compare.main([str(tmp_path / "log")]) == 1
    assert "holds no run; train first, or add --run" in capsys.readouterr().err
    assert run("rwkv") == run("gpt2") == 0
    capsys.readouterr()
    assert compare.main([str(tmp_path / "log"), "--png", str(tmp_path / "c.png")]) == 0
    shown = capsys.readouterr().out
    for model in ("rwkv", "gpt2"):
        results = json.loads((tmp_path / "log" / model / "results.json").read_text())
        assert f"| {model} | {results['parameters']:,} | {results['val_loss']:.4f} |" in shown
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_comparison_that_trains_first(example, text, tmp_path, capfd):
    pytest.importorskip("matplotlib")
    compare, png = example("compare"), tmp_path / "c.png"
    data = ["--text", str(text), "--data_root", str(tmp_path / "data")]
    line = [str(tmp_path / "log"), "--png", str(png), "--models", "hybrid", "gpt2", "--run"]
    assert compare.main([*line, *TINY, *data]) == 0
    assert png.exists() and capfd.readouterr().out.count("validation loss") == 6
    png.unlink()
    assert compare.main([*line, *TINY, *data, "--total_batch_size", "3"]) == 1
    assert not png.exists() and "total_batch_size is 3" in capfd.readouterr().err


def test_both_models_see_the_same_batches(example, monkeypatch, run):
    seen = {"rwkv": [], "gpt2": []}
    train = example("train")
    for model, batches in seen.items():
        real = train.Trainer.step
        monkeypatch.setattr(train.Trainer, "step", lambda self, ids, targets, lr: batches.append((ids.copy(), lr)) or real(self, ids, targets, lr=lr))
        assert run(model) == 0
        monkeypatch.setattr(train.Trainer, "step", real)
    assert len(seen["rwkv"]) == 6
    for (one, lr_one), (other, lr_other) in zip(seen["rwkv"], seen["gpt2"]):
        assert np.array_equal(one, other) and lr_one == lr_other


def test_every_feature_has_a_row_and_every_test_that_is_named_exists():
    table = (EXAMPLE / "README.md").read_text(encoding="utf-8").split("## What is promised, and its tests")[1]
    rows = [line for line in table.splitlines() if line.startswith("| S2-")]
    numbers = [int(number) for row in rows for number in re.findall(r"S2-(\d\d)", row.split("|")[1])]
    assert sorted(numbers) == list(range(1, 38))
    for row in rows:
        tests = row.split("|")[3]
        names, files = re.findall(r"`(test_\w+)`", tests), re.findall(r"tests/py/test_\w+\.py", tests)
        assert names or files, row
        assert all(callable(globals().get(name)) for name in names), row
        assert all((EXAMPLE.parents[1] / path).exists() for path in files), row
