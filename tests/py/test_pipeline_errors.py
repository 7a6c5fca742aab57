"""Bad input and bad moments: a clear error, and a directory that is as it was."""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from rwkvtune import RWKV, DataConfig, FormatError, IntegerTokenizer, ModelConfig, RWKVTrainingPipeline, TrainingConfig
from rwkvtune.lock import RunLock

SMALL = ModelConfig(model_type="x070", n_layer=1, n_embd=32, ctx_len=16, head_size_a=32)
QUICK = TrainingConfig(precision="fp32", micro_bsz=4, lr_init=3e-3, grad_cp=0)
DATA = np.random.default_rng(0).integers(0, 10, (30, 40))


def new(directory, model=SMALL, top=9, **options):
    return RWKVTrainingPipeline(directory, model, QUICK, tokenizer=IntegerTokenizer(top), **options)


def contents(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != "run.lock"}


def lines(path, *rows):
    path.write_text("".join(row + "\n" for row in rows))
    return path


# ---- data ----


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (np.full((3, 5), 10), ValueError, r"data\[0, 0\] is 10; IntegerTokenizer has ids for 0 to 9; use IntegerTokenizer\(max_value=10\)"),
        (np.array([[1, 2], [3, -4]]), ValueError, r"data\[1, 1\] is -4; .*shift the numbers so that none is negative"),
        (np.array([[2**40]]), ValueError, r"data\[0, 0\] is 1099511627776"),
        (np.zeros((0, 5), int), RuntimeError, "Prepared dataset is empty"),
        ([], RuntimeError, "Prepared dataset is empty"),
        (np.array([[0.5, 1.0]]), ValueError, "a value of sequence 1 is 0.5; round the data yourself"),
        (np.array([[np.nan, 1.0]]), ValueError, "a value of sequence 1 is nan"),
        (np.array([["a", "b"]]), ValueError, "dtype <U1 does not hold numbers"),
        (np.array([[{}, None]]), ValueError, "dtype object does not hold numbers"),
        (np.zeros((2, 3, 4), int), ValueError, r"data has shape \(2, 3, 4\)"),
        ([[1, 2], [3]], ValueError, "data: not an array of numbers of equal row lengths"),
        (np.zeros(1000, int), ValueError, "data has 1000 values, less than one sequence of sequence_length 1024"),
    ],
)
def test_bad_arrays(tmp_path, data, kind, text):
    pipe = new(tmp_path)
    pipe.prepare_data(DATA)
    before = contents(tmp_path)
    with pytest.raises(kind, match=text):
        pipe.train(data, num_epochs=1)
    assert contents(tmp_path) == before and pipe.data_prepared


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (['{"text": "1 2"}', '{"text": "3 10"}'], r"d.jsonl:2: .*10"),
        (['{"text": "1 2"}', "{"], r"d.jsonl:2: "),
        (['{"no": "1"}'], r"d.jsonl:1: .*text"),
        (['{"text": "hello"}'], r"d.jsonl:1: "),
        ([""], r"d.jsonl: no lines"),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_bad_lines_are_named_in_the_file_that_was_given(tmp_path, rows, text, share):
    pipe = new(tmp_path / "run", data_config=DataConfig(val_fraction=share))
    pipe.prepare_data(DATA)
    before = contents(tmp_path / "run")
    rows = rows + ['{"text": "1"}', '{"text": "2"}', '{"text": "3"}'] if share and len(rows[0]) else rows
    with pytest.raises(ValueError, match="val_fraction" if share and rows == [""] else text):
        pipe.prepare_data_from_jsonl(lines(tmp_path / "d.jsonl", *rows))
    assert contents(tmp_path / "run") == before


def test_bad_line_in_the_held_out_part(tmp_path):
    pipe = new(tmp_path / "run", data_config=DataConfig(val_fraction=0.5))
    with pytest.raises(FormatError, match=r"d.jsonl \(the held-out end of it\):2: .*77"):
        pipe.prepare_data_from_jsonl(lines(tmp_path / "d.jsonl", *(f'{{"text": "{n}"}}' for n in (1, 2, 3, 77))))


@pytest.mark.parametrize("data", [np.array([[5]]), DATA[:1]], ids=["one number", "less than three contexts"])
def test_too_little_data_is_said_before_weights_are_made(tmp_path, data):
    pipe = new(tmp_path, SMALL.replace(ctx_len=64))
    with pytest.raises(ValueError, match=r"Dataset too small for ctx_len=64: total_tokens=\d+\. Need at least 192 tokens, or a smaller ctx_len"):
        pipe.train(data, num_epochs=1)
    assert not any((tmp_path / "out").iterdir()) and pipe.data_prepared
    assert pipe.magic_prime is None


@pytest.mark.parametrize("name", ["", "../train", "a/b", ".hidden", 3, "val"])
def test_names_of_data(tmp_path, name):
    with pytest.raises(ValueError, match="data_name"):
        new(tmp_path, data_config=DataConfig(val_fraction=0.1)).prepare_data(DATA, name)


@pytest.mark.parametrize("damage", [b"", b"MMIDIDX", None], ids=["empty", "short", "cut"])
def test_damaged_index(tmp_path, damage):
    pipe = new(tmp_path)
    pipe.prepare_data(DATA)
    path = tmp_path / "data" / "train.idx"
    path.write_bytes(path.read_bytes()[:-5] if damage is None else damage)
    with pytest.raises(FormatError, match="train.idx"):
        RWKVTrainingPipeline(tmp_path).train(num_epochs=1)
    assert not any((tmp_path / "out").iterdir())


def test_other_data_under_the_same_name(tmp_path):
    new(tmp_path / "a").prepare_data(DATA)
    new(tmp_path / "b").prepare_data(DATA[:20])
    for kind in ("bin", "idx"):
        (tmp_path / "a" / "data" / f"train.{kind}").write_bytes((tmp_path / "b" / "data" / f"train.{kind}").read_bytes())
    with pytest.raises(FormatError, match=r"train.bin holds 2460 tokens, but 3690 were prepared"):
        RWKVTrainingPipeline(tmp_path / "a").train(num_epochs=1)


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True, None])
def test_number_of_epochs(tmp_path, value):
    pipe = new(tmp_path)
    pipe.prepare_data(DATA)
    for attempt in (pipe.train, lambda num_epochs: pipe.train_from_checkpoint("w.pth", num_epochs)):
        with pytest.raises(ValueError, match="num_epochs is .*; it must be an integer of at least 1"):
            attempt(num_epochs=value)


# ---- configurations and weights that do not fit ----


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("\x00\xff", "not valid JSON"),
        ("[" * 100000, "not valid JSON"),
        ("[]", "holds a list and not an object"),
        ('{"schema": "x"}', "schema is 'x'"),
        ('{"schema": 99}', "schema is 99; this version of rwkvtune reads up to 1"),
        ('{"model": 5}', "model is 5; it must be an object"),
        ('{"model": {"n_layer": "three"}}', "model: n_layer is 'three'; it must be an integer"),
        ('{"model": {"n_embd": 1e400}}', "model: n_embd is inf"),
        ('{"model": {"layers": {"a": 1}}}', "model: layers"),
        ('{"model": {"layers": [5]}}', "model: layers"),
        ('{"training": {"lr": 1}}', "training: TrainingConfig has no field 'lr'"),
        ('{"training": {"micro_bsz": 0}}', "training: micro_bsz is 0; it must be at least 1"),
        ('{"data": {"val_fraction": 1}}', "data: val_fraction is 1"),
        ('{"wandb_project": 5}', "wandb_project is 5"),
        ('{"data_state": 5}', "data_state is 5"),
        ('{"data_state": {"name": "train"}}', "data_state has no total_tokens"),
        ('{"data_state": {"name": "train", "total_tokens": "9", "tokenizer": {}}}', "total_tokens is '9'; it must be an integer"),
        ('{"data_state": {"name": "train", "total_tokens": 9, "tokenizer": {}}}', "tokenizer is {}, which names none"),
        ('{"data_state": {"total_tokens": 9, "tokenizer": {"class": "IntegerTokenizer"}}}', "data_state has no name"),
    ],
)
def test_damaged_config(tmp_path, text, said):
    new(tmp_path)
    path = tmp_path / "configs" / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FormatError) as caught:
        RWKVTrainingPipeline(tmp_path)
    assert str(path) in str(caught.value) and said in str(caught.value) and len(str(caught.value)) < 500
    assert path.read_bytes() == text.encode("latin-1")


def test_every_truncation_of_the_config_is_refused(tmp_path):
    new(tmp_path).prepare_data(DATA)
    path = tmp_path / "configs" / "config.json"
    whole = path.read_bytes().rstrip()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError, match="config.json: not valid JSON"):
            RWKVTrainingPipeline(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match="cannot read .*config.json: this is a directory"):
        RWKVTrainingPipeline(tmp_path)


@pytest.mark.parametrize("change", [{"n_layer": 2}, {"n_embd": 64}, {"vocab_size": 50}, {"model_type": "x060"}, {"dim_ffn": 64}])
def test_weights_of_another_size(tmp_path, change):
    pipe = new(tmp_path)
    pipe.prepare_data(DATA)
    pipe.initialize_model()
    kept = (tmp_path / "out" / "rwkv-init.pth").read_bytes()
    name = next(iter(change))
    changed = new(tmp_path, SMALL.replace(**change))
    for attempt in (changed.initialize_model, changed.train):
        with pytest.raises(ValueError, match=rf"rwkv-init.pth holds another model \({name} is .*initialize_model\(force=True\)"):
            attempt()
    assert (tmp_path / "out" / "rwkv-init.pth").read_bytes() == kept
    changed.initialize_model(force=True)
    assert changed.train(num_epochs=1)["status"] == "finished"
    with pytest.raises(ValueError, match=f"holds a run of another model .*{name}"):
        new(tmp_path)


def test_checkpoint_of_another_size_without_detection(tmp_path):
    RWKV(SMALL.replace(n_layer=2, vocab_size=11)).save(tmp_path / "w.pth")
    pipe = new(tmp_path / "run")
    pipe.prepare_data(DATA)
    before = contents(tmp_path / "run")
    with pytest.raises(FormatError, match=r"w.pth does not fit this model.*unexpected blocks.1"):
        pipe.train_from_checkpoint(tmp_path / "w.pth", auto_detect=False)
    with pytest.raises(ValueError, match=r"n_layer is 3, but the weights in .*w.pth say 2; leave it out"):
        pipe.train_from_checkpoint(tmp_path / "w.pth", override_config={"n_layer": 3})
    with pytest.raises(ValueError, match="micro_bsz is 0"):
        pipe.train_from_checkpoint(tmp_path / "w.pth", override_config={"micro_bsz": 0})
    with pytest.raises(ValueError, match="Dataset too small for ctx_len=4000"):
        pipe.train_from_checkpoint(tmp_path / "w.pth", override_config={"ctx_len": 4000})
    (tmp_path / "bad.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:300])
    with pytest.raises(FormatError, match="Failed to load checkpoint: .*bad.pth"):
        pipe.train_from_checkpoint(tmp_path / "bad.pth")
    assert contents(tmp_path / "run") == before
    pipe.train_from_checkpoint(tmp_path / "w.pth", 1, auto_detect=False, override_config={"n_layer": 2})
    assert pipe.model_config.n_layer == 2


def test_another_tokenizer_for_the_same_data(tmp_path):
    new(tmp_path).prepare_data(DATA)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="prepared with IntegerTokenizer of 11 ids.*given, IntegerTokenizer of 101, is another; leave it out"):
        new(tmp_path, top=99)
    assert contents(tmp_path) == before
    assert new(tmp_path).data_prepared
    for path in (tmp_path / "data").iterdir():
        path.unlink()
    assert new(tmp_path, top=99).model_config.vocab_size == 101


@pytest.mark.parametrize("tokenizer", [5, "vocab.txt", object()])
def test_no_tokenizer(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="tokenizer, of class .*derive it from rwkvtune.BaseTokenizer"):
        RWKVTrainingPipeline(tmp_path, tokenizer=tokenizer)


# ---- places that cannot be written, and company ----


def test_file_where_a_directory_should_be(tmp_path):
    (tmp_path / "work").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*work/data: a part of the path is not a directory") as caught:
        RWKVTrainingPipeline(tmp_path / "work")
    assert "Errno" not in str(caught.value).replace(f"[Errno {caught.value.errno}] ", "")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "out").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*other/out: a file of this name is there already"):
        RWKVTrainingPipeline(tmp_path / "other")


def test_directory_where_a_file_should_be(tmp_path):
    pipe = new(tmp_path)
    (tmp_path / "run.lock").unlink()
    (tmp_path / "run.lock").mkdir()
    with pytest.raises(OSError, match=r"cannot write .*run.lock: this is a directory"):
        pipe.prepare_data(DATA)
    (tmp_path / "run.lock").rmdir()
    (tmp_path / "data" / "train.bin").mkdir()
    with pytest.raises(OSError, match=r"cannot write .*train.bin: it is not a regular file"):
        pipe.prepare_data(DATA)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["train.bin"] and not pipe.data_prepared


@pytest.mark.parametrize("call", ["prepare_data_from_jsonl", "prepare_data_from_file", "prepare_text", "train_from_checkpoint",
                                  "inspect_checkpoint"])  # fmt: skip
def test_directory_where_a_file_is_read(tmp_path, call):
    pipe = new(tmp_path / "run")
    pipe.prepare_data(DATA)
    before = contents(tmp_path / "run")
    (tmp_path / "there").mkdir()
    with pytest.raises(OSError, match=r"cannot read .*/there: this is a directory; give the name of a file in it"):
        getattr(pipe, call)(tmp_path / "there")
    assert contents(tmp_path / "run") == before


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="needs users")
def test_directory_without_permission():
    """As an ordinary user, for whom modes count: the name, the reason and the way out in one line."""
    place = Path(tempfile.mkdtemp())
    try:
        place.chmod(0o555)
        code = "import os, rwkvtune.pipeline, sys\nif os.geteuid() == 0: os.setuid(65534)\nrwkvtune.pipeline.RWKVTrainingPipeline(sys.argv[1])"
        process = subprocess.run([sys.executable, "-c", code, str(place / "work")], capture_output=True, text=True)
        assert process.returncode == 1
        assert f"cannot write {place}/work/data: no permission; check the owner" in process.stderr.splitlines()[-1]
    finally:
        place.rmdir()


def test_two_threads_of_a_process(tmp_path):
    errors = []

    def second():
        try:
            with RunLock(tmp_path):
                pass
        except RuntimeError as error:
            errors.append(str(error))

    with RunLock(tmp_path), RunLock(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert len(errors) == 1 and f"in use by process {os.getpid()}" in errors[0]
    with RunLock(tmp_path):
        pass
    second()
    assert len(errors) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_child_does_not_hold_the_lock(tmp_path):
    code = """
import os, sys
from rwkvtune.lock import RunLock
with RunLock(sys.argv[1]):
    child = os.fork()
    if not child:
        try:
            RunLock(sys.argv[1]).__enter__()
        except RuntimeError:
            os._exit(7)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert process.stdout == "7\n", process.stderr


def test_a_process_that_died_leaves_no_lock(tmp_path):
    code = "import os, sys; from rwkvtune.lock import RunLock; RunLock(sys.argv[1]).__enter__(); os._exit(1)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 1
    assert new(tmp_path).train(DATA, num_epochs=1)["status"] == "finished"


# ---- moments ----


def go(directory):
    """What a script does that is started again after an interruption: from no data to the final weights."""
    pipe = new(directory, data_config=DataConfig(n_epochs_duplication=1, val_fraction=0.1))
    if not pipe.data_prepared:
        pipe.prepare_data(DATA)
    return pipe.train(num_epochs=2, continue_training=(directory / "out" / "trainer_state.pth").exists())["status"]


def interrupted(directory, monkeypatch, moment):
    """Runs `go` with Ctrl-C at the moment-th change of a name on the disk; whether there was such a moment."""
    real, left = os.replace, [moment]

    def replace(source, target):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        try:
            go(directory)
        except KeyboardInterrupt:
            pass
    return left[0] <= 0


def test_interrupt_at_every_stage(tmp_path, monkeypatch):
    """Configuration, lines, vocabulary, data, initial weights, state, weights of an epoch, final weights, logs."""
    assert go(tmp_path / "whole") == "finished"
    wanted = (tmp_path / "whole" / "out" / "rwkv-final.pth").read_bytes()
    moments = 0
    while interrupted(tmp_path / f"{moments}", monkeypatch, moments + 1):
        directory = tmp_path / f"{moments}"
        assert go(directory) == "finished"
        assert (directory / "out" / "rwkv-final.pth").read_bytes() == wanted, moments
        assert not [path for path in directory.rglob("*.tmp")] and not list((directory / "data").glob(".*"))
        moments += 1
    assert moments >= 12


def test_kill_while_data_are_prepared(tmp_path):
    """What was prepared before is whole; the next preparation removes what lies about, and nothing of the user's."""
    new(tmp_path).prepare_data(DATA)
    before = contents(tmp_path)
    code = (
        "import os, signal, sys\nfrom rwkvtune import RWKVTrainingPipeline\nfrom rwkvtune.data.binidx import BinIdxBuilder\n"
        "BinIdxBuilder.stage = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "RWKVTrainingPipeline(sys.argv[1]).prepare_data([[1, 2, 3]] * 40)"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True)
    assert process.returncode == -signal.SIGKILL
    after = contents(tmp_path)
    assert len(after) > len(before) and {name: after[name] for name in before} == before
    for name in ("notes.tmp", ".mine", "x.old"):
        (tmp_path / "data" / name).write_text("mine")
    pipe = RWKVTrainingPipeline(tmp_path)
    assert pipe.data_prepared and pipe.prepare_data(DATA)["num_sequences"] == 90
    mine = {f"data/{name}": b"mine" for name in ("notes.tmp", ".mine", "x.old")}
    assert contents(tmp_path) == before | mine


def test_full_disk_while_data_are_prepared(tmp_path):
    """Writing fails at every size a file may have; what was prepared before is whole and can be trained on."""
    new(tmp_path).prepare_data(DATA[:3])
    before = contents(tmp_path)
    code = (
        "import sys, numpy as np\nfrom rwkvtune import RWKVTrainingPipeline\n"
        "RWKVTrainingPipeline(sys.argv[1]).prepare_data(np.random.default_rng(0).integers(0, 10, (200, 40)))"
    )
    for limit in (100, 400, 1500, 20000):

        def limited(limit=limit):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, preexec_fn=limited)
        assert process.returncode == 1 and "OSError" in process.stderr, process.stderr
        last = process.stderr.splitlines()[-1]
        assert "too large" in last and f"cannot write {tmp_path}" in last
        assert contents(tmp_path) == before
    assert RWKVTrainingPipeline(tmp_path).train(num_epochs=1)["status"] == "finished"


def test_what_is_stored_is_valid_json_of_the_documented_form(tmp_path):
    new(tmp_path).prepare_data(DATA)
    text = (tmp_path / "configs" / "config.json").read_text()
    stored = json.loads(text)
    assert text == json.dumps(stored, indent=2, ensure_ascii=False) + "\n"
    assert set(stored) == {"schema", "model", "training", "data", "wandb_project", "vocab_size", "data_state"}
    assert {"model_type", "n_layer", "n_embd", "ctx_len", "vocab_size", "head_size_a"} <= set(stored["model"])
    assert {"lr_init", "lr_final", "warmup_steps", "beta1", "beta2", "adam_eps", "weight_decay", "micro_bsz", "grad_cp", "epoch_save",
            "precision", "strategy"} <= set(stored["training"])  # fmt: skip
    assert {"sequence_length", "n_epochs_duplication"} <= set(stored["data"])
    assert {"name", "total_tokens", "num_items", "dtype", "tokenizer"} <= set(stored["data_state"])


# ---- what cannot change, is gone, or is no argument ----


@pytest.mark.parametrize("change", [{"micro_bsz": 8}, {"beta1": 0.5}])
def test_a_refused_training_setting_is_not_stored(tmp_path, change):
    new(tmp_path).train(DATA, num_epochs=1)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="cannot change within a run"):
        RWKVTrainingPipeline(tmp_path, training_config=QUICK.replace(**change))
    assert contents(tmp_path) == before
    assert RWKVTrainingPipeline(tmp_path).train(num_epochs=2, continue_training=True)["status"] == "finished"


def test_data_that_are_gone_are_named_and_nothing_is_forgotten(tmp_path):
    new(tmp_path, top=99).prepare_data(DATA)
    (tmp_path / "data" / "train.idx").rename(tmp_path / "away")
    before = contents(tmp_path)
    pipe = RWKVTrainingPipeline(tmp_path)
    assert pipe.tokenizer.vocab_size == 101 and contents(tmp_path) == before
    with pytest.raises(RuntimeError, match="train.idx: not there any more"):
        pipe.train(num_epochs=1)
    (tmp_path / "away").rename(tmp_path / "data" / "train.idx")
    assert RWKVTrainingPipeline(tmp_path).train(max_steps=2)["status"] == "finished"


def test_interrupt_behind_the_new_names_leaves_no_old_description(tmp_path, monkeypatch):
    pipe = new(tmp_path)
    pipe.prepare_data(DATA)
    real = tempfile.TemporaryDirectory.__exit__

    def interrupted(self, *error):
        real(self, *error)
        if Path(self.name).parent == tmp_path / "data":
            raise KeyboardInterrupt

    monkeypatch.setattr(tempfile.TemporaryDirectory, "__exit__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipe.prepare_data(np.concatenate([DATA, DATA]))
    monkeypatch.undo()
    assert pipe.my_exit_tokens == RWKVTrainingPipeline(tmp_path).my_exit_tokens == 2 * 3 * 30 * 41
    assert pipe.train(max_steps=2)["status"] == "finished"


@pytest.mark.parametrize("steps", [-1, 1.5, True, "3"])
def test_lengths_of_a_run_are_checked_first(tmp_path, steps):
    with pytest.raises(ValueError, match="max_steps is .*at least 0"):
        new(tmp_path).train(DATA, max_steps=steps)
    assert not list((tmp_path / "data").iterdir())


def test_arguments_of_a_wrong_kind(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf1 2\n\n3")
    pipe = new(tmp_path / "work")
    for wrong, words in ((None, "NoneType"), (b"1", "bytes"), (str(tmp_path / "b.txt"), "the name of a file")):
        with pytest.raises(ValueError, match=words):
            pipe.prepare_text(wrong)
    with pytest.raises(ValueError, match="data_name is None"):
        pipe.prepare_data(DATA, None)
    with pytest.raises(ValueError, match="tokenizer is the class IntegerTokenizer"):
        RWKVTrainingPipeline(tmp_path / "other", tokenizer=IntegerTokenizer)
    for value in (9.5, "9", True):
        with pytest.raises(ValueError, match="max_value is .* an integer"):
            IntegerTokenizer(value)
    with pytest.raises(ValueError, match="callbacks holds the class Path"):
        pipe.train(DATA, max_steps=1, callbacks=[Path])
    masked = np.ma.array(DATA, mask=np.zeros_like(DATA, bool))
    masked[0, :3] = np.ma.masked
    with pytest.raises(ValueError, match="3 masked values"):
        new(tmp_path / "masked").prepare_data(masked)
    pipe = new(tmp_path / "text")
    pipe.prepare_text(tmp_path / "b.txt")
    assert (tmp_path / "text" / "data" / "train.jsonl").read_text() == '{"text": "1 2"}\n{"text": "3"}\n'


def test_the_name_of_one_of_two_files_serves(tmp_path):
    prefix = new(tmp_path / "a").prepare_data(DATA)["binidx_prefix"]
    assert new(tmp_path / "b").use_existing_data(f"{prefix}.bin")["binidx_prefix"] == prefix
