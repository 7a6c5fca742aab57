"""`rwkvtune train`: configurations, which weights are taken, RWKV-LM's flags, the plan.  S0-NN: row of docs/configuration.md."""

import argparse
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rwkvtune import RWKV, ModelConfig, info
from rwkvtune.cli import main, train_plan
from rwkvtune.cli.train_flags import WITHOUT_EFFECT, add_flags, settle

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SIZES = {"n_layer": 1, "n_embd": 32, "vocab_size": 257, "head_size_a": 32}
LORA = {"dim_att_lora": 8, "dim_gate_lora": 8, "dim_mv_lora": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The path of bin/idx data of 40 kB of text."""
    root = tmp_path_factory.mktemp("data")
    (root / "text.txt").write_text("\n\n".join(f"Paragraph {n} is here." for n in range(1600)))
    assert main(["prepare", str(root / "text.txt"), str(root / "train"), "--document_chars", "500"]) == 0
    return str(root / "train")


@pytest.fixture
def place(tmp_path, monkeypatch, capsys):
    """An empty working directory with a configuration c.json and weights that fit it, w.pth and other.pth."""
    monkeypatch.chdir(tmp_path)
    write_config()
    for seed, name in enumerate(("w.pth", "other.pth")):
        RWKV(ModelConfig(model_type="x070", **SIZES, **LORA), seed=seed).save(name)
    capsys.readouterr()
    return tmp_path


def write_config(name="c.json", **changes):
    raw = {"architecture_version": "rwkv7", "model_name": "Small", "model_file": None, "architecture": SIZES, "lora_dims": LORA,
           "training": {"recommended_ctx_len": 16, "recommended_batch_size": 8, "recommended_lr": 1e-05}}  # fmt: skip
    Path(name).write_text(json.dumps(raw | changes))


def train(capsys, *argv, code=0):
    """(stdout, stderr) of `rwkvtune train`."""
    capsys.readouterr()
    assert main(["train", *map(str, argv)]) == code
    return capsys.readouterr()


def run_config(capsys, data, *argv, code=0):
    return train(capsys, "--data_file", data, "--model_config", "./c.json", "--my_exit_tokens", "256", *argv, code=code)


# ---- configurations and weights ----


def test_unknown_configuration(capsys):
    """S0-31"""
    out = train(capsys, "--model_config", "unknown-model", code=2)
    names = ["0.1b", "0.4b", "1.5b", "13.3b", "2.9b", "7.2b"]
    assert out.out == "" and out.err == (
        "❌ Error: Unable to load model configuration 'unknown-model'\n"
        "   Configuration not found: 'unknown-model'\n"
        f"   Available configs: {[*names, *(f'rwkv7-{name}' for name in names)]}\n"
        "   Or provide the full path to a configuration file\n"
        "\n"
        "💡 Three configuration methods are supported:\n"
        "   1. Short name: 0.1b, 0.4b, 1.5b, 2.9b, 7.2b\n"
        "   2. Full name: rwkv7-0.1b, rwkv7-1.5b, ...\n"
        "   3. File path: /path/to/config.json\n"
    )


def test_broken_configuration(capsys, place):
    """S0-21, S0-31"""
    (place / "c.json").write_text('{"architecture_version": "rwkv7",\n "architecture": 3}')
    out = train(capsys, "--model_config", "./c.json", code=2)
    assert f"   {place}/c.json:2: the field 'architecture' is 3; it must be an object\n" in out.err


def test_a_terminal_without_the_marks():
    """Nothing fails where the output cannot show a mark."""
    done = subprocess.run(
        [sys.executable, "-m", "rwkvtune.cli.train", "--model_config", "0.1b", "--train_stage", "1", "--dry_run"],
        check=False, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0 and "? Using model config: RWKV7-0.1B (rwkv7)" in done.stdout


def test_weights_of_the_configuration_file(capsys, place, data):
    """S0-32, S0-34, S0-37: model_file without an override; S0-33: --load_model '' is none"""
    write_config(model_file="./w.pth")
    for empty in ([], ["--load_model", ""], ["--load_model", "0"]):
        text = run_config(capsys, data, *empty, "--dry_run").out
        assert text.splitlines()[:7] == [
            "✓ Using model config: Small (rwkv7)",
            f"✓ Config source: file:{place}/c.json",
            "✓ Model weights: ./w.pth",
            "✓ Architecture params: 1 layers, 32 dims, 257 vocab",
            "✓ LORA dims: att=8, gate=8, mv=8",
            "✓ Training params: ctx_len=16, batch_size=8, lr=1e-05",
            f"Size of the weights: {(place / 'w.pth').stat().st_size / 1e6:.1f} MB",
        ]
    run_config(capsys, data)
    assert (place / "out" / "rwkv-final.pth").exists()


def test_override_of_the_configuration_file(capsys, place, data):
    """S0-32, S0-35, S0-37"""
    write_config(model_file="/somewhere/w.pth")
    lines = run_config(capsys, data, "--load_model", "other.pth").out.splitlines()
    assert lines[2:5] == ["✓ Model weights: other.pth", "  (Overriding config file: /somewhere/w.pth)",
                          "✓ Architecture params: 1 layers, 32 dims, 257 vocab"]  # fmt: skip
    rows = (place / "out" / "loss.csv").read_text().splitlines()[1:]
    assert len(rows) == 2 and float(rows[0].split(",")[3]) == pytest.approx(1e-05)


def test_which_weights_are_trained(capsys, place, data):
    """S0-32: the weights named are the ones the first step sees"""
    weights = {}
    write_config(model_file="w.pth")
    for name, more in (("w.pth", []), ("other.pth", ["--load_model", "other.pth"])):
        run_config(capsys, data, "--proj_dir", name[0], "--lr_init", "0", "--lr_final", "0", "--save_dtype", "fp32", *more)
        weights[name] = RWKV.load(f"{name[0]}/rwkv-final.pth").named_parameters()
        want = RWKV.load(name).named_parameters()
        assert all(np.array_equal(weights[name][key], want[key]) for key in want)
    assert not np.array_equal(weights["w.pth"]["emb.weight"], weights["other.pth"]["emb.weight"])


def test_no_weights(capsys, place, data):
    """S0-32, S0-36: neither --load_model nor model_file is an error that says what to do; stage 1 makes weights"""
    text = run_config(capsys, data, code=2).err
    assert "no weights" in text and "--load_model" in text and "--train_stage 1" in text
    assert not list((place / "out").glob("rwkv-*"))
    lines = run_config(capsys, data, "--train_stage", "1").out.splitlines()
    assert lines[2] == "✓ Model weights: out/rwkv-init.pth (fresh)"
    assert [path.name for path in (place / "out").glob("*.pth")] == ["rwkv-init.pth"]
    assert "✓ Model weights: out/rwkv-init.pth\n" in run_config(capsys, data).out


def test_weights_that_are_not_there(capsys, place, data):
    assert "weights not found: none.pth (--load_model)" in run_config(capsys, data, "--load_model", "none.pth", code=2).err
    write_config(model_file="/gone.pth")
    text = run_config(capsys, data, code=2).err
    assert "weights not found: /gone.pth (model_file of file:" in text and "--load_model" in text


def test_weights_of_another_size(capsys, place, data):
    write_config(lora_dims=LORA | {"dim_gate_lora": 16})
    text = run_config(capsys, data, "--load_model", "w.pth", code=2).err
    assert "dim_gate_lora of file:" in text and "is 16 but the weights to go on with have 8" in text


@pytest.mark.parametrize("name, arch", [("1.0b", "rwkv8"), ("rwkv8-1.0b", "rwkv7"), ("./rwkv8-1.0b.json", "rwkv7")])
def test_new_architecture(capsys, place, monkeypatch, name, arch):
    """S0-38, S0-39, S0-51: short name with --default_arch, full name and path; a model of it cannot be built here"""
    from rwkvtune.configs import model_loader

    monkeypatch.setattr(model_loader, "_BUILTIN", place)
    write_config("rwkv7-1.0b.json")
    write_config("rwkv8-1.0b.json", architecture_version="rwkv8", model_name="RWKV8-1.0B")
    out = train(capsys, "--model_config", name, "--default_arch", arch, "--train_stage", "1", code=2)
    assert out.out.startswith("✓ Using model config: RWKV8-1.0B (rwkv8)\n") and "rwkv8 yet" in out.err


def test_flags_win_over_recommendations(capsys, place, data):
    """S0-18..20, S0-38"""
    text = run_config(capsys, data, "--load_model", "w.pth", "--ctx_len", "32", "--micro_bsz", "4", "--lr_init", "0.001", "--dry_run").out
    assert "✓ Training params: ctx_len=32, batch_size=4, lr=0.001\n" in text
    assert "of 4 x 32 tokens" in text and "0.001 -> 1e-05" in text


def test_sizes_on_the_command_line(capsys, place):
    """S0-38: they change the configuration of fresh weights"""
    train(capsys, "--model_config", "./c.json", "--train_stage", "1", "--n_layer", "2", "--dim_gate_lora", "16")
    config = RWKV.load("out/rwkv-init.pth").config
    assert (config.n_layer, config.dim_gate_lora, config.dim_mv_lora) == (2, 16, 8)


def test_final_rate_is_not_above_the_first(capsys, place, data):
    text = run_config(capsys, data, "--load_model", "w.pth", "--lr_init", "1e-6", "--dry_run").out
    assert "1e-06 -> 1e-06" in text


# ---- RWKV-LM's flags ----

# train.py of RWKV-v7 and RWKV-v5: flag, default; what differs here stands in test_defaults_that_differ
RWKV_LM = {
    "load_model": "", "wandb": "", "proj_dir": "out", "random_seed": -1, "data_file": "", "vocab_size": 0, "ctx_len": 1024,
    "epoch_begin": 0, "epoch_save": 5, "micro_bsz": 12, "dim_att": 0, "dim_ffn": 0, "lr_init": 6e-4, "lr_final": 1e-5,
    "warmup_steps": -1, "beta1": 0.9, "beta2": 0.99, "adam_eps": 1e-18, "grad_cp": 0, "weight_decay": 0, "grad_clip": 1.0,
    "train_stage": 0, "ds_bucket_mb": 200, "head_chunk": 0, "load_partial": 0, "magic_prime": 0, "my_testing": "x070", "kernel": "",
    "my_exit_tokens": 0, "devices": 1, "num_nodes": 1, "strategy": "auto", "accumulate_grad_batches": 1,
    "enable_progress_bar": True, "train_type": "", "pre_ffn": 0, "head_qk": 0, "tiny_att_dim": 0, "tiny_att_layer": -999, "dropout": 0,
    "weight_decay_final": -1, "my_pile_version": 1, "my_pile_shift": -1, "my_pile_edecay": 0, "layerwise_lr": 1,
    "my_sample_len": 0, "my_ffn_shift": 1, "my_att_shift": 1, "head_size_divisor": 8, "my_pos_emb": 0, "my_qa_mask": 0,
    "my_random_steps": 0, "my_exit": 99999999,
}  # fmt: skip


def parsed(*argv):
    parser = argparse.ArgumentParser()
    add_flags(parser)
    args = parser.parse_args(argv)
    settle(args, None)
    return args


def test_defaults_of_rwkv_lm():
    args = parsed()
    assert {name: getattr(args, name) for name in RWKV_LM} == RWKV_LM


def test_defaults_that_differ():
    """data_type utf-8 (there refused too), accelerator gpu, precision of Lightning, and epochs: there overwritten by the magic prime."""
    args = parsed()
    assert (args.accelerator, args.device) == ("cpu", "cpu")
    assert (args.data_type, args.precision, args.epoch_steps, args.epoch_count) == ("binidx", "fp32", 0, 0)
    assert (args.n_layer, args.n_embd, args.head_size_a) == (None, None, None)  # 6, 512 and 64, see the next test
    assert parsed("--head_size", "32").head_size_a == parsed("--head_size_a", "32").head_size_a == 32
    assert parsed("--my_pile_stage", "2").train_stage == 2


def test_default_sizes(capsys, tmp_path):
    train(capsys, "--train_stage", "1", "--vocab_size", "16", "--proj_dir", tmp_path)
    config = RWKV.load(tmp_path / "rwkv-init.pth").config
    assert (config.n_layer, config.n_embd, config.head_size_a, config.dim_ffn, config.vocab_size) == (6, 512, 64, 2048, 16)


@pytest.mark.skipif(info()["cuda_devices"] > 0, reason="there is a CUDA device")
def test_a_device_that_is_not_there(capsys, place, data):
    """--device insists, RWKV-LM's --accelerator takes what there is."""
    for more in ([], ["--dry_run"], ["--train_stage", "1"]):
        err = train(capsys, *small(data, "--device", "cuda", "--accelerator", "cpu", *more), code=2).err
        assert err == f"rwkvtune train: error: device 'cuda' cannot be used: {info()['cuda_reason']}; device='cpu' works everywhere\n"
    assert "allowed are" in train(capsys, *small(data, "--device", "gpu"), code=2).err
    assert not (place / "out").exists()
    out = train(capsys, *small(data, "--accelerator", "gpu", "--my_exit_tokens", "128"))
    assert f"--accelerator gpu: {info()['cuda_reason']}; the processor computes\n" in out.err and "fp32 on cpu" in out.out
    assert parsed("--accelerator", "auto").device == "cpu" and capsys.readouterr().err == ""


def test_every_flag_without_effect_is_named_in_one_line(capsys):
    args = parsed(*(word for name, (default, _) in WITHOUT_EFFECT.items() for word in (f"--{name}", str(default))))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["rwkvtune train: without effect here: " + ", ".join(f"--{name}" for name in WITHOUT_EFFECT)]
    assert all(getattr(args, name) == default for name, (default, _) in WITHOUT_EFFECT.items())
    parsed("--lr_init", "1e-3")
    assert capsys.readouterr().err == ""


def test_table_of_the_flags():
    """docs/train_flags.md says of every flag what the parser says; `python tools/flag_table.py` prints the table anew."""
    table = runpy.run_path(str(EXAMPLES.parent / "tools" / "flag_table.py"))["flag_table"]()
    assert all(f"`--{name}`" in table for name in RWKV_LM)
    assert (EXAMPLES.parent / "docs" / "train_flags.md").read_text(encoding="utf-8").endswith("\n\n" + table)


def test_the_end_is_told(capsys, place, data):
    argv = small(data, "--my_exit_tokens", "256")
    assert "Finished at step 2: weights out/rwkv-final.pth, loss curve out/loss.png" in train(capsys, *argv).out
    assert "was finished before" in train(capsys, *argv).out
    assert "holds a run (trainer_state.pth)" in train(capsys, *argv, "--train_stage", "1").err


def small(data, *argv):
    return ["--data_file", data, "--vocab_size", 257, "--n_layer", 1, "--n_embd", 32, "--head_size", 32, "--ctx_len", 16, "--micro_bsz", 8, *argv]


def test_demo_recipe(capsys, place, data):
    """RWKV-LM's MiniPile commands, with smaller sizes."""
    same = ["--load_model", "0", "--wandb", "", "--data_type", "binidx", "--my_testing", "x070", "--weight_decay", "0.001", "--head_size", "32",
            "--accelerator", "cpu", "--devices", "1", "--precision", "bf16", "--strategy", "deepspeed_stage_2", "--grad_cp", "1"]  # fmt: skip
    out = train(capsys, *small(data, "--train_stage", "1", "--epoch_count", "1", "--epoch_begin", "0", *same))
    assert out.err.count("\n") == 1 and "Now go for stage 2 or 3." in out.out
    assert [path.name for path in (place / "out").glob("*.pth")] == ["rwkv-init.pth"]
    train(capsys, *small(data, "--train_stage", "3", "--epoch_count", "999999", "--my_exit_tokens", "640", "--magic_prime", "2273",
                         "--warmup_steps", "10", "--beta1", "0.9", "--beta2", "0.99", "--adam_eps", "1e-18", "--epoch_save", "10", *same))  # fmt: skip
    assert (place / "out" / "loss.csv").read_text().count("\n") == 6


@pytest.mark.parametrize("version", ["x052", "x060", "x070"])
def test_versions(capsys, place, data, version):
    train(capsys, *small(data, "--my_testing", version, "--my_exit_tokens", "256"))
    assert RWKV.load("out/rwkv-final.pth").config.model_type == version
    assert "is 64 but the weights" in train(capsys, *small(data, "--n_embd", 64), code=2).err


def test_epochs_of_ones_own(capsys, place, data):
    train(capsys, *small(data, "--epoch_steps", "3", "--epoch_count", "2", "--epoch_save", "1"))
    names = sorted(path.name for path in (place / "out").glob("rwkv-*.pth"))
    assert names == ["rwkv-0.pth", "rwkv-1.pth", "rwkv-final.pth", "rwkv-init.pth"]
    rows = [line.split(",") for line in (place / "out" / "loss.csv").read_text().splitlines()[1:]]
    assert len(rows) == 6 and float(rows[-1][3]) < 1e-4
    train(capsys, *small(data, "--epoch_steps", "3", "--my_exit", "1", "--proj_dir", "two"))
    assert (place / "two" / "loss.csv").read_text().count("\n") == 4


def test_epoch_begin(capsys, place, data):
    more = ["--load_model", "w.pth", "--epoch_steps", "3", "--epoch_begin", "2", "--epoch_count", "3"]
    train(capsys, "--data_file", data, "--ctx_len", "16", "--micro_bsz", "8", *more)
    assert [row.split(",")[0] for row in (place / "out" / "loss.csv").read_text().splitlines()[1:]] == ["7", "8", "9"]


def test_partial_weights(capsys, place, data):
    """--load_partial 1: what the weights lack is initialised, the rest is theirs"""
    from rwkvtune.checkpoint import read_checkpoint, write_pth

    tensors = {name: value.numpy() for name, value in read_checkpoint("w.pth").items()}
    del tensors["blocks.0.att.r_k"]
    write_pth("part.pth", tensors)
    argv = ["--load_model", "part.pth", "--lr_init", "0", "--lr_final", "0"]
    assert "r_k" in run_config(capsys, data, *argv, code=2).err
    run_config(capsys, data, *argv, "--load_partial", "1")
    done = RWKV.load("out/rwkv-final.pth").named_parameters()
    assert np.allclose(done["blocks.0.att.r_k"], -0.04) and np.array_equal(done["emb.weight"], tensors["emb.weight"])


def test_states_of_weights_without_states(capsys, place, data):
    """--train_type states: --load_partial 1 makes the states, sizes are those of the weights, nothing else changes"""
    argv = ["--data_file", data, "--vocab_size", 257, "--load_model", "w.pth", "--ctx_len", 16, "--micro_bsz", 8, "--my_exit_tokens", 256,
            "--train_type", "states", "--save_dtype", "fp32", "--lr_init", "1e-2"]  # fmt: skip
    assert "--load_partial 1" in train(capsys, *argv, code=2).err
    train(capsys, *argv, "--load_partial", "1")
    before, after = RWKV.load("w.pth").named_parameters(), RWKV.load("out/rwkv-final.pth").named_parameters()
    states = [name for name in after if name not in before]
    assert states and all("time_sta" in name for name in states) and all(np.array_equal(after[name], before[name]) for name in before)


def test_states_under_rwkv_peft_s_name(capsys, place, data):
    argv = ["--data_file", data, "--load_model", "w.pth", "--load_partial", 1, "--ctx_len", 16, "--micro_bsz", 8,
            "--my_exit_tokens", 256, "--vocab_size", 257]  # fmt: skip
    for kind, directory in (("state", "one"), ("states", "two")):
        train(capsys, *argv, "--train_type", kind, "--proj_dir", directory)
    one, two = (RWKV.load(f"{directory}/rwkv-final.pth").named_parameters() for directory in ("one", "two"))
    assert any("time_state" in name for name in one)
    assert all(np.array_equal(one[name], two[name]) for name in two)


def test_infctx(capsys, place, data):
    """Samples longer than memory would allow: the plan is that of a chunk, and losses follow the chunks, not the sample"""
    argv = ["--data_file", data, "--load_model", "w.pth", "--vocab_size", 257, "--ctx_len", 1024, "--micro_bsz", 2, "--epoch_steps", 2,
            "--epoch_count", 2, "--epoch_save", 1, "--save_dtype", "fp32", "--lr_init", "1e-3"]  # fmt: skip

    def activations(*more):
        size = re.search(r"activations ([0-9.]+) MB", train(capsys, *argv, "--dry_run", *more).out)
        return float(size[1])

    chunked = ["--train_type", "infctx", "--chunk_ctx", "64"]
    assert activations(*chunked) < activations() / 8
    for more, directory in ((chunked, "cut"), (["--train_type", "infctx", "--chunk_ctx", "1024"], "one"), ([], "plain")):
        train(capsys, *argv, *more, "--proj_dir", directory)
    cut, one, plain = (RWKV.load(f"{directory}/rwkv-final.pth").named_parameters() for directory in ("cut", "one", "plain"))
    for name, value in plain.items():
        assert np.array_equal(one[name], value), f"{name}: a single chunk is plain training"
    assert any(not np.array_equal(cut[name], value) for name, value in plain.items())
    assert "chunk_ctx is 0" in train(capsys, *argv, "--train_type", "infctx", "--chunk_ctx", "0", code=2).err


def test_no_progress_bar(capsys, place, data):
    assert "step/s" in train(capsys, *small(data, "--my_exit_tokens", "256")).err
    quiet = train(capsys, *small(data, "--my_exit_tokens", "256", "--proj_dir", "quiet", "--enable_progress_bar", "False"))
    assert "step" not in quiet.err


def test_what_a_model_cannot_be_is_refused_before_anything_is_written(capsys, place, data):
    assert "n_layer is 0" in train(capsys, *small(data, "--n_layer", "0"), code=2).err
    for more in ([], ["--dry_run"]):
        assert "token id 116" in train(capsys, *small(data, "--vocab_size", "100", *more), code=2).err
    assert "must divide 40320" in train(capsys, *small(data, "--micro_bsz", "11"), code=2).err
    assert not list(place.glob("out/rwkv-*"))


def test_data_of_another_type(capsys, place):
    assert "rwkvtune prepare" in train(capsys, *small("x", "--data_type", "utf-8"), code=2).err
    assert "--data_file" in train(capsys, "--vocab_size", "9", code=2).err


# ---- the plan ----


def plan_of(text):
    lines = text[text.index("Plan (nothing is written)") :].splitlines()[1:]
    return {line[2:16].strip(): line[16:] for line in lines}


def test_dry_run(capsys, place, data):
    argv = small(data, "--my_exit_tokens", "12800", "--warmup_steps", "5", "--dry_run")
    before = sorted(place.rglob("*"))
    plan = plan_of(train(capsys, *argv).out)
    assert sorted(place.rglob("*")) == before
    model = RWKV(ModelConfig(model_type="x070", **SIZES))
    assert plan["parameters"] == f"{model.num_parameters:,}" and plan["start"] == "fresh weights"
    assert plan["memory"].startswith(f"{model.plan(8, 16)['total'] / 1e6:.1f} MB (parameters ")
    assert plan["steps"] == "100 of 8 x 16 tokens, to step 100" and plan["tokens"] == "12,800"
    assert plan["learning rate"] == "0.0006 -> 1e-05 over 12,800 tokens, warmup 5 steps"
    assert plan["time"].startswith("about ") and "tokens/s" in plan["time"]
    train(capsys, *argv[:-1])
    plan = plan_of(train(capsys, *argv).out)
    assert plan["start"] == "out/trainer_state.pth" and plan["steps"].startswith("0 of ") and "nothing is left" in plan["time"]


def test_dry_run_of_what_does_not_fit(capsys, monkeypatch, place, data):
    """Sizes of a model that cannot be allocated, against the same model allocated."""
    argv = small(data, "--n_layer", "7", "--dry_run", "--my_exit_tokens", "256")
    whole = plan_of(train(capsys, *argv).out)
    build = train_plan._unwritten_model

    def no_room(config, *where):
        if config.n_layer > 3:
            raise MemoryError("no memory for the parameters")
        return build(config, *where)

    monkeypatch.setattr(train_plan, "_unwritten_model", no_room)
    plan = plan_of(train(capsys, *argv).out)
    assert "not measured" in plan.pop("time") and whole.pop("time")
    assert plan.pop("memory").partition(";")[0] == whole.pop("memory").partition(";")[0]
    assert plan == whole


def test_time_of_a_step_is_a_line_through_the_last_two(monkeypatch):
    """A step that costs 0.25 s and 1 ms a token is found exactly, though the measurement ends at 1024 of 4096 tokens."""
    clock = [0.0]

    class Slow:
        def __init__(self, model, config):
            pass

        def step(self, ids, targets, lr):
            assert lr == 0.0 and ids.max() < 257
            clock[0] += 0.25 + 1e-3 * ids.size

    monkeypatch.setattr("rwkvtune.trainer.Trainer", Slow)
    monkeypatch.setattr(train_plan.time, "perf_counter", lambda: clock[0])
    from rwkvtune import TrainingConfig

    model = argparse.Namespace(config=ModelConfig(model_type="x070", **SIZES), precision="fp32")
    seconds = train_plan.step_seconds(model, TrainingConfig(precision="fp32", micro_bsz=4, accumulate_grad_batches=2), 512)
    assert seconds == pytest.approx(0.25 + 1e-3 * 8 * 512)
    assert clock[0] < 5


# ---- the scripts in examples/ ----


def run_script(name, place, data, *argv, **variables):
    environment = os.environ | {"PYTHON": sys.executable, "DATA_FILE": data, "EXTRA": "--my_exit_tokens 256 --save_dtype fp32"} | variables
    return subprocess.run(["bash", str(EXAMPLES / name), *argv], check=False, capture_output=True, text=True, cwd=place, env=environment)


def test_multi_gpu_script(place, data):
    """S0-40, S0-52, S0-33: MODEL_CONFIG and MODEL_PATH, an empty one is the configuration's"""
    script = "train_rwkv7_multi_gpu.sh"
    done = run_script(script, place, data, MODEL_CONFIG="./c.json", MODEL_PATH="w.pth", PROJ_DIR="a")
    assert done.returncode == 0, done.stderr
    assert "✓ Model weights: w.pth\n" in done.stdout and (place / "a" / "rwkv-final.pth").exists()
    write_config(model_file="other.pth")
    done = run_script(script, place, data, MODEL_CONFIG="./c.json", MODEL_PATH="", PROJ_DIR="b")
    assert done.returncode == 0 and "✓ Model weights: other.pth\n" in done.stdout
    write_config()
    assert run_script(script, place, data, MODEL_CONFIG="./c.json", PROJ_DIR="c").returncode == 2
    done = run_script(script, place, data, MODEL_CONFIG="./c.json", PROJ_DIR="c", FRESH="1", DEVICES="2")
    assert done.returncode == 0 and (place / "c" / "rwkv-final.pth").exists() and "--devices" in done.stderr
    assert "2 steps of 8 x 16 tokens" not in done.stdout and "1 steps of 16 x 16 tokens" in done.stdout


def test_script_by_size(place, data):
    """S0-40: examples/train_with_config.sh SIZE [WEIGHTS]"""
    done = run_script("train_with_config.sh", place, data, "./c.json", "w.pth")
    assert done.returncode == 0 and "✓ Model weights: w.pth\n" in done.stdout, done.stderr
    assert "usage" in run_script("train_with_config.sh", place, data).stderr


def test_another_version_than_the_weights(capsys, place, data):
    train(capsys, *small(data, "--train_stage", "1", "--my_testing", "x070"))
    err = train(capsys, *small(data, "--train_stage", "3", "--my_testing", "x060", "--my_exit_tokens", "256"), code=2).err
    assert "--my_testing is x060 but the weights to go on with are x070" in err


@pytest.mark.parametrize("flag", ["--epoch_count", "--epoch_steps", "--epoch_begin", "--my_exit", "--magic_prime"])
def test_negative_lengths(capsys, place, data, flag):
    assert f"{flag} is -1; it must be at least" in train(capsys, *small(data, flag, -1), code=2).err
    assert not (place / "out").exists()
