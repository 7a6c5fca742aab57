"""Weights from anywhere: what they tell, whether they fit, and what is refused, through files as people have them."""

import pickle
import zipfile

import numpy as np
import pytest
from test_detect import model as shapes_of
from test_detect import without

from rwkvtune import (RWKV, DetectedModelConfig, FormatError, IntegerTokenizer, ModelConfig, RWKVTrainingPipeline, TrainingConfig,
                      inspect_checkpoint, load_checkpoint_for_training, validate_checkpoint_compatibility)  # fmt: skip
from rwkvtune.checkpoint import detect, write_pth

CONFIG = ModelConfig(model_type="x070", n_layer=2, n_embd=64, vocab_size=20, ctx_len=16, head_size_a=32)
QUICK = TrainingConfig(precision="fp32", micro_bsz=4, grad_cp=0)


def weights_file(path, shapes):
    write_pth(path, {name: np.zeros(shape, "f4") for name, shape in shapes.items()})
    return path


@pytest.fixture
def saved(tmp_path):
    RWKV(CONFIG, seed=3).save(tmp_path / "w.pth", dtype="bf16")
    return tmp_path / "w.pth"


def test_tensors_and_what_they_tell(saved, capsys):
    state_dict, found = load_checkpoint_for_training(saved, {"ctx_len": 8})
    assert capsys.readouterr().out == "  Override: ctx_len = 8\n"
    assert (found.n_layer, found.n_embd, found.vocab_size, found.model_type, found.head_size_a, found.dtype) == (2, 64, 20, "x070", 32, "bf16")
    assert found.to_dict()["ctx_len"] == 8 and found.to_model_config().ctx_len == 8
    model = RWKV(found.to_model_config(), seed=9)
    model.load_state_dict(state_dict)
    assert np.array_equal(model([1, 2, 3]).logits, RWKV.load(saved)([1, 2, 3]).logits)
    assert load_checkpoint_for_training(saved)[1].ctx_len is None


def test_what_weights_do_not_tell_is_none():
    told = detect(shapes_of("x052"))
    found = DetectedModelConfig(**told)
    unknown = {name for name, value in found.to_dict().items() if value is None}
    assert unknown == {"ctx_len", "dtype", "dim_decay_lora", "dim_aaa_lora", "dim_mv_lora", "dim_gate_lora", "time_mix_extra_dim",
                       "time_decay_extra_dim"}  # fmt: skip
    assert DetectedModelConfig(**detect(shapes_of("attention"))).head_size_a is None


def test_overrides_that_are_wrong(saved):
    with pytest.raises(ValueError, match="unknown key 'lr'; there are n_layer"):
        load_checkpoint_for_training(saved, {"lr": 1})
    with pytest.raises(ValueError, match="n_embd is 32, but the weights in .*w.pth say 64; leave it out"):
        load_checkpoint_for_training(saved, {"n_embd": 32})


def test_compatibility(saved):
    _, found = load_checkpoint_for_training(saved)
    assert validate_checkpoint_compatibility(found, CONFIG) == (True, [])
    assert validate_checkpoint_compatibility(found, {"n_layer": 2, "vocab_size": 20}) == (True, [])
    good, warnings = validate_checkpoint_compatibility(found, {"vocab_size": 21, "n_embd": 1})
    assert not good and len(warnings) == 1 and "vocab_size of the checkpoint is 20, wanted is 21" in warnings[0]
    good, warnings = validate_checkpoint_compatibility(found, {"n_embd": 128, "n_layer": 3, "model_type": "x060"})
    assert not good and [text.split()[0] for text in warnings] == ["model_type", "n_layer", "n_embd"]
    found.head_size_a = None  # not told: not compared
    assert validate_checkpoint_compatibility(found, CONFIG.replace(head_size_a=64))[0]


def test_inspection_shows_itself(saved, tmp_path):
    info = inspect_checkpoint(saved)
    lines = dict(line.split(None, 1) for line in repr(info).splitlines())
    assert lines["n_embd"] == "64" and lines["model_type"] == "x070" and lines["parameters"] == f"{info['num_parameters']:,}"
    assert "ctx_len" not in lines and "{" not in repr(info)
    assert info._repr_html_().count("<tr>") == len(lines) and "<td style='text-align:left'>x070</td>" in info._repr_html_()
    hybrid = inspect_checkpoint(weights_file(tmp_path / "h.pth", shapes_of("x070", "attention")))
    assert "x070, attention" in repr(hybrid)
    other = inspect_checkpoint(weights_file(tmp_path / "<b>.pth", {"x": (2,)}))
    assert "not a model" in repr(other) and "&lt;b&gt;" in other._repr_html_() and "<b>" not in other._repr_html_()


RWKV4 = without(shapes_of("x052"), "faaaa", "ln_x", "gate") | {"blocks.0.att.time_first": (128,)}


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        (shapes_of("x060") | {"blocks.0.att.gate_w1": (128, 64)}, "research variant x060a"),
        (shapes_of("x060") | {"blocks.0.att.time_maa_rkvw_w1": (128, 128)}, "research variant x060b"),
        (RWKV4, "RWKV-4"),
        ({"transformer.h.0.attn.c_attn.weight": (8, 8)}, "transformer checkpoint"),
    ],
    ids=["x060a", "x060b", "RWKV-4", "GPT-2"],
)
def test_refused_models(tmp_path, shapes, text):
    """The same words whether a file is looked at, opened or trained from; the directory stays as it was."""
    path = weights_file(tmp_path / "w.pth", shapes)
    assert text in inspect_checkpoint(path)["detection_error"]
    pipe = RWKVTrainingPipeline(tmp_path / "run", CONFIG, QUICK, tokenizer=IntegerTokenizer(9))
    pipe.prepare_data(np.zeros((30, 40), int))
    config = pipe.config_path.read_bytes()
    for attempt in (load_checkpoint_for_training, RWKV.load, pipe.train_from_checkpoint):
        with pytest.raises(FormatError, match=text):
            attempt(path)
    assert not any(pipe.output_dir.iterdir()) and pipe.config_path.read_bytes() == config


def test_large_models_have_wider_low_ranks(tmp_path):
    shapes = shapes_of("x060", "x060")
    for index in range(2):
        at = f"blocks.{index}.att."
        shapes |= {f"{at}time_maa_w1": (128, 320), f"{at}time_maa_w2": (5, 64, 128), f"{at}time_decay_w1": (128, 128)}
        shapes |= {f"{at}time_decay_w2": (128, 128)}
    found = inspect_checkpoint(weights_file(tmp_path / "w.pth", shapes))["detected_config"]
    assert (found["time_mix_extra_dim"], found["time_decay_extra_dim"]) == (64, 128)


def test_states_of_runs_and_of_optimizers(tmp_path):
    pipe = RWKVTrainingPipeline(tmp_path / "run", CONFIG, QUICK, tokenizer=IntegerTokenizer(9))
    pipe.train(np.zeros((30, 40), int), num_epochs=1)
    assert "continue_training=True" in inspect_checkpoint(pipe.output_dir / "trainer_state.pth")["detection_error"]
    with pytest.raises(FormatError, match="state of a training run"):
        RWKV.load(pipe.output_dir / "trainer_state.pth")
    with zipfile.ZipFile(tmp_path / "optimizer.pt", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"state": {}, "param_groups": [{"lr": 1e-3}]}, protocol=2))
        file.writestr("archive/version", "3\n")
    with pytest.raises(FormatError, match="optimizer.pt: the state of an optimizer, without weights"):
        load_checkpoint_for_training(tmp_path / "optimizer.pt")


@pytest.mark.parametrize("prefix", ["_forward_module.", "module.", "model.", "_forward_module.module."])
def test_prefixes_and_absent_first_value_residual(tmp_path, prefix):
    """A file as DeepSpeed or Lightning writes it, of a model whose first layer has no v0, v1, v2."""
    whole = RWKV(CONFIG, seed=3)
    dropped = {f"blocks.0.att.{name}" for name in ("v0", "v1", "v2")}
    write_pth(tmp_path / "w.pth", {prefix + name: value for name, value in whole.named_parameters().items() if name not in dropped})
    _, found = load_checkpoint_for_training(tmp_path / "w.pth")
    assert found.layer0_value_residual is False and found.dim_mv_lora == CONFIG.dim_mv_lora
    assert np.array_equal(RWKV.load(tmp_path / "w.pth")([1, 2, 3]).logits, whole([1, 2, 3]).logits)


def test_tensors_too_many_and_too_few_are_named(tmp_path):
    weights = dict(RWKV(CONFIG).named_parameters())
    write_pth(tmp_path / "more.pth", weights | {"blocks.0.att.extra": np.zeros(3, "f4")})
    with pytest.raises(FormatError, match=r"more.pth does not fit this model.*unexpected blocks.0.att.extra \(3,\)"):
        RWKV.load(tmp_path / "more.pth")
    del weights["blocks.1.ln2.bias"]
    write_pth(tmp_path / "less.pth", weights)
    with pytest.raises(FormatError, match=r"less.pth does not fit this model.*missing blocks.1.ln2.bias \(64,\)"):
        RWKV.load(tmp_path / "less.pth")
