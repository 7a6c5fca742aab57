"""Models on a CUDA device: as on the CPU in float32, close to it in 16 bits, the same bits again, there and back.

Without a device, and where RWKVTUNE_TEST_CORE names no core of tests/cuda_host, only the refusal is tested here."""

import ctypes
import threading

import numpy as np
import pytest
import test_sampling
from helpers import CUDA, assert_same_bits, assert_within, core, small_model, some_ids

from rwkvtune import RWKV, DeviceError, ModelConfig, Trainer, TrainingConfig

VERSIONS = ("x052", "x060", "x070")
on_a_device = pytest.mark.skipif(not CUDA, reason="no CUDA device")


@pytest.mark.skipif(CUDA, reason="there is a CUDA device")
def test_without_a_device_the_reason_is_told():
    with pytest.raises(DeviceError, match="device 'cuda' cannot be used: .*; device='cpu' works everywhere"):
        small_model(device="cuda")
    assert small_model(device="auto").device == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", 0, None])
def test_a_device_has_one_of_few_names(device):
    with pytest.raises(ValueError, match="allowed are"):
        small_model(device=device)


@pytest.mark.skipif(not CUDA, reason="no CUDA device")
def test_a_device_that_does_not_exist_is_refused():
    with pytest.raises(DeviceError, match="'cuda:99999999999' does not exist; there are"):
        small_model(device="cuda:99999999999")


on_the_host = pytest.mark.skipif(not CUDA or not hasattr(ctypes.CDLL(core.__file__), "cuda_host_counts"), reason="of the build of tests/cuda_host")


@pytest.fixture
def capability():
    """A function of the compute capability, times ten, that the devices have to the end of the test; 0: no driver."""
    host = ctypes.CDLL(core.__file__)
    yield host.cuda_host_capability
    host.cuda_host_capability(90)


@on_the_host
@pytest.mark.parametrize("number", [80, 86, 90, 100])
def test_a_device_that_runs_the_kernels_of_the_build(number, capability):
    capability(number)
    small_model(device="cuda", precision="fp32")


@on_the_host
def test_a_device_needs_kernels_of_its_generation(capability):
    capability(75)
    with pytest.raises(DeviceError, match="has compute capability 7.5, and this build has kernels for 8.0, 9.0; build it with RWKVTUNE_CUDA_ARCHS=75"):
        small_model(device="cuda", precision="fp32")


@on_the_host
def test_without_a_driver_that_is_what_is_said(capability):
    capability(0)
    with pytest.raises(DeviceError, match="device 'cuda' cannot be used: no NVIDIA driver was found"):
        small_model(device="cuda", precision="fp32")
    assert small_model(device="auto").device == "cpu"


def trained(device, precision, version="x070", steps=3, **config):
    """(losses and norms, model, trainer) after some steps in two micro-batches."""
    model = small_model(precision=precision, model_type=version, device=device)
    ids, targets = some_ids(3, 20), some_ids(3, 20, seed=1)
    targets[0, :5] = -100
    trainer = Trainer(model, TrainingConfig(**{"precision": precision, "micro_bsz": 2, "weight_decay": 0.1, "grad_cp": 0} | config))
    return [trainer.step(ids, targets, lr=1e-3) for _ in range(steps)], model, trainer


@on_a_device
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("version", VERSIONS)
def test_training_follows_the_cpu(version, precision):
    unit = dict(fp32=2**-24, tf32=2**-11, bf16=2**-8, fp16=2**-11)[precision]
    want, _, _ = trained("cpu", "fp32", version)
    got, _, _ = trained("cuda", precision, version)
    for (loss, norm), (want_loss, want_norm) in zip(got, want):
        # a loss of about 4 is a sum of a few roundings of logits below 4; a norm is an average over ten thousand numbers
        assert_within(loss, want_loss, 16 * unit, "loss")
        assert_within(norm, want_norm, 16 * unit * want_norm, "norm of the gradient")


@on_a_device
def test_chunks_of_training_follow_the_cpu():
    chunks = dict(train_type="infctx", chunk_ctx=7)
    (want, _, _), (got, _, _) = trained("cpu", "fp32", **chunks), trained("cuda", "fp32", **chunks)
    assert_within(got, want, 16 * 2**-24 * np.array(want), "losses and norms")


@on_a_device
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_two_runs_and_recomputation_give_the_same_bits(precision):
    first, model, _ = trained("cuda", precision, steps=2)
    for config in ({}, {"grad_cp": 1}):
        again, other, _ = trained("cuda", precision, steps=2, **config)
        assert again == first
        for name, value in other.named_parameters().items():
            assert_same_bits(value, model.named_parameters()[name], name)


@on_a_device
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_goes_on_from_its_file(precision, tmp_path):
    straight, model, _ = trained("cuda", precision, steps=4)
    begun, _, trainer = trained("cuda", precision, steps=2)
    trainer.save(tmp_path / "state.pth")
    there, here = (Trainer.resume(tmp_path / "state.pth", device=device) for device in ("cuda", "cpu"))
    ids, targets = some_ids(3, 20), some_ids(3, 20, seed=1)
    targets[0, :5] = -100
    assert begun + [there.step(ids, targets, lr=1e-3) for _ in range(2)] == straight
    for name, value in there.model.named_parameters().items():
        assert_same_bits(value, model.named_parameters()[name], name)
    assert here.model.precision == "fp32"
    assert_within(here.step(ids, targets, lr=1e-3)[0], straight[2][0], 16 * 2**-8, "loss of the step after, on the CPU")


@on_a_device
def test_small_updates_add_up_in_the_masters():
    """Sixteen steps, each too small for bfloat16 to hold, move the weights as float32 does."""
    _, moved, trainer = trained("cuda", "bf16", steps=0)
    name = "blocks.1.ffn.key.weight"
    before = moved.named_parameters()[name]
    ids, targets = some_ids(3, 20), some_ids(3, 20, seed=1)
    for _ in range(16):
        trainer.step(ids, targets, lr=2e-5, weight_decay=0)
    masters = trainer._core.masters()[name]
    assert np.abs(masters - before).max() > 1e-4
    assert_within(moved.named_parameters()[name], masters, np.abs(masters) * 2**-8, "weights are the masters, rounded")


@on_a_device
def test_a_float16_step_whose_gradient_overflows_is_taken_with_a_smaller_scale():
    _, _, trainer = trained("cuda", "fp16", steps=0)
    trainer._core.loss_scale = 2.0**24
    ids, targets = some_ids(3, 20), some_ids(3, 20, seed=1)
    loss, norm = trainer.step(ids, targets, lr=1e-3)
    assert np.isfinite([loss, norm]).all() and trainer.applied_steps == 1
    assert 1 <= trainer._core.loss_scale <= 2.0**24


# ---- what the host waits for, and what is recorded ------------------------------------------------------------------


def counts():
    """dict of how often the build of tests/cuda_host has done these things so far."""
    numbers = (ctypes.c_long * 5)()
    ctypes.CDLL(core.__file__).cuda_host_counts(numbers)
    return dict(zip(("allocations", "waits", "launches", "captures", "replays"), numbers))


def difference(before):
    return {name: n - before[name] for name, n in counts().items()}


CHUNKS = dict(train_type="infctx", chunk_ctx=5)  # of which the last has two tokens


def batches(n, rows=5, length=12):
    """n batches of which each has another number of targets that count."""
    for seed in range(n):
        ids, targets = some_ids(rows, length, seed=seed), some_ids(rows, length, seed=seed + 50)
        targets[0, :seed] = -100
        yield ids, targets


@on_the_host
@pytest.mark.parametrize("precision, sizes, config", [
    ("bf16", dict(model_type="x070"), {}),
    ("fp16", dict(model_type="x060", time_state=True), {}),
    ("bf16", dict(model_type="x070", time_state=True), CHUNKS),
])  # fmt: skip
def test_a_training_step_waits_once_and_allocates_nothing(precision, sizes, config):
    trainer = Trainer(small_model(precision=precision, device="cuda", **sizes), TrainingConfig(precision=precision, micro_bsz=2, **config))
    for number, (ids, targets) in enumerate(batches(4)):
        before = counts()
        trainer.step(ids, targets, lr=1e-3)
        if number:
            assert difference(before)["allocations"] == 0
            assert difference(before)["waits"] == 1
            assert difference(before)["replays"] > 0


@on_a_device
@pytest.mark.parametrize("config", [{}, dict(grad_cp=1), CHUNKS], ids=["", "grad_cp", "chunks"])
@pytest.mark.parametrize("version", VERSIONS)
def test_recorded_steps_give_the_bits_of_steps_that_are_not(version, config, monkeypatch):
    """With other tokens, targets, rates and factors in every step: none of them may be part of a recording."""
    runs = []
    for blocking in ("0", "1"):  # 1: a device is asked to launch one kernel after another, and nothing is recorded
        monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", blocking)
        model = small_model(precision="bf16", model_type=version, device="cuda", time_state=version != "x052")
        trainer = Trainer(model, TrainingConfig(**dict(precision="bf16", micro_bsz=2, grad_cp=0) | config))
        numbers = []
        for number, (ids, targets) in enumerate(batches(4)):
            trainer.config.l2wrap = number % 2 == 0
            numbers.append(trainer.step(ids, targets, lr=1e-3 * (number + 1), weight_decay=0.1 * number))
        runs.append((numbers, model.named_parameters()))
    assert runs[0][0] == runs[1][0]
    for name, value in runs[0][1].items():
        assert_same_bits(value, runs[1][1][name], name)


@on_the_host
def test_a_step_is_recorded_once_for_each_size():
    trainer = Trainer(small_model(precision="bf16", device="cuda"), TrainingConfig(precision="bf16", micro_bsz=2))
    before, found = counts(), []
    for ids, targets in [*batches(3, rows=4), *batches(3, rows=4, length=7), *batches(2, rows=4)]:
        trainer.step(ids, targets, lr=1e-3)
        found.append((difference(before)["captures"], difference(before)["replays"]))
    assert found == [(1, 1), (2, 4), (2, 7), (3, 9), (3, 12), (3, 15), (3, 18), (3, 21)]  # micro-batches and, from the second step, the update


@on_the_host
def test_decoding_is_recorded_once_for_each_batch():
    model = small_model(precision="bf16", device="cuda")
    from rwkvtune import Generator

    before = counts()
    texts = Generator(model, temperature=0).generate([[1, 2, 3], [4, 5]], max_new_tokens=6)
    assert difference(before)["captures"] == 1
    assert difference(before)["replays"] >= 3
    assert [len(text.ids) for text in texts] == [6, 6]


@on_a_device
def test_recorded_decoding_gives_the_tokens_of_decoding_that_is_not(monkeypatch):
    runs = []
    for blocking in ("0", "1"):
        monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", blocking)
        model = small_model(precision="fp32", device="cuda")
        runs.append([list(model.generate([1, 2, 3 + seed], max_new_tokens=9, seed=seed)) for seed in range(3)])
    assert runs[0] == runs[1]


@on_the_host
def test_states_are_copied_while_another_thread_records():
    """The copy would hold anything if copying were recorded, nor may that thread be refused memory."""
    model, made, running, host = small_model(device="cuda", precision="fp32"), [], True, ctypes.CDLL(core.__file__)

    state = model._core.new_state(2)

    def copy_states():
        while running:
            made.append(False)
            made[-1] = all(not np.any(value) for _, _, value in state.take([1, 0]).rows())

    other = threading.Thread(target=copy_states)
    host.cuda_host_capture_ms(200)
    other.start()
    try:
        model.generate([1, 2, 3], max_new_tokens=4)
    finally:
        running = False
        other.join()
        host.cuda_host_capture_ms(0)
    assert made and all(made)


@on_the_host
def test_models_on_two_devices_do_not_mix():
    one, other = (small_model(precision="fp32", device=f"cuda:{index}") for index in range(2))
    here, there = (model.init_state(1) for model in (one, other))
    for token in (1, 2, 3):
        got, here = one.process_with_state([token], here)
        want, there = other.process_with_state([token], there)
        assert_same_bits(got, want, "logits")
    assert list(one.generate([1, 2], max_new_tokens=4)) == list(other.generate([1, 2], max_new_tokens=4))
    ids, targets = some_ids(2, 8), some_ids(2, 8, seed=1)
    trainers = [Trainer(model, TrainingConfig(precision="fp32", micro_bsz=1)) for model in (one, other)]
    for _ in range(2):
        first, second = (trainer.step(ids, targets, lr=1e-3) for trainer in trainers)
        assert first == second


@pytest.fixture
def refusing():
    """A function of (launches, ends of captures): which of these fail from now to the end of the test."""
    host = ctypes.CDLL(core.__file__)
    yield host.cuda_host_refuse
    host.cuda_host_refuse(0, 0)


@on_the_host
def test_work_that_cannot_be_recorded_runs_all_the_same(refusing):
    runs = []
    for refused in (0, 1):
        refusing(0, refused)
        trainer, before = Trainer(small_model(precision="bf16", device="cuda"), TrainingConfig(precision="bf16", micro_bsz=2)), counts()
        runs.append([trainer.step(ids, targets, lr=1e-3) for ids, targets in batches(3, rows=4)])
        assert (difference(before)["replays"] == 0) == bool(refused)
        assert difference(before)["captures"] == 2  # micro-batches and updates
    assert runs[0] == runs[1]


@on_the_host
def test_an_op_that_fails_tells_its_name_and_shape(refusing):
    model = small_model(device="cuda", precision="fp32")
    refusing(1, 0)
    with pytest.raises(DeviceError, match=r"embed forward, w \(67, 64\): launching a kernel: launches are refused"):
        model([1, 2, 3])


@on_a_device
@pytest.mark.parametrize("way", ["infctx", "chunks"])
def test_float16_in_chunks_has_a_loss_scale_too(way):
    """A scale that overflows becomes smaller, and the step is that of the CPU."""
    ids, targets, results = some_ids(3, 20), some_ids(3, 20, seed=1), []
    for device in ("cpu", "cuda"):
        _, _, trainer = trained(device, "fp16" if device == "cuda" else "fp32", steps=0, train_type="infctx" if way == "infctx" else "", chunk_ctx=7)
        if device == "cuda":
            trainer._core.loss_scale = 2.0**24
        step = trainer.step if way == "infctx" else lambda x, y, lr, t=trainer: t.step_chunked(x, y, 7, lr=lr)[:2]
        results.append([step(ids, targets, lr=1e-3) for _ in range(2)])
        assert trainer.applied_steps == 2
    assert 1 < trainer._core.loss_scale < 2.0**24 and trainer._core.good_steps == 2
    for (loss, norm), (want_loss, want_norm) in zip(results[1], results[0]):
        assert_within(loss, want_loss, 16 * 2**-11, "loss")
        assert_within(norm, want_norm, 16 * 2**-11 * want_norm, "norm of the gradient")


@on_a_device
@pytest.mark.parametrize("size", [1e-4, 1, 500])
def test_float16_gradients_are_those_of_the_loss(size):
    """Without a scale small ones vanish (numbers below 6e-8 are zero), with one large ones overflow: half of it is tried then."""
    ids, targets, grads = some_ids(2, 12), some_ids(2, 12, seed=1), []
    for device, precision in (("cpu", "fp32"), ("cuda", "fp16")):
        model = small_model(precision=precision, device=device)
        weights = dict(model.named_parameters())
        weights["head.weight"] = weights["head.weight"] * np.float32(size)
        model.load_state_dict(weights)
        grads.append(model.loss_and_grads(ids, targets)[1])
    for name, want in grads[0].items():
        assert_within(grads[1][name], want, 0.05 * np.abs(want).max() + 1e-9, name)


@on_a_device
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_files_and_states_cross_over(precision, tmp_path):
    model = small_model(precision=precision, device="cuda")
    model.save(tmp_path / "weights.pth")
    here = RWKV.load(tmp_path / "weights.pth")
    for name, value in model.named_parameters().items():
        assert_same_bits(here.named_parameters()[name], value, name)
    ids = some_ids(2, 12)
    _, state = model.process_with_state(ids[:, :7])
    _, after = here.process_with_state(ids[:, :7])
    for name, value in after.to_numpy().items():
        assert_within(state.to_numpy()[name], value, (2**-6 if precision == "bf16" else 1e-5) * np.abs(value).max(), name)
    got, _ = model.process_with_state(ids[:, 7:], RWKV_state(after))
    want, _ = here.process_with_state(ids[:, 7:], after)
    assert_within(got, want, (2**-5 if precision == "bf16" else 2e-5) * np.abs(want).max(), "logits after the other's state")


def RWKV_state(state):
    from rwkvtune.state import RWKVState

    return RWKVState.from_numpy(state.to_numpy())


RECIPES = {version: dict(model_type=version) for version in VERSIONS}
RECIPES |= {"attention": dict(layers=["x070", {"time_mix": "attention", "channel_mix": "mlp"}]), "heads of 48": dict(n_embd=96, head_size_a=48)}


@on_a_device
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_plan_is_what_is_taken_from_the_device(recipe, precision):
    model = small_model(precision=precision, device="cuda", **RECIPES[recipe])
    trainer = Trainer(model, TrainingConfig(precision=precision, micro_bsz=2))
    plan, ids = model.plan(2, 18, grad_cp=1), some_ids(4, 18)
    for _ in range(2):
        trainer.step(ids, ids, lr=1e-3)
        assert {kind: trainer._core.allocated()[kind] for kind in plan if kind not in ("scratch", "total")} == {
            kind: size for kind, size in plan.items() if kind not in ("scratch", "total")
        }
        assert model._core.held_on_device() == plan["total"]


@on_a_device
def test_plan_of_16_bits_is_without_what_chunks_do_not_save():
    """Per token and layer: z, and half of a float32 state every 16 tokens."""
    sizes = dict(n_layer=1, n_embd=128, head_size_a=64)
    by_chunks, wide = (small_model(precision=precision, device="cuda", **sizes).plan(1, 160)["activations"] for precision in ("bf16", "fp32"))
    z, checkpoints = 2 * 160 * 128, 2 * (2 * 10 * 64 * 64)  # their bytes in 16 bits
    assert_within(by_chunks, wide / 2 - z, min(z, checkpoints) / 2, "half of float32's, without z")


@on_a_device
def test_a_model_of_1_5_billion_weights_trains_in_30_gb():
    """24 layers of 2048 channels at 4096 tokens; every layer behind the first takes the same."""
    two, three = (unwritten_model(layers, 2048, 65536).plan(1, 4096, grad_cp=1)["total"] for layers in (2, 3))
    assert 25e9 < two + 22 * (three - two) < 30e9


def unwritten_model(layers, channels, vocab_size):
    model = RWKV.__new__(RWKV)
    model._build(ModelConfig(model_type="x070", n_layer=layers, n_embd=channels, vocab_size=vocab_size), "cuda", "bf16", "cpu")
    return model


def test_no_device_is_held_by_a_model_on_the_cpu():
    assert small_model()._core.held_on_device() == 0


# ---- drawing tokens -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawing():
    """A model on the device with as many tokens as the rows of test_sampling."""
    from test_sampling import V

    return small_model(device="cuda", precision="fp32", n_layer=1, vocab_size=V)._core


def drawn_there(core_model, rows, samplers):
    logits, tokens = core_model.new_logits(len(rows)), np.zeros((len(rows), 1), np.int32)
    logits.write(np.ascontiguousarray(rows))
    core.draw(samplers, logits, tokens)
    return tokens[:, 0].tolist(), logits


@on_a_device
@pytest.mark.parametrize("options", test_sampling.OPTIONS, ids=str)
def test_draws_there_are_those_of_float64(drawing, options):
    """As the test of the same name in test_sampling, which explains the slack."""
    how = dict(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, typical_p=1.0) | options
    compared = 0
    for kind in test_sampling.ROWS:
        rows = np.stack([test_sampling.row_of(kind, seed) for seed in range(3) for _ in range(4)])
        samplers = [core.Sampler(rows.shape[1], **how, seed=seed) for seed in range(len(rows))]
        uniforms = [sampler.uniform for sampler in samplers]
        got, _ = drawn_there(drawing, rows, samplers)
        for k in range(len(rows)):
            sums, slack = test_sampling.sums_and_slack(rows[k], how)
            if np.abs(sums - uniforms[k]).min() >= slack:
                compared += 1
                assert got[k] == np.searchsorted(sums, uniforms[k], side="right"), (kind, k)
    assert compared > 30


@on_a_device
@pytest.mark.parametrize("temperature", [0, 1])
def test_penalties_and_biases_change_logits_as_on_the_cpu(drawing, temperature):
    V = test_sampling.V
    rows = np.stack([test_sampling.row_of("peaked", seed) for seed in range(3)])
    how = dict(temperature=float(temperature), repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.7, penalty_decay=0.9)
    prompts = [np.argsort(-row)[1:20:3].astype(np.int32) for row in rows]
    bias = dict(bias_tokens=np.array([3, 7, 11], np.int32), bias=np.array([2.5, -np.inf, -1], np.float32))
    there, here = ([core.Sampler(V, **how, **bias, seed=k, prompt=prompts[k]) for k in range(3)] for _ in range(2))
    for step in range(12):
        changed, tokens = rows.copy(), np.zeros((3, 1), np.int32)
        core.draw(here, changed, tokens)
        got, logits = drawn_there(drawing, rows, there)
        assert got == tokens[:, 0].tolist(), step
        assert np.array_equal(logits.numbers(), changed)


@on_a_device
def test_equal_logits_at_an_edge_leave_the_lowest_ids(drawing):
    V = test_sampling.V
    row = np.zeros(V, np.float32)
    row[[5, 40, 100, V - 1]] = 1, 1, 2, 1
    got = {k: set() for k in (1, 2, 3, 4)}
    for k, found in got.items():
        tokens, _ = drawn_there(drawing, np.tile(row, (16, 1)), [core.Sampler(V, top_k=k, temperature=50.0, seed=seed) for seed in range(16)])
        found.update(tokens)
    assert got == {1: {100}, 2: {100, 5}, 3: {100, 5, 40}, 4: {100, 5, 40, V - 1}}


@on_a_device
@pytest.mark.parametrize("number, says", [(np.nan, "token 4 is not a number"), (np.inf, "largest logit is inf"), (-np.inf, "infinite|-inf")])
def test_rows_from_which_nothing_can_be_drawn_are_refused(drawing, number, says):
    V = test_sampling.V
    rows = np.zeros((2, V), np.float32)
    if number < 0:
        rows[1] = number
    else:
        rows[1, 4] = number
    with pytest.raises(ValueError, match=says):
        drawn_there(drawing, rows, [core.Sampler(V), core.Sampler(V)])


@on_the_host
def test_a_token_waits_once_and_allocates_nothing():
    model, found = small_model(precision="bf16", device="cuda"), []
    pieces = model.generate([1, 2, 3], max_new_tokens=8, stream=True, presence_penalty=0.3, repetition_penalty=1.1)
    for _ in pieces:
        found.append(counts())
    for before, after in zip(found[2:], found[3:]):  # the first two tokens are read by launches, and recorded
        spent = {name: after[name] - before[name] for name in after}
        assert spent["allocations"] == 0 and spent["waits"] == 1 and spent["replays"] == 1


@on_a_device
def test_generation_continues_as_on_the_cpu():
    prompt = [1, 2, 3, 4]
    here, there = (small_model(device=device).generate(prompt, max_new_tokens=8, temperature=0) for device in ("cpu", "cuda"))
    assert list(there) == list(here)


@on_a_device
def test_an_op_that_fails_names_the_device():
    with pytest.raises(DeviceError, match="cuda:7"):
        small_model(device="cuda:7")


def test_info_tells_of_cuda():
    facts = core.info()
    assert (facts["cuda_devices"] > 0) == (facts["cuda_reason"] is None)
