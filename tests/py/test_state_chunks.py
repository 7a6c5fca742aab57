"""Any split of a sequence is the whole sequence, for every architecture: logits, loss, states, gradients, memory of a chunk."""

import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import assert_same_bits, assert_within, small_model, some_ids

from rwkvtune import RWKV, IntegerTokenizer, ModelConfig, RWKVState, Trainer, TrainingConfig

V = 67
ARCHITECTURES = {
    "x052": dict(model_type="x052"),
    "x060": dict(model_type="x060"),
    "x070": dict(model_type="x070"),
    "attention": dict(layers=["attention"] * 2),
    "attention without rope": dict(layers=["attention"] * 2, rope=False, n_kv_head=1),
    "hybrid": dict(layers=["x070", "attention", "x070"]),
    "all kinds": dict(layers=["x052", "x060", "attention", "x070"]),
}
LENGTH = 40


def built(name, backend="ref", precision="fp64", **sizes):
    sizes = dict(model_type="x070") | ARCHITECTURES[name] | sizes
    if "layers" in sizes:
        sizes["n_layer"] = None
    return small_model(backend, precision, **sizes)


def batch(length=LENGTH):
    ids, targets = some_ids(2, length), some_ids(2, length, seed=1)
    targets[1, length // 4 : length // 2] = -100
    return ids, targets


def splits(length):
    """Lists of lengths that make `length`: even ones of several sizes, and some at random."""
    rng = np.random.default_rng(length)
    cuts = [sorted({0, length, *rng.integers(1, length, n).tolist()}) for n in (1, 3, 7)]
    even = [[min(size, length - at) for at in range(0, length, size)] for size in (1, 2, 15, 16, 17, 1000)]
    return even + [np.diff(cut).tolist() for cut in cuts]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def exact(request):
    """(name, model in float64); tests leave the weights alone."""
    return request.param, built(request.param)


def run_in_pieces(model, ids, lengths):
    state, parts, at = None, [], 0
    for length in lengths:
        logits, state = model.process_with_state(ids[:, at : at + length], state)
        parts.append(logits)
        at += length
    assert at == ids.shape[1]
    return np.concatenate(parts, axis=1), state


def close_states(got, want, relative):
    want = want.to_numpy()
    got = got.to_numpy()
    assert set(got) == set(want)
    for name, value in want.items():
        assert_within(got[name], value, relative * max(1, np.abs(value).max()), name)


@pytest.mark.parametrize("which", range(9))
def test_any_split_gives_the_logits_and_the_state_of_the_whole(exact, which):
    """float64: what differs is the order of a few sums, so 1e-11 of the largest number is thousands of roundings."""
    _, model = exact
    ids, _ = batch()
    whole, after = model.process_with_state(ids)
    assert_same_bits(model(ids).logits, whole, "a call and process_with_state")
    lengths = splits(LENGTH)[which]
    logits, state = run_in_pieces(model, ids, lengths)
    assert_within(logits, whole, 1e-11 * max(1, np.abs(whole).max()), f"logits in pieces of {lengths}")
    close_states(state, after, 1e-11)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_split_on_the_fast_backend(name):
    """1100 tokens, so that pieces of 1000 and of more than an inference forward takes at once occur; float32."""
    model = built(name, "cpu", "fp32", n_embd=32, head_size_a=16)
    ids, _ = batch(1100)
    whole, after = model.process_with_state(ids)
    for lengths in ([1000, 100], [17] * 64 + [12], splits(1100)[-1], splits(1100)[-3]):
        logits, state = run_in_pieces(model, ids, lengths)
        assert_within(logits, whole, 2e-5 * max(1, np.abs(whole).max()), f"logits in {len(lengths)} pieces")
        close_states(state, after, 1e-4)


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 1000])
def test_forward_chunked_is_the_call(exact, size):
    _, model = exact
    ids, labels = batch()
    logits, loss = model(ids, labels)
    model.set_chunk_size(size)
    parts = model.forward_chunked(ids, labels)
    assert parts.logits.shape == logits.shape, "no token is read twice or left out"
    assert_within(parts.logits, logits, 1e-11 * max(1, np.abs(logits).max()), "logits")
    assert_within(parts.loss, loss, 1e-11, "loss")
    assert parts["loss"] == parts.loss and model.forward_chunked(ids).loss is None


def compare_gradients(got, want, relative):
    assert set(got) == set(want)
    for name, value in want.items():
        assert_within(got[name], value, relative * np.abs(value).max() + relative * 1e-2, name)


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 1000])
def test_full_gradients_are_those_of_the_whole(exact, size):
    """Also that of the state the sequences begin from, whose cached keys and values every later chunk reads."""
    _, model = exact
    ids, targets = batch()
    _, start = model.process_with_state(some_ids(2, 6, seed=4))
    loss, whole = model.loss_and_grads(ids, targets, l2wrap=True, state=start)
    model.set_chunk_size(size)
    chunked_loss, chunked = model.loss_and_grads(ids, targets, l2wrap=True, chunked="full", state=start)
    assert_within(chunked_loss, loss, 1e-11, "loss")
    compare_gradients(chunked, whole, 1e-10)


@pytest.mark.parametrize("size", [1, 7, 16, 1000])
def test_truncated_gradients_are_the_textbook_s(exact, size):
    """Each chunk as a sequence of its own that begins from a constant, its share of the loss being its share of the targets."""
    _, model = exact
    ids, targets = batch()
    model.set_chunk_size(size)
    loss, cut = model.loss_and_grads(ids, targets, chunked="truncated")
    counted, want, state, total = (targets != -100).sum(), {}, None, 0.0
    for at in range(0, LENGTH, size):
        x, y = ids[:, at : at + size], targets[:, at : at + size]
        part, grads = model.loss_and_grads(x, y, state=state)
        _, after = model.process_with_state(x, state)
        state = RWKVState.from_numpy(after.to_numpy())
        share = (y != -100).sum() / counted
        total += share * part
        for name, value in grads.items():
            if not name.startswith("state."):
                want[name] = want.get(name, 0) + share * value
    assert_within(loss, total, 1e-11, "loss")
    compare_gradients(cut, want, 1e-10)
    _, full = model.loss_and_grads(ids, targets)
    same = all(np.allclose(cut[name], full[name], rtol=1e-8, atol=1e-12) for name in full)
    assert same == (size >= LENGTH), "a cut should be felt"


def test_truncated_gradient_of_the_state_is_that_of_the_first_chunk(exact):
    _, model = exact
    ids, targets = batch()
    _, start = model.process_with_state(some_ids(2, 5, seed=3))
    model.set_chunk_size(16)
    _, cut = model.loss_and_grads(ids, targets, chunked="truncated", state=start)
    first = targets.copy()
    first[:, 16:] = -100
    _, alone = model.loss_and_grads(ids, first, state=start)
    share = (first != -100).sum() / (targets != -100).sum()
    for name, value in alone.items():
        if name.startswith("state."):
            assert_within(cut[name], share * value, 1e-10 * np.abs(value).max() + 1e-12, name)


# ---- memory and training --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x052", "x060", "x070", "hybrid"])
def test_truncated_training_takes_the_memory_of_a_chunk(name):
    """Of activations: as planned for a chunk, and the same for four times the text."""
    held = []
    for length in (256, 1024):
        model = built(name, "cpu", "fp32")
        config = TrainingConfig(precision="fp32", train_type="infctx", chunk_ctx=32, micro_bsz=2, grad_cp=0)
        Trainer(model, config).step(*batch(length))
        held.append(model._core.allocated()["activations"])
    assert held[0] == held[1] == model.plan(2, 32, training=True, grad_cp=0)["activations"]
    assert held[1] < model.plan(2, 1024, training=True, grad_cp=0)["activations"] / 16


_PEAK = """
import sys
import numpy as np
from rwkvtune import RWKV, ModelConfig, Trainer, TrainingConfig, evaluate
tokens, kind = int(sys.argv[1]), sys.argv[2]
model = RWKV(ModelConfig(model_type="x070", n_layer=2, n_embd=32, vocab_size=67, head_size_a=32))
ids = np.random.default_rng(0).integers(0, 67, (1, tokens + 1), dtype=np.int32)
trainer = Trainer(model, TrainingConfig(precision="fp32", train_type=kind, chunk_ctx=128, micro_bsz=1, grad_cp=0))
trainer.step(ids[:, :-1], ids[:, 1:])
evaluate(model, ids[0])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system does not tell the peak memory of a process")
def test_peak_memory_of_the_process_does_not_follow_the_text():
    """Training and evaluating 32 times as many tokens takes some bytes per id more; without chunks it takes their activations."""

    def peak(tokens, kind):
        return int(subprocess.run([sys.executable, "-c", _PEAK, str(tokens), kind], check=True, capture_output=True, text=True).stdout) / 1e3

    short, long, plain = peak(512, "infctx"), peak(16384, "infctx"), peak(16384, "")
    assert long < short + 5, "MB"
    assert plain > long + 20, "MB"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_infctx_steps_are_chunked_steps(name):
    """Rows in micro-batches or together: the same loss and norm; in one chunk, those of a plain step."""
    ids, targets = some_ids(4, 48), some_ids(4, 48, seed=1)
    targets[2, :40] = -100

    def step(**settings):
        trainer = Trainer(built(name, "cpu", "fp32"), TrainingConfig(precision="fp32", **settings))
        return np.array(trainer.step(ids, targets, lr=1e-3))

    together, apart = (step(train_type="infctx", chunk_ctx=16, micro_bsz=n) for n in (4, 1))
    assert_within(apart, together, 1e-5 * together, "micro-batches")
    chunked = Trainer(built(name, "cpu", "fp32"), TrainingConfig(precision="fp32")).step_chunked(ids, targets, 16, lr=1e-3)
    assert_same_bits(together, np.array(chunked[:2]), "step_chunked")
    whole, plain = step(train_type="infctx", chunk_ctx=1000, micro_bsz=4), step(micro_bsz=4)
    assert_same_bits(whole, plain, "one chunk")
    assert abs(together[1] - plain[1]) > 4e-6 * plain[1], "a cut should be felt"  # float32 rounds norms to some 1e-7


def test_infctx_settings():
    config = TrainingConfig(train_type="infctx")
    assert (config.chunk_ctx, config.tokens_at_once(4096), config.tokens_at_once(100)) == (512, 512, 100)
    assert TrainingConfig().tokens_at_once(4096) == 4096
    for wrong in (dict(chunk_ctx=0), dict(chunk_ctx=1.5), dict(train_type="infinite")):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is "):
            TrainingConfig(**wrong)


def test_infctx_learns_what_lies_before_the_chunk():
    """The first token tells all later ones; a chunk of 8 tokens knows it from the state alone."""
    rng = np.random.default_rng(0)
    model = RWKV(ModelConfig(model_type="x070", n_layer=2, n_embd=64, vocab_size=16, head_size_a=32))
    trainer = Trainer(model, TrainingConfig(precision="fp32", train_type="infctx", chunk_ctx=8, micro_bsz=16))

    def texts():
        first = rng.integers(1, 9, (16, 1))
        return np.concatenate([first, np.where(np.arange(24) % 2, 0, first + 4)], axis=1)

    losses = []
    for _ in range(60):
        ids = texts()
        losses.append(trainer.step(ids[:, :-1], ids[:, 1:], lr=3e-3)[0])
    assert losses[-1] < losses[0] / 4
    ids = texts()
    assert model.loss(ids[:, :-1], ids[:, 1:]) < losses[0] / 4


# ---- as users write it ----------------------------------------------------------------------------------------------


def test_the_recipe_for_long_texts_and_the_recurrent_loop(exact):
    """Tokens of a tokenizer, `model.state` handed on, outputs joined; then a token at a time, as a sampler would."""
    _, model = exact
    ids = IntegerTokenizer(max_value=V - 2)(" ".join(map(str, range(1, 41))), return_tensors="np").input_ids[0]
    whole = model(ids[None])
    assert whole["logits"] is whole.logits and whole.logits.shape == (1, len(ids), V)
    for chunk_size in (7, 1):
        model.set_chunk_size(chunk_size=chunk_size)
        model.reset_state(batch_size=1)
        outputs = []
        for start in range(0, len(ids), model.chunk_size):
            logits, model.state = model.process_with_state(ids[None, start : start + model.chunk_size], model.state)
            outputs.append(logits)
        joined = np.concatenate(outputs, axis=1)
        assert_within(joined, whole.logits, 1e-11 * max(1, np.abs(whole.logits).max()), f"chunks of {chunk_size}")
    token = ids[-1]
    row, _ = model.process_with_state(token, model.state)  # one integer is one sequence of one token
    assert_within(row[0, -1], model(np.append(ids, token)).logits[0, -1], 1e-11 * max(1, np.abs(row).max()), "one token on")
    model.state = None


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "16", True, None])
def test_wrong_chunk_sizes(exact, wrong):
    _, model = exact
    before = model.chunk_size
    with pytest.raises(ValueError, match="chunk_size is "):
        model.set_chunk_size(wrong)
    assert model.chunk_size == before
