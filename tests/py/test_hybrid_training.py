"""The integrator and the engine: groups, chunked training, export, inference, and what each method changes."""

import logging
import math

import numpy as np
import pytest
from hybrid_helpers import RECIPES, TEXT, byte_tokenizer, small, write_text

from rwkvtune import RWKV, FormatError, ModelConfig, RWKVIntegrator, Trainer, TrainingConfig, TrainingEngine
from rwkvtune.checkpoint import write_pth
from rwkvtune.hybrid import (ChunkedLoader, DataLoader, ModelConfig3BRWKV, RWKVMemoryConfig, RWKVTrainingEfficiencyConfig, TextDataset,
                             convert_to_rwkv, parameter_count)  # fmt: skip
from rwkvtune.hybrid.engine import chunk_size_for, training_config_of
from rwkvtune.hybrid.groups import part_of
from rwkvtune.hybrid.integrator import read_rwkv_weights

PLAIN = TrainingConfig(
    precision="fp32", micro_bsz=4, lr_init=3e-3, lr_final=1e-3, warmup_steps=0, weight_decay=0.3, grad_cp=0
)


def loader(directory, block_size=48, batch_size=4, text=TEXT):
    return DataLoader(
        TextDataset(byte_tokenizer(directory), write_text(directory, text=text), block_size),
        batch_size,
        shuffle=True,
        seed=1,
    )


def numbers(model):
    return {name: value.copy() for name, value in model.named_parameters().items()}


def same(first, second):
    return all(np.array_equal(first[name], second[name]) for name in first)


def batch(rows=2, length=30, seed=0):
    ids = np.random.default_rng(seed).integers(0, 257, (rows, length))
    return {"input_ids": ids, "labels": ids.copy()}


# ---- parameter groups ----

PARTS = {
    "x070": {"time_decay": "w0 w1 w2", "time_mix": "x_r x_w x_k x_v x_a x_g", "time_first": "r_k", "channel_mix": "ffn.x_k"},
    "x060": {"time_decay": "time_decay time_decay_w1 time_decay_w2", "time_first": "time_faaaa",
             "time_mix": "time_maa_x time_maa_w time_maa_k time_maa_v time_maa_r time_maa_g time_maa_w1 time_maa_w2",
             "channel_mix": "ffn.time_maa_k ffn.time_maa_r"},
    "x052": {"time_decay": "time_decay", "time_first": "time_faaaa", "time_mix": "time_mix_k time_mix_v time_mix_r time_mix_g",
             "channel_mix": "ffn.time_mix_k ffn.time_mix_r"},
    "attention": {},
}  # fmt: skip


@pytest.mark.parametrize("kind", PARTS)
def test_every_parameter_is_in_its_part(kind):
    model = RWKV(ModelConfig(model_type="x070", layers=[kind, kind], n_embd=64, vocab_size=5))
    listed = {
        f"blocks.1.{name if '.' in name else 'att.' + name}": part
        for part, names in PARTS[kind].items()
        for name in names.split()
    }
    for name in model.named_parameters():
        if name.startswith("blocks.1."):
            rest = name.split(".")[2] if name.split(".")[2] in ("att", "ffn") else "other"
            assert part_of(name) == listed.pop(name, rest), name
        elif not name.startswith("blocks."):
            assert part_of(name) == "other"
    assert not listed


M, ATT, FFN = 1.25, 0.02, 0.04
EXPECTED = {  # part: (lr multiple, weight decay)
    "engine": {"time_decay": (1.5 * M, 0), "time_mix": (1.2 * M, ATT / 2), "time_first": (1.2 * M, ATT / 2), "channel_mix": (M, FFN / 2),
               "att": (M, ATT), "ffn": (M, FFN)},
    "integrator": {"time_decay": (1.5 * M, 0), "time_mix": (M, ATT / 2), "time_first": (M, ATT), "channel_mix": (M, ATT / 2),
                   "att": (M, ATT), "ffn": (M, FFN)},
}  # fmt: skip


def set_up(who, trainer, *values):
    if who == "engine":
        return TrainingEngine(trainer.model).setup_rwkv_optimizer(trainer, *values)
    return RWKVIntegrator(trainer.model).setup_rwkv_optimizer(trainer, *values)


@pytest.mark.parametrize("who", EXPECTED)
@pytest.mark.parametrize("layers", RECIPES)
def test_groups_reach_the_optimizer(who, layers):
    """A step with g and its moments from one gradient: p' = p - lr (sign(g) + wd p), group by group."""
    trainer = Trainer(small(layers), PLAIN.replace(l2wrap=False))
    rules = trainer.parameter_rules
    assert set_up(who, trainer, M, ATT, FFN) is trainer
    ids = np.random.default_rng(0).integers(0, 257, (2, 30))
    _, gradients = trainer.model.loss_and_grads(ids[:, :-1], ids[:, 1:])
    before = numbers(trainer.model)
    trainer.step(ids[:, :-1], ids[:, 1:], lr=1e-2)
    for name, value in trainer.model.named_parameters().items():
        scale, decay = EXPECTED[who].get(part_of(name), rules[name])
        decay = PLAIN.weight_decay if decay is None else decay
        p = before[name].astype(np.float64)
        want = p - 1e-2 * scale * (np.sign(gradients[name]) + decay * p)
        assert np.allclose(value, want, rtol=0, atol=4 * 2.0**-23 * (np.abs(p).max() + 1e-2 * scale)), name


def test_defaults_of_the_groups_and_their_log(caplog):
    trainer = Trainer(small(), PLAIN)
    with caplog.at_level(logging.INFO, logger="rwkvtune.hybrid.groups"):
        TrainingEngine(trainer.model).setup_rwkv_optimizer(optimizer=trainer)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 7 and all(line.startswith("RWKV Optimizer: Found ") for line in lines)
    assert sum(int(line.split()[3]) for line in lines) == len(trainer.parameter_rules)
    assert trainer.parameter_rules["blocks.0.att.key.weight"] == (1.0, 0.0) and trainer.parameter_rules[
        "blocks.0.att.w0"
    ] == (1.5, 0.0)
    assert trainer.parameter_rules["emb.weight"] == (1.0, None)  # the rest keeps the user's learning rate and decay


@pytest.mark.parametrize("who", EXPECTED)
def test_new_groups_keep_the_moments(who):
    trainer = Trainer(small(), PLAIN)
    ids = batch()["input_ids"]
    trainer.step(ids[:, :-1], ids[:, 1:])
    before = [{name: value.copy() for name, value in kind.items()} for kind in trainer._core.moments()]
    set_up(who, trainer, M, ATT, FFN)
    assert all(same(kind, now) for kind, now in zip(before, trainer._core.moments())) and trainer.applied_steps == 1


@pytest.mark.parametrize("who", EXPECTED)
def test_wrong_optimizers_and_numbers(who):
    trainer = Trainer(small(), PLAIN)
    before = trainer.parameter_rules
    for values, words in (
        ((-1.0, 0, 0), "rwkv_lr_multiplier is -1.0"),
        ((1.0, math.nan, 0), "att_weight_decay is nan"),
        ((1.0, 0, "x"), "ffn_weight_decay is 'x'"),
    ):
        with pytest.raises(ValueError, match=words):
            set_up(who, trainer, *values)
    assert trainer.parameter_rules == before
    with pytest.raises(ValueError, match="optimizer"):
        TrainingEngine(small()).setup_rwkv_optimizer(optimizer=trainer)  # of another model
    with pytest.raises(ValueError, match="must be a rwkvtune.Trainer"):
        RWKVIntegrator(small()).setup_rwkv_optimizer(optimizer=object())


def test_integrator_makes_an_optimizer_where_there_is_none():
    model = small()
    trainer = RWKVIntegrator(model, training_config=PLAIN).setup_rwkv_optimizer(rwkv_lr_multiplier=2.0)
    assert (
        trainer.model is model and trainer.config is PLAIN and trainer.parameter_rules["blocks.0.att.w0"] == (3.0, 0.0)
    )


# ---- integrator ----


def test_apply_rwkv_optimizations_changes_what_it_says():
    model = small()
    integrator = RWKVIntegrator(
        model=model,
        model_config=ModelConfig3BRWKV(rwkv_chunk_size=8, rwkv_state_compression=False),
        training_config=PLAIN,
    )
    assert model.chunk_size == 1024 and model.state is None
    assert integrator.apply_rwkv_optimizations() is model
    assert model.chunk_size == 8 and model.state.batch_size == PLAIN.batch_size == 4
    ids = batch(length=64)["input_ids"]
    assert np.allclose(model.forward_chunked(ids).logits, model(ids).logits, atol=1e-4)


def test_state_compression_follows_the_configuration(monkeypatch):
    calls = []
    monkeypatch.setattr(RWKV, "enable_state_compression", lambda self, *args: calls.append(self), raising=False)
    for wanted in (False, True):
        model = small()
        RWKVIntegrator(model, ModelConfig3BRWKV(rwkv_state_compression=wanted)).apply_rwkv_optimizations()
        assert calls == ([model] if wanted else [])
    RWKVIntegrator(model).apply_rwkv_optimizations()  # a plain ModelConfig does not ask for it
    assert len(calls) == 1


def test_integrator_refuses_what_has_no_rwkv_layers():
    with pytest.raises(ValueError, match="model is a str"):
        RWKVIntegrator(model="model")
    with pytest.raises(ValueError, match="rwkv_chunk_size is 0"):
        RWKVIntegrator(small(), {"rwkv_chunk_size": 0})
    with pytest.raises(ValueError, match="no RWKV layer"):
        RWKVIntegrator(small(["attention"]))


@pytest.mark.parametrize("layers", RECIPES)
@pytest.mark.parametrize("name", ["rwkv.pth", "rwkv.pt", "rwkv.safetensors", "made/for/it/rwkv.pth"])
def test_export_holds_every_tensor_of_the_rwkv_layers(layers, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = small(layers)
    assert RWKVIntegrator(model).export_rwkv_weights(name) == name
    tensors, layer_map = read_rwkv_weights(name)
    rwkv = [i for i, kind in enumerate(layers) if kind != "attention"]
    want = {
        key: value
        for key, value in model.named_parameters().items()
        if key.startswith(tuple(f"blocks.{i}." for i in rwkv))
    }
    assert set(tensors) == set(want) and all(np.array_equal(tensors[key].numpy(), want[key]) for key in want)
    assert sum(value.size for value in want.values()) == parameter_count(model.config, *rwkv)
    assert layer_map["rwkv_layer_indices"] == rwkv and layer_map["num_layers"] == 2
    assert (
        layer_map["transformer_layer_indices"] == [i for i in range(2) if i not in rwkv]
        and layer_map["layers"] == model.config.layer_list()
    )


def test_export_refuses_and_leaves_the_old_file(tmp_path):
    integrator = RWKVIntegrator(small())
    with pytest.raises(ValueError, match="ending must be .pth, .pt or .safetensors"):
        integrator.export_rwkv_weights(tmp_path / "weights.bin")
    (tmp_path / "dir.pth").mkdir()
    with pytest.raises(OSError, match="dir.pth"):
        integrator.export_rwkv_weights(tmp_path / "dir.pth")
    for name in ("plain.pth", "plain.safetensors"):
        integrator.model.save(tmp_path / name)
        with pytest.raises(FormatError, match="no map of layers"):
            read_rwkv_weights(tmp_path / name)
    for text, words in ((b"{not json", "no map of layers"), (b"[1, 2]", "no map")):
        write_pth(tmp_path / "odd.pth", {"rwkv_layer_map": np.frombuffer(text, np.uint8)})
        with pytest.raises(FormatError, match=words):
            read_rwkv_weights(tmp_path / "odd.pth")


@pytest.mark.parametrize("layers", RECIPES)
def test_optimize_for_inference_releases_training_memory(layers):
    model = small(layers)
    trainer = Trainer(model, PLAIN)
    ids = batch()["input_ids"]
    trainer.step(ids[:, :-1], ids[:, 1:])
    want, before = model(ids).logits, model._core.allocated()
    integrator = RWKVIntegrator(model, {"rwkv_chunk_size": 7})
    assert integrator.optimize_for_inference() is model
    after = model._core.allocated()
    assert before["gradients"] > 0 and after["gradients"] == 0 and after["activations"] < before["activations"]
    assert np.array_equal(model(ids).logits, want) and model.chunk_size == 7 and model.state.batch_size == 1
    with pytest.raises(RuntimeError, match="make a new Trainer"):
        trainer.step(ids[:, :-1], ids[:, 1:])
    with pytest.raises(RuntimeError, match="make a new Trainer"):
        trainer.step_chunked(ids[:, :-1], ids[:, 1:], 8)
    assert math.isfinite(Trainer(model, PLAIN).step(ids[:, :-1], ids[:, 1:])[0])


def test_apply_rwkv_chunking(tmp_path):
    integrator, data = RWKVIntegrator(small(), {"rwkv_chunk_size": 16}), loader(tmp_path)
    assert integrator.apply_rwkv_chunking(dataloader=data).chunk_size == 16
    chunks = list(integrator.apply_rwkv_chunking(dataloader=data, chunk_size=20))
    assert [chunk["input_ids"].shape[1] for chunk in chunks[:3]] == [20, 20, 8]
    assert [chunk["reset_state"] for chunk in chunks[:4]] == [True, False, False, True]


def test_convert_keeps_everything_but_the_new_layers():
    old = small(["attention"] * 4)
    new = convert_to_rwkv(old, [1, 3])
    assert [layer["time_mix"] for layer in new.config.layer_list()] == ["attention", "x070"] * 2
    before, after = old.named_parameters(), new.named_parameters()
    kept = [name for name in after if name in before and after[name].shape == before[name].shape]
    assert {"emb.weight", "head.weight", "blocks.0.att.q_proj.weight", "blocks.1.ln1.weight"} <= set(kept)
    assert all(np.array_equal(after[name], before[name]) for name in kept)
    assert [layer["time_mix"] for layer in convert_to_rwkv(old).config.layer_list()] == ["x070", "attention"] * 2


# ---- engine ----


def test_training_configurations():
    assert training_config_of(PLAIN) is PLAIN and training_config_of(None).precision == "fp32"
    got = training_config_of(RWKVTrainingEfficiencyConfig(gradient_accumulation_steps=3), ModelConfig3BRWKV())
    assert (got.precision, got.grad_cp, got.accumulate_grad_batches) == ("bf16", 1, 3)
    got = training_config_of(
        {
            "learning_rate": 0.5,
            "weight_decay": 0.25,
            "batch_size": 2,
            "use_mixed_precision": True,
            "mixed_precision_dtype": "float16",
        }
    )
    assert (got.lr_init, got.weight_decay, got.micro_bsz, got.precision) == (0.5, 0.25, 2, "fp16")
    with pytest.raises(ValueError, match="mixed_precision_dtype is 'int3'"):
        training_config_of({"mixed_precision_dtype": "int3"})


@pytest.mark.parametrize(
    "memory, size", [(1, 512), (7999, 512), (8000, 1024), (15999, 1024), (16000, 2048), (31999, 2048), (32000, 4096)]
)
def test_chunk_size_by_memory(memory, size):
    engine = TrainingEngine(small(), PLAIN, memory_config=RWKVMemoryConfig(max_memory_MB=memory))
    assert engine.optimize_rwkv_training_setup() is engine
    assert engine.model.chunk_size == chunk_size_for(memory) == size


def test_training_setup_saves_memory_and_changes_no_result():
    engines = [TrainingEngine(small(), PLAIN, memory_config=RWKVMemoryConfig(rwkv_chunk_size=24)) for _ in range(2)]
    engines[0].optimize_rwkv_training_setup()
    assert engines[0].training_config.grad_cp == 1 and engines[1].training_config.grad_cp == 0
    assert (engines[0].model.chunk_size, engines[1].model.chunk_size) == (24, 1024)
    ids = batch(4, 65)["input_ids"]
    results = [engine.optimizer.step(ids[:, :-1], ids[:, 1:]) for engine in engines]
    assert results[0] == results[1] and same(numbers(engines[0].model), numbers(engines[1].model))
    small_one, large_one = (engine.model._core.allocated()["activations"] for engine in engines)
    assert small_one < 0.9 * large_one


def test_training_setup_reaches_an_optimizer_that_is_there():
    engine = TrainingEngine(small(), PLAIN)
    trainer = engine.setup_rwkv_optimizer(rwkv_lr_multiplier=2.0)
    rules = trainer.parameter_rules
    engine.optimize_rwkv_training_setup()
    assert engine.optimizer is trainer and trainer.config.grad_cp == 1 and trainer.parameter_rules == rules
    later = Trainer(engine.model, PLAIN)
    engine.setup_rwkv_optimizer(optimizer=later)  # one that comes after the setup is set up as well
    assert engine.optimizer is later and later.config.grad_cp == 1
    left = TrainingEngine(
        small(), PLAIN, memory_config=RWKVMemoryConfig(optimize_memory_use=False)
    ).optimize_rwkv_training_setup()
    assert left.training_config.grad_cp == 0 and left.model.chunk_size == 1024
    with pytest.raises(ValueError, match="max_memory_MB is 0"):
        TrainingEngine(small(), PLAIN, memory_config={"max_memory_MB": 0}).optimize_rwkv_training_setup()
    with pytest.warns(UserWarning, match="no RWKV layer"):
        assert TrainingEngine(small(["attention"]), PLAIN).optimize_rwkv_training_setup().training_config.grad_cp == 0


@pytest.mark.parametrize("layers", RECIPES)
def test_step_on_a_batch_is_a_chunked_step(layers):
    engine, other = TrainingEngine(small(layers), PLAIN), Trainer(small(layers), PLAIN)
    engine.model.set_chunk_size(8)
    ids = batch()["input_ids"]
    targets = np.concatenate([ids[:, 1:], np.full((2, 1), -100)], axis=1)
    assert (
        engine.train_step_rwkv(batch(), lr=1e-3, weight_decay=0.1)
        == other.step_chunked(ids, targets, 8, lr=1e-3, weight_decay=0.1)[0]
    )
    assert same(numbers(engine.model), numbers(other.model)) and engine.optimizer.steps == 1


def test_most_tokens_of_a_chunk_from_the_training_configuration():
    model = small()
    engine = TrainingEngine(
        model,
        RWKVTrainingEfficiencyConfig(
            rwkv_backward_pass_length=8, use_mixed_precision=False, activation_checkpointing=False
        ),
    )
    engine.train_step_rwkv(batch(length=256))
    short = model._core.allocated()["activations"]
    other = TrainingEngine(
        small(), RWKVTrainingEfficiencyConfig(use_mixed_precision=False, activation_checkpointing=False)
    )
    other.train_step_rwkv(batch(length=256))
    assert short < other.model._core.allocated()["activations"] / 4


def test_steps_on_chunks_carry_the_state_and_begin_anew():
    engine, model = TrainingEngine(small(), PLAIN), small()
    ids = batch()["input_ids"]
    losses = [engine.train_step_rwkv(chunk, lr=0.0) for chunk in ChunkedLoader([batch(), batch()], 10)]
    whole = model(ids[:, :-1], ids[:, 1:]).loss * 29
    assert losses[0] * 10 + losses[1] * 10 + losses[2] * 9 == pytest.approx(whole, rel=1e-5)
    assert losses[3:] == losses[:3]  # reset_state


def test_a_chunk_without_targets_still_moves_the_state():
    engine = TrainingEngine(small(), PLAIN)
    chunks = list(ChunkedLoader([batch(length=21)], 10))
    losses = [engine.train_step_rwkv(chunk, lr=0.0) for chunk in chunks]
    assert losses[2] == 0.0 and engine.optimizer.steps == 2
    want = small().process_with_state(batch(length=21)["input_ids"])[1].to_numpy()
    assert all(np.allclose(value, want[name], atol=1e-4) for name, value in engine._state.to_numpy().items())


def test_mixed_precision_falls_back_and_says_so():
    engine = TrainingEngine(small(), PLAIN)
    with pytest.warns(UserWarning, match="float32"):
        engine.train_step_rwkv(batch(), use_mixed_precision=True)


@pytest.mark.parametrize("layers", RECIPES)
@pytest.mark.parametrize("chunk", [None, 20])
def test_train_learns_resumes_and_validates(layers, chunk, tmp_path):
    val = DataLoader(TextDataset(byte_tokenizer(tmp_path), write_text(tmp_path, "val.txt", TEXT[500:900]), 48), 4)

    def engine_and_data():
        engine = TrainingEngine(small(layers, spread=0), PLAIN.replace(save_every_steps=5))
        engine.setup_rwkv_optimizer(rwkv_lr_multiplier=1.2, ffn_weight_decay=0.01)
        data = loader(tmp_path)
        return engine, data if chunk is None else ChunkedLoader(data, chunk)

    straight, data = engine_and_data()
    before = straight.validate(val)
    assert straight.train(data, val, max_steps=30, output_dir=tmp_path / "one", progress=False) == "finished"
    after = straight.validate(val)
    assert after["loss"] < before["loss"] - 1 and after["next_token_accuracy"] > before["next_token_accuracy"]
    rows = (tmp_path / "one" / "loss.csv").read_text().splitlines()
    assert len(rows) == 31 and {"rwkv-final.pth", "trainer_state.pth", "val.csv", "train_log.txt", "rwkv-0.pth"} <= {
        p.name for p in (tmp_path / "one").iterdir()
    }
    assert same(numbers(RWKV.load(tmp_path / "one" / "rwkv-final.pth", head_size_a=32)), numbers(straight.model))

    first, data = engine_and_data()
    real, count = Trainer.step if chunk is None else Trainer.step_chunked, []

    def counting(self, *args, **options):
        if len(count) == 12:
            raise KeyboardInterrupt
        count.append(1)
        return real(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, real.__name__, counting)
        first.train(data, max_steps=30, output_dir=tmp_path / "two", progress=False)
    second, data = engine_and_data()
    with pytest.raises(ValueError, match="holds a run; go on with it"):
        second.train(data, max_steps=30, output_dir=tmp_path / "two", progress=False)
    assert second.train(data, max_steps=30, output_dir=tmp_path / "two", resume=True, progress=False) == "finished"
    assert same(numbers(second.model), numbers(straight.model)) and second.optimizer.steps == 30


def test_resume_refuses_another_model_and_other_data(tmp_path):
    TrainingEngine(small(), PLAIN).train(loader(tmp_path), max_steps=1, output_dir=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="holds a run of another model"):
        TrainingEngine(small(["x070"]), PLAIN).train(
            loader(tmp_path), max_steps=2, output_dir=tmp_path / "run", resume=True, progress=False
        )
    with pytest.raises(ValueError, match="other data"):
        TrainingEngine(small(), PLAIN).train(
            loader(tmp_path, 32), max_steps=2, output_dir=tmp_path / "run", resume=True, progress=False
        )
    with pytest.raises(ValueError, match="train_loader must be"):
        TrainingEngine(small(), PLAIN).train([batch()], output_dir=tmp_path / "run")


def test_accumulated_batches_are_one_step(tmp_path):
    one = TrainingEngine(small(), PLAIN)
    several = TrainingEngine(small(), PLAIN.replace(accumulate_grad_batches=3, micro_bsz=2))
    text = TEXT[: 48 * 12]
    one.train(loader(tmp_path, batch_size=6, text=text), num_epochs=1, output_dir=tmp_path / "one", progress=False)
    several.train(
        loader(tmp_path, batch_size=2, text=text), num_epochs=1, output_dir=tmp_path / "several", progress=False
    )
    assert one.optimizer.steps == several.optimizer.steps == 2 and one.optimizer.tokens == several.optimizer.tokens
    losses = [
        [float(row.split(",")[2]) for row in (tmp_path / name / "loss.csv").read_text().splitlines()[1:]]
        for name in ("one", "several")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_dataset_that_asks_for_chunks_gets_them(tmp_path):
    asked, given = (TrainingEngine(small(), PLAIN) for _ in range(2))
    data = loader(tmp_path)
    data.dataset.use_rwkv_chunking, data.dataset.chunk_size = True, 16
    asked.train(data, max_steps=2, output_dir=tmp_path / "asked", progress=False)
    given.train(ChunkedLoader(loader(tmp_path), 16), max_steps=2, output_dir=tmp_path / "given", progress=False)
    assert same(numbers(asked.model), numbers(given.model))


def test_an_engine_goes_on_with_its_own_run_only(tmp_path):
    engine, data = TrainingEngine(small(), PLAIN), loader(tmp_path)
    engine.train(data, max_steps=2, output_dir=tmp_path / "one", progress=False)
    assert engine.train(data, max_steps=3, output_dir=tmp_path / "one", resume=True, progress=False) == "finished"
    assert engine.optimizer.steps == 3
    TrainingEngine(small(), PLAIN).train(data, max_steps=1, output_dir=tmp_path / "two", progress=False)
    with pytest.raises(ValueError, match="holds another run"):
        engine.train(data, max_steps=4, output_dir=tmp_path / "two", resume=True, progress=False)


def test_chunked_training_takes_the_memory_of_a_chunk(tmp_path):
    plain, chunked = (TrainingEngine(small(), PLAIN) for _ in range(2))
    data = loader(tmp_path, block_size=1024, batch_size=1)
    plain.train(data, max_steps=1, output_dir=tmp_path / "plain", progress=False)
    chunked.train(ChunkedLoader(data, 64), max_steps=1, output_dir=tmp_path / "chunked", progress=False)
    assert chunked.model._core.allocated()["activations"] < plain.model._core.allocated()["activations"] / 8


def test_prepare_for_inference():
    engine = TrainingEngine(small(), PLAIN, memory_config=RWKVMemoryConfig(rwkv_chunk_size=9))
    engine.train_step_rwkv(batch())
    want = numbers(engine.model)
    assert engine.prepare_for_inference() is engine.model
    assert engine.model._core.allocated()["gradients"] == 0 and same(want, numbers(engine.model))
    assert engine.model.chunk_size == 1024 and engine.model.state is None
    engine.prepare_for_inference(optimize_for_rwkv=True)
    assert engine.model.chunk_size == 9 and engine.model.state.batch_size == 1


def test_engine_evaluation(tmp_path):
    engine, data = TrainingEngine(small(), PLAIN, tokenizer=byte_tokenizer(tmp_path)), loader(tmp_path)
    assert engine.evaluate_sequence_modeling(data) == engine.validate(data)
    assert engine.evaluate_sequence_modeling(data, max_seq_len=10)["tokens"] < engine.validate(data)["tokens"]
    assert "state_benefit_ratio" in engine.evaluate_sequence_modeling(texts=["some text"])
    with pytest.raises(ValueError, match="tokenizer"):
        TrainingEngine(small(), PLAIN).evaluate_sequence_modeling()


def test_a_first_chunk_without_targets_is_read():
    """A masked prompt that fills chunks: their state reaches the chunk that has targets."""
    engine = TrainingEngine(small(["x070", "attention"]), PLAIN)
    engine.model.set_chunk_size(16)
    ids = np.random.default_rng(0).integers(1, 250, (2, 64))
    labels = np.where(np.arange(64) < 20, -100, ids)
    chunks = list(ChunkedLoader([{"input_ids": ids, "labels": labels}], 16))
    _, state = engine.model.process_with_state(chunks[0]["input_ids"])
    assert engine.train_step_rwkv(chunks[0]) == 0.0 and engine.optimizer.steps == 0
    np.testing.assert_array_equal(engine._state.to_numpy()["wkv"], state.to_numpy()["wkv"])
    assert all(engine.train_step_rwkv(chunk) > 0 for chunk in chunks[1:])
    with pytest.raises(ValueError, match="every target is -100"):
        engine.train_step_rwkv({"input_ids": ids, "labels": np.full_like(ids, -100)})


def test_the_type_of_compressed_states_is_the_one_asked_for():
    model = small()
    RWKVIntegrator(model, {"rwkv_state_compression": "int8"}).apply_rwkv_optimizations()
    assert model.state_compression == "int8"
