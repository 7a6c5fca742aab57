"""Version and sizes from names and shapes, for every kind of file there is."""

import json

import numpy as np
import pytest

from rwkvtune.checkpoint import detect, inspect_checkpoint, write_pth, write_safetensors
from rwkvtune.errors import FormatError


def norms(at, names, c):
    return {f"{at}{name}.{part}": (c,) for name in names for part in ("weight", "bias")}


def x052(at, c, n, f):
    shapes = {f"{at}att.time_mix_{z}": (1, 1, c) for z in "kvrg"}
    shapes |= {f"{at}att.{z}": (c // n, n) for z in ("time_decay", "time_faaaa")}
    shapes |= {f"{at}att.{z}.weight": (c, c) for z in ("receptance", "key", "value", "output", "gate")}
    shapes |= {f"{at}ffn.time_mix_{z}": (1, 1, c) for z in "kr"}
    return shapes | {
        f"{at}ffn.key.weight": (f, c),
        f"{at}ffn.receptance.weight": (c, c),
        f"{at}ffn.value.weight": (c, f),
    }


def x060(at, c, n, f, dm=32, dd=64):
    shapes = {f"{at}att.time_maa_{z}": (1, 1, c) for z in "xwkvrg"}
    shapes |= {f"{at}att.time_maa_w1": (c, 5 * dm), f"{at}att.time_maa_w2": (5, dm, c)}
    shapes |= {f"{at}att.time_decay": (1, 1, c), f"{at}att.time_decay_w1": (c, dd), f"{at}att.time_decay_w2": (dd, c)}
    shapes |= {f"{at}att.{z}.weight": (c, c) for z in ("receptance", "key", "value", "output", "gate")}
    shapes |= {f"{at}att.time_faaaa": (c // n, n)} | {f"{at}ffn.time_maa_{z}": (1, 1, c) for z in "kr"}
    return shapes | {
        f"{at}ffn.key.weight": (f, c),
        f"{at}ffn.receptance.weight": (c, c),
        f"{at}ffn.value.weight": (c, f),
    }


def x070(at, c, n, f, widths=(64, 48, 32, 128)):
    shapes = {
        f"{at}att.{z}": (1, 1, c) for z in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w0", "a0", "v0", "k_k", "k_a")
    }
    for letter, width in zip("wavg", widths):
        shapes |= {f"{at}att.{letter}1": (c, width), f"{at}att.{letter}2": (width, c)}
    shapes |= {f"{at}att.{z}.weight": (c, c) for z in ("receptance", "key", "value", "output")}
    return shapes | {
        f"{at}att.r_k": (c // n, n),
        f"{at}ffn.x_k": (1, 1, c),
        f"{at}ffn.key.weight": (f, c),
        f"{at}ffn.value.weight": (c, f),
    }


def attention(at, c, _n, f):
    shapes = {f"{at}att.{z}_proj.weight": (c, c) for z in "qkvo"}
    return shapes | {f"{at}ffn.fc.weight": (f, c), f"{at}ffn.proj.weight": (c, f)}


MAKERS = {"x052": x052, "x060": x060, "x070": x070, "attention": attention}


def model(*kinds, c=128, n=64, f=512, v=97):
    """Shapes of a model with these blocks."""
    shapes = {"emb.weight": (v, c)} | norms("blocks.0.", ["ln0"], c)
    for index, kind in enumerate(kinds):
        at = f"blocks.{index}."
        shapes |= norms(at, ["ln1", "ln2", "att.ln_x"] if kind != "attention" else ["ln1", "ln2"], c)
        shapes |= MAKERS[kind](at, c, n, f)
    return shapes | norms("", ["ln_out"], c) | {"head.weight": (v, c)}


COMMON = {"n_layer": 2, "n_embd": 128, "vocab_size": 97, "dim_att": 128, "dim_ffn": 512, "ctx_len": None}
WIDTHS = (
    "dim_decay_lora",
    "dim_aaa_lora",
    "dim_mv_lora",
    "dim_gate_lora",
    "time_mix_extra_dim",
    "time_decay_extra_dim",
)


@pytest.mark.parametrize(
    ("kind", "widths"),
    [
        ("x052", (None,) * 6),
        ("x060", (None, None, None, None, 32, 64)),
        ("x070", (64, 48, 32, 128, None, None)),
        ("attention", (None,) * 6),
    ],
)
def test_one_kind(kind, widths):
    found = detect(model(kind, kind))
    assert list(found)[:4] == ["n_layer", "n_embd", "vocab_size", "model_type"]
    assert found["model_type"] == kind
    assert {name: found[name] for name in COMMON} == COMMON
    assert tuple(found[name] for name in WIDTHS) == widths
    assert found["head_size_a"] == (None if kind == "attention" else 64)
    assert [layer["time_mix"] for layer in found["layers"]] == [kind] * 2
    assert [layer["channel_mix"] for layer in found["layers"]] == ["mlp" if kind == "attention" else kind] * 2
    assert found["time_state"] is False
    assert found["layer0_value_residual"] is (kind == "x070")


def test_hybrid():
    found = detect(model("x070", "attention", "x060", "x052"))
    assert found["model_type"] == "hybrid"
    assert [layer["time_mix"] for layer in found["layers"]] == ["x070", "attention", "x060", "x052"]
    assert [layer["channel_mix"] for layer in found["layers"]] == ["x070", "mlp", "x060", "x052"]
    assert [layer["head_size_a"] for layer in found["layers"]] == [64, None, 64, 64]
    assert found["head_size_a"] == 64 and found["dim_mv_lora"] == 32 and found["time_decay_extra_dim"] == 64


def test_a_foreign_channel_mix_makes_a_hybrid():
    shapes = model("x070", "x070")
    shapes["blocks.1.ffn.time_maa_k"] = shapes.pop("blocks.1.ffn.x_k")
    found = detect(shapes)
    assert found["model_type"] == "hybrid"
    assert [layer["channel_mix"] for layer in found["layers"]] == ["x070", "x060"]


def test_different_ffn_widths_are_told_by_layer():
    shapes = model("x070", "x070") | {"blocks.1.ffn.key.weight": (256, 128), "blocks.1.ffn.value.weight": (128, 256)}
    found = detect(shapes)
    assert found["dim_ffn"] is None and [layer["dim_ffn"] for layer in found["layers"]] == [512, 256]


def test_more_than_nine_blocks_are_counted_as_numbers():
    assert detect(model(*["x070"] * 12))["n_layer"] == 12


@pytest.mark.parametrize("prefix", ["_forward_module.", "model.", "module.", "_forward_module.model."])
def test_prefixes_are_taken_off(prefix):
    shapes = model("x060", "x060")
    assert detect({prefix + name: shape for name, shape in shapes.items()}) == detect(shapes)


def test_layer_0_without_value_residual():
    shapes = {
        name: s for name, s in model("x070", "x070").items() if not name.startswith("blocks.0.att.v") or "value" in name
    }
    found = detect(shapes)
    assert found["layer0_value_residual"] is False and found["dim_mv_lora"] == 32
    single = {name: shape for name, shape in shapes.items() if not name.startswith("blocks.1.")}
    assert detect(single)["dim_mv_lora"] is None
    with pytest.raises(FormatError, match="not all three"):
        detect(shapes | {"blocks.0.att.v0": (1, 1, 128)})


def test_layer_0_value_residual_of_another_width():
    shapes = model("x070", "x070") | {"blocks.0.att.v1": (128, 16), "blocks.0.att.v2": (16, 128)}
    assert detect(shapes)["dim_mv_lora"] == 32


def test_trained_initial_state():
    assert detect(model("x070", "x070") | {"blocks.0.att.time_state": (2, 64, 64)})["time_state"] is True


def test_flat_r_k_means_64():
    shapes = model("x070", "x070") | {f"blocks.{index}.att.r_k": (128,) for index in range(2)}
    assert detect(shapes)["head_size_a"] == 64


def test_small_heads():
    assert detect(model("x052", "x052", n=8))["head_size_a"] == 8


def test_sizes_without_an_embedding():
    shapes = model("x070", "x070")
    del shapes["emb.weight"]
    assert detect(shapes) == detect(model("x070", "x070"))
    del shapes["blocks.0.ln0.weight"]
    assert detect(shapes)["n_embd"] == 128


def without(shapes, *parts):
    return {name: shape for name, shape in shapes.items() if not any(part in name for part in parts)}


BASE = model("x070", "x070")


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ({"emb.weight": (97, 128)}, "Cannot detect n_layer: no 'blocks.N.' keys found"),
        ({}, "Cannot detect n_layer: no 'blocks.N.' keys found"),
        (without(BASE, "emb.weight", "ln0", "ln1"), "Cannot detect n_embd: no emb.weight or block LN weights found"),
        (without(BASE, "emb.weight", "head.weight"), "Cannot detect vocab_size: no emb.weight or head.weight found"),
        (without(BASE, "blocks.0."), "blocks.0 is not"),
        (BASE | {"blocks.900000000.att.r_k": (2, 64)}, "blocks.2 is not"),
        (without(BASE, "receptance"), "blocks.0.att.receptance.weight is missing"),
        (without(BASE, "blocks.1.ffn.key"), "blocks.1.ffn.key.weight is missing"),
        (without(BASE, "r_k"), "blocks.0.att.r_k is missing"),
        (without(BASE, "blocks.1.ffn"), "channel mix of block 1"),
        (without(BASE, "blocks.1.att"), "version of block 1"),
        (BASE | {"blocks.1.att.r_k": (4, 32)}, "64 in block 0, 32 in block 1"),
        (BASE | {"blocks.1.att.w1": (128, 8)}, "64 in block 0, 8 in block 1"),
        (BASE | {"emb.weight": (97,)}, "emb.weight has shape (97,)"),
        (BASE | {"blocks.1.att.r_k": ()}, "blocks.1.att.r_k has shape ()"),
        (BASE | {"blocks.0.att.gate_w1": (1, 1)}, "'blocks.0.att.gate_w1' belongs to the research variant x060a"),
        (BASE | {"blocks.0.att.time_maa_rkvw_w1": (1, 1)}, "x060b"),
        (BASE | {"blocks.0.ffn.s_emb.weight": (1, 1)}, "RWKV-8"),
        (BASE | {"blocks.0.ffnPre.key.weight": (1, 1)}, "'blocks.0.ffnPre.key.weight'"),
        (BASE | {"blocks.1.tiny_q.weight": (1, 1)}, "tiny attention"),
        (BASE | {"blocks.0.pos_emb_x": (1, 1)}, "position embeddings"),
        (BASE | {"head_q.weight": (1, 1)}, "'head_q.weight'"),
        (BASE | {"blocks.0.att.key.lora_A": (8, 128)}, "adapter"),
        ({"model.layers.0.attn.r_proj.weight": (128, 128)}, "Hugging Face or FLA"),
        ({"rwkv.blocks.0.attention.key.weight": (128, 128)}, "Hugging Face checkpoint of RWKV-5"),
        ({"transformer.h.0.attn.weight": (1, 1)}, "transformer"),
    ],
)
def test_refusals_name_the_reason(shapes, text):
    with pytest.raises(FormatError) as caught:
        detect(shapes)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "gone", "text"),
    [
        ({"att.time_first": (128,)}, ("faaaa", "ln_x", "gate"), "RWKV-4"),
        ({"att.time_first": (2,)}, ("faaaa",), "RWKV-5.0 or 5.1"),
        ({"att.time_decay": (2,), "att.time_faaaa": (2,)}, (), "RWKV-5.0 or 5.1"),
        ({"att.time_decay": (2, 1), "att.time_faaaa": (2, 1)}, (), "RWKV-5.0 or 5.1"),
    ],
)
def test_older_versions(changes, gone, text):
    shapes = without(model("x052"), *gone) | {f"blocks.0.{name}": shape for name, shape in changes.items()}
    with pytest.raises(FormatError, match=text) as caught:
        detect(shapes)
    assert "blocks.0.att.time_" in str(caught.value) and "x052, x060, x070" in str(caught.value)


def test_reference_models(shared):
    """The dimensions written beside each reference file."""
    folder = shared / "golden" / "dev" / "model"
    seen = 0
    for description in sorted(folder.glob("m[0-9]_*.json")):
        wanted = json.loads(description.read_text())
        report = inspect_checkpoint(folder / wanted["file"])
        found = report["detected_config"]
        assert report["num_parameters"] == wanted["n_params"] or "absent" in wanted["saved"]
        assert found["model_type"] == wanted["version"]
        pairs = {
            "n_layer": "n_layer",
            "n_embd": "n_embd",
            "vocab_size": "vocab",
            "head_size_a": "head_size",
            "dim_ffn": "dim_ffn",
        }
        assert {name: found[name] for name in pairs} == {name: wanted[other] for name, other in pairs.items()}
        lora = {"w": "dim_decay_lora", "a": "dim_aaa_lora", "v": "dim_mv_lora", "g": "dim_gate_lora"}
        if wanted["version"] == "x060":
            lora = {"mix": "time_mix_extra_dim", "decay": "time_decay_extra_dim"}
        assert {key: found[lora[key]] for key in wanted["lora"]} == wanted["lora"]
        assert found["dtype"] == (
            "bf16" if "bf16" in wanted["saved"].split(";")[0] and "fp32" not in wanted["saved"] else "fp32"
        )
        assert found["layer0_value_residual"] is (wanted["version"] == "x070" and "absent" not in wanted["saved"])
        seen += 1
    assert seen >= 9
    mixed = inspect_checkpoint(folder / "mixed4_dev.pth")["detected_config"]
    assert [layer["time_mix"] for layer in mixed["layers"]] == ["x070", "x052", "x060", "attention"]
    assert inspect_checkpoint(folder / "gpt.pth")["detected_config"]["model_type"] == "attention"


@pytest.mark.parametrize(("writer", "ending"), [(write_pth, "pth"), (write_safetensors, "safetensors")])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_inspection_of_a_file(tmp_path, writer, ending, dtype):
    path = tmp_path / f"rwkv-1.{ending}"
    shapes = model("x070", "x070")
    writer(path, {name: np.zeros(shape, "f4") for name, shape in shapes.items()}, dtype)
    report = inspect_checkpoint(path)
    assert list(report) == ["checkpoint_path", "file_size_mb", "num_parameters", "keys_sample", "detected_config"]
    assert report["checkpoint_path"] == str(path)
    assert report["file_size_mb"] == path.stat().st_size / 1048576
    assert report["num_parameters"] == sum(int(np.prod(shape)) for shape in shapes.values())
    assert report["keys_sample"] == list(shapes)[:10]
    assert report["detected_config"] == detect(shapes) | {"dtype": dtype}


def test_inspection_of_mixed_dtypes_and_of_no_model(tmp_path):
    tensors = {name: np.zeros(shape, "f4") for name, shape in model("x052").items()}
    write_pth(tmp_path / "a.pth", tensors | {"emb.weight": np.zeros((97, 128), "f2")})
    assert inspect_checkpoint(tmp_path / "a.pth")["detected_config"]["dtype"] == "mixed"
    write_pth(tmp_path / "b.pth", {"x": np.zeros(3, "f4")})
    report = inspect_checkpoint(tmp_path / "b.pth")
    assert "no 'blocks.N.' keys" in report["detection_error"] and report["num_parameters"] == 3
    assert "detected_config" not in report


def test_inspection_of_what_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="Checkpoint not found: "):
        inspect_checkpoint(tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="Failed to load checkpoint: "):
        inspect_checkpoint(tmp_path / "a.pth")
