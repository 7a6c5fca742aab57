"""The uses the pipeline is made for, as a person types them, small, for every version the core runs."""

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

import rwkvtune
from rwkvtune import (RWKV, GenericTokenizer, IntegerTokenizer, ModelConfig, RWKVTrainingPipeline, TrainingConfig,
                      create_vocab_file_from_tokens)  # fmt: skip
from rwkvtune.checkpoint import write_pth
from rwkvtune.config import VERSIONS

versions = pytest.mark.parametrize("version", VERSIONS)
QUICK = TrainingConfig(precision="fp32", micro_bsz=4, lr_init=2e-3, grad_cp=0)


def small(version, **sizes):
    return ModelConfig(model_type=version, **{"n_layer": 2, "n_embd": 64, "ctx_len": 32, **sizes})


def numbers(rows=40, length=40, top=10):
    return np.random.default_rng(0).integers(0, top, (rows, length))


def write_lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def assert_layout(work_dir, epochs):
    assert (work_dir / "configs" / "config.json").exists()
    for name in ("train.jsonl", "train.bin", "train.idx", "vocab.txt"):
        assert (work_dir / "data" / name).exists(), name
    for name in ("init", *range(epochs), "final"):
        assert (work_dir / "out" / f"rwkv-{name}.pth").exists(), name
    assert (work_dir / "out" / "train_log.txt").read_text().startswith("NEW RUN ")


def test_default_is_rwkv_6(tmp_path):
    assert RWKVTrainingPipeline(work_dir=tmp_path).model_config == ModelConfig()
    assert ModelConfig().model_type == "x060"


@versions
def test_example_1_numbers(version, tmp_path):
    """A tokenizer of integers, a model for its vocabulary, train(data)."""
    tokenizer = IntegerTokenizer(max_value=999)
    data = np.random.randint(0, 1000, size=(20, 64))
    pipeline = RWKVTrainingPipeline(
        work_dir=str(tmp_path / "experiment"),
        model_config=ModelConfig(model_type=version, n_layer=3, n_embd=64, vocab_size=1001, ctx_len=32),
        tokenizer=tokenizer,
        training_config=QUICK,
    )
    result = pipeline.train(data, num_epochs=2)
    assert result["status"] == "finished" and result["steps"] == -(-2 * pipeline.magic_prime // 4)
    assert pipeline.my_exit_tokens == 3 * 20 * 65
    assert_layout(tmp_path / "experiment", 2)
    assert pipeline.model.config.model_type == version
    model = RWKV.load(tmp_path / "experiment" / "out" / "rwkv-final.pth")
    assert len(model.generate(tokenizer.encode("1 2 3"), max_new_tokens=4)) == 4


def test_example_1_in_its_own_size(tmp_path):
    """The numbers that follow from it: tokens, samples of a pass, steps, parameters of the default version."""
    pipeline = RWKVTrainingPipeline(
        work_dir=tmp_path, model_config=ModelConfig(n_layer=3, n_embd=128, vocab_size=1001), tokenizer=IntegerTokenizer(max_value=999)
    )
    made = pipeline.prepare_data(np.random.randint(0, 1000, size=(1000, 1024)))
    assert (made["num_sequences"], made["total_tokens"], made["magic_prime"]) == (3000, 3_075_000, 2999)
    assert (pipeline.my_exit_tokens, pipeline.magic_prime) == (3_075_000, 2999)
    assert RWKV(pipeline.model_config).num_parameters == 1_073_920


@versions
def test_example_2_json_lines(version, tmp_path):
    """The default tokenizer, integers 0 to 359 in JSON lines."""
    path = write_lines(tmp_path / "my_data.jsonl", [" ".join(map(str, row)) for row in numbers(top=360)])
    pipeline = RWKVTrainingPipeline(work_dir=tmp_path / "run", model_config=small(version), training_config=QUICK)
    pipeline.prepare_data_from_jsonl(str(path))
    pipeline.train(num_epochs=1)
    assert pipeline.model_config.vocab_size == 361
    assert (tmp_path / "run" / "data" / "train.jsonl").read_bytes() == path.read_bytes()
    assert_layout(tmp_path / "run", 1)


@versions
def test_example_3_own_vocabulary(version, tmp_path):
    create_vocab_file_from_tokens(["hello", "world", "foo", "bar", " "], str(tmp_path / "custom_vocab.txt"))
    tokenizer = GenericTokenizer(str(tmp_path / "custom_vocab.txt"))
    pipeline = RWKVTrainingPipeline(
        work_dir=tmp_path / "run", model_config=small(version, ctx_len=16), training_config=QUICK, tokenizer=tokenizer
    )
    pipeline.prepare_data_from_jsonl(write_lines(tmp_path / "text.jsonl", ["hello world foo bar", "foo foo hello"] * 20))
    pipeline.train(num_epochs=1)
    assert pipeline.model_config.vocab_size == 6
    assert_layout(tmp_path / "run", 1)
    kept = GenericTokenizer(str(tmp_path / "run" / "data" / "vocab.txt"))
    assert kept.encode("foo hello") == tokenizer.encode("foo hello") == [3, 5, 1]


@versions
def test_example_4_weights_from_elsewhere(version, tmp_path, capsys):
    """Any file name, DeepSpeed's prefix, bf16; sizes from the file, settings of all three configurations from the caller."""
    other = RWKV(small(version, n_layer=1, vocab_size=30), seed=7)
    weights = {f"_forward_module.{name}": value for name, value in other.named_parameters().items()}
    write_pth(tmp_path / "anything.bin", weights, "bf16")
    pipeline = RWKVTrainingPipeline(work_dir=tmp_path / "run", model_config=small(version), training_config=QUICK, tokenizer=IntegerTokenizer(9))
    pipeline.prepare_data_from_jsonl(write_lines(tmp_path / "d.jsonl", [" ".join(map(str, row)) for row in numbers()]))
    result = pipeline.train_from_checkpoint(
        checkpoint_path=str(tmp_path / "anything.bin"),
        num_epochs=2,
        auto_detect=True,
        override_config={"ctx_len": 16, "lr_init": 1e-3, "n_epochs_duplication": 1},
    )
    said = capsys.readouterr().out
    for line in ("### Checkpoint info:", "    File size: 0.", "### Auto-detected architecture:", "    n_layer: 1", "    n_embd: 64",
                 "    vocab_size: 30", f"    model_type: {version}", "    ctx_len: 32 -> 16", "    lr_init: 0.002 -> 0.001"):  # fmt: skip
        assert line in said
    assert result["status"] == "finished" and result["steps"] == -(-2 * pipeline.magic_prime // 4)
    assert (pipeline.model_config.n_layer, pipeline.model_config.ctx_len, pipeline.model_config.vocab_size) == (1, 16, 30)
    first = RWKV.load(tmp_path / "run" / "out" / "rwkv-init.pth").named_parameters()
    rounded = RWKV.load(tmp_path / "anything.bin").named_parameters()
    assert list(first) == list(rounded) and all(np.array_equal(first[name], rounded[name]) for name in first)
    stored = json.loads((tmp_path / "run" / "configs" / "config.json").read_text())
    assert (stored["model"]["ctx_len"], stored["training"]["lr_init"], stored["data"]["n_epochs_duplication"]) == (16, 1e-3, 1)
    again = RWKVTrainingPipeline(work_dir=tmp_path / "run")
    assert again.model_config == pipeline.model_config


@versions
def test_step_by_step_then_continue(version, tmp_path):
    pipeline = RWKVTrainingPipeline(tmp_path, small(version), QUICK, tokenizer=IntegerTokenizer(9))
    pipeline.prepare_data(numbers(), "train")
    assert pipeline.initialize_model() == tmp_path / "out" / "rwkv-init.pth"
    first = pipeline.train(num_epochs=2)
    pipeline = RWKVTrainingPipeline(work_dir=tmp_path)
    second = pipeline.train(num_epochs=3, continue_training=True)
    passes = pipeline.magic_prime / 4
    assert (first["steps"], second["steps"]) == (np.ceil(2 * passes), np.ceil(3 * passes))
    names = ["rwkv-init.pth", "rwkv-0.pth", "rwkv-1.pth", "rwkv-2.pth", "rwkv-final.pth"]
    assert [path.name for path in pipeline.list_checkpoints()] == names
    assert pipeline.get_latest_checkpoint() == tmp_path / "out" / "rwkv-final.pth"


class StopAfter(rwkvtune.Callback):
    """Ctrl-C after so many steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_step(self, step, values):
        if step == self.steps:
            os.kill(os.getpid(), signal.SIGINT)


@versions
def test_the_same_weights_in_one_go_or_in_two(version, tmp_path):
    """Stopping is not visible: an interrupted run that goes on has the weights of one that was not interrupted."""
    for name in ("one", "two"):
        RWKVTrainingPipeline(tmp_path / name, small(version), QUICK, tokenizer=IntegerTokenizer(9)).prepare_data(numbers())
    RWKVTrainingPipeline(tmp_path / "one").train(num_epochs=2)
    pipeline = RWKVTrainingPipeline(tmp_path / "two")
    assert pipeline.train(num_epochs=2, callbacks=[StopAfter(7)])["status"] == "interrupted"
    RWKVTrainingPipeline(tmp_path / "two").train(num_epochs=2, continue_training=True)
    one, two = ((tmp_path / name / "out" / "rwkv-final.pth").read_bytes() for name in ("one", "two"))
    assert one == two


HYBRIDS = [
    ["x070", "x060"],
    [{"time_mix": "x052", "channel_mix": "x070"}, "x052"],
    ["x060", {"time_mix": "x060", "dim_ffn": 96}],
]


@pytest.mark.parametrize("layers", HYBRIDS, ids=["two versions", "two channel mixes", "two widths"])
def test_step_by_step_with_a_recipe_of_layers(layers, tmp_path):
    """The configuration names no single version; initial weights, runs and other weights are recognised all the same."""
    config = ModelConfig(layers=layers, n_embd=64, ctx_len=16, head_size_a=32)
    pipeline = RWKVTrainingPipeline(tmp_path / "a", config, QUICK, tokenizer=IntegerTokenizer(9))
    pipeline.prepare_data(numbers())
    pipeline.initialize_model()
    pipeline.train(num_epochs=1)
    pipeline = RWKVTrainingPipeline(tmp_path / "a", config, QUICK, tokenizer=IntegerTokenizer(9))
    assert pipeline.train(num_epochs=2, continue_training=True)["status"] == "finished"
    other = RWKVTrainingPipeline(tmp_path / "b", training_config=QUICK, tokenizer=IntegerTokenizer(9))
    other.prepare_data(numbers())
    other.train_from_checkpoint(pipeline.get_latest_checkpoint(), 1, override_config={"ctx_len": 16})
    assert other.model_config.layer_list() == pipeline.model_config.layer_list()
    with pytest.raises(ValueError, match="holds a run of another model"):
        RWKVTrainingPipeline(tmp_path / "a", config.replace(layers=layers[::-1]))


@versions
def test_inspection(version, tmp_path):
    RWKV(small(version, vocab_size=30)).save(tmp_path / "w.pth")
    info = RWKVTrainingPipeline(work_dir=tmp_path / "run").inspect_checkpoint(str(tmp_path / "w.pth"))
    assert isinstance(info, dict) and info == rwkvtune.inspect_rwkv_checkpoint(tmp_path / "w.pth")
    assert info["file_size_mb"] > 0 and info["num_parameters"] == RWKV(small(version, vocab_size=30)).num_parameters
    found = info["detected_config"]
    assert [found[name] for name in ("n_layer", "n_embd", "vocab_size", "model_type")] == [2, 64, 30, version]
    assert found["ctx_len"] is None


def test_every_documented_name_is_there():
    names = ("RWKVTrainingPipeline ModelConfig TrainingConfig DataConfig IntegerTokenizer GenericTokenizer AngleTokenizer BaseTokenizer"
             " create_vocab_file_from_tokens create_default_vocab_file NumpyToJsonlConverter JsonlToBinIdxConverter DataPipeline"
             " inspect_rwkv_checkpoint load_checkpoint_for_training validate_checkpoint_compatibility DetectedModelConfig").split()  # fmt: skip
    assert [name for name in names if not hasattr(rwkvtune, name) or name not in rwkvtune.__all__] == []


def test_every_test_the_page_names_exists():
    """The table at the end of docs/pipeline.md: a test that is renamed takes its row along."""
    here = Path(__file__).parent
    page = (here.parents[1] / "docs" / "pipeline.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:\w+::)?(test_\w+)`", page))
    sources = "".join(path.read_text(encoding="utf-8") for path in here.glob("test_*.py"))
    files = {path.stem for path in here.glob("test_*.py")}
    assert len(named) > 80 and sorted(name for name in named - files if f"def {name}(" not in sources) == []
