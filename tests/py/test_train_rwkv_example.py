"""examples/train_rwkv.py: flags, environment, training, resume, evaluation."""

import importlib.util
import json
from pathlib import Path

import pytest
from hybrid_helpers import RECIPES, TEXT, small, write_text

from rwkvtune import RWKV
from rwkvtune.hybrid import read_environment

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_rwkv.py"
SMALL = ["--n_layer", "2", "--n_embd", "64", "--head_size_a", "32", "--max_seq_length", "48", "--batch_size", "4"]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in (
        "RWKV_HEAD_SIZE",
        "RWKV_HEAD_SIZE_A",
        "RWKV_MY_TESTING",
        "RWKV_CTXLEN",
        "RWKV_JIT_ON",
        "RWKV_TRAIN_TYPE",
        "RWKV_FLOAT_MODE",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("train_rwkv", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def files(tmp_path):
    return [
        "--train_file",
        write_text(tmp_path),
        "--val_file",
        write_text(tmp_path, "val.txt", TEXT[300:800]),
        "--output_dir",
        str(tmp_path / "out"),
    ]


@pytest.mark.parametrize("layers", ["0,1"] + [""] * (len(RECIPES) > 1))
@pytest.mark.parametrize("chunking", [[], ["--use_rwkv_chunking", "--rwkv_chunk_size", "16"]])
def test_trains_evaluates_and_resumes(script, files, tmp_path, capsys, caplog, layers, chunking):
    caplog.set_level("INFO", "rwkvtune.hybrid.groups")
    line = [*files, *SMALL, *chunking, "--experiment_name", "try", "--seed", "42"]
    line += ["--layers", layers] if layers else []
    out = tmp_path / "out" / "try"
    assert script.main([*line, "--max_steps", "3"]) == 0
    assert script.main([*line, "--max_steps", "6"]) == 1
    assert "holds a run; go on with it" in capsys.readouterr().err
    assert script.main([*line, "--max_steps", "6", "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "validation: {'loss':" in printed and "evaluation: loss" in printed
    assert (
        "RWKV Optimizer: Found 6 time_decay parameters (learning rate x 1.8, weight decay 0)" in caplog.text
        or not layers
    )
    assert len((out / "loss.csv").read_text().splitlines()) == 7
    evaluation, layer_map = (
        json.loads((out / "evaluation.json").read_text()),
        json.loads((out / "layers.json").read_text()),
    )
    assert evaluation["tokens"] == 499 and {"loss", "perplexity", "state_benefit_ratio"} <= set(evaluation)
    assert layer_map["rwkv_layer_indices"] == ([0, 1] if layers else [0])
    model = RWKV.load(out / "rwkv-final.pth", head_size_a=32)
    assert [layer["time_mix"] for layer in model.config.layer_list()] == ["x070", "x070" if layers else "attention"]


def test_environment_gives_defaults_and_flags_win(script, files, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RWKV_HEAD_SIZE_A", "16")
    monkeypatch.setenv("RWKV_CTXLEN", "32")
    monkeypatch.setenv("RWKV_JIT_ON", "1")
    monkeypatch.setenv("RWKV_TRAIN_TYPE", "none")
    args = script.arguments(files)
    assert (args.head_size_a, args.max_seq_length, args.train_type) == (16, 32, "none")
    assert capsys.readouterr().out.splitlines() == [
        "  RWKV_HEAD_SIZE_A=16",
        "  RWKV_CTXLEN=32",
        "  RWKV_TRAIN_TYPE=none",
        "  RWKV_JIT_ON=1",
    ]
    assert script.arguments([*files, "--head_size_a", "64"]).head_size_a == 64
    known = vars(args)
    assert {"model_type", "precision", "train_type", "head_size_a"} <= set(known)
    assert set(read_environment()) - {"ctx_len"} <= set(known)
    monkeypatch.setenv("RWKV_CTXLEN", "many")
    assert script.main([*files, *SMALL, "--max_steps", "1"]) == 1
    assert "RWKV_CTXLEN is 'many'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong, words",
    [
        (["--train_file", "nowhere.txt"], "nowhere.txt"),
        (["--layers", "0,7"], "rwkv_layer_indices holds 7"),
        (["--rwkv_chunk_size", "0"], "chunk_size is 0"),
        (["--lr", "-1"], "lr_init"),
        (["--vocab_file", "nowhere.vocab"], "nowhere.vocab"),
    ],
)
def test_bad_input_is_one_line(script, files, capsys, wrong, words):
    assert script.main([*files, *SMALL, "--layers", "0,1", "--max_steps", "1", *wrong]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("train_rwkv: error: ") and words in lines[0]


def test_trains_initial_states_of_given_weights(script, files, tmp_path):
    given = small()
    given.save(tmp_path / "given.pth")
    line = [*files, *SMALL, "--layers", "0,1", "--max_steps", "2", "--train_type", "states", "--experiment_name", "states",
            "--load_model", str(tmp_path / "given.pth")]  # fmt: skip
    assert script.main(line) == 0
    model = RWKV.load(tmp_path / "out" / "states" / "rwkv-final.pth", head_size_a=32)
    before = given.named_parameters()
    assert {name for name, value in model.named_parameters().items() if name not in before or (value != before[name]).any()} == {
        "blocks.0.att.time_state", "blocks.1.att.time_state"
    }  # fmt: skip
    assert all(model.named_parameters()[f"blocks.{i}.att.time_state"].any() for i in range(2))


def test_dry_run_of_the_preset_makes_no_model(script, files, capsys, tmp_path):
    assert script.main([*files, "--preset", "3b", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "32 layers, 2560 channels" in printed and "RRRTRRRT" in printed
    assert not list((tmp_path / "out").rglob("*.pth"))
