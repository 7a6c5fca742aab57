"""Trained initial states (time_state): where texts begin, what trains them, their files, and both together with the base."""

import numpy as np
import pytest
from helpers import assert_same_bits, assert_within, core, small_model, some_ids

from rwkvtune import RWKV, RWKVState, Trainer, TrainingConfig
from rwkvtune.checkpoint import read_checkpoint
from rwkvtune.cli import main
from rwkvtune.errors import FormatError

ARCHITECTURES = {
    "x052": dict(model_type="x052"),
    "x060": dict(model_type="x060"),
    "x070": dict(model_type="x070"),
    "hybrid": dict(layers=["x070", "attention", "x060"], n_layer=None),
}
CONFIG = dict(precision="fp32", train_type="states", weight_decay=0.1)


def built(name, backend="cpu", precision="fp32", time_state=True):
    return small_model(backend, precision, **(dict(model_type="x070") | ARCHITECTURES[name]), time_state=time_state)


def states_of(model):
    return {name: value for name, value in model.named_parameters().items() if "time_state" in name}


@pytest.fixture(params=ARCHITECTURES)
def name(request):
    return request.param


@pytest.fixture
def files(name, tmp_path):
    """(model, base weights without its states, file of its states)"""
    model = built(name)
    base = RWKV(model.config.replace(time_state=False))
    base.load_state_dict({key: value for key, value in model.named_parameters().items() if "time_state" not in key})
    base.save(tmp_path / "base.pth")
    model.save_time_state(tmp_path / "state.pth")
    return model, tmp_path / "base.pth", tmp_path / "state.pth"


def test_texts_begin_from_them(name, files):
    """As from a state whose wkv they are, (H, value, key), the same for every sequence; shifts and caches empty."""
    model, path, _ = files
    base, ids = RWKV.load(path, head_size_a=32), some_ids(2, 9)
    begin = base.init_state(2).to_numpy()
    begin["wkv"][...] = np.stack(list(states_of(model).values()))[:, None]
    want = base(ids, state=begin).logits
    assert_same_bits(model(ids).logits, want, "a call")
    assert not np.allclose(base(ids).logits, want, atol=1e-3)
    assert_same_bits(model.process_with_state(ids)[0], want, "process_with_state")
    model.reset_state(2)
    assert_same_bits(model.process_with_state(ids, model.state)[0], want, "a state that was reset")
    model.set_chunk_size(4)
    assert_within(model.forward_chunked(ids).logits, want, 2e-5 * np.abs(want).max(), "chunks")
    prompt = ids[0, :3]
    assert model.generate(prompt, 12, seed=3) == base.generate(prompt, 12, seed=3, state=RWKVState.from_numpy(begin).select(0))


@pytest.mark.parametrize("chunked", [None, "full", "truncated"])
def test_their_gradient_is_the_sum_of_the_sequences(name, chunked):
    model = built(name, "ref", "fp64")
    ids, targets = some_ids(3, 20), some_ids(3, 20, seed=1)
    model.set_chunk_size(8)
    _, grads = model.loss_and_grads(ids, targets, chunked=chunked)
    _, given = model.loss_and_grads(ids, targets, chunked=chunked, state=model.init_state(3))
    for layer, key in enumerate(states_of(model)):
        want = given["state.wkv"][layer].sum(axis=0)
        assert_within(grads[key], want, 1e-10 * np.abs(want).max(), key)
        assert not given[key].any(), "a state that is given is none of the model's"


def test_only_they_are_trained_and_have_moments(name):
    model, other = built(name), built(name)
    before = {key: value.copy() for key, value in model.named_parameters().items()}
    trainer = Trainer(model, TrainingConfig(**CONFIG))
    names = list(states_of(model))
    reference = core.Trainer(other._core, beta1=0.9, beta2=0.99, eps=1e-18, weight_decay=0.1, grad_clip=1.0)
    ids, targets = some_ids(2, 24).astype(np.int32), some_ids(2, 24, seed=1).astype(np.int32)
    losses = []
    for _ in range(8):
        losses.append(trainer.step(ids, targets, lr=1e-2)[0])
        reference.step(ids, targets, micro_bsz=2, lr=1e-2, weight_decay=0.1, l2wrap=True, grad_cp=1, trainable=names)
    assert losses[-1] < losses[0]
    for key, value in model.named_parameters().items():
        assert_same_bits(value, other.named_parameters()[key], f"{key} as with moments of everything")
        assert np.array_equal(value, before[key]) == (key not in names), key
    assert [set(moments) for moments in trainer._core.moments()] == [set(names)] * 2
    ours, all_of_them = (t.allocated()["moments"] for t in (trainer._core, reference))
    numbers = sum(value.size for value in states_of(model).values())
    assert 8 * numbers <= ours <= 8 * numbers + 2 * 64 * len(names) < all_of_them / 4  # 64: alignment
    with pytest.raises(ValueError, match="no moments"):
        trainer._core.step(ids, targets, lr=1e-2, trainable=["head.weight"])


def test_infctx_trains_them_with_everything_else(name):
    model = built(name)
    before = {key: value.copy() for key, value in states_of(model).items()}
    Trainer(model, TrainingConfig(precision="fp32", train_type="infctx", chunk_ctx=8)).step(some_ids(2, 24), some_ids(2, 24), lr=1e-2)
    for key, value in states_of(model).items():
        assert not np.array_equal(value, before[key]), key


def test_a_run_goes_on_bit_for_bit(name, tmp_path):
    one, two = (Trainer(built(name), TrainingConfig(**CONFIG)) for _ in range(2))
    ids, targets = some_ids(2, 16), some_ids(2, 16, seed=1)
    for trainer in (one, two):
        trainer.step(ids, targets, lr=1e-2)
    two.save(tmp_path / "run")
    again = Trainer.resume(tmp_path / "run")
    assert one.step(ids, targets, lr=1e-2) == again.step(ids, targets, lr=1e-2)
    for key, value in states_of(one.model).items():
        assert_same_bits(states_of(again.model)[key], value, key)


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_file_of_states_holds_them_and_nothing_else(files, tmp_path, ending):
    model, _, _ = files
    model.save_time_state(tmp_path / f"s{ending}")
    tensors = read_checkpoint(tmp_path / f"s{ending}")
    kinds = [layer["time_mix"] for layer in model.config.layer_list()]
    assert set(tensors) == {f"blocks.{i}.att.time_state" for i, kind in enumerate(kinds) if kind != "attention"}
    for key, value in states_of(model).items():
        assert_same_bits(tensors[key].numpy(), value, key)
    model.save_time_state(tmp_path / "half.pth", dtype="bf16")
    assert {tensor.dtype for tensor in read_checkpoint(tmp_path / "half.pth").values()} == {"bfloat16"}


def test_merging_with_the_base(files, tmp_path):
    model, base, state = files
    ids = some_ids(2, 9)
    merged = RWKV.load(base, time_state=state, head_size_a=32)
    assert merged.config.time_state
    assert_same_bits(merged(ids).logits, model(ids).logits, "base and states")
    merged.save(tmp_path / "merged.pth")
    assert_same_bits(RWKV.load(tmp_path / "merged.pth", head_size_a=32)(ids).logits, model(ids).logits, "merged")
    again = RWKV.load(base, time_state=tmp_path / "merged.pth", config=model.config.replace(time_state=False))
    assert_same_bits(again(ids).logits, model(ids).logits, "states of a whole model")


def test_commands_begin_from_them(tmp_path, capsys):
    model = built("x070")
    for value in states_of(model).values():
        value *= 30
    model.save(tmp_path / "whole.pth")
    model.save_time_state(tmp_path / "state.pth")
    base = RWKV(model.config.replace(time_state=False))
    base.load_state_dict({key: value for key, value in model.named_parameters().items() if "time_state" not in key})
    base.save(tmp_path / "base.pth")
    printed = []
    for words in (["whole.pth"], ["base.pth", "--time_state", str(tmp_path / "state.pth")], ["base.pth"]):
        line = ["generate", str(tmp_path / words[0]), *words[1:], "--prompt_ids", "3 4", "--temperature", "0", "--max_new_tokens", "9"]
        assert main(line) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2]


def test_files_that_do_not_fit(tmp_path):
    model, other = built("x070"), small_model(n_layer=3, time_state=True)
    base = built("x070", time_state=False)
    base.save(tmp_path / "base.pth")
    other.save_time_state(tmp_path / "three.pth")
    small_model(n_layer=1, time_state=True).save_time_state(tmp_path / "one.pth")
    small_model(head_size_a=16, time_state=True).save_time_state(tmp_path / "heads.pth")
    for file, words in (("three.pth", "blocks.2.att.time_state is of a layer"), ("one.pth", "missing blocks.1.att.time_state"), ("heads.pth", "time_state"),
                        ("base.pth", "holds no initial states")):  # fmt: skip
        with pytest.raises(FormatError, match=words):
            RWKV.load(tmp_path / "base.pth", time_state=tmp_path / file)
    with pytest.raises(FileNotFoundError, match="initial states not found: .*none"):
        RWKV.load(tmp_path / "base.pth", time_state=tmp_path / "none")
    with pytest.raises(ValueError, match="has no initial states"):
        base.save_time_state(tmp_path / "s.pth")
    with pytest.raises(ValueError, match="its ending decides"):
        model.save_time_state(tmp_path / "s.npz")
    with pytest.raises(ValueError, match="this model has none"):
        Trainer(base, TrainingConfig(**CONFIG))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.pth", "heads.pth", "one.pth", "three.pth"]
