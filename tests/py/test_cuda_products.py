"""Products of stored matrices on a CUDA device: weights of 16, 8 and 4 bits, few rows and many, and products that share a launch."""

import copy

import numpy as np
import pytest
from helpers import CUDA, assert_same_bits, core, small_model, some_ids
from reference import ops
from reference.weight_formats import decode
from test_cuda_half import KINDS, Setting, assert_as_good_as_rounding, blank, rms
from test_weight_formats import unaligned

from rwkvtune import RWKV, ModelConfig, Trainer, TrainingConfig

pytestmark = pytest.mark.skipif(not CUDA, reason="no CUDA device, and not the build of tests/cuda_host")

FEW_ROWS = 16  # up to which own kernels multiply
# rows, outputs, inputs: one tile of rows and two, outputs and blocks of 32 that do not fill theirs, and as many as several warps share out
SHAPES = [(1, 1, 32), (1, 33, 256), (2, 17, 64), (3, 40, 1344), (8, 16, 288), (9, 20, 96), (16, 31, 512), (17, 70, 96), (40, 130, 64)]
ODD_SHAPES = [(1, 5, 7), (4, 16, 130), (12, 9, 33), (20, 15, 31)]


def product(setting, x, weights, y_dtype=None):
    """y of the op `linear`; weights: float64 in the kind's type, or a pair (format, array)."""
    values, raw = dict(x=x), {}
    if isinstance(weights, tuple):
        raw["w"] = weights
        M = weights[1].shape[0]
    else:
        values["w"] = weights
        M = len(weights)
    return setting.run("linear", "fwd", values | dict(y=blank(len(x), M)), raw)["y"]


def draw_product(R, M, K):
    rng = np.random.default_rng([R, M, K])
    return rng.standard_normal((R, K)), rng.standard_normal((M, K))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_products_of_16_bits(kind, wide):
    """wide: into float32, as logits are."""
    setting = Setting(kind, ("y",) if wide else ())
    for R, M, K in SHAPES + ODD_SHAPES:
        x, w = draw_product(R, M, K)
        got = {"y": product(setting, x, w)}
        assert_as_good_as_rounding(setting, got, lambda p: {"y": p["x"] @ p["w"].T}, dict(x=x, w=w), f"{kind} {(R, M, K)}")


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("kind", KINDS)
def test_products_of_quantised_weights(kind, form):
    """Few rows multiply what the bytes say: but for x and y nothing is rounded. For many the weights are rounded to 16 bits as well."""
    setting = Setting(kind, ())
    for R, M, K in SHAPES:
        x, w = draw_product(R, M, K)
        array = core.convert_weight(("fp32", w.astype(np.float32)), form)
        w = decode(form, array).astype(np.float64)
        exact = Setting(kind, ("w",) if R <= FEW_ROWS else ())
        for bytes_ in (array, unaligned(array)):
            got = {"y": product(setting, x, (form, bytes_))}
            assert_as_good_as_rounding(exact, got, lambda p: {"y": p["x"] @ p["w"].T}, dict(x=x, w=w), f"{kind} {form} {(R, M, K)}")


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_every_value_of_a_byte(form):
    """A unit vector picks out each weight: all 255 (or 16) values, by scales that are powers of two, exactly."""
    w = np.zeros((1, 512), np.float32)
    array = core.convert_weight(("fp32", w), form)
    values = 512 if form == "int8" else 256
    array[0, :values] = np.arange(values) % 256
    array[0, values:] = np.full(16, 0.25, np.float16).view(np.uint8)
    if form == "int8":
        array[0, 128] = array[0, 384] = 0  # -128 is no weight's
    want = decode(form, array).astype(np.float64)
    for kind in KINDS:
        for R in (1, 16):
            for first in range(0, 512, R):
                x = np.zeros((R, 512))
                x[np.arange(R), first + np.arange(R)] = 1
                assert np.array_equal(product(Setting(kind, ("y",)), x, (form, array))[:, 0], want[0, first : first + R])


@pytest.mark.parametrize("kind", ["cuda-fp32", *KINDS])
def test_a_row_is_the_same_beside_others(kind):
    x, w = draw_product(FEW_ROWS, 40, 160)
    setting = Setting(kind, ("x", "w", "y") if kind == "cuda-fp32" else ("y",))
    whole = product(setting, x, w)
    for rows in (slice(0, 1), slice(3, 5), slice(2, 11)):
        assert_same_bits(product(setting, x[rows], w), whole[rows], f"rows {rows}")


@pytest.mark.parametrize("kind", KINDS)
def test_lowrank_of_few_rows(kind):
    for R, C, D, O, act, biased in [(1, 33, 8, 20, 1, 1), (3, 160, 40, 640, 2, 1), (5, 70, 16, 64, 0, 0), (16, 40, 7, 1100, 1, 1), (17, 40, 8, 48, 2, 1)]:
        rng = np.random.default_rng([R, C, D])
        p = dict(x=rng.standard_normal((R, C)), m1=rng.standard_normal((C, D)) / np.sqrt(C), m2=rng.standard_normal((D, O)))
        p |= dict(bias=rng.standard_normal(O)) if biased else {}
        setting = Setting(kind, ())
        got = setting.run("lowrank", "fwd", p | dict(h=blank(R, D), y=blank(R, O)), act=act)

        def compute(q):
            h, y = ops.lowrank(q["x"], q["m1"], q["m2"], q.get("bias", 0), act)
            return dict(h=h, y=y)

        assert_as_good_as_rounding(setting, {name: got[name] for name in "hy"}, compute, p, f"{kind} {(R, C, D, O, act)}")


def test_float32_activations_take_quantised_weights():
    for form in ("int8", "int4"):
        x, w = draw_product(3, 20, 64)
        array = core.convert_weight(("fp32", w.astype(np.float32)), form)
        got = product(Setting("cuda-fp32", ("x", "y")), x, (form, array))
        want = np.float32(x).astype(np.float64) @ decode(form, array).astype(np.float64).T
        assert np.all(np.abs(got - want) <= 66 * 2.0**-24 * (np.abs(x) @ np.abs(decode(form, array)).T))


@pytest.mark.parametrize("version", ["x052", "x060", "x070"])
def test_products_that_share_a_launch(version):
    """A float32 model reads few tokens as the CPU does: products of one token, of 8, of 9 and of 16."""
    here, there = (small_model(device=device, model_type=version) for device in ("cpu", "cuda"))
    for batch, length in [(1, 1), (2, 4), (3, 3), (1, 16)]:
        ids = some_ids(batch, length)
        want = here(ids).logits
        assert np.abs(there(ids).logits - want).max() <= 2e-5 * max(1, np.abs(want).max())


# ---- models whose weights are held quantised ------------------------------------------------------------------------

SIZES = dict(n_layer=2, n_embd=64, vocab_size=50, head_size_a=32)


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("version", ["x052", "x060", "x070"])
def test_a_model_holds_its_weights_quantised(version, form, tmp_path):
    """In a piece and token by token: twice as far from the CPU's model of the same weights, at most, as a plain bf16 model of them."""
    small_model(model_type=version, **SIZES).save(tmp_path / "m.safetensors", dtype=form)
    here = RWKV.load(tmp_path / "m.safetensors", precision="file", backend="ref")
    plain = RWKV(here.config, device="cuda")
    plain.load_state_dict(here.named_parameters())
    for precision in ("file", form):
        there = RWKV.load(tmp_path / "m.safetensors", precision=precision, device="cuda")
        assert (there.precision, there.trainable, there.device) == (form, False, "cuda:0")
        assert there.plan(training=False)["parameters"] < 0.75 * plain.plan(training=False)["parameters"]
        for length in (11, 1, 30):
            ids = some_ids(2, length, 50)
            want = here(ids).logits
            assert rms(there(ids).logits - want) <= 2 * rms(plain(ids).logits - want)
    for name, value in here.named_parameters().items():
        assert_same_bits(there.named_parameters()[name], value, name)
    with pytest.raises(ValueError, match="held for inference"):
        Trainer(there)
    assert_same_bits(copy.deepcopy(there)(ids).logits, there(ids).logits, "of a copy")
    there.save(tmp_path / "again.safetensors")
    assert_same_bits(RWKV.load(tmp_path / "again.safetensors", precision="file", device="cuda")(ids).logits, there(ids).logits, "from a file of it")


def test_a_file_without_quantised_weights_is_held_as_bf16(tmp_path):
    model = small_model(**SIZES)
    model.save(tmp_path / "m.safetensors")
    held = RWKV.load(tmp_path / "m.safetensors", precision="file", device="cuda")
    assert (held.precision, held.trainable) == ("bf16", False)
    ids = some_ids(1, 9, 50)
    assert_same_bits(held(ids).logits, RWKV.load(tmp_path / "m.safetensors", device="cuda")(ids).logits, "held or not")
    held.load_state_dict({name: value * 0 for name, value in model.named_parameters().items()})
    assert not held(ids).logits.any()


def test_numbers_too_large_for_a_device_are_told():
    config = ModelConfig(model_type="x070", **SIZES)
    weights = dict(RWKV(config, precision="int8")._weights)
    weights["blocks.0.ln1.weight"] = ("fp32", np.full(64, 1e6, np.float32))
    with pytest.raises(ValueError, match="ln1.weight holds numbers.*too large for fp16"):
        core.Model(config.to_core_dict(), "cuda-fp16", weights)
    weights["blocks.0.ln1.weight"] = ("int8", np.zeros((1, 68), np.uint8))
    with pytest.raises(ValueError, match="ln1.weight"):
        core.Model(config.to_core_dict(), "cuda-bf16", weights)


# ---- one row that is mostly zeros -----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 0.02, 0.3, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_sparse_row(kind, share):
    """Rows of the transposed matrix whose input is zero are not read: they hold NaN."""
    for M, K in [(40, 96), (64, 5000), (33, 70), (8, 16384)]:
        rng = np.random.default_rng([M, K])
        x = np.where(rng.random((1, K)) < share, rng.standard_normal((1, K)), 0)
        x[:, ::7] = -0.0
        w = rng.standard_normal((M, K))
        wt = np.ascontiguousarray(np.where(x.T == 0, np.nan, w.T))
        for wide in (("y",), ()):
            setting = Setting(kind, wide)
            got = setting.run("linear", "fwd", dict(x=x, w=w * np.nan, columns=wt, y=blank(1, M)))["y"]
            assert_as_good_as_rounding(setting, {"y": got}, lambda p: {"y": p["x"] @ p["w"].T}, dict(x=x, w=w), f"{kind} {(M, K, share)}")
    nan = setting.run("linear", "fwd", dict(x=x * np.nan, w=w, columns=np.ascontiguousarray(w.T), y=blank(1, M)))["y"]
    assert np.isnan(nan).all()


def steps(model, ids):
    """Logits of every token, read one by one."""
    state, rows = None, []
    for token in ids:
        logits, state = model._core.forward(np.array([[token]], np.int32), state, "last")
        rows.append(logits[0])
    return np.array(rows)


@pytest.mark.parametrize("version", ["x052", "x060", "x070"])
def test_decoding_reads_transposed_copies_of_the_current_weights(version):
    model = small_model(device="cuda", precision="bf16", model_type=version)
    dense = small_model(device="cuda", precision="bf16", model_type=version)
    dense._core.gradients()  # a model that is trained has no copies
    ids = some_ids(1, 6)[0]
    first = steps(model, ids)
    exact = small_model(backend="ref", model_type=version)
    assert rms(first - exact([ids]).logits[0]) <= 2 * rms(steps(dense, ids) - exact([ids]).logits[0])
    name = "blocks.1.ffn.value.weight"
    model.load_state_dict(model.named_parameters() | {name: 0 * model.named_parameters()[name]})
    assert np.any(steps(model, ids) != first)
    model.load_state_dict(dense.named_parameters())
    assert_same_bits(steps(model, ids), first, "with the first weights again")
    model._core.gradients()
    assert_same_bits(steps(model, ids), steps(dense, ids), "without copies")
    Trainer(model, TrainingConfig(precision="bf16", micro_bsz=1)).step(some_ids(1, 8), some_ids(1, 8, seed=1), lr=1e-2)
    other = RWKV(model.config, device="cuda")
    other.load_state_dict(model.named_parameters())
    after = RWKV(model.config, backend="ref")
    after.load_state_dict(model.named_parameters())
    assert rms(steps(model, ids) - after([ids]).logits[0]) <= 2 * rms(steps(other, ids) - after([ids]).logits[0])
