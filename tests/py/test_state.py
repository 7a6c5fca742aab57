"""A state as a value: copies, rows of the batch, compression with its bounds, files, lists of other programs, wrong ones."""

import copy
import pickle

import numpy as np
import pytest
from helpers import assert_same_bits, assert_within, small_model, some_ids

from rwkvtune import RWKVState
from rwkvtune.errors import FormatError
from rwkvtune.state_codec import ENCODINGS, encode

MODELS = {
    "x052": dict(model_type="x052"),
    "x060": dict(model_type="x060"),
    "x070": dict(model_type="x070"),
    "attention": dict(layers=["attention"] * 2),
    "mixed": dict(layers=["x070", "attention", {"time_mix": "x060", "head_size": 16}]),
}


def built(name, **more):
    sizes = dict(model_type="x070") | MODELS[name] | more
    if "layers" in sizes:
        sizes["n_layer"] = None
    return small_model(**sizes)


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return built(request.param)


@pytest.fixture
def state(model):
    return model.process_with_state(some_ids(3, 21))[1]


def same(got, want):
    got, want = got.to_numpy(), want.to_numpy()
    assert set(got) == set(want)
    for name, value in want.items():
        assert_same_bits(got[name], value, name)


# ---- a value --------------------------------------------------------------------------------------------------------

WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
    "detached": lambda state: state.detached(),
    "arrays": lambda state: RWKVState.from_numpy(state.to_numpy()),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [None, *ENCODINGS])
def test_copies_are_the_same(model, state, way, dtype):
    state = state.compressed(dtype) if dtype else state
    other = WAYS[way](state)
    same(other, state)
    assert way == "arrays" or other.compression == dtype
    ids = some_ids(3, 4, seed=2)
    assert_same_bits(model.process_with_state(ids, other)[0], model.process_with_state(ids, state)[0], "logits")


def test_branches_do_not_disturb_each_other_or_the_trunk(model, state):
    before = state.to_numpy()
    for array in (state.to_numpy(), state.detached().to_numpy(), state.compressed().to_numpy()):
        for value in array.values():
            value[...] = 7
    first = model.process_with_state(some_ids(3, 5, seed=2), state)[0]
    model.process_with_state(some_ids(3, 9, seed=3), state)
    assert_same_bits(model.process_with_state(some_ids(3, 5, seed=2), state)[0], first, "a branch again")
    for name, value in state.to_numpy().items():
        assert_same_bits(value, before[name], name)


def test_arrays_that_are_given_are_copied():
    given = {"wkv": np.ones((1, 2, 1, 4, 4)), "att_shift": np.ones((1, 2, 4)), "ffn_shift": np.ones((1, 2, 4))}
    state = RWKVState.from_numpy(given)
    given["wkv"][...] = 5
    assert (state.to_numpy()["wkv"] == 1).all()


# ---- rows of the batch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, "int8"])
def test_rows_are_chosen_and_joined(model, state, dtype):
    state = state.compressed(dtype) if dtype else state
    whole = state.to_numpy()
    for rows in ([2, 0], [1], 1, -1, slice(1, None), [True, False, True], np.array([0, 0, 2, 1])):
        part = state.select(rows)
        index = np.atleast_1d(np.arange(3)[rows])
        assert part.batch_size == len(index) and part.compression == dtype
        for name, value in part.to_numpy().items():
            assert_same_bits(value, whole[name][:, index], f"{name} of rows {rows}")
    same(RWKVState.concatenate([state.select([0, 1]), state.select(2)]), state)
    mixed = RWKVState.concatenate([state.select(0), state.select(1).decompressed()])
    assert mixed.compression is None
    same(mixed, state.select([0, 1]).decompressed())


def test_a_sequence_goes_on_alike_in_any_batch(model, state):
    """Two sequences of different batches together, each beside its own; the order of sums may differ with the batch."""
    ids = some_ids(3, 6, seed=5)
    logits = model.process_with_state(ids, state)[0]
    again = model.process_with_state(ids[[2, 0]], state.select([2, 0]))[0]
    assert_within(again, logits[[2, 0]], 2e-5 * np.abs(logits).max(), "logits")


@pytest.mark.parametrize("rows", [3, [0, 5], [], [[0]], slice(5, 9), "a", [0.5], None])
def test_rows_that_are_not_there(state, rows):
    with pytest.raises(ValueError, match="rows is .*3 sequences"):
        state.select(rows)


def test_states_that_cannot_be_joined():
    model = built("attention")
    one, two = (model.process_with_state(some_ids(1, n))[1] for n in (3, 4))
    with pytest.raises(ValueError, match="state 1 is of another model or length than state 0"):
        RWKVState.concatenate([one, two])
    for wrong in ([], [one, "state"]):
        with pytest.raises(ValueError, match="at least one RWKVState"):
            RWKVState.concatenate(wrong)


# ---- compression ----------------------------------------------------------------------------------------------------


def bound(name, x, dtype):
    """How far `state_codec` says a number may move; 2^-20 of it for float32's own rounding, and the smallest float32."""
    largest = np.abs(x).max(axis=-1, keepdims=True)
    if dtype == "int8" and name.split(".")[0] in ("wkv", "key_cache", "value_cache"):
        step = largest / 254
    elif dtype == "bf16":
        step = np.abs(x) * 2.0**-8
    else:
        step = np.maximum(np.abs(x) * 2.0**-11, largest * 2.0**-39)
    return step * (1 + 2.0**-15) + 2.0**-126


@pytest.mark.parametrize("dtype", ENCODINGS)
def test_numbers_move_no_further_than_is_said(state, dtype):
    packed, before = state.compressed(dtype), state.to_numpy()
    after = packed.to_numpy()
    assert packed.batch_size == 3 and packed.compression == dtype and dtype in repr(packed)
    assert {name: value.shape for name, value in after.items()} == {name: value.shape for name, value in before.items()}
    for name, value in before.items():
        assert after[name].dtype == np.float32
        assert_within(after[name], value, bound(name, value.astype(np.float64), dtype), f"{name} as {dtype}")
    assert any((after[name] != value).any() for name, value in before.items()), "something should be rounded"
    assert packed.compressed(dtype) is packed


@pytest.mark.parametrize("dtype", ENCODINGS)
def test_numbers_of_any_size_fit(dtype):
    """Rows from the smallest float32 to nearly the largest; zeros stay zeros."""
    rng = np.random.default_rng(0)
    sizes = 2.0 ** np.linspace(-149, 127, 24)
    values = (rng.uniform(-1, 1, (1, 1, 24, 4, 16)) * sizes[:, None, None]).astype(np.float32)
    values[..., 0, :] = 0
    values[..., 1, 1:] *= np.float32(1e-6)
    got = encode("wkv", values, dtype).array()
    assert np.isfinite(got).all()
    assert_within(got, values, bound("wkv", values.astype(np.float64), dtype), dtype)
    assert not got[..., 0, :].any()


@pytest.mark.parametrize("dtype", ENCODINGS)
def test_int8_uses_its_whole_range_and_halves_are_halves(dtype):
    state = small_model(n_embd=256, head_size_a=64, n_layer=2).process_with_state(some_ids(2, 9))[1]
    exact = sum(value.nbytes for value in state.to_numpy().values())
    share = state.compressed(dtype).nbytes / exact
    # per row of 64 numbers of 4 bytes: 2 bytes and an exponent of 2; 2 bytes; 1 byte and a step of 4 (shifts: as fp16)
    low, high = {"fp16": (0.5, 0.51), "bf16": (0.5, 0.5), "int8": (0.265, 0.28)}[dtype]
    assert low <= share <= high
    codes = state.compressed("int8")._arrays["wkv"].codes
    assert np.abs(codes.astype(int)).max(axis=-1).min() == 127


@pytest.mark.parametrize("dtype", ENCODINGS)
def test_files_shrink_and_give_the_same_back(model, state, dtype, tmp_path):
    long = model.process_with_state(some_ids(2, 300))[1]
    for name, value in (("plain", long), ("packed", long.compressed(dtype))):
        value.save(tmp_path / name)
    assert (tmp_path / "packed").stat().st_size < (0.65 if dtype == "int8" else 0.75) * (tmp_path / "plain").stat().st_size
    loaded = RWKVState.load(tmp_path / "packed")
    assert loaded.compression == dtype
    same(loaded, long.compressed(dtype))


@pytest.mark.parametrize("dtype", ENCODINGS)
def test_a_model_keeps_its_states_compressed(model, dtype):
    ids = some_ids(2, 40)
    _, exact = model.process_with_state(ids[:, :30])
    want = model.process_with_state(ids[:, 30:], exact.compressed(dtype))[0]
    whole = model.process_with_state(ids[:, 30:], exact)[0]
    plain = model.forward_chunked(ids)
    other = copy.deepcopy(model)
    other.reset_state(2)
    assert other.enable_state_compression(dtype) is other
    assert other.state_compression == dtype and other.state.compression == dtype
    _, other.state = other.process_with_state(ids[:, :30], other.state)
    assert other.state.compression == dtype and other.state.nbytes < exact.nbytes
    got, _ = other.process_with_state(ids[:, 30:], other.state)
    assert_same_bits(got, want, "as from the compressed state")
    assert not np.array_equal(got, whole), "rounding should be felt"
    assert_same_bits(other.forward_chunked(ids).logits, plain.logits, "within a call nothing is rounded")
    assert copy.deepcopy(other).state_compression == dtype
    assert other.disable_state_compression() is other and other.state.compression is None
    assert other.process_with_state(ids)[1].compression is None


@pytest.mark.parametrize("version", ["x052", "x060", "x070"])
@pytest.mark.parametrize("dtype", ENCODINGS)
def test_effect_of_compression_on_logits_is_its_first_order(version, dtype):
    """logits(S + E) - logits(S) is bounded to first order by sum |dlogit/dS| |E|.  The gradient comes from the model in
    float64, |E| from the bound above; twice that leaves room for what is beyond the first order."""
    model = small_model("ref", "fp64", model_type=version)
    _, state = model.process_with_state(some_ids(1, 33))
    token, packed = [[5]], state.compressed(dtype)
    exact, rounded = (model.process_with_state(token, s)[0][0, -1] for s in (state, packed))
    before, losses = state.to_numpy(), []
    for target in (3, 11):
        loss, grads = model.loss_and_grads(token, [[target]], state=state)
        reach = sum(
            float((np.abs(grads[f"state.{name}"]) * bound(name, value, dtype)).sum()) for name, value in before.items()
        )
        moved = abs(model.loss(token, [[target]], packed) - loss)
        assert 0 < moved <= 2 * reach, f"loss moved by {moved}, bound {reach}"
        losses.append(reach)
    assert np.abs(rounded - exact).max() > 0 and max(losses) < 1


@pytest.mark.parametrize("dtype", ["fp32", "int4", None, 8])
def test_unknown_compressions(model, state, dtype):
    for call in (state.compressed, model.enable_state_compression):
        with pytest.raises(ValueError, match="allowed are 'fp16', 'bf16', 'int8'"):
            call(dtype)
    assert model.state_compression is None


@pytest.mark.parametrize("dtype", ENCODINGS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_numbers_that_cannot_be_compressed(dtype, value):
    arrays = built("x070").init_state(1).to_numpy()
    arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
    arrays["wkv"][0, 0, 0, 1, 2] = value
    with pytest.raises(ValueError, match="state wkv holds a number that is not finite"):
        RWKVState.from_numpy(arrays).compressed(dtype)
    model = built("x070")
    model.state = arrays
    with pytest.raises(ValueError, match="not finite"):
        model.enable_state_compression(dtype)
    assert model.state_compression is None and model.state.compression is None


# ---- model.state and wrong states -----------------------------------------------------------------------------------


def test_the_attribute_is_readable_and_writable(model):
    other = copy.deepcopy(model)
    assert other.state is None
    other.reset_state(batch_size=2)
    assert other.state.batch_size == 2
    ids = some_ids(2, 7)
    logits, other.state = other.process_with_state(ids, other.state)
    assert_same_bits(logits, other(ids).logits, "from a reset state")
    other.state = other.state.to_numpy()
    assert isinstance(other.state, RWKVState) and other.state.batch_size == 2
    for wrong in ("state", [1, 2], {"wkv": "x"}, {"wkv": np.zeros(3)}, {}):
        with pytest.raises(ValueError, match="state"):
            other.state = wrong
    assert other.state.batch_size == 2
    other.state = None
    for wrong in (0, -1, 1.5, True, "two"):
        with pytest.raises(ValueError, match="batch_size is "):
            other.reset_state(wrong)


def test_states_of_other_models_and_batches():
    models = {name: built(name) for name in ("x070", "x060", "attention", "mixed")}
    models |= {"wider": built("x070", n_embd=128), "deeper": built("x070", n_layer=3), "smaller heads": built("x070", head_size_a=16)}
    target = models.pop("x070")
    models.pop("x060")  # a state of the same shapes; only its meaning differs
    for name, other in models.items():
        state = other.process_with_state([1, 2, 3])[1]
        for wrong in (state, state.compressed("int8"), state.to_numpy()):
            with pytest.raises(ValueError, match="this model"):
                target.process_with_state([4], wrong)
            with pytest.raises(ValueError, match="this model"):
                target.generate([4], 1, state=wrong)
    state = target.process_with_state(some_ids(2, 3))[1]
    for wrong in (state, state.compressed()):
        with pytest.raises(ValueError, match="2 sequences but ids hold 3"):
            target.process_with_state(some_ids(3, 1), wrong)
    for wrong in ("state", 3, [state]):
        with pytest.raises(ValueError, match="RWKVState or a dict"):
            target.process_with_state(some_ids(2, 1), wrong)


def _damage(arrays, how):
    arrays = dict(arrays)
    if how == "scale missing":
        del arrays["wkv@scale"]
    elif how == "scale misshapen":
        arrays["wkv@scale"] = arrays["wkv@scale"][..., 0]
    elif how == "wrong codes":
        arrays["wkv@int8"] = arrays["wkv@int8"].astype(np.int16)
    elif how == "unknown encoding":
        arrays["wkv@int4"] = arrays.pop("wkv@int8")
    elif how == "text":
        arrays["att_shift"] = np.array(["a"])
    elif how == "other batch":
        arrays = {name: value[:, :1] if name.startswith("wkv") else value for name, value in arrays.items()}
    else:
        arrays = {}
    return arrays


@pytest.mark.parametrize(
    "how", ["scale missing", "scale misshapen", "wrong codes", "unknown encoding", "text", "other batch", "nothing"]
)
def test_damaged_files(how, tmp_path):
    state = built("x070").process_with_state(some_ids(2, 3))[1].compressed("int8")
    state.save(tmp_path / "state")
    with np.load(tmp_path / "state") as file:
        arrays = {name: file[name] for name in file.files}
    with open(tmp_path / "damaged", "wb") as file:
        np.savez(file, **_damage(arrays, how))
    with pytest.raises(FormatError, match="damaged: not a saved state"):
        RWKVState.load(tmp_path / "damaged")
    data = (tmp_path / "state").read_bytes()
    (tmp_path / "short").write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError, match="short"):
        RWKVState.load(tmp_path / "short")
    with pytest.raises(FileNotFoundError):
        RWKVState.load(tmp_path / "none")


# ---- lists of other programs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["x052", "x060", "x070"])
def test_lists_come_back(version):
    model = small_model(model_type=version)
    state = model.process_with_state(some_ids(2, 9))[1]
    values = state.to_list()
    assert [value.shape for value in values[:4]] == [(2, 64), (2, 2, 32, 32), (2, 64), (2, 64)] and len(values) == 6
    same(RWKVState.from_list(values), state)
    one = state.select(1)
    values = one.to_list(f"rwkv-{version}")
    assert [value.shape for value in values[:3]] == [(64,), (2, 32, 32), (64,)]
    same(RWKVState.from_list([value.tolist() for value in values], f"rwkv-{version}").compressed(), one.compressed())
    logits = model.process_with_state([5], RWKVState.from_list(values, f"rwkv-{version}"))[0]
    assert_same_bits(logits, model.process_with_state([5], one)[0], "logits")


def first_layer(model, token):
    """(x after ln1, parameters) of the first layer at the first token, in float64 NumPy."""
    p = model.named_parameters()
    x = p["emb.weight"][token]
    for norm in ("blocks.0.ln0", "blocks.0.ln1"):
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * p[f"{norm}.weight"] + p[f"{norm}.bias"]
    return x, p


@pytest.mark.parametrize("version", ["x052", "x060", "x070"])
def test_which_axis_of_a_list_is_the_key_s(version):
    """After one token wkv is an outer product.  Its factor along the value axis is the value projection, computed here; in
    the `rwkv` package that axis is the last for RWKV-5.2 and 6 and the one before for RWKV-7."""
    model = small_model("ref", "fp64", model_type=version, n_layer=1)
    _, p = first_layer(model, 7)
    if version == "x060":
        p["blocks.0.att.time_maa_w1"][...] = 0  # then the mixing is that of time_maa_v alone
    x, p = first_layer(model, 7)
    own = {"x052": "time_mix_v", "x060": "time_maa_v", "x070": "x_v"}[version]
    mix = p[f"blocks.0.att.{own}"].reshape(-1)
    mixed = x * mix if version == "x052" else x - x * mix  # the shift is zero: x * m + 0 * (1 - m), or x + (0 - x) * m
    value = (p["blocks.0.att.value.weight"] @ mixed).reshape(2, 32)
    state = model.process_with_state([7])[1]
    listed = state.to_list(f"rwkv-{version}")[1]
    for head in range(2):
        rows = listed[head] if version != "x070" else listed[head].T  # one row per key slot
        along = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        want = value[head] / np.linalg.norm(value[head])
        assert_within(np.abs(along @ want), np.ones(32), 1e-9, f"head {head}: every key's row is along the value")
    assert_same_bits(state.to_list()[1][0], listed.swapaxes(1, 2) if version != "x070" else listed, "RWKV-LM's layout")


def test_lists_that_are_none():
    model = small_model()
    state = model.process_with_state(some_ids(2, 3))[1]
    with pytest.raises(ValueError, match="one sequence and this state 2"):
        state.to_list("rwkv-x070")
    with pytest.raises(ValueError, match="RWKV layers of one size only"):
        built("attention").init_state(1).to_list()
    for call in (state.to_list, lambda layout: RWKVState.from_list([], layout)):
        with pytest.raises(ValueError, match="layout is 'rwkv'; allowed are 'rwkv-lm'"):
            call("rwkv")
    good = state.select(0).to_list("rwkv-x070")
    for i, wrong in ((1, good[1][0]), (3, good[3][:5]), (4, good[4].astype(str)), (5, good[5][None])):
        values = list(good)
        values[i] = wrong
        with pytest.raises(ValueError, match=rf"values\[{i}\]"):
            RWKVState.from_list(values, "rwkv-x070")
    for wrong in ([], good[:5]):
        with pytest.raises(ValueError, match="three arrays per layer"):
            RWKVState.from_list(wrong, "rwkv-x070")


def test_a_model_that_reads_nothing_of_the_state_is_not_enough():
    """A guard of this file: with the noise of `small_model` every array of a state changes the logits."""
    for name in MODELS:
        model = built(name)
        state = model.process_with_state(some_ids(1, 9))[1].to_numpy()
        before = model.process_with_state([3], state)[0]
        for key in state:
            changed = state | {key: state[key] + np.random.default_rng(0).standard_normal(state[key].shape)}
            assert not np.allclose(model.process_with_state([3], changed)[0], before, atol=1e-4), (name, key)
