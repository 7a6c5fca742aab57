"""Transformers and hybrids with RWKV: against golden files and a NumPy reference, and what must hold for any recipe of layers.

Attention is the only kind of layer whose state grows, so splits, branches, room and gradients of the state get most attention.
"""

import numpy as np
import pytest
from helpers import (
    MODEL_RUNS,
    assert_fingerprints,
    assert_same_bits,
    assert_within,
    core,
    global_norm,
    load_model,
    read_weights,
    some_ids,
    threads,
)
from reference import ops, transformer

from rwkvtune import RWKV, ModelConfig, RWKVState, Trainer, TrainingConfig
from rwkvtune.errors import FormatError

RECIPES = {
    "gpt": dict(layers=["attention"] * 2),
    "grouped": dict(layers=["attention"] * 2, head_size_a=16, n_kv_head=2),
    "no rope": dict(layers=["attention"] * 2, rope=False, head_size_a=16, n_kv_head=1),
    "x070 first": dict(layers=["x070", "attention", "x070"]),
    "attention first": dict(layers=["attention", "x070", {"time_mix": "attention", "n_kv_head": 1}]),
    "all kinds": dict(layers=["x052", "x060", "attention", "x070"]),
    "mixed halves": dict(
        layers=[
            {"time_mix": "x070", "channel_mix": "mlp", "head_size": 16},
            {"time_mix": "attention", "channel_mix": "x070", "dim_ffn": 96},
            {"time_mix": "x070", "head_size": 32},
        ]
    ),
}
RUNS = {"cpu": ("cpu", "fp32", 2e-5, 1e-4), "ref64": ("ref", "fp64", 1e-12, 1e-10)}
V = 67


def built(recipe, backend="cpu", precision="fp32", **sizes):
    """A model of the recipe whose every parameter matters."""
    config = ModelConfig(**(dict(n_embd=64, vocab_size=V, ctx_len=64, head_size_a=32) | RECIPES[recipe] | sizes))
    model = RWKV(config, seed=1, backend=backend, precision=precision)
    rng = np.random.default_rng(1)
    for value in model.named_parameters().values():
        value += 0.3 * rng.standard_normal(value.shape) / np.sqrt(value.shape[-1] if value.ndim == 2 else 16)
    return model


@pytest.fixture(scope="module", params=[(recipe, run) for recipe in RECIPES for run in RUNS], ids="-".join)
def any_model(request):
    """(model, tolerance of logits, relative tolerance of gradients); tests leave the weights alone."""
    recipe, run = request.param
    backend, precision, logits, gradients = RUNS[run]
    return built(recipe, backend, precision), logits, gradients


def same_gradients(got, want, relative, what):
    floor = relative * 1e-2 * global_norm(want)
    assert set(got) == set(want)
    for name in want:
        assert_within(got[name], want[name], relative * np.abs(want[name]).max() + floor, f"{what}: {name}")


# ---- golden files and the reference ----------------------------------------------------------------------------------

GOLDEN = [
    ("gpt", "gpt_rope__B2T19", dict(head_size_a=16, rope=True)),
    ("gpt", "gpt_norope__B2T19", dict(head_size_a=16, rope=False)),
    ("mixed4_dev", "mixed4_dev__B2T21", {}),
]


@pytest.mark.parametrize(("weights", "case", "options"), GOLDEN, ids=[case for _, case, _ in GOLDEN])
@pytest.mark.parametrize("run", MODEL_RUNS)
def test_golden(shared, run, weights, case, options):
    tolerance, golden = MODEL_RUNS[run], np.load(shared / f"golden/dev/model/{case}.npz")
    model = load_model(shared / f"golden/dev/model/{weights}.pth", run, **options)
    ids, targets = golden["ids"], golden["targets"]
    logits, loss = model(ids, targets)
    stored = 6e-8 * np.abs(golden["logits"]) if golden["logits"].dtype == np.float32 else 0
    assert_within(logits, golden["logits"], tolerance["logits"] + stored, "logits")
    assert_within(loss, golden["loss"], tolerance["loss"], "loss")
    for prefix, l2wrap in (("grad", True), ("gradplain", False)):
        if f"{prefix}_names" not in golden:
            continue
        loss, grads = model.loss_and_grads(ids, targets, l2wrap=l2wrap)
        assert_within(loss, golden["loss"], tolerance["loss"], "loss beside gradients")
        floor = tolerance["floor"] * float(np.linalg.norm(golden[f"{prefix}_norm"]))
        assert_fingerprints(golden, prefix, grads, tolerance["gradient"], floor)
        for key in golden.files if l2wrap else ():
            if key.startswith("grad/"):
                want = golden[key]
                allowed = (tolerance["gradient"] + 6e-8) * np.abs(want).max() + floor
                assert_within(np.reshape(grads[key[5:]], want.shape), want, allowed, key)
    state = None
    for t in range(0, ids.shape[1], 8):
        part, state = model.process_with_state(ids[:, t : t + 8], state)
        want = golden["logits"][:, t : t + 8]
        assert_within(part, want, tolerance["logits"] + 6e-8 * np.abs(want), f"logits from token {t} on")


@pytest.mark.parametrize("rope", [True, False])
def test_numpy_reference_reproduces_the_golden_transformer(shared, rope):
    golden = np.load(shared / f"golden/dev/model/gpt_{'' if rope else 'no'}rope__B2T19.npz")
    params = read_weights(shared / "golden/dev/model/gpt.pth")
    assert_within(transformer.forward(params, golden["ids"], 16, rope), golden["logits"], 1e-10, "logits")


@pytest.mark.parametrize("recipe", ["gpt", "grouped", "no rope"])
@pytest.mark.parametrize("run", RUNS)
def test_transformers_equal_the_reference(recipe, run):
    backend, precision, tolerance, _ = RUNS[run]
    for ln0 in (False, True):
        model = built(recipe, backend, precision, ln0=ln0)
        params, ids = model.named_parameters(), some_ids(2, 80)
        assert ("blocks.0.ln0.weight" in params) is ln0
        want = transformer.forward(params, ids, model.config.head_size_a, model.config.rope)
        assert_within(model(ids).logits, want, tolerance * np.abs(want).max(), "logits")


@pytest.mark.parametrize("backend", ["ref", "cpu"])
def test_positions_far_away_keep_their_angle(backend):
    """Angles in float32 would be off by 1e-2 there."""
    x, past = np.random.default_rng(0).standard_normal((1, 2, 1, 8)), 300_000
    y = np.empty(x.shape, np.float32)
    core.run_op(backend, "rope", "fwd", dict(x=x.astype(np.float32), y=y, past=past))
    angles = ops.rope_angles(past, 2, 8)
    assert_within(y, ops.rope(x, np.cos(angles), np.sin(angles)), 1e-6, "turned")


# ---- time, batch and state -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [[1] * 50, [2] * 25, [15, 15, 15, 5], [16, 16, 16, 2], [17, 17, 16], [3, 16, 1, 29, 1]],
                         ids=lambda lengths: "+".join(map(str, lengths[:4])))  # fmt: skip
def test_any_split_equals_the_whole(any_model, lengths):
    model, tolerance, _ = any_model
    ids = some_ids(2, 50)
    whole, after = model.process_with_state(ids)
    state, parts, at = None, [], 0
    for length in lengths:
        before = state.to_numpy() if state else {}
        logits, following = model.process_with_state(ids[:, at : at + length], state)
        for name in before:
            assert_same_bits(state.to_numpy()[name], before[name], "a given state is not changed")
        state, at = following, at + length
        parts.append(logits)
    assert at == 50
    assert_within(np.concatenate(parts, axis=1), whole, tolerance * max(1, np.abs(whole).max()), "logits")
    for name, want in after.to_numpy().items():
        assert_within(state.to_numpy()[name], want, tolerance * max(1, np.abs(want).max()), name)


@pytest.mark.parametrize("recipe", ["grouped", "x070 first"])
def test_long_sequences_in_pieces(recipe):
    """An inference forward takes 512 tokens at a time; chunks of 1000 and of 17 end elsewhere."""
    model, ids = built(recipe), some_ids(1, 1100)
    whole = model(ids).logits
    for chunk in (1000, 17):
        model.set_chunk_size(chunk)
        assert_within(model.forward_chunked(ids).logits, whole, 2e-5 * np.abs(whole).max(), f"chunks of {chunk}")
    targets = some_ids(1, 1100, seed=1)
    want = model(ids, targets).loss
    assert_within(model.loss(ids, targets), want, 1e-5, "loss without logits")
    assert_within(model.loss_and_grads(ids, targets)[0], want, 1e-5, "loss of training")


def test_branches_are_independent(any_model):
    model, _, _ = any_model
    ids = some_ids(2, 30)
    _, trunk = model.process_with_state(ids[:, :20])
    kept = trunk.to_numpy()
    first, _ = model.process_with_state(ids[:, 20:], trunk)
    other, branch = model.process_with_state((ids[:, 20:] + 1) % V, trunk)
    model.process_with_state(ids[:, :7], branch)
    again, _ = model.process_with_state(ids[:, 20:], trunk)
    assert_same_bits(again, first, "a branch disturbs its trunk")
    assert not np.array_equal(other, first)
    for name, value in trunk.to_numpy().items():
        assert_same_bits(value, kept[name], name)


def test_a_state_can_be_taken_out_saved_and_put_back(any_model, tmp_path):
    model, _, _ = any_model
    ids = some_ids(2, 20)
    _, state = model.process_with_state(ids)
    state.save(tmp_path / "state.npz")
    direct, _ = model.process_with_state(ids[:, :3], state)
    for restored in (RWKVState.from_numpy(state.to_numpy()), RWKVState.load(tmp_path / "state.npz"), state.to_numpy()):
        through, _ = model.process_with_state(ids[:, :3], restored)
        assert_same_bits(through, direct, "logits")
    empty = model.init_state(2)
    assert_same_bits(model(ids, state=RWKVState.from_numpy(empty.to_numpy())).logits, model(ids).logits, "from the beginning")


def test_what_a_state_holds():
    model = built("attention first")
    _, state = model.process_with_state(some_ids(3, 9))
    arrays = state.to_numpy()
    assert {name: value.shape for name, value in arrays.items()} == {
        "key_cache.0": (1, 3, 9, 2, 32),  # layers of different sizes, each by itself
        "key_cache.2": (1, 3, 9, 1, 32),
        "value_cache.0": (1, 3, 9, 2, 32),
        "value_cache.2": (1, 3, 9, 1, 32),
        "att_shift": (1, 3, 64),
        "wkv": (1, 3, 2, 32, 32),
        "ffn_shift": (1, 3, 64),
    }
    assert state.batch_size == 3 and state.nbytes >= sum(value.nbytes for value in arrays.values())
    gpt = built("gpt").init_state(2).to_numpy()
    assert {name: value.shape for name, value in gpt.items()} == {
        "key_cache": (2, 2, 0, 2, 32),
        "value_cache": (2, 2, 0, 2, 32),
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.pop("value_cache"), "this model has"),
        (lambda a: a.update(value_cache=a["value_cache"][:, :, :4]), "same number of tokens"),
        (lambda a: a.update(value_cache=a["value_cache"][:, :, :4], key_cache=a["key_cache"][..., :3]), "same number of tokens"),
        (lambda a: a.update(key_cache=a["key_cache"][..., :3]), "key_cache has shape"),
        (lambda a: a.update(key_cache=a["key_cache"][0]), "batch size|has shape"),
        (lambda a: a.update(wkv=np.zeros((1, 2, 2, 32, 32))), "this model has"),
    ],
)
def test_states_that_do_not_fit_are_refused(change, words):
    model = built("gpt")
    arrays = model.process_with_state(some_ids(2, 5))[1].to_numpy()
    change(arrays)
    with pytest.raises(ValueError, match=words):
        model(some_ids(2, 3), state=RWKVState.from_numpy(arrays))
    assert np.isfinite(model(some_ids(2, 3)).logits).all()


@pytest.mark.parametrize("t", [0, 1, 31, 63, 64, 69])
def test_no_token_sees_the_future(any_model, t):
    model, _, _ = any_model
    ids = some_ids(2, 70)
    changed = ids.copy()
    changed[:, t] = (changed[:, t] + 1) % V
    before, after = model(ids).logits, model(changed).logits
    assert_same_bits(after[:, :t], before[:, :t], "logits before the change")
    assert np.all(np.any(after[:, t:] != before[:, t:], axis=-1)), "every later position should notice"


def test_sequences_of_a_batch_are_independent(any_model):
    model, tolerance, _ = any_model
    ids = some_ids(3, 21)
    other = ids.copy()
    other[1] = some_ids(1, 21, seed=9)
    logits = model(ids).logits
    assert_same_bits(model(other).logits[[0, 2]], logits[[0, 2]], "rows that were not changed")
    assert_within(model(ids[2]).logits[0], logits[2], tolerance * max(1, np.abs(logits).max()), "row 2 alone")


@pytest.mark.parametrize("recipe", RECIPES)
def test_generation_with_a_growing_state(recipe):
    """60 tokens after 3: the state's room grows several times."""
    model = built(recipe)
    prompt = some_ids(1, 3)[0]
    text = model.generate(prompt, max_new_tokens=60, temperature=0.0)
    logits = model(np.concatenate([prompt, text])).logits[0]
    assert len(text) == 60
    for i, token in enumerate(text):  # the likeliest, or as likely as it up to rounding
        assert logits[2 + i, token] >= logits[2 + i].max() - 2e-5, f"token {i}"
    _, state = model.process_with_state(np.concatenate([prompt, text[:20]]))
    again = model.generate(text[20:21], 39, temperature=0.0, state=state)
    assert again == model.generate(text[20:21], 39, temperature=0.0, state=state)
    for i, token in enumerate(again[: next((i for i in range(39) if again[i] != text[21 + i]), 39) + 1]):
        assert logits[23 + i, token] >= logits[23 + i].max() - 2e-5, f"token {21 + i} from a state"


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_gradient_along_random_directions_is_the_slope_of_the_loss(recipe):
    """Everything at once in float64: a given state, whose past keys and values move too, and all parameters."""
    model = built(recipe, "ref", "fp64")
    ids, targets = some_ids(2, 19), some_ids(2, 19, seed=1)
    targets[0, 4:7] = -100
    _, state = model.process_with_state(some_ids(2, 5, seed=3))
    begin = state.to_numpy()
    _, grads = model.loss_and_grads(ids, targets, state=state)
    assert {name[6:] for name in grads if name.startswith("state.")} == set(begin)
    weights, rng, h = model.named_parameters(), np.random.default_rng(0), 1e-4

    def loss_at(direction, step):
        for name, value in weights.items():
            value += step * direction[name]
        moved = RWKVState.from_numpy({name: x + step * direction[f"state.{name}"] for name, x in begin.items()})
        loss = model.loss(ids, targets, moved)
        for name, value in weights.items():
            value -= step * direction[name]
        return loss

    for only in (None, "state."):
        direction = {name: rng.standard_normal(g.shape) / np.sqrt(g.size) for name, g in grads.items()}
        if only:
            direction = {name: d if name.startswith(only) else 0 * d for name, d in direction.items()}
        slopes = [(loss_at(direction, s) - loss_at(direction, -s)) / (2 * s) for s in (2 * h, h)]
        want = sum(float(np.sum(g * direction[name])) for name, g in grads.items())
        assert want != 0
        assert_within((4 * slopes[1] - slopes[0]) / 3, want, 1e-8 * global_norm(grads), f"slope of {only or 'everything'}")


@pytest.mark.parametrize("chunk", [1, 16, 23, 1000])
def test_gradients_through_chunks_equal_the_whole(any_model, chunk):
    model, tolerance, relative = any_model
    ids, targets = some_ids(2, 40), some_ids(2, 40, seed=1)
    targets[1, 10:30] = -100
    _, state = model.process_with_state(some_ids(2, 6, seed=4))
    loss, whole = model.loss_and_grads(ids, targets, l2wrap=True, state=state)
    model.set_chunk_size(chunk)
    chunked_loss, chunked = model.loss_and_grads(ids, targets, l2wrap=True, chunked="full", state=state)
    assert_within(chunked_loss, loss, tolerance, "loss")
    same_gradients(chunked, whole, relative, f"chunks of {chunk}")


def trained(recipe, **settings):
    model = built(recipe)
    ids, targets = some_ids(4, 70), some_ids(4, 70, seed=1)
    trainer = Trainer(model, TrainingConfig(precision="fp32", micro_bsz=2, weight_decay=0.1, **settings))
    steps = [trainer.step(ids, targets, lr=1e-3) for _ in range(3)]
    return steps, {name: value.copy() for name, value in model.named_parameters().items()}


@pytest.mark.parametrize("recipe", ["grouped", "all kinds", "mixed halves"])
def test_threads_and_recomputation_change_no_bit(recipe):
    results = []
    for n, grad_cp in ((1, 0), (2, 0), (3, 0), (2, 1)):
        with threads(n):
            results.append(trained(recipe, grad_cp=grad_cp))
    (first, weights), others = results[0], results[1:]
    assert first[2][0] < first[0][0], "three steps should lower the loss"
    for steps, again in others:
        assert steps == first
        for name, value in weights.items():
            assert_same_bits(again[name], value, name)


def test_training_goes_on_from_a_saved_state_bit_for_bit(tmp_path):
    ids, targets = some_ids(3, 24), some_ids(3, 24, seed=1)
    config = TrainingConfig(precision="fp32", micro_bsz=2)
    straight, stopped = (Trainer(built("attention first"), config) for _ in range(2))
    for trainer in (straight, stopped):
        trainer.step(ids, targets, lr=1e-3)
    stopped.save(tmp_path / "state")
    resumed = Trainer.resume(tmp_path / "state")
    assert straight.step(ids, targets, lr=1e-3) == resumed.step(ids, targets, lr=1e-3)
    for name, value in straight.model.named_parameters().items():
        assert_same_bits(resumed.model.named_parameters()[name], value, name)


@pytest.mark.parametrize("recipe", ["gpt", "all kinds"])
@pytest.mark.parametrize("grad_cp", [0, 1])
def test_plan_is_what_is_allocated(recipe, grad_cp):
    model = core.Model(built(recipe).config.to_core_dict(), "cpu")
    plan = model.plan(3, 35, training=True, grad_cp=grad_cp)
    trainer = core.Trainer(model, beta1=0.9, beta2=0.99, eps=1e-18, weight_decay=0.0, grad_clip=1.0)
    allocated = trainer.plan_and_allocate(3, 35, grad_cp)
    model.init(0)
    ids = some_ids(3, 35).astype(np.int32)
    trainer.step(ids, ids, micro_bsz=3, lr=1e-3, weight_decay=0.0, l2wrap=True, grad_cp=grad_cp)
    held = trainer.allocated()
    for kind in ("parameters", "gradients", "activations", "state"):
        assert held[kind] == allocated[kind] == plan[kind] > 0, kind
    for length in (1, 35, 700):
        planned = model.plan(3, length, training=False)
        _, state = model.forward(np.zeros((3, length), np.int32))
        assert state.nbytes == planned["state"], length


# ---- weights and configurations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_saved_weights_tell_the_recipe(tmp_path, recipe):
    model = built(recipe)
    model.save(tmp_path / "model.pth")
    options = dict(rope=model.config.rope)
    if model.config.kinds == ["attention"] or recipe == "mixed halves":  # no other head, or several, to take it from
        options["head_size_a"] = model.config.head_size_a
    loaded = RWKV.load(tmp_path / "model.pth", **options)
    ids = some_ids(2, 20)
    assert_same_bits(loaded(ids).logits, model(ids).logits, "logits")
    again = RWKV.load(tmp_path / "model.pth", config=model.config)
    assert_same_bits(again(ids).logits, model(ids).logits, "logits")


def test_initial_weights_of_a_transformer():
    """Normal numbers of deviation 0.02, and of 0.02 / sqrt(2 L) where a layer adds to the stream."""
    model = RWKV(ModelConfig(layers=["attention"] * 8, n_embd=128, vocab_size=V))
    for name, value in model.named_parameters().items():
        if ".att." in name or ".ffn." in name:
            want = 0.02 / 4 if name.endswith(("o_proj.weight", "ffn.proj.weight")) else 0.02
            assert_within(value.std(), want, 5 * want / np.sqrt(2 * value.size), f"deviation of {name}")
            assert_within(value.mean(), 0, 5 * want / np.sqrt(value.size), f"mean of {name}")
            assert_within(np.mean(np.abs(value) < want), 0.6827, 5 * np.sqrt(0.22 / value.size), f"shape of {name}")
    rows = {row["name"]: row for row in model._core.manifest()}
    assert all(row["decay"] == (len(row["shape"]) == 2) and row["lr_scale"] == 1 for row in rows.values())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(layers=["attention"], n_embd=64, head_size_a=16, n_kv_head=3), ("n_kv_head is 3", "4")),
        (dict(layers=["attention"], n_embd=64, head_size_a=16, n_kv_head=8), ("n_kv_head is 8", "4")),
        (dict(layers=["attention"], n_embd=45, head_size_a=15), ("rotary", "rope=False")),
        (dict(layers=["attention"], n_kv_head=-1), ("n_kv_head is -1",)),
        (dict(layers=[{"time_mix": "attention", "n_kv_head": 0}]), ("n_kv_head of a layer is 0",)),
    ],
)
def test_impossible_heads_are_refused(settings, words):
    with pytest.raises(ValueError) as error:
        ModelConfig(**settings)
    assert all(word in str(error.value) for word in words)


def test_the_core_checks_heads_by_itself():
    config = ModelConfig(layers=["attention"], n_embd=64, head_size_a=16).to_core_dict()
    for change, words in ((dict(n_kv_head=3), "n_kv_head"), (dict(n_kv_head=0), "n_kv_head"), (dict(head_size=1), "n_kv_head|even")):
        with pytest.raises(ValueError, match=words):
            core.Model(config | {"layers": [config["layers"][0] | change]}, "cpu")


def test_an_embedding_without_a_norm_does_not_begin_at_nothing():
    """N(0, 0.02^2), as the layers' own weights; with a norm behind it RWKV's U(-1e-4, 1e-4)."""
    for layers, deviation in ((["attention"], 0.02), (["attention", "x070"], 1e-4 / np.sqrt(3))):
        weights = RWKV(ModelConfig(layers=layers, n_embd=64, vocab_size=500)).named_parameters()["emb.weight"]
        assert_within(weights.std(), deviation, 0.02 * deviation, layers)


def test_a_file_of_attention_needs_its_head_size(tmp_path):
    model = built("grouped")
    model.save(tmp_path / "gpt.pth")
    with pytest.raises(FormatError, match="head_size_a is 64"):
        RWKV.load(tmp_path / "gpt.pth")
    assert RWKV.load(tmp_path / "gpt.pth", head_size_a=16).config.layer_list()[0]["n_kv_head"] == 2
    RWKV(ModelConfig(layers=["attention"], n_embd=64, vocab_size=5, head_size_a=32)).save(tmp_path / "fits.pth")
    with pytest.warns(UserWarning, match="64 is taken, give head_size_a"):
        RWKV.load(tmp_path / "fits.pth")
