"""What people start, on a CUDA device: the train command, the pipeline, quickstart, the hybrid engine, the commands that run models.

That a device computes right is tested elsewhere; here, that everything that takes a device uses it, that runs go on where they
were to the bit, and that what is written is read on the other side. Runs are a few steps of tiny models."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import CUDA, assert_same_bits, assert_within, small_model, some_ids
from hybrid_helpers import byte_tokenizer, write_text

from rwkvtune import (RWKV, Chat, DataConfig, DeviceError, Generator, ModelConfig, RWKVTrainingPipeline, Trainer, TrainingConfig, TrainingEngine,
                      info)  # fmt: skip
from rwkvtune.checkpoint import read_checkpoint
from rwkvtune.cli import main, quickstart
from rwkvtune.hybrid import DataLoader, TextDataset, setup_model
from rwkvtune.hybrid.setup import _scale_initial_weights

on_a_device = pytest.mark.skipif(not CUDA, reason="no CUDA device")
without_a_device = pytest.mark.skipif(CUDA, reason="there is a CUDA device")
UNIT = {"fp32": 2**-24, "bf16": 2**-8, "fp16": 2**-11}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    (root / "text.txt").write_text("\n\n".join(f"Paragraph {n} is here." for n in range(200)))
    assert main(["prepare", str(root / "text.txt"), str(root / "train"), "--document_chars", "500"]) == 0
    return str(root / "train")


def train(data, out, *more, code=0):
    """Rows of loss.csv after `rwkvtune train` of four steps of 2 x 8 tokens."""
    argv = ["train", "--data_file", data, "--proj_dir", str(out), "--vocab_size", "257", "--n_layer", "1", "--n_embd", "32", "--head_size", "32",
            "--ctx_len", "8", "--micro_bsz", "2", "--epoch_steps", "2", "--my_exit_tokens", "64", "--epoch_save", "1", *map(str, more)]  # fmt: skip
    assert main(argv) == code
    return losses(out)


def losses(out):
    with open(out / "loss.csv", newline="") as file:
        return [(float(row["loss"]), float(row["grad_norm"])) for row in csv.DictReader(file)]


def assert_same_weights(path, other):
    want = read_checkpoint(other)
    for name, tensor in read_checkpoint(path).items():
        assert_same_bits(tensor.numpy(), want[name].numpy(), name)


# ---- rwkvtune train -------------------------------------------------------------------------------------------------

MODES = {
    "plain": [],
    "accumulation": ["--micro_bsz", 1, "--accumulate_grad_batches", 2],
    "grad_cp": ["--grad_cp", 1],
    "infctx": ["--train_type", "infctx", "--chunk_ctx", 5],
    "states": ["--train_type", "states"],
    "x052": ["--my_testing", "x052"],
}


@on_a_device
@pytest.mark.parametrize("mode, precision", [("plain", "fp32"), ("infctx", "fp16"), *((mode, "bf16") for mode in MODES)])
def test_train_follows_the_cpu(tmp_path, data, mode, precision):
    want = train(data, tmp_path / "cpu", *MODES[mode], "--precision", precision)
    got = train(data, tmp_path / "cuda", *MODES[mode], "--precision", precision, "--accelerator", "gpu")
    assert len(got) == len(want) == 4
    for (loss, norm), (want_loss, want_norm) in zip(got, want):
        assert_within(loss, want_loss, 16 * UNIT[precision], f"{mode}: loss")
        assert_within(norm, want_norm, 32 * UNIT[precision] * want_norm, f"{mode}: norm of the gradient")
    for name, tensor in read_checkpoint(tmp_path / "cuda" / "rwkv-final.pth").items():
        assert tensor.dtype == {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision], name


@on_a_device
def test_train_goes_on_to_the_bit(tmp_path, data):
    straight = train(data, tmp_path / "straight", "--device", "cuda:0", "--precision", "fp16")
    assert len(train(data, tmp_path / "two", "--device", "cuda", "--precision", "fp16", "--my_exit", 1)) == 2
    assert train(data, tmp_path / "two", "--device", "auto", "--precision", "fp16") == straight
    assert_same_weights(tmp_path / "two" / "rwkv-final.pth", tmp_path / "straight" / "rwkv-final.pth")


@on_a_device
@pytest.mark.parametrize("first, second", [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_run_moves(tmp_path, capsys, data, first, second):
    """From one kind of machine to the other, in the precision of each."""
    want = train(data, tmp_path / "straight")
    train(data, tmp_path / "moved", "--device", first, "--my_exit", 1)
    capsys.readouterr()
    got = train(data, tmp_path / "moved", "--device", second)
    assert f"{'bf16 on cuda:0' if second == 'cuda' else 'fp32 on cpu'})" in capsys.readouterr().out
    for (loss, _), (want_loss, _) in zip(got, want):
        assert_within(loss, want_loss, 16 * UNIT["bf16"], "loss")


@on_a_device
def test_the_plan_is_that_of_the_device(tmp_path, capsys, data):
    train_plan = ["train", "--data_file", data, "--proj_dir", str(tmp_path / "out"), "--vocab_size", "257", "--n_layer", "1", "--n_embd", "32",
                  "--head_size", "32", "--ctx_len", "8", "--micro_bsz", "2", "--epoch_steps", "2", "--dry_run", "--device", "cuda"]  # fmt: skip
    assert main(train_plan) == 0
    model = RWKV(ModelConfig(model_type="x070", n_layer=1, n_embd=32, vocab_size=257, head_size_a=32), device="cuda")
    out = capsys.readouterr().out
    assert f"{model.plan(2, 8)['total'] / 1e6:.1f} MB (parameters" in out and "GB free" in out and "tokens/s" in out
    assert not (tmp_path / "out").exists()


@on_a_device
def test_weights_that_are_written_are_the_masters(tmp_path):
    """What 16 bits would lose of them is in a file of float32."""
    model = small_model(precision="bf16", device="cuda")
    trainer = Trainer(model, TrainingConfig(precision="bf16"))
    ids = some_ids(2, 8)
    trainer.step(ids, ids, lr=1e-5)
    trainer.save_weights(tmp_path / "wide.pth", dtype="fp32")
    model.save(tmp_path / "own.pth")
    masters, own = read_checkpoint(tmp_path / "wide.pth"), read_checkpoint(tmp_path / "own.pth")
    name = "blocks.1.ffn.key.weight"
    assert_same_bits(masters[name].numpy(), trainer._core.masters()[name], name)
    assert np.any(masters[name].numpy() != own[name].numpy(np.float32))
    assert_same_weights(rewritten(tmp_path / "wide.pth", "bf16"), tmp_path / "own.pth")


def rewritten(path, dtype):
    RWKV.load(path).save(path.with_name("rewritten.pth"), dtype=dtype)
    return path.with_name("rewritten.pth")


# ---- the pipeline and quickstart ------------------------------------------------------------------------------------


def pipeline(path, device, epoch_save=1):
    model = ModelConfig(n_layer=1, n_embd=32, head_size_a=32, ctx_len=8)
    training = TrainingConfig(micro_bsz=2, precision="bf16", epoch_save=epoch_save, eval_every_steps=2)
    return RWKVTrainingPipeline(path, model, training, DataConfig(val_fraction=0.1, n_epochs_duplication=1, sequence_length=16), device=device)


@on_a_device
def test_pipeline(tmp_path, capsys):
    numbers = some_ids(20, 16, vocab_size=359)
    told = []
    for name in ("straight", "two"):
        run = pipeline(tmp_path / name, "cuda")
        run.prepare_data(numbers)
        if name == "two":
            assert run.train(max_steps=2)["steps"] == 2
            run = pipeline(tmp_path / name, "cuda")
        told.append(run.train(max_steps=4, continue_training=name == "two"))
        assert run.model.device == "cuda:0" and run.model.precision == "bf16"
    assert "bf16 on cuda:0" in capsys.readouterr().out
    out, other = tmp_path / "two" / "out", tmp_path / "straight" / "out"
    assert told[0]["steps"] == told[1]["steps"] == 4 and losses(out)[0] == losses(other)[0]
    assert (out / "val.csv").read_text().count("\n") >= 2
    on_cpu = pipeline(tmp_path / "two", "cpu").train(max_steps=6, continue_training=True)
    assert on_cpu["steps"] == 6
    again = pipeline(tmp_path / "again", "cuda")
    again.prepare_data(numbers)
    assert again.train_from_checkpoint(out / "rwkv-final.pth", num_epochs=1)["status"] == "finished"


@on_a_device
def test_quickstart(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "DOCUMENT_CHARS", 40)
    monkeypatch.setattr(quickstart, "CONTEXT", 32)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Paragraph {n} stands here." for n in range(24)))
    argv = ["quickstart", str(text), "--work_dir", str(tmp_path / "work"), "--steps", "2", "--n_layer", "1", "--n_embd", "16", "--ctx_len", "8",
            "--micro_bsz", "2", "--max_new_tokens", "4", "--device", "cuda"]  # fmt: skip
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "bf16 on cuda:0" in out and "this model" in out and "It continues" in out
    assert len(losses(tmp_path / "work" / "out")) == 2


@without_a_device
def test_without_a_device_nothing_begins(tmp_path, capsys):
    reason = f"device 'cuda' cannot be used: {info()['cuda_reason']}; device='cpu' works everywhere"
    with pytest.raises(DeviceError) as told:
        RWKVTrainingPipeline(tmp_path / "work", device="cuda")
    assert str(told.value) == reason
    with pytest.raises(DeviceError, match="cannot be used"):
        Trainer.resume(tmp_path / "none.pth", device="cuda")
    for command in (["quickstart", "--device", "cuda", "--work_dir", str(tmp_path / "work")], ["generate", "m.pth", "--device", "cuda"]):
        main(command)
    assert capsys.readouterr().err.count(reason) >= 1 and not list(tmp_path.iterdir())


# ---- the hybrid engine ----------------------------------------------------------------------------------------------


def hybrid(device, precision):
    config = ModelConfig(n_layer=2, n_embd=32, head_size_a=32, vocab_size=257, layers=["x070", {"time_mix": "attention", "channel_mix": "mlp"}])
    return setup_model(SimpleNamespace(device=device, seed=1), config, training_config=TrainingConfig(precision=precision))


@on_a_device
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_hybrid_engine(tmp_path, precision):
    results = []
    for device in ("cpu", "cuda"):
        model = hybrid(device, precision)
        assert model.precision == (precision if device == "cuda" else "fp32")
        engine = TrainingEngine(model, TrainingConfig(precision=precision, micro_bsz=2))
        engine.model.set_chunk_size(5)
        ids = some_ids(2, 13)
        results.append([engine.train_step_rwkv({"input_ids": ids}, lr=1e-3) for _ in range(3)])
        engine.prepare_for_inference()
        assert np.isfinite(engine.model(ids).logits).all()
    assert_within(results[1], results[0], 16 * UNIT[precision], "losses in chunks")

    text, tokenizer = write_text(tmp_path, text="a line of this text; " * 5), byte_tokenizer(tmp_path)
    for more, out in ((4, "straight"), (2, "two"), (4, "two")):
        engine = TrainingEngine(hybrid("cuda", precision), TrainingConfig(precision=precision, micro_bsz=2))
        loader = DataLoader(TextDataset(tokenizer, text, 8), batch_size=2)
        engine.train(loader, max_steps=more, output_dir=tmp_path / out, resume=out == "two" and more == 4, progress=False)
        assert engine.model.device == engine.optimizer.model.device == "cuda:0"
    assert [row[0] for row in losses(tmp_path / "straight")][:2] == [row[0] for row in losses(tmp_path / "two")][:2]


@on_a_device
def test_initial_weights_of_a_hybrid_are_scaled_on_a_device_too():
    here, there = (RWKV(ModelConfig(n_layer=1, n_embd=32, head_size_a=32, vocab_size=67), device=device, precision="fp32") for device in ("cpu", "cuda"))
    for model in (here, there):
        _scale_initial_weights(model, 0.5, 2.0)
    for name, value in here.named_parameters().items():
        assert_same_bits(there.named_parameters()[name], value, name)


# ---- states, generation and the commands that run models ------------------------------------------------------------


@on_a_device
@pytest.mark.parametrize("version", ["x052", "x060", "x070"])
def test_pieces_of_a_text(version):
    """Chunks, the gradient through them and cut at them, and compressed states: one text, whatever the pieces."""
    model = small_model(model_type=version, device="cuda")
    ids, targets = some_ids(2, 20), some_ids(2, 20, seed=1)
    logits, loss = model(ids, targets)
    model.set_chunk_size(7)
    assert_within(model.forward_chunked(ids, targets).logits, logits, 1e-5 * np.abs(logits).max(), "logits in chunks")
    want, grads = model.loss_and_grads(ids, targets)
    got, in_chunks = model.loss_and_grads(ids, targets, chunked="full")
    assert_within([got, want], [loss, loss], 1e-5, "loss")
    for name, value in grads.items():
        assert_within(in_chunks[name], value, 2e-4 * np.abs(value).max() + 1e-6, name)
    cut, _ = model.loss_and_grads(ids, targets, chunked="truncated")
    assert_within(cut, loss, 1e-5, "loss of cut chunks")
    model.enable_state_compression("int8")
    _, state = model.process_with_state(ids[:, :9])
    rest, _ = model.process_with_state(ids[:, 9:], state)
    assert_within(rest, logits[:, 9:], 0.05 * np.abs(logits).max(), "logits after a compressed state")


@on_a_device
def test_prompts_that_are_remembered():
    model = small_model(precision="bf16", device="cuda")
    prompt = list(range(1, 12))
    plain, cached = Generator(model, temperature=0), Generator(model, cache_bytes=1 << 20, temperature=0)
    first = cached.generate(prompt, 4)
    again = cached.generate([*prompt, *first.ids, 3], 4)
    assert first.cached_tokens == 0 and again.cached_tokens >= len(prompt) and cached.cache.hits == 1
    for got, given in ((first, prompt), (again, [*prompt, *first.ids, 3])):
        assert got.ids == plain.generate(given, 4).ids


@on_a_device
def test_a_conversation(tmp_path):
    model = small_model(precision="bf16", device="cuda", vocab_size=257, n_layer=1, n_embd=32)
    generator = Generator(model, byte_tokenizer(tmp_path), cache_bytes=1 << 20)
    chat = Chat(generator)
    replies = [chat.say("a", 3), chat.say("b", 3)]
    assert [reply.cached_tokens > 0 for reply in replies] == [False, True]
    assert all(len(reply.ids) == 3 for reply in replies)


@on_a_device
def test_commands(tmp_path, capsys, data):
    """eval, generate and convert of weights that a device trained."""
    train(data, tmp_path / "out", "--device", "cuda")
    weights = str(tmp_path / "out" / "rwkv-final.pth")
    values = []
    for device in ("cpu", "cuda"):
        capsys.readouterr()
        assert main(["eval", weights, "--data_file", data, "--max_tokens", "40", "--device", device]) == 0
        values.append(float(capsys.readouterr().out.split("loss ")[1].split()[0]))
        assert main(["generate", weights, "--prompt_ids", "1 2 3", "--max_new_tokens", "4", "--device", device]) == 0
    assert_within(values[1], values[0], 16 * UNIT["bf16"], "loss")
    assert main(["convert", weights, str(tmp_path / "w.safetensors"), "--dtype", "fp16"]) == 0
    model = RWKV.load(tmp_path / "w.safetensors", device="cuda", precision="fp16")
    assert np.isfinite(model([[1, 2, 3]]).logits).all()
