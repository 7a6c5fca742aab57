"""Weights held as bf16, fp16, int8 and int4: their encoding, the ops that read them, models, files, and files that lie."""

import copy
import json
import os
import pickle
import random

import numpy as np
import pytest
from helpers import BACKENDS, assert_same_bits, assert_within, core, running_on, small_model, threads
from reference import ops
from reference.running_error import as_bound
from reference.weight_formats import BLOCK, decode

from rwkvtune import RWKV, ModelConfig, Trainer
from rwkvtune.checkpoint import inspect_checkpoint, read_checkpoint, write_safetensors
from rwkvtune.checkpoint.lazy_tensor import quantised_tensor
from rwkvtune.cli import main
from rwkvtune.errors import FormatError

FORMATS = ("bf16", "fp16", "int8", "int4")
KEY = "rwkvtune.quantised"


def draw(rng, *shape, scale=1.0):
    return (scale * rng.standard_normal(shape)).astype(np.float32)


# ---- encoding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("scale", [1.0, 3e-3, 2e-6, 1e-9, 1e4])
def test_encoding(form, scale):
    """The core decodes what the bytes say, and every block is at least as near as the plain rule puts it."""
    w = draw(np.random.default_rng(1), 70, 3 * BLOCK, scale=scale)
    w[5], w[6, :BLOCK] = 0, 0
    if form == "fp16":
        w = np.clip(w, -65000, 65000)
    array = core.convert_weight(("fp32", w), form)
    got = decode(form, array)
    assert_same_bits(core.convert_weight((form, array), "fp32"), got.astype(np.float32), f"decoding {form}")
    if form in ("bf16", "fp16"):
        spacing = 2.0**-8 * np.abs(w) if form == "bf16" else np.maximum(2.0**-11 * np.abs(w), 2.0**-25)
        assert_within(got, w, spacing, form)
        return
    assert not got[5].any() and not got[6, :BLOCK].any()
    blocks, error = w.reshape(70, 3, BLOCK), np.square(got - w).reshape(70, 3, BLOCK).sum(2)
    largest = np.abs(blocks).max(2)
    steps = 127 if form == "int8" else 7  # symmetric, by the largest weight: each is off by half a step at most
    step = largest / steps * (1 + 2.0**-11) + 2.0**-24  # of the scale as float16 holds it, at worst the next one up
    assert np.all(error <= BLOCK * np.square(step) / 4)


def test_four_bits_are_nearer_than_the_plain_rules():
    w = draw(np.random.default_rng(2), 200, 4 * BLOCK)
    counts = np.sqrt(np.abs(w))  # how much the error of each weight counts
    got = counts * np.square(decode("int4", core.convert_weight(("fp32", w), "int4")) - w)
    blocks = w.reshape(200, 4, BLOCK).astype(np.float64)
    at = np.abs(blocks).argmax(2)[..., None]
    for plain in (np.abs(blocks).max(2, keepdims=True) / 7, np.take_along_axis(blocks, at, 2) / -8):
        other = counts.reshape(blocks.shape) * np.square(np.clip(np.round(blocks / plain), -8, 7) * plain - blocks)
        assert got.sum() < 0.95 * other.sum()
        assert np.all(got.reshape(200, 4, BLOCK).sum(2) <= other.sum(2) * 1.01)  # the scale is a float16


@pytest.mark.parametrize("form, number", [("int8", np.inf), ("int8", np.nan), ("int4", -np.inf), ("int8", 1e38), ("int4", 1e30), ("fp16", 1e5)])
def test_numbers_that_do_not_fit(form, number):
    w = np.ones((3, BLOCK), np.float32)
    w[1, 7] = number
    with pytest.raises(ValueError, match="not finite, or too large for " + form):
        core.convert_weight(("fp32", w), form)


def test_conversion_refuses_what_is_no_weight():
    w = np.ones((2, BLOCK), np.float32)
    for pair, form, words in (
        (("fp32", w[:, :31].copy()), "int8", "multiples of 32"), (("fp32", w[0]), "int4", "matrices"), (("fp64", w), "bf16", "'fp64' does not exist"),
        (("fp32", w), "int5", "'int5' does not exist"), (("bf16", w), "fp32", "no C-contiguous"), (("fp32", w.T), "bf16", "no C-contiguous"),
        (("int8", np.zeros((2, 33), np.uint8)), "fp32", "no C-contiguous"), (w, "fp32", "pair"), (("fp32", w[:0]), "bf16", "no C-contiguous"),
        (("bf16", np.zeros(65, np.uint8)[1:].view(np.uint16)), "fp32", "no C-contiguous"),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=words):
            core.convert_weight(pair, form)
    fixed = np.ones((2, BLOCK), np.float32)
    fixed.flags.writeable = False
    for out in (fixed, np.ones((BLOCK, 2), np.float32), np.ones((2, BLOCK)), [1.0]):
        with pytest.raises((ValueError, TypeError), match="out|must be a pair"):
            core.convert_weight(("fp32", w), "fp32", out)
    out = np.full((2, BLOCK), np.nan, np.float32)
    assert core.convert_weight(("fp32", w), "fp32", out) is out and np.array_equal(out, w)


# ---- ops ------------------------------------------------------------------------------------------------------------


def unaligned(array):
    """A copy that starts two bytes behind an even boundary of its own, in a larger array."""
    buffer = np.zeros(array.nbytes + 66, np.uint8)
    at = (2 - buffer.ctypes.data) % 64
    view = buffer[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


FEW_ROWS = 16  # up to which the cpu backend multiplies quantised weights in integers


def quantised_x_bound(x, w):
    """What quantising x may cost each output, x (R,K), w (M,K) decoded: half a step of every block, the largest |x| / 127 being a step, and
    the float32 sum of at most K/4 terms of a lane and 24 more, of weights that an offset leaves within four times their block's largest."""
    x, w = (np.abs(a).reshape(len(a), -1, BLOCK) for a in (x, w))
    step = x.max(2) / 127
    rounding = step * (0.5 + 127 * 3 * 2.0**-23)
    sums = 2.0**-23 * (x.shape[1] * BLOCK / 4 + 24) * 4 * (x.sum(2) + step * BLOCK)
    return rounding @ w.sum(2).T + sums @ w.max(2).T


def check_op(backend, op, weights, given, expected, more_error=0, **more):
    """Runs the op with 1, 2 and 3 threads; expected: output -> Bound from the decoded weights."""
    real = np.float64 if backend == "ref64" else np.float32
    results = []
    for count in (1, 2, 3):
        out = {name: np.full(bound.v.shape, np.nan, real) for name, bound in expected.items()}
        fields = {name: np.array(value, real) for name, value in given.items()}
        with running_on(backend) as name, threads(count):
            core.run_op(name, op, "fwd", {**fields, **out, **weights, **more})
        results.append(out)
    unit = 2.0**-53 if real is np.float64 else 2.0**-24
    for name, bound in expected.items():
        for other in results[1:]:
            assert_same_bits(results[0][name], other[name], f"{op} {name} on {backend}: threads")
        assert_within(results[0][name], bound.v, 2 * unit * bound.c + more_error + 1e-36, f"{op} {name} on {backend}")


@pytest.mark.parametrize("backend", [name for name in BACKENDS if not name.startswith("cuda")])
@pytest.mark.parametrize("form", FORMATS)
def test_linear(backend, form):
    rng = np.random.default_rng(3)
    for R, M, K in [(1, 1, 32), (2, 17, 64), (4, 33, 96), (5, 40, 160), (9, 130, 32), (1, 700, 256), (40, 300, 128)]:
        array = unaligned(core.convert_weight(("fp32", draw(rng, M, K)), form))
        x = draw(rng, R, K).astype(np.float64)
        w = decode(form, array)
        in_integers = form in ("int8", "int4") and backend.startswith("cpu") and R <= FEW_ROWS
        error = quantised_x_bound(x, w) if in_integers else 0
        check_op(backend, "linear", {"w": (form, array)}, {"x": x}, {"y": ops.linear(as_bound(x), as_bound(w))}, error)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if not name.startswith("cuda")])
@pytest.mark.parametrize("form", ("bf16", "fp16"))
def test_lowrank_and_embed(backend, form):
    rng = np.random.default_rng(4)
    for R, C, D, O, act in [(1, 33, 8, 20, 1), (3, 64, 65, 33, 2), (5, 70, 16, 64, 0), (300, 40, 9, 48, 1)]:
        m1, m2 = (unaligned(core.convert_weight(("fp32", draw(rng, *shape, scale=0.2)), form)) for shape in ((C, D), (D, O)))
        x, bias = draw(rng, R, C).astype(np.float64), draw(rng, O).astype(np.float64)
        h, y = ops.lowrank(as_bound(x), as_bound(decode(form, m1)), as_bound(decode(form, m2)), as_bound(bias), act)
        check_op(backend, "lowrank", {"m1": (form, m1), "m2": (form, m2)}, {"x": x, "bias": bias}, {"h": h, "y": y}, act=act)
        table = unaligned(core.convert_weight(("fp32", draw(rng, 11, C)), form))
        ids = rng.integers(0, 11, R).astype(np.int32)
        check_op(backend, "embed", {"w": (form, table)}, {}, {"y": as_bound(decode(form, table)[ids])}, ids=ids)


# ---- models ---------------------------------------------------------------------------------------------------------

SIZES = dict(n_layer=2, n_embd=64, vocab_size=50, head_size_a=32)


@pytest.fixture(params=["x052", "x060", "x070"])
def model(request):
    return small_model(model_type=request.param, **SIZES)


IDS = np.random.default_rng(5).integers(0, 50, (2, 11))


def rounded(model, form):
    """A float32 model with the weights that `form` leaves of another's, by the formats the core describes."""
    other = copy.deepcopy(model)
    for row in model._core.manifest():
        value = other.named_parameters()[row["name"]]
        held = form if form in row["formats"] else "bf16" if "bf16" in row["formats"] and form in ("int8", "int4") else "fp32"
        if held != "fp32":
            value[...] = decode(held, core.convert_weight(("fp32", value.copy()), held))
    return other


@pytest.mark.parametrize("form", FORMATS)
def test_a_model_holds_its_weights(model, form, tmp_path):
    """Loading, saving and loading as stored give one model, whose numbers are those of its rounded weights in float32."""
    path, again = tmp_path / "m.safetensors", tmp_path / "again.safetensors"
    model.save(path)
    held = RWKV.load(path, precision=form)
    assert held.precision == form and not held.trainable and model.trainable
    exact = rounded(model, form)
    for name, value in exact.named_parameters().items():
        mine = held.named_parameters()[name]
        assert_same_bits(mine, value, name)
        assert not mine.flags.writeable
    for backend in ("cpu", "ref"):
        held = RWKV.load(path, precision=form, backend=backend)
        want = exact(IDS, IDS)
        got = held(IDS, IDS)
        scale = np.abs(want.logits).max()
        assert np.abs(got.logits - want.logits).max() <= (2e-5 if backend == "ref" or form in ("bf16", "fp16") else 2e-2) * scale
        assert abs(got.loss - want.loss) <= 1e-2
    held = RWKV.load(path, precision=form)
    held.save(again)
    same = RWKV.load(again, precision="file")
    assert same.precision == form
    formats = {name: weight[0] for name, weight in same._weights.items()}
    assert formats == {name: weight[0] for name, weight in held._weights.items()}
    if form in ("int8", "int4"):
        assert_same_bits(same(IDS).logits, held(IDS).logits, "as stored")
    assert RWKV.load(again).trainable
    for row in model._core.manifest():
        assert formats[row["name"]] in row["formats"]
        assert formats[row["name"]] == form or form not in row["formats"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_new_model_of_a_format(form):
    config = ModelConfig(model_type="x070", **SIZES)
    assert_same_bits(RWKV(config, seed=3, precision=form)(IDS).logits, _held(RWKV(config, seed=3), form)(IDS).logits, "new model")
    with pytest.raises(ValueError, match="'file' is for RWKV.load"):
        RWKV(config, precision="file")


def _held(model, form):
    other = RWKV(model.config, precision=form)
    other.load_state_dict(model.named_parameters())
    return other


def test_a_model_for_inference_cannot_be_trained(model):
    held = _held(model, "int8")
    for attempt in (lambda: held.loss_and_grads(IDS, IDS), lambda: Trainer(held), lambda: held._core.init(1)):
        with pytest.raises(ValueError, match="held for inference"):
            attempt()
    with pytest.raises(ValueError, match="read-only"):
        held.named_parameters()["head.weight"] *= 2
    with pytest.raises(TypeError):
        held.named_parameters()["head.weight"] = 0
    by_columns = [name for name in held._weights if name.endswith("ffn.value.weight")]  # once more
    assert held.plan(training=False)["parameters"] == sum(held._weights[name][1].nbytes for name in [*held._weights, *by_columns])


def test_copies_and_new_weights(model):
    held = _held(model, "int4")
    held.state = held.process_with_state(IDS)[1]
    before = held(IDS).logits
    for other in (copy.copy(held), copy.deepcopy(held), pickle.loads(pickle.dumps(held))):
        assert (other.precision, other.trainable) == ("int4", False)
        assert_same_bits(other(IDS).logits, before, "copy")
    held.load_state_dict({name: value * 0 for name, value in model.named_parameters().items()})
    assert not held(IDS).logits.any()
    held.process_with_state(IDS, held.state)
    with pytest.raises(FormatError, match="missing emb.weight"):
        held.load_state_dict({})
    with pytest.raises(ValueError, match="head.weight.*not finite"):
        held.load_state_dict(dict(model.named_parameters()) | {"head.weight": np.full((50, 64), np.inf)})
    assert not held(IDS).logits.any()


def test_narrow_models_take_what_fits():
    """Rows that are no multiples of 32 stay bf16."""
    config = ModelConfig(model_type="x070", n_layer=1, n_embd=48, vocab_size=9, head_size_a=16, dim_ffn=64)
    model = RWKV(config, precision="int8")
    formats = {name: weight[0] for name, weight in model._weights.items()}
    assert formats["blocks.0.ffn.value.weight"] == "int8" and formats["blocks.0.ffn.key.weight"] == formats["head.weight"] == "bf16"
    assert np.isfinite(model([[1, 2]]).logits).all()


def test_the_core_checks_its_weights():
    config = ModelConfig(model_type="x070", **SIZES)
    weights = dict(RWKV(config, precision="bf16")._weights)
    for name, pair, words in (
        ("head.weight", ("bf16", np.zeros((50, 32), np.uint16)), "head.weight has another shape"),
        ("blocks.0.ln1.weight", ("fp16", np.zeros(64, np.float16)), "ln1.weight cannot be held as fp16"),
        ("emb.weight", ("int8", np.zeros((50, 68), np.uint8)), "emb.weight cannot be held as int8"),
        ("head.weight", ("int9", np.zeros((50, 64), np.uint8)), "'int9'"),
        ("head.weight", None, "lack head.weight"),
    ):  # fmt: skip
        wrong = {key: value for key, value in (weights | {name: pair}).items() if value is not None}
        with pytest.raises(ValueError, match=words):
            core.Model(config.to_core_dict(), "cpu", wrong)
    with pytest.raises(ValueError, match="float32 backend"):
        core.Model(config.to_core_dict(), "ref64", weights)
    with pytest.raises(ValueError, match="held for inference"):
        core.Model(config.to_core_dict(), "cpu", weights).parameters()


# ---- files ----------------------------------------------------------------------------------------------------------


def in_file(model):
    """Names of the weights that lie in a mapped file."""
    def mapped(array):
        while isinstance(array, np.ndarray):
            array = array.base
        return type(array).__name__ == "mmap" or isinstance(array, memoryview)

    return {name for name, (_, array) in model._weights.items() if mapped(array)}


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_weights_stay_in_the_file(model, tmp_path, ending, dtype):
    path = tmp_path / f"m{ending}"
    model.save(path, dtype=dtype)
    held = RWKV.load(path, precision="file")
    assert held.precision == dtype and not held.trainable
    want = {row["name"] for row in model._core.manifest() if dtype in row["formats"]}
    assert in_file(held) == want
    assert in_file(RWKV.load(path, precision="int8")) & {"head.weight"} == set()
    os.replace(path, tmp_path / "moved")  # the mapping is of the file, not of its name
    assert np.isfinite(held(IDS).logits).all()


def test_weights_that_are_not_aligned_are_copied(model, tmp_path):
    """A file of another writer may put numbers at any byte; the bits of the logits stay."""
    path = tmp_path / "m.safetensors"
    model.save(path, dtype="int8")
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip()
    for extra in range(4):
        text = header + b" " * extra
        (tmp_path / "shifted").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        assert_same_bits(RWKV.load(tmp_path / "shifted", precision="file")(IDS).logits, RWKV.load(path, precision="file")(IDS).logits, "shifted")


def test_convert_and_inspect(model, tmp_path, capsys):
    source, target = tmp_path / "m.pth", tmp_path / "q.safetensors"
    model.save(source, dtype="bf16")
    for form in ("int8", "int4"):
        assert main(["convert", str(source), str(target), "--dtype", form]) == 0
        info = inspect_checkpoint(target)
        assert info["detected_config"]["dtype"] == form and info["num_parameters"] == model.num_parameters
        assert main(["inspect", str(target), "--tensors"]) == 0
        assert f"head.weight  {form}_block32  50x64" in capsys.readouterr().out
        assert_same_bits(RWKV.load(target, precision="file")(IDS).logits, RWKV.load(source, precision=form)(IDS).logits, "converted")
        assert main(["convert", str(target), str(tmp_path / "back.pth"), "--dtype", "fp32"]) == 0
        back, held = RWKV.load(tmp_path / "back.pth"), RWKV.load(target, precision="file")
        for name, value in back.named_parameters().items():
            assert_same_bits(value, held.named_parameters()[name], name)
        capsys.readouterr()
        assert main(["convert", str(target), str(tmp_path / "no.pth")]) != 0
        assert "cannot hold" in capsys.readouterr().err
        assert main(["convert", str(target), str(tmp_path / "same.safetensors")]) == 0
        assert (tmp_path / "same.safetensors").read_bytes() == target.read_bytes()
    with pytest.raises(ValueError, match="cannot hold int8"):
        model.save(tmp_path / "no.pth", dtype="int8")
    assert not (tmp_path / "no.pth").exists()


def test_generate_and_eval_commands(model, tmp_path, capsys):
    model.save(tmp_path / "m.safetensors", dtype="int8")
    for precision in ("file", "int4", "fp32"):
        assert main(["generate", str(tmp_path / "m.safetensors"), "--prompt_ids", "1 2", "--max_new_tokens", "3", "--precision", precision]) == 0
        assert len(capsys.readouterr().out.split()) >= 3


def test_checksums_are_checked_where_weights_are_copied(tmp_path):
    model = small_model(model_type="x070", **SIZES)
    path = tmp_path / "m.pth"
    model.save(path, dtype="bf16")
    data = bytearray(path.read_bytes())
    place = data.find(core.convert_weight(("fp32", model.named_parameters()["head.weight"]), "bf16").tobytes())
    data[place + 100] ^= 1
    path.write_bytes(data)
    for options in ({}, {"verify": True, "precision": "file"}, {"precision": "fp64", "backend": "ref"}):
        with pytest.raises(FormatError, match="m.pth: archive/data/.* is damaged: its checksum is wrong"):
            RWKV.load(path, **options)
    for options in ({"precision": "file"}, {"precision": "int8"}, {"verify": False}):
        RWKV.load(path, **options)


# ---- hostile files --------------------------------------------------------------------------------------------------


def written(path, metadata, tensors):
    write_safetensors(path, tensors, metadata={"format": "pt"} | metadata)
    return path


@pytest.mark.parametrize("text, words", [
    ("{", "damaged"), ("[]", "damaged"), ('{"x": 1}', "damaged"), ('{"x": "int8_block32", "x": "int8_block32"}', "damaged"), ("[" * 10000, "damaged"),
    ('{"x": "int9_block32"}', "int9_block32"), ('{"y": "int8_block32"}', "not in the file"), ('{"f": "int8_block32"}', "float32 of shape"),
    ('{"v": "int8_block32"}', "holds no int8_block32"), ('{"x": "int4_block32"}', "multiples of 18"), ('{"e": "int8_block32"}', "0 rows"),
])  # fmt: skip
def test_metadata_that_lies(tmp_path, text, words):
    tensors = {"x": np.zeros((2, 34), np.uint8), "f": np.zeros((2, 34), np.float32), "v": np.zeros(34, np.uint8), "e": np.zeros((0, 34), np.uint8)}
    with pytest.raises(FormatError, match=words):
        read_checkpoint(written(tmp_path / "a", {KEY: text}, tensors))


def test_a_quantised_tensor_of_another_width_does_not_fit(model, tmp_path):
    tensors = dict(read_checkpoint(_saved(model, tmp_path, "int8")))
    tensors["head.weight"] = quantised_tensor("int8_block32", np.zeros((50, 34), np.uint8))
    write_safetensors(tmp_path / "bad.safetensors", tensors)
    for precision in ("file", "fp32", "int4"):
        with pytest.raises(FormatError, match=r"head.weight has shape \(50, 32\)"):
            RWKV.load(tmp_path / "bad.safetensors", precision=precision)


def test_quantised_vectors_are_read_as_numbers(model, tmp_path):
    """Where a matrix belongs a quantised one fits; a file that quantises the embedding is read, and held as bf16."""
    tensors = dict(read_checkpoint(_saved(model, tmp_path, "int8")))
    tensors["emb.weight"] = quantised_tensor("int8_block32", core.convert_weight(("fp32", model.named_parameters()["emb.weight"]), "int8"))
    write_safetensors(tmp_path / "more.safetensors", tensors)
    held = RWKV.load(tmp_path / "more.safetensors", precision="file")
    assert held._weights["emb.weight"][0] == "bf16" and np.isfinite(held(IDS).logits).all()


def _saved(model, tmp_path, dtype):
    model.save(tmp_path / f"{dtype}.safetensors", dtype=dtype)
    return tmp_path / f"{dtype}.safetensors"


def test_damaged_files_are_refused_or_read(tmp_path):
    """Cut off anywhere, or with any byte of the header changed: FormatError, or a model that runs."""
    model = small_model(model_type="x070", n_layer=1, n_embd=32, vocab_size=9, head_size_a=16)
    data = bytearray(_saved(model, tmp_path, "int4").read_bytes())
    rng, end = random.Random(6), 8 + int.from_bytes(data[:8], "little")
    path = tmp_path / "damaged.safetensors"
    for trial in range(150):
        damaged = bytearray(data)
        if trial % 3 == 0:
            del damaged[rng.randrange(len(data)) :]
        for _ in range(trial % 4):
            damaged[rng.randrange(min(end, len(damaged)) or 1)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            RWKV.load(path, precision="file")([[1, 2]])
        except (FormatError, ValueError):
            pass


def test_a_header_changed_on_purpose(tmp_path):
    """Shapes and offsets that contradict each other, one at a time."""
    model = small_model(model_type="x070", n_layer=1, n_embd=32, vocab_size=9, head_size_a=16)
    data = _saved(model, tmp_path, "int8").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    for change in ({"shape": [9, 33]}, {"shape": [34, 9]}, {"shape": [306]}, {"dtype": "I8"}, {"shape": [18, 17]}, {"data_offsets": [0, 306]}):
        lying = header | {"head.weight": header["head.weight"] | change}
        text = json.dumps(lying).encode()
        (tmp_path / "lying").write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
        with pytest.raises(FormatError):
            RWKV.load(tmp_path / "lying", precision="file")


# ---- columns --------------------------------------------------------------------------------------------------------


def columns_read(work):
    """(columns read, columns there were) of a call."""
    before = core.columns_read()
    work()
    return tuple(now - was for now, was in zip(core.columns_read(), before, strict=True))


@pytest.mark.parametrize("form", FORMATS)
def test_few_rows_leave_out_columns_that_meet_zeros(form):
    """Where weights may be written, and with more than 16 rows, there are no columns: the rows of the matrix are read."""
    config = ModelConfig(model_type="x070", n_layer=2, n_embd=64, vocab_size=50)
    model = RWKV(config, precision=form)
    read, every = columns_read(lambda: model([[1, 2, 3]]))
    assert every == 2 * config.dim_ffn and 0 < read < every
    assert columns_read(lambda: model([[1] * 17])) == (0, 0)
    assert columns_read(lambda: RWKV(config)([[1, 2, 3]])) == (0, 0)


@pytest.mark.parametrize("form", ["bf16", "fp16", "int8", "int4"])
def test_the_plan_counts_columns_beside_matrices_that_lie_in_no_file(form, tmp_path):
    config = ModelConfig(model_type="x070", n_layer=2, n_embd=64, vocab_size=50)
    RWKV(config).save(tmp_path / "m.safetensors", dtype=form)
    mapped = RWKV.load(tmp_path / "m.safetensors", precision="file")
    copied = pickle.loads(pickle.dumps(mapped))
    values = sum(mapped._weights[f"blocks.{layer}.ffn.value.weight"][1].nbytes for layer in range(2))
    more = {key: copied.plan(training=False)[key] - size for key, size in mapped.plan(training=False).items()}
    assert more == dict.fromkeys(more, 0) | {"parameters": values, "total": values}
