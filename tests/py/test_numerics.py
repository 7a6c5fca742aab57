"""Properties that need no reference: same bits for any thread count and with recomputation, any split of a sequence,
causality, independence of the batch, chunked gradients, saving and going on, plans that hold, sampling."""

import numpy as np
import pytest
from helpers import CUDA, assert_same_bits, assert_within, core, global_norm, small_model, some_ids, threads
from reference import sampling

import rwkvtune
from rwkvtune.config import TrainingConfig
from rwkvtune.model import RWKV
from rwkvtune.state import RWKVState
from rwkvtune.trainer import Trainer

RUNS = {"cpu": ("cpu", "fp32", 2e-5, 1e-4), "ref": ("ref", "fp32", 2e-5, 1e-4), "ref64": ("ref", "fp64", 1e-12, 1e-10)}
DEVICES = [f"cuda-{version}" for version in ("x052", "x060", "x070")] if CUDA else []


VERSIONS = ("x052", "x060", "x070")


@pytest.fixture(
    scope="module", params=[f"{run}-{version}" for run in ("cpu", "ref64") for version in VERSIONS] + ["ref-x070"] + DEVICES
)
def any_model(request):
    """(model, tolerance of logits, relative tolerance of gradients); tests leave the weights alone."""
    run, version = request.param.split("-")
    backend, precision, logits, gradients = RUNS["cpu" if run == "cuda" else run]
    return small_model(backend, precision, model_type=version, device="cuda" if run == "cuda" else "cpu"), logits, gradients


def same_gradients(got, want, relative, what):
    floor = relative * 1e-2 * global_norm(want)
    assert set(got) == set(want)
    for name in want:
        assert_within(got[name], want[name], relative * np.abs(want[name]).max() + floor, f"{what}: {name}")


# ---- the same bits --------------------------------------------------------------------------------------------------


def train_three_steps(version, **config):
    model = small_model(model_type=version, n_embd=128, head_size_a=64, vocab_size=300)
    ids, targets = some_ids(4, 96, 300), some_ids(4, 96, 300, seed=1)
    trainer = Trainer(model, TrainingConfig(precision="fp32", micro_bsz=2, weight_decay=0.1, **config))
    steps = [trainer.step(ids, targets, lr=1e-3) for _ in range(3)]
    return steps, {name: value.copy() for name, value in model.named_parameters().items()}


@pytest.mark.parametrize("version", VERSIONS)
def test_thread_count_changes_no_bit(version):
    model = small_model(model_type=version, n_embd=128, head_size_a=64, vocab_size=300)
    ids, targets = some_ids(4, 96, 300), some_ids(4, 96, 300, seed=1)
    results = []
    for n in (1, 2, 3):
        with threads(n):
            assert core.get_num_threads() == n
            logits, loss = model(ids, targets)
            _, grads = model.loss_and_grads(ids, targets, l2wrap=True)
            steps, weights = train_three_steps(version, grad_cp=0)
            token_logits, state = model.process_with_state(ids[:, :1])
        results.append(
            dict(logits=logits, loss=loss, steps=steps, token_logits=token_logits)
            | {f"gradient of {name}": g for name, g in grads.items()}
            | {f"weight {name}": w for name, w in weights.items()}
            | state.to_numpy()
        )
    for other in results[1:]:
        for name, value in results[0].items():
            assert_same_bits(other[name], value, name)


@pytest.mark.parametrize("version", VERSIONS)
def test_recomputation_changes_no_bit(version):
    (steps, weights), (steps_cp, weights_cp) = (train_three_steps(version, grad_cp=cp) for cp in (0, 1))
    assert steps == steps_cp
    for name in weights:
        assert_same_bits(weights_cp[name], weights[name], name)


@pytest.mark.parametrize("version", VERSIONS)
def test_training_moves_every_used_weight_and_repeats_exactly(version):
    begin = {
        name: value.copy()
        for name, value in small_model(model_type=version, n_embd=128, head_size_a=64, vocab_size=300)
        .named_parameters()
        .items()
    }
    steps, weights = train_three_steps(version)
    again, weights_again = train_three_steps(version)
    assert steps == again and steps[2][0] < steps[0][0]
    for name in weights:
        assert_same_bits(weights_again[name], weights[name], name)
        unused = name in ("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2")
        assert np.array_equal(weights[name], begin[name]) == unused, name


def test_gradients_do_not_pile_up_between_calls(any_model):
    model, _, _ = any_model
    ids, targets = some_ids(2, 9), some_ids(2, 9, seed=1)
    (_, first), (_, second) = (model.loss_and_grads(ids, targets) for _ in range(2))
    for name in first:
        assert_same_bits(second[name], first[name], name)


# ---- time and batch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lengths",
    [[1] * 50, [2] * 25, [15, 15, 15, 5], [16, 16, 16, 2], [17, 17, 16], [3, 16, 1, 29, 1]],
    ids=lambda lengths: "+".join(map(str, lengths[:4])),
)
def test_any_split_equals_the_whole(any_model, lengths):
    model, tolerance, _ = any_model
    ids = some_ids(2, 50)
    whole, after = model.process_with_state(ids)
    state, parts, at = None, [], 0
    for length in lengths:
        before = state.to_numpy() if state else None
        logits, following = model.process_with_state(ids[:, at : at + length], state)
        for name in before or ():
            assert_same_bits(state.to_numpy()[name], before[name], "a given state is not changed")
        state, at = following, at + length
        parts.append(logits)
    assert at == 50
    assert_within(np.concatenate(parts, axis=1), whole, tolerance * max(1, np.abs(whole).max()), "logits")
    for name, want in after.to_numpy().items():
        assert_within(state.to_numpy()[name], want, tolerance * max(1, np.abs(want).max()), name)


def test_a_state_can_be_taken_out_and_put_back(any_model):
    model, _, _ = any_model
    ids = some_ids(2, 20)
    _, state = model.process_with_state(ids)
    arrays = state.to_numpy()
    assert {name: x.shape for name, x in arrays.items()} == {
        "att_shift": (2, 2, 64),
        "wkv": (2, 2, 2, 32, 32),
        "ffn_shift": (2, 2, 64),
    }
    direct, _ = model.process_with_state(ids[:, :3], state)
    through, _ = model.process_with_state(ids[:, :3], RWKVState.from_numpy(arrays))
    assert_same_bits(through, direct, "logits")


@pytest.mark.parametrize("t", [0, 1, 15, 16, 31, 36])
def test_no_token_sees_the_future(any_model, t):
    model, _, _ = any_model
    ids = some_ids(2, 37)
    changed = ids.copy()
    changed[:, t] = (changed[:, t] + 1) % 67
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
    for row in range(3):
        assert_within(
            model(ids[row]).logits[0], logits[row], tolerance * max(1, np.abs(logits).max()), f"row {row} alone"
        )


def test_ignored_targets_do_not_count(any_model):
    model, tolerance, _ = any_model
    ids, targets = some_ids(2, 12), some_ids(2, 12, seed=1)
    targets[0, 5:], targets[1, :3] = -100, -100
    logits, loss = model(ids, targets)
    z = logits.astype(np.float64)[targets != -100]
    want = np.mean(np.log(np.exp(z).sum(axis=-1)) - z[np.arange(len(z)), targets[targets != -100]])
    assert_within(loss, want, tolerance, "loss")
    assert_within(model.loss_and_grads(ids, targets)[0], want, tolerance, "loss beside gradients")


# ---- gradients ------------------------------------------------------------------------------------------------------


def test_gradient_along_random_directions_is_the_slope_of_the_loss():
    """Everything at once in float64: a given state, ignored targets, all parameters."""
    model = small_model("ref", "fp64")
    ids, targets = some_ids(2, 19), some_ids(2, 19, seed=1)
    targets[0, 4:7] = -100
    _, state = model.process_with_state(some_ids(2, 5, seed=3))
    begin = state.to_numpy()
    _, grads = model.loss_and_grads(ids, targets, state=state)
    weights, rng, h = model.named_parameters(), np.random.default_rng(0), 1e-4

    def loss_at(direction, step):
        for name, value in weights.items():
            value += step * direction[name]
        moved = RWKVState.from_numpy({name: x + step * direction[f"state.{name}"] for name, x in begin.items()})
        loss = model.loss(ids, targets, moved)
        for name, value in weights.items():
            value -= step * direction[name]
        return loss

    for _ in range(3):
        direction = {name: rng.standard_normal(g.shape) / np.sqrt(g.size) for name, g in grads.items()}
        slopes = [(loss_at(direction, s) - loss_at(direction, -s)) / (2 * s) for s in (2 * h, h)]
        want = sum(float(np.sum(g * direction[name])) for name, g in grads.items())
        assert_within((4 * slopes[1] - slopes[0]) / 3, want, 1e-8 * global_norm(grads), "slope")


@pytest.mark.parametrize("chunk", [1, 16, 23, 40, 1000])
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
    logits, forward_loss = model.forward_chunked(ids, targets)
    assert_within(logits, model(ids).logits, tolerance * max(1, np.abs(logits).max()), "logits")
    assert_within(forward_loss, model(ids, targets).loss, tolerance, "loss of forward_chunked")


@pytest.mark.parametrize("run", ["cpu", "ref64"])
def test_sizes_that_are_worked_off_in_pieces(run):
    """1200 rows are more than the loss holds logits for at once, and more than an inference forward takes at once."""
    backend, precision, tolerance, relative = RUNS[run]
    model = small_model(backend, precision, n_layer=2, n_embd=32, head_size_a=16)
    ids, targets = some_ids(3, 400), some_ids(3, 400, seed=1)
    targets[1, 100:250] = -100
    loss, whole = model.loss_and_grads(ids, targets, l2wrap=True)
    logits, state = model.process_with_state(ids)
    model.set_chunk_size(64)
    chunked_loss, chunked = model.loss_and_grads(ids, targets, l2wrap=True, chunked="full")
    assert_within(loss, chunked_loss, tolerance, "loss")
    assert_within(model.loss(ids, targets), chunked_loss, tolerance, "loss without gradients")
    same_gradients(whole, chunked, relative, "pieces")
    assert_within(logits, model.forward_chunked(ids).logits, tolerance * max(1, np.abs(logits).max()), "logits")
    _, half = model.process_with_state(ids[:, :123])
    _, other = model.process_with_state(ids[:, 123:], half)
    for name, want in other.to_numpy().items():
        assert_within(state.to_numpy()[name], want, tolerance * max(1, np.abs(want).max()), name)


def test_truncation_is_not_the_whole():
    model = small_model()
    ids, targets = some_ids(2, 40), some_ids(2, 40, seed=1)
    model.set_chunk_size(16)
    _, whole = model.loss_and_grads(ids, targets, chunked="full")
    loss, cut = model.loss_and_grads(ids, targets, chunked="truncated")
    assert_within(loss, model(ids, targets).loss, 1e-5, "the loss does not feel the cut")
    assert max(np.abs(cut[name] - whole[name]).max() for name in whole) > 1e-4


# ---- saving, plans --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_save_load_gives_the_same_bits(tmp_path, ending, version):
    if ending == ".safetensors":
        pytest.importorskip("safetensors")
    widths = dict(d_mix=8, d_decay=24) if version == "x060" else {}  # told by the file
    model = small_model(model_type=version, **widths)
    model.save(tmp_path / f"model{ending}")
    loaded = RWKV.load(tmp_path / f"model{ending}")
    assert list(loaded.named_parameters()) == list(model.named_parameters())
    ids = some_ids(2, 20)
    assert_same_bits(loaded(ids).logits, model(ids).logits, "logits")


def test_a_file_of_several_versions_tells_the_widths_of_each(tmp_path):
    """All three in one model, in files and with a state, the decay of x060 narrower than that of x070."""
    model = small_model(n_layer=None, layers=["x052", "x070", {"time_mix": "x060", "d_decay": 24, "d_mix": 8}, "x070"])
    model.save(tmp_path / "model.pth")
    loaded, ids = RWKV.load(tmp_path / "model.pth"), some_ids(2, 20)
    assert_same_bits(loaded(ids).logits, model(ids).logits, "logits")
    _, state = loaded.process_with_state(ids[:, :7])
    logits, _ = loaded.process_with_state(ids[:, 7:], state)
    assert_within(logits[:, -1], model(ids).logits[:, -1], 2e-5, "logits of the continued sequence")


def test_save_resume_continue_gives_the_same_bits(tmp_path):
    ids, targets = some_ids(3, 24), some_ids(3, 24, seed=1)
    config = TrainingConfig(precision="fp32", micro_bsz=2, weight_decay=0.1)
    straight, stopped = (Trainer(small_model(), config) for _ in range(2))
    for _ in range(3):
        straight.step(ids, targets, lr=1e-3)
        stopped.step(ids, targets, lr=1e-3)
    stopped.save(tmp_path / "state")
    resumed = Trainer.resume(tmp_path / "state")
    for _ in range(3):
        assert straight.step(ids, targets, lr=1e-3) == resumed.step(ids, targets, lr=1e-3)
    for name, value in straight.model.named_parameters().items():
        assert_same_bits(resumed.model.named_parameters()[name], value, name)


@pytest.mark.parametrize("backend", ["cpu", "ref", "ref64"])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("grad_cp", [0, 1])
def test_plan_is_what_is_allocated(backend, grad_cp, version):
    config = small_model(model_type=version).config.to_core_dict()
    model = core.Model(config, backend)
    plan = model.plan(3, 35, training=True, grad_cp=grad_cp)
    trainer = core.Trainer(model, beta1=0.9, beta2=0.99, eps=1e-18, weight_decay=0.0, grad_clip=1.0)
    allocated = trainer.plan_and_allocate(3, 35, grad_cp)
    for kind in ("parameters", "gradients", "moments", "activations", "state"):
        assert allocated[kind] == plan[kind] > 0, kind
    assert plan["total"] == sum(size for kind, size in plan.items() if kind != "total")
    model.init(0)
    ids = some_ids(3, 35).astype(np.int32)
    trainer.step(ids, ids, micro_bsz=3, lr=1e-3, weight_decay=0.0, l2wrap=True, grad_cp=grad_cp)
    held = trainer.allocated()
    assert all(
        held[kind] == allocated[kind] for kind in ("parameters", "gradients", "moments", "activations", "state")
    ), "a step allocates"


def test_recomputation_needs_less_memory():
    model = core.Model(small_model(n_layer=6).config.to_core_dict(), "cpu")
    assert model.plan(4, 64, grad_cp=1)["activations"] < 0.6 * model.plan(4, 64, grad_cp=0)["activations"]
    assert model.plan(4, 64, training=False)["activations"] < model.plan(4, 64, grad_cp=1)["activations"]


# ---- sampling -------------------------------------------------------------------------------------------------------


def test_philox_gives_the_published_numbers():
    assert sampling.philox4x32([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 0xFFFFFFFF
    assert sampling.philox4x32([ones] * 4, [ones] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def generate_by_hand(model, prompt, count, seed, presence=0.0, frequency=0.0, decay=0.996, **options):
    logits, state = model.process_with_state(prompt)
    seen, out = np.zeros(model.config.vocab_size), []
    for n in range(count):
        row = logits[0, -1].astype(np.float64)
        row[seen > 0] -= presence + frequency * seen[seen > 0]
        out.append(sampling.choose(row, sampling.uniform(seed, "generate", n), **options))
        seen *= decay
        seen[out[-1]] += 1
        logits, state = model.process_with_state([[out[-1]]], state)
    return out


OPTIONS = [
    dict(temperature=1.0, top_p=1.0),
    dict(temperature=0.7, top_p=0.8),
    dict(temperature=1.5, top_p=1.0, top_k=5),
    dict(temperature=0.0),
    dict(temperature=1.2, top_p=0.5, top_k=3),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_generate_equals_sampling_by_hand(options):
    model = small_model()
    prompt = some_ids(1, 7)[0]
    for seed in (0, 12345678901):
        got = model.generate(prompt, max_new_tokens=30, seed=seed, **(dict(top_p=1.0) | options))
        assert got == generate_by_hand(model, prompt, 30, seed, **options)
        assert got == model.generate(prompt, max_new_tokens=30, seed=seed, **(dict(top_p=1.0) | options)), (
            "not deterministic"
        )


def test_generate_with_penalties_equals_sampling_by_hand():
    model = small_model()
    prompt = some_ids(1, 7)[0]
    for temperature in (0.0, 1.0):
        penalised = model.generate(
            prompt, 40, temperature=temperature, top_p=1.0, seed=3, presence_penalty=0.8, frequency_penalty=0.3
        )
        by_hand = generate_by_hand(model, prompt, 40, 3, 0.8, 0.3, temperature=temperature)
        assert penalised == by_hand
        assert penalised != model.generate(prompt, 40, temperature=temperature, top_p=1.0, seed=3)


def test_greedy_generation_takes_the_likeliest():
    model = small_model()
    prompt = some_ids(1, 5)[0]
    text = model.generate(prompt, max_new_tokens=12, temperature=0.0)
    logits = model(np.concatenate([prompt, text])).logits[0]
    assert text == [int(np.argmax(logits[len(prompt) - 1 + i])) for i in range(12)]


def test_different_seeds_give_different_texts_and_stop_tokens_end_them():
    model = small_model()
    texts = [model.generate([1, 2], 20, top_p=1.0, seed=seed) for seed in range(3)]
    assert texts[0] != texts[1] != texts[2]
    stop = texts[0][7]
    cut = model.generate([1, 2], 20, top_p=1.0, seed=0, stop_tokens=[stop])
    assert cut == texts[0][: texts[0].index(stop)]
    streamed = []
    assert model.generate([1, 2], 20, top_p=1.0, seed=0, stream=streamed.append) == streamed == texts[0]


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(temperature=0.5),
        dict(temperature=2.0),
        dict(top_p=0.6),
        dict(top_p=0.0),
        dict(top_k=3),
        dict(top_k=1),
        dict(top_p=0.7, top_k=2, temperature=0.3),
        dict(top_p=0.95),
    ],
    ids=str,
)
def test_sampled_frequencies_are_the_distribution(options):
    """Uniform numbers on a fine grid must hit every token in proportion to its probability."""
    logits = np.array([1.0, -2.0, 0.5, 3.0, 2.9, 0.5, -30.0, 2.0], dtype=np.float32)
    n = 20000
    how = dict(temperature=1.0, top_p=1.0, top_k=0) | options
    draws = [core.sample(logits, how["temperature"], how["top_p"], how["top_k"], (i + 0.5) / n) for i in range(n)]
    counts = np.bincount(draws, minlength=8)
    want = sampling.distribution(logits, **how)
    assert_within(counts / n, want, 1.5 / n, f"frequencies with {options}")
    assert np.all(counts[want == 0] == 0)


def test_equal_logits_are_broken_by_the_lowest_id():
    logits = np.zeros(6, dtype=np.float32)
    assert core.sample(logits, 0.0, 1.0, 0, 0.9) == 0
    assert {core.sample(logits, 1.0, 1.0, 2, u) for u in np.linspace(0, 0.999, 50)} == {0, 1}
    assert core.sample(logits, 1.0, 1.0, 0, np.nextafter(1.0, 0)) == 5


def test_more_sequences_than_rows_of_a_piece():
    """Batches above 512 run one token at a time; rows are those of smaller batches."""
    model = rwkvtune.RWKV(
        rwkvtune.ModelConfig(model_type="x070", n_layer=1, n_embd=32, vocab_size=11, head_size_a=16), seed=3
    )
    ids = np.random.default_rng(0).integers(0, 11, (700, 3))
    whole, total = model(ids).logits, model.loss(ids, ids)
    parts = [model(ids[at : at + 100]).logits for at in range(0, 700, 100)]
    np.testing.assert_allclose(whole, np.concatenate(parts), atol=1e-6)
    assert total == pytest.approx(
        np.mean([model.loss(ids[at : at + 100], ids[at : at + 100]) for at in range(0, 700, 100)]), abs=1e-6
    )


def test_logits_beyond_numbers_are_refused():
    from rwkvtune import _rwkvcore

    for logits in ([-np.inf] * 5, [0.0, np.inf], [np.nan, 1.0]):
        with pytest.raises(ValueError, match="logit"):
            _rwkvcore.sample(np.array(logits, np.float32), 1.0, 0.9, 0, 0.5)
    assert _rwkvcore.sample(np.array([-np.inf, 1.0], np.float32), 1.0, 0.9, 0, 0.5) == 1


def test_settings_that_would_damage_the_weights_are_refused():
    model = rwkvtune.RWKV(rwkvtune.ModelConfig(model_type="x070", n_layer=1, n_embd=32, vocab_size=11, head_size_a=16))
    trainer = rwkvtune.Trainer(model, rwkvtune.TrainingConfig(precision="fp32"))
    before = {name: value.copy() for name, value in model.named_parameters().items()}
    ids = np.ones((1, 4), int)
    for settings in ({"weight_decay": float("nan")}, {"lr": 1e39}, {"lr": -1.0}):
        with pytest.raises(ValueError):
            trainer.step(ids, ids, **{"lr": 1e-3, **settings})
    with pytest.raises(ValueError, match="nothing to predict"):
        trainer.step(ids, np.full((1, 4), -100), lr=1e-3)
    assert all(np.array_equal(value, before[name]) for name, value in model.named_parameters().items())
    assert trainer.applied_steps == 0
