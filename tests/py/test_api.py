"""The public interface of the package and of the model: what goes in, what comes out, what is refused."""

import math
import subprocess
import sys
from array import array

import numpy as np
import pytest

import rwkvtune
from rwkvtune import RWKV, DeviceError, FormatError, ModelConfig, RWKVState

V = 29


def config(**changes):
    return ModelConfig(
        **{
            "model_type": "x070",
            "n_layer": 2,
            "n_embd": 64,
            "vocab_size": V,
            "ctx_len": 32,
            "head_size_a": 32,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def model():
    model = RWKV(config(), seed=3)
    rng = np.random.default_rng(0)
    for value in model.named_parameters().values():
        value += 0.05 * rng.standard_normal(value.shape, dtype=np.float32)
    return model


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(1).integers(0, V, (2, 23))


def test_every_public_name_exists():
    for name in rwkvtune.__all__:
        assert getattr(rwkvtune, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        rwkvtune.nothing_of_the_kind


def test_import_loads_neither_numpy_nor_the_core():
    code = "import sys, rwkvtune; sys.exit(any(m in sys.modules for m in ('numpy', 'rwkvtune._rwkvcore', 'tqdm')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_info_and_threads():
    facts = rwkvtune.info()
    assert facts["isa"] in facts["isa_available"] and facts["threads"] >= 1
    rwkvtune.set_num_threads(1)
    assert rwkvtune.info()["threads"] == 1
    rwkvtune.set_num_threads(facts["threads"])
    with pytest.raises(ValueError):
        rwkvtune.set_num_threads(0)


class _Arraylike:
    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


class _Dlpack:
    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


@pytest.mark.parametrize(
    "form",
    [lambda a: a.tolist(), lambda a: a.astype(np.uint8), lambda a: a.astype(np.int64), lambda a: np.asfortranarray(a.astype(np.uint16)),
     _Arraylike, _Dlpack, lambda a: memoryview(a.astype(np.int32)), lambda a: np.repeat(a, 2, axis=1)[:, ::2]],
)  # fmt: skip
def test_ids_in_any_form(model, ids, form):
    assert np.array_equal(model(form(ids)).logits, model(ids).logits)


def test_one_row_and_one_token(model, ids):
    assert np.array_equal(model(ids[0]).logits, model(ids[:1]).logits)
    assert np.array_equal(model(array("i", ids[0].tolist())).logits, model(ids[:1]).logits)
    assert model(5).logits.shape == (1, 1, V)
    assert np.array_equal(model(np.int64(5)).logits, model([[5]]).logits)


def test_output_by_attribute_name_and_position(model, ids):
    out = model(ids, ids)
    logits, loss = out
    assert out.logits is logits is out["logits"] is out[0]
    assert out.loss == loss == out["loss"] and isinstance(loss, float)
    assert logits.dtype == np.float32 and dict(out)["loss"] == loss
    assert model(ids).loss is None
    with pytest.raises(KeyError):
        out["logit"]


def test_loss_is_the_mean_over_targets_that_count(model, ids):
    targets = ids.copy()
    targets[0, 3:9] = -100
    logits = model(ids).logits.astype(np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = [-logp[b, t, targets[b, t]] for b in range(2) for t in range(23) if targets[b, t] != -100]
    expected = float(np.mean(picked))
    assert model(ids, targets).loss == pytest.approx(expected, abs=1e-6)
    assert model.loss(ids, targets) == pytest.approx(expected, abs=1e-6)
    loss, _ = model.loss_and_grads(ids, targets)
    assert loss == pytest.approx(expected, abs=1e-6)


def test_bad_ids_are_named_with_their_place(model, ids):
    bad = ids.copy()
    bad[1, 4] = V
    with pytest.raises(ValueError, match=rf"ids\[1, 4\] is {V}.*\[0, {V}\)"):
        model(bad)
    bad[1, 4] = -100
    with pytest.raises(ValueError, match=r"ids\[1, 4\] is -100"):
        model(bad, ids)
    bad[1, 4] = -1
    with pytest.raises(ValueError, match=r"targets\[1, 4\] is -1.*-100"):
        model(ids, bad)
    for wrong, words in (([], "empty"), ([[1.0]], "float64"), ([[1], [1, 2]], "row lengths"), (["a"], "integers"), (ids[None], "shape"),
                         ([True], "bool"), ([2**40], "ids"), (np.array([2**63], np.uint64), "ids")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            model(wrong)
    with pytest.raises(ValueError, match="targets.*one target per id"):
        model(ids, ids[:, 1:])
    with pytest.raises(ValueError, match="nothing to predict"):
        model.loss_and_grads(ids, np.full_like(ids, -100))


def test_gradient_against_differences(model, ids):
    _, grads = model.loss_and_grads(ids, ids)
    views = model.named_parameters()
    assert set(grads) == set(views)
    for name in ("head.weight", "blocks.1.att.w0", "blocks.0.ffn.key.weight"):
        direction = grads[name] / np.linalg.norm(grads[name])
        step = 1e-2
        before = views[name].copy()
        views[name][...] = before + step * direction
        up = model.loss(ids, ids)
        views[name][...] = before - step * direction
        down = model.loss(ids, ids)
        views[name][...] = before
        assert (up - down) / (2 * step) == pytest.approx(float(np.linalg.norm(grads[name])), rel=2e-2)
    assert grads["head.weight"].dtype == np.float32 and not np.shares_memory(grads["head.weight"], views["head.weight"])


@pytest.mark.parametrize("size", [1, 5, 22, 23, 100])
def test_chunks_change_nothing(model, ids, size):
    model.set_chunk_size(size)
    whole = model(ids, ids)
    parts = model.forward_chunked(ids, ids)
    assert np.allclose(parts.logits, whole.logits, atol=2e-5) and parts.loss == pytest.approx(whole.loss, abs=1e-6)
    _, full = model.loss_and_grads(ids, ids, l2wrap=True)
    _, chunked = model.loss_and_grads(ids, ids, l2wrap=True, chunked="full")
    for name, value in full.items():
        assert np.allclose(chunked[name], value, rtol=1e-4, atol=1e-5 * max(1e-3, np.abs(value).max())), name
    _, cut = model.loss_and_grads(ids, ids, l2wrap=True, chunked="truncated")
    same = all(np.allclose(cut[name], full[name], rtol=1e-4, atol=1e-6) for name in full)
    assert same == (size >= 23)
    model.set_chunk_size(1024)


def test_state_gradient_against_differences(ids):
    exact = RWKV(config(), seed=3, backend="ref", precision="fp64")
    start = RWKVState.from_numpy({name: 0.1 * np.random.default_rng(2).standard_normal(value.shape)
                                  for name, value in exact.init_state(2).to_numpy().items()})  # fmt: skip
    for view in exact.named_parameters().values():
        view += 0.1 * np.random.default_rng(view.size).standard_normal(view.shape)
    _, grads = exact.loss_and_grads(ids, ids, state=start)
    for name, place in (("wkv", (1, 0, 1, 3, 7)), ("att_shift", (0, 1, 5)), ("ffn_shift", (1, 1, 9))):
        losses = []
        for sign in (1, -1):
            moved = start.to_numpy()
            moved[name][place] += sign * 1e-5
            losses.append(exact.loss(ids, ids, state=moved))
        assert grads[f"state.{name}"][place] == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5, abs=1e-9), name


def test_state_goes_on_where_it_was(model, ids):
    whole = model(ids).logits
    first, state = model.process_with_state(ids[:, :9])
    before = state.to_numpy()
    second, _ = model.process_with_state(ids[:, 9:], state)
    again, _ = model.process_with_state(ids[:, 9:], RWKVState.from_numpy(before))
    assert np.allclose(np.concatenate([first, second], 1), whole, atol=2e-5)
    assert np.array_equal(second, again)
    for name, value in state.to_numpy().items():
        assert np.array_equal(value, before[name])


def test_state_shapes_files_and_refusals(model, ids, tmp_path):
    model.reset_state(batch_size=2)
    assert {name: value.shape for name, value in model.state.to_numpy().items()} == {
        "att_shift": (2, 2, 64), "wkv": (2, 2, 2, 32, 32), "ffn_shift": (2, 2, 64)}  # fmt: skip
    _, state = model.process_with_state(ids, model.state)
    state.save(tmp_path / "s.npz")
    loaded = RWKVState.load(tmp_path / "s.npz")
    for name, value in state.to_numpy().items():
        assert np.array_equal(value, loaded.to_numpy()[name])
    with pytest.raises(ValueError, match="2 sequences but ids hold 1"):
        model.process_with_state(ids[:1], state)
    arrays = state.to_numpy()
    with pytest.raises(ValueError, match="the state holds"):
        model(ids, state={"wkv": arrays["wkv"]})
    with pytest.raises(ValueError, match=r"state wkv has shape \(1,"):
        model(ids, state={**arrays, "wkv": arrays["wkv"][:1]})
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(FormatError, match="junk"):
        RWKVState.load(tmp_path / "junk")


def test_wkv_is_value_major():
    """With one token from the empty state, wkv is v k^T: each row is the key scaled by that row's value."""
    exact = RWKV(config(n_layer=1), seed=1, backend="ref", precision="fp64")
    _, state = exact.process_with_state([[7]])
    p = exact.named_parameters()
    x = p["emb.weight"][7]
    for norm in ("blocks.0.ln0", "blocks.0.ln1"):
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * p[f"{norm}.weight"] + p[f"{norm}.bias"]
    value = (p["blocks.0.att.value.weight"] @ (x * (1 - p["blocks.0.att.x_v"].reshape(-1)))).reshape(2, 32)
    for head in range(2):
        rows = state.to_numpy()["wkv"][0, 0, head] / value[head][:, None]
        assert np.allclose(rows, rows[:1], rtol=1e-9) and np.ptp(rows[0]) > 1e-3


@pytest.mark.parametrize("ending, dtype", [(".pth", None), (".pth", "bf16"), (".safetensors", None)])
def test_save_and_load(model, ids, tmp_path, ending, dtype):
    path = tmp_path / f"m{ending}"
    model.save(path, dtype=dtype)
    loaded = RWKV.load(path, precision=dtype or "fp32")
    assert loaded.config.layer_list() == model.config.layer_list()
    for name, value in model.named_parameters().items():
        kept = loaded.named_parameters()[name]
        assert np.array_equal(kept, value) if dtype is None else np.allclose(kept, value, rtol=2**-8)
    if dtype is None:
        assert np.array_equal(loaded(ids).logits, model(ids).logits)
    assert loaded.num_parameters == sum(value.size for value in loaded.named_parameters().values())


def test_load_names_every_problem(model, tmp_path):
    from rwkvtune.checkpoint import write_pth

    tensors = dict(model.named_parameters())
    tensors["blocks.1.att.extra"] = tensors.pop("blocks.1.att.k_k")
    tensors["ln_out.bias"] = np.zeros(3, np.float32)
    write_pth(tmp_path / "bad.pth", tensors)
    with pytest.raises(FormatError) as error:
        RWKV.load(tmp_path / "bad.pth")
    for word in (
        "bad.pth",
        "missing blocks.1.att.k_k",
        "unexpected blocks.1.att.extra",
        "ln_out.bias has shape (3,)",
        "(64,)",
    ):
        assert word in str(error.value)
    with pytest.raises(FileNotFoundError, match="none.pth"):
        RWKV.load(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="n_embd cannot be given"):
        model.save(tmp_path / "m.pth")
        RWKV.load(tmp_path / "m.pth", n_embd=3)
    with pytest.raises(ValueError, match=r"\.pth or \.safetensors"):
        model.save(tmp_path / "m.bin")


def test_optional_tensors_may_be_missing(model, ids, tmp_path):
    from rwkvtune.checkpoint import write_pth

    unused = [f"blocks.0.att.{name}" for name in ("v0", "v1", "v2")]
    write_pth(
        tmp_path / "m.pth", {name: value for name, value in model.named_parameters().items() if name not in unused}
    )
    assert np.array_equal(RWKV.load(tmp_path / "m.pth")(ids).logits, model(ids).logits)


@pytest.mark.parametrize("precision, bits", [("bf16", 8), ("fp16", 11)])
def test_weights_of_a_narrow_precision(precision, bits):
    model = RWKV(config(), precision=precision)
    exact = RWKV(config())
    held = {row["name"] for row in exact._core.manifest() if precision in row["formats"]}
    assert {"emb.weight", "blocks.0.att.w1", "head.weight"} <= held
    for name, value in model.named_parameters().items():
        mantissa, _ = np.frexp(value)
        if precision == "bf16" and name in held:
            assert np.array_equal(mantissa * 2**bits, np.round(mantissa * 2**bits)), name
        assert np.allclose(value, exact.named_parameters()[name], rtol=2.0**-bits, atol=1e-7)


def test_devices_precisions_and_backends():
    assert RWKV(config(), device="auto").device == "cpu"
    with pytest.raises(DeviceError, match="cuda:1.*device='cpu'"):
        RWKV(config(), device="cuda:1")
    for words, options in (("device is 'tpu'", {"device": "tpu"}), ("precision is 'int3'", {"precision": "int3"}), ("backend is 'x'", {"backend": "x"}),
                           ("backend='ref' only", {"precision": "fp64"})):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            RWKV(config(), **options)
    with pytest.raises(ValueError, match="must be a ModelConfig"):
        RWKV({"n_layer": 1})


def test_seed_decides_the_weights():
    first, second, other = (RWKV(config(), seed=seed).named_parameters() for seed in (5, 5, 6))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["head.weight"], other["head.weight"])


def test_generate(model, ids):
    prompt = ids[0].tolist()
    tokens = model.generate(prompt, 12, seed=4)
    assert len(tokens) == 12 and all(0 <= token < V for token in tokens)
    assert tokens == model.generate(np.array(prompt, np.uint8), 12, seed=4)
    assert tokens == list(model.generate(prompt, 12, seed=4, stream=True))
    seen = []
    model.generate(prompt, 12, seed=4, stream=seen.append)
    assert seen == tokens
    _, state = model.process_with_state(prompt[:-1])
    assert model.generate(prompt[-1:], 12, temperature=0, state=state) == model.generate(prompt, 12, temperature=0)
    best = int(model(prompt).logits[0, -1].argmax())
    assert model.generate(prompt, 1, temperature=0) == [best] == model.generate(prompt, 1, top_k=1)
    assert model.generate(prompt, 0) == []


def test_generate_stops(model, ids):
    prompt = ids[0].tolist()
    tokens = model.generate(prompt, 50, seed=4)
    stopped = model.generate(prompt, 50, seed=4, stop_tokens=[tokens[5]])
    assert stopped in (tokens[: tokens.index(tokens[5])], tokens[: tokens.index(tokens[5]) + 1])
    seen = []
    model.generate(prompt, 50, seed=4, stream=lambda token: seen.append(token) or len(seen) == 3)
    assert seen == tokens[:3]
    iterator = model.generate(prompt, 10**6, seed=4, stream=True)
    assert [next(iterator) for _ in range(3)] == tokens[:3]
    iterator.close()


def test_generate_reads_long_prompts_in_parts(model):
    prompt = np.random.default_rng(5).integers(0, V, 2500)
    best = int(model(prompt).logits[0, -1].argmax())
    assert model.generate(prompt, 1, temperature=0) == [best]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"top_p": 1.5},
        {"top_k": -2},
        {"max_new_tokens": -1},
        {"temperature": math.nan},
        {"stream": 5},
    ],
)
def test_generate_refuses(model, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        model.generate([1], **wrong)
    with pytest.raises(ValueError, match="prompt_ids"):
        model.generate([[1], [2]])
    with pytest.raises(ValueError, match="prompt_ids is empty"):
        model.generate([])


def test_errors_in_a_stream_reach_the_caller(model):
    def broken(token):
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        model.generate([1], 5, stream=broken)


def test_plan_and_views(model):
    plan = model.plan(4, 32)
    assert plan["total"] == sum(size for name, size in plan.items() if name != "total")
    assert plan["parameters"] >= 4 * model.num_parameters
    view = RWKV(config()).named_parameters()["emb.weight"]  # the model itself is gone, its memory must not be
    assert np.isfinite(view).all()


def test_versions_without_a_mixer_say_so():
    with pytest.raises(NotImplementedError, match="rwkv9"):
        RWKV(ModelConfig(model_type="rwkv9", architecture_version="rwkv9", n_layer=1, n_embd=64))


@pytest.mark.parametrize("module", ["", ".config", ".model", ".schedule", ".trainer", ".configs.model_loader"])
def test_examples_in_the_documentation(module):
    import doctest
    from importlib import import_module

    result = doctest.testmod(import_module(f"rwkvtune{module}"))
    assert result.attempted > 0 and result.failed == 0
