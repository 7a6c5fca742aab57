"""What the pipeline trains on: data of its own making, files that exist, any tokenizer; and that it changes nothing of the caller's."""

import copy
import json
import shutil

import numpy as np
import pytest

from rwkvtune import (BaseTokenizer, BinIdxDataset, DataConfig, DataPipeline, FormatError, GenericTokenizer, IntegerTokenizer,
                      ModelConfig, RWKVTrainingPipeline, TrainingConfig, create_vocab_file_from_tokens)  # fmt: skip
from rwkvtune.data.binidx import BinIdxBuilder

SMALL = ModelConfig(model_type="x070", n_layer=1, n_embd=32, ctx_len=16, head_size_a=32)
QUICK = TrainingConfig(precision="fp32", micro_bsz=4, lr_init=3e-3, grad_cp=0)
DATA = np.random.default_rng(0).integers(0, 10, (30, 40))


def new(directory, tokenizer=None, **options):
    options = {"model_config": SMALL, "training_config": QUICK, **options}
    return RWKVTrainingPipeline(directory, tokenizer=tokenizer or IntegerTokenizer(9), **options)


@pytest.fixture
def existing(tmp_path):
    """A prefix with a dot in it, of files made elsewhere."""
    DataPipeline(IntegerTokenizer(9), verbose=False).process(DATA, tmp_path / "made", name="x")
    (tmp_path / "else").mkdir()
    for kind in ("bin", "idx"):
        shutil.copy(tmp_path / "made" / f"x.{kind}", tmp_path / "else" / f"data.v1.{kind}")
    return tmp_path / "else" / "data.v1"


def test_existing_files_are_trained_on_where_they_are(tmp_path, existing):
    before = {path.name: path.read_bytes() for path in existing.parent.iterdir()}
    pipe = new(tmp_path / "run")
    result = pipe.use_existing_data(existing)
    assert result["binidx_prefix"] == pipe.data_prefix == existing and result["jsonl_path"] is None
    assert (result["num_sequences"], result["total_tokens"]) == (90, 3690) and pipe.magic_prime == result["magic_prime"] == 227
    assert pipe.my_exit_tokens == 3690 and pipe.data_prepared
    first = pipe.train(num_epochs=1)
    again = RWKVTrainingPipeline(tmp_path / "run")
    assert again.data_prefix == existing and again.tokenizer.max_value == 9
    assert again.train(num_epochs=2, continue_training=True)["steps"] > first["steps"]
    assert {path.name: path.read_bytes() for path in existing.parent.iterdir()} == before
    assert [path.name for path in (tmp_path / "run" / "data").iterdir()] == ["vocab.txt"]


def test_existing_files_that_do_not_serve(tmp_path, existing):
    pipe = new(tmp_path / "run")
    pipe.prepare_data(DATA[:9])
    config = pipe.config_path.read_bytes()
    with pytest.raises(FileNotFoundError, match="Bin file not found: .*nothing.bin"):
        pipe.use_existing_data(tmp_path / "nothing")
    (tmp_path / "half.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="Idx file not found: .*half.idx"):
        pipe.use_existing_data(tmp_path / "half")
    (tmp_path / "half.idx").write_bytes(b"")
    with pytest.raises(FormatError, match="half.idx"):
        pipe.use_existing_data(tmp_path / "half")
    with BinIdxBuilder(tmp_path / "none"):
        pass
    with pytest.raises(RuntimeError, match="Prepared dataset is empty"):
        pipe.use_existing_data(tmp_path / "none")
    for prime in (226, 233, 7):  # composite, beyond the data, 1 mod 3
        with pytest.raises(ValueError, match="magic_prime"):
            pipe.use_existing_data(existing, magic_prime=prime)
    with pytest.raises(ValueError, match="exit_tokens is 0; it must be an integer of at least 1"):
        pipe.use_existing_data(existing, exit_tokens=0)
    assert pipe.config_path.read_bytes() == config and pipe.data_prefix == tmp_path / "run" / "data" / "train"
    with pytest.raises(FormatError, match=r"data.v1.bin holds token id 10, but the model's vocab_size is 5; give the tokenizer"):
        new(tmp_path / "small", IntegerTokenizer(3)).use_existing_data(existing)
    roomy = new(tmp_path / "roomy", IntegerTokenizer(3), model_config=SMALL.replace(vocab_size=64))
    assert roomy.use_existing_data(existing)["total_tokens"] == 3690


def test_negative_ids_are_refused(tmp_path):
    with BinIdxBuilder(tmp_path / "n", np.int32) as builder:
        builder.add_item([1, 2, -3] * 50)
        builder.end_document()
    with pytest.raises(FormatError, match="n.bin holds token id -3"):
        new(tmp_path / "run").use_existing_data(tmp_path / "n")


def test_own_pass_and_own_end(tmp_path, existing):
    pipe = new(tmp_path / "run")
    pipe.use_existing_data(existing, magic_prime=101, exit_tokens=1000)
    assert (pipe.magic_prime, pipe.my_exit_tokens) == (101, 1000)
    assert pipe.train(num_epochs=100)["steps"] == -(-1000 // (4 * 16))
    again = RWKVTrainingPipeline(tmp_path / "run")
    assert (again.magic_prime, again.my_exit_tokens) == (101, 1000)
    with pytest.raises(RuntimeError, match="leave data out"):
        again.use_existing_data(existing)


def test_the_directory_can_be_moved(tmp_path):
    pipe = new(tmp_path / "here")
    pipe.prepare_data(DATA, "numbers.v1")
    pipe.train(num_epochs=1)
    (tmp_path / "here").rename(tmp_path / "there")
    again = RWKVTrainingPipeline(tmp_path / "there")
    assert again.data_prefix == tmp_path / "there" / "data" / "numbers.v1"
    assert again.train(num_epochs=2, continue_training=True)["status"] == "finished"


class Letters(BaseTokenizer):
    """A tokenizer as a person writes one: a letter each."""

    def encode(self, text):
        return [ord(letter) - 96 for letter in text]

    def decode(self, ids):
        return "".join(chr(int(i) + 96) for i in ids if i)

    @property
    def vocab_size(self):
        return 27


def test_own_tokenizer(tmp_path, capsys):
    (tmp_path / "d.jsonl").write_text('{"text": "abcabcabc"}\n' * 30)
    pipe = new(tmp_path / "run", Letters())
    pipe.prepare_data_from_jsonl(tmp_path / "d.jsonl")
    with BinIdxDataset(pipe.data_prefix) as dataset:
        assert dataset.get(0).tolist() == [1, 2, 3, 1, 2, 3, 1, 2, 3, 0]
    assert pipe.train(num_epochs=1)["status"] == "finished"
    capsys.readouterr()
    assert RWKVTrainingPipeline(tmp_path / "run").train(num_epochs=2, continue_training=True)["status"] == "finished"
    assert "The tokenizer Letters is your own: give it again" in capsys.readouterr().out
    assert new(tmp_path / "run", Letters()).tokenizer.encode("abc") == [1, 2, 3]
    with pytest.raises(FormatError, match="d.jsonl:1: "):
        (tmp_path / "d.jsonl").write_text('{"text": "A"}\n')
        new(tmp_path / "other", Letters()).prepare_data_from_jsonl(tmp_path / "d.jsonl")


def test_vocabulary_is_known_again(tmp_path):
    for name, tokens in (("a", ["x", "y", " "]), ("b", ["y", "x", " "])):
        create_vocab_file_from_tokens(tokens, str(tmp_path / f"{name}.txt"))
    (tmp_path / "d.jsonl").write_text('{"text": "x y y x"}\n' * 30)
    new(tmp_path / "run", GenericTokenizer(str(tmp_path / "a.txt"))).prepare_data_from_jsonl(tmp_path / "d.jsonl")
    assert new(tmp_path / "run", GenericTokenizer(str(tmp_path / "a.txt"))).data_prepared
    with pytest.raises(ValueError, match="prepared with GenericTokenizer of 4 ids.*is another"):
        new(tmp_path / "run", GenericTokenizer(str(tmp_path / "b.txt")))
    kept = tmp_path / "run" / "data" / "vocab.txt"
    whole = kept.read_bytes()
    shutil.copy(tmp_path / "b.txt", kept)
    with pytest.raises(FormatError, match="vocab.txt: not the vocabulary that the data were prepared with"):
        RWKVTrainingPipeline(tmp_path / "run")
    kept.unlink()
    with pytest.raises(FormatError, match="vocab.txt: the vocabulary of the prepared data is missing"):
        RWKVTrainingPipeline(tmp_path / "run")
    kept.write_bytes(whole)
    assert RWKVTrainingPipeline(tmp_path / "run").tokenizer.encode("x y") == [1, 3, 2]


def test_large_ids_are_stored_in_32_bits(tmp_path):
    pipe = new(tmp_path, IntegerTokenizer(70000), model_config=SMALL.replace(n_embd=32))
    data = np.full((30, 40), 69999)
    pipe.prepare_data(data)
    with BinIdxDataset(pipe.data_prefix) as dataset:
        assert dataset.dtype == np.int32 and dataset.get(0).max() == 70000
    assert json.loads(pipe.config_path.read_text())["data_state"]["dtype"] == "int32"


def test_held_out_lines_come_back_to_their_file(tmp_path):
    """Preparing a directory's own lines again loses none of them, whatever was held out before."""
    pipe = new(tmp_path, data_config=DataConfig(n_epochs_duplication=1, val_fraction=0.2))
    pipe.prepare_data(DATA)
    train, val = ((tmp_path / "data" / f"{name}.jsonl").read_bytes() for name in ("train", "val"))
    assert (train.count(b"\n"), val.count(b"\n")) == (24, 6)
    pipe.prepare_data_from_jsonl(tmp_path / "data" / "train.jsonl")
    assert [(tmp_path / "data" / f"{name}.jsonl").read_bytes() for name in ("train", "val")] == [train, val]
    pipe = RWKVTrainingPipeline(tmp_path, data_config=DataConfig(n_epochs_duplication=1))
    assert pipe.prepare_data_from_jsonl(tmp_path / "data" / "train.jsonl")["num_sequences"] == 30
    assert (tmp_path / "data" / "train.jsonl").read_bytes() == train + val


def test_validation_loss_is_of_documents_that_training_never_saw(tmp_path):
    pipe = new(tmp_path, data_config=DataConfig(n_epochs_duplication=2, val_fraction=0.2))
    pipe.train(DATA, num_epochs=2)
    with BinIdxDataset(tmp_path / "data" / "val") as val, BinIdxDataset(pipe.data_prefix) as train:
        held = {val.get(i).tobytes() for i in range(val.num_items)}
        seen = {train.get(i).tobytes() for i in range(train.num_items)}
        ids = val.stream().astype(int)
    assert held == {(row + 1).astype("u2").tobytes() + b"\0\0" for row in DATA[24:]} and not held & seen
    rows = (tmp_path / "out" / "val.csv").read_text().split()
    assert rows[0] == "step,loss" and len(rows) == 3
    expected = pipe.model(ids[:-1], ids[1:]).loss
    assert float(rows[-1].split(",")[1]) == pytest.approx(expected, rel=1e-5)  # sums of float32 in another order


def test_nothing_the_caller_passed_is_changed(tmp_path):
    """Configurations, arrays, dicts, files and the tokenizer, through every entrance; and one configuration serves two pipelines."""
    model, training, data_config = SMALL.replace(), QUICK.replace(), DataConfig(n_epochs_duplication=1)
    overrides, data, tokenizer = {"ctx_len": 8, "lr_init": 1e-3}, DATA.copy(), IntegerTokenizer(9)
    passed = [model, training, data_config, overrides]
    before = [copy.deepcopy(thing.to_dict() if hasattr(thing, "to_dict") else thing) for thing in passed] + [data.tobytes()]
    pipe = RWKVTrainingPipeline(tmp_path / "a", model, training, data_config, tokenizer)
    pipe.train(data, num_epochs=1)
    weights = (tmp_path / "a" / "out" / "rwkv-final.pth").read_bytes()
    other = RWKVTrainingPipeline(tmp_path / "b", model, training, data_config, IntegerTokenizer(50))
    assert (pipe.model_config.vocab_size, other.model_config.vocab_size) == (11, 52)
    other = RWKVTrainingPipeline(tmp_path / "c", model, training, data_config, tokenizer)
    other.prepare_data(data)
    data.flags.writeable = False
    other.train_from_checkpoint(tmp_path / "a" / "out" / "rwkv-final.pth", 1, override_config=overrides)
    for config, name in ((pipe.model_config, "ctx_len"), (pipe.training_config, "micro_bsz"), (pipe.data_config, "sequence_length")):
        setattr(config, name, 99)  # the pipeline's own are copies
    after = [thing.to_dict() if hasattr(thing, "to_dict") else thing for thing in passed] + [data.tobytes()]
    assert after == before and tokenizer.max_value == 9 and model.vocab_size == 361
    assert (tmp_path / "a" / "out" / "rwkv-final.pth").read_bytes() == weights
