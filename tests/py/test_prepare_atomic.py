"""Preparing data again: stopped at any moment, by an error or Ctrl-C, every file is the old one or every file the new one."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import rwkvtune
from rwkvtune import DataConfig, IntegerTokenizer, ModelConfig, RWKVTrainingPipeline
from rwkvtune.atomic import AtomicFiles
from rwkvtune.cli import main
from rwkvtune.data import DataPipeline

OURS = os.path.dirname(rwkvtune.__file__)
OLD, NEW = np.arange(60).reshape(6, 10), np.arange(60).reshape(6, 10)[::-1] + 7


class Stop(BaseException):
    """What is raised: like KeyboardInterrupt it is no Exception."""


def visible(folder):
    """name -> contents of the files below a folder, temporary ones aside."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.name != "run.lock" and path.suffix != ".tmp"}


def stopped_at(moment, error, action):
    """Runs `action`, raising error() at the moment-th call or return in the package; how many moments were left."""
    left, handler = moment, signal.getsignal(signal.SIGINT)

    def watch(frame, event, argument):
        nonlocal left
        if not frame.f_code.co_filename.startswith(OURS):
            return
        if not left:
            sys.setprofile(None)
            left = -1
            raise error()
        left -= left > 0

    sys.setprofile(watch)
    try:
        action()
    except (Stop, OSError):
        pass
    finally:
        sys.setprofile(None)
        signal.signal(signal.SIGINT, handler)  # Stop may have been raised while another one was set
    return left


def prepare_command(folder, data):
    np.save(folder / ".input.npy", data)
    assert main(["prepare", str(folder / ".input.npy"), str(folder / "t"), "--tokenizer", f"integer:{data.max()}"]) == 0


def prepare_pipeline(folder, data):
    model = ModelConfig(model_type="x070", n_layer=1, n_embd=32, ctx_len=8, head_size_a=32, vocab_size=100)
    config = DataConfig(n_epochs_duplication=2, val_fraction=0.2, sequence_length=10)
    RWKVTrainingPipeline(folder, model, data_config=config, tokenizer=IntegerTokenizer(80)).prepare_data(data)


def prepare_data_pipeline(folder, data):
    DataPipeline(IntegerTokenizer(int(data.max())), verbose=False).process(data, folder, random_seed=1)


@pytest.mark.parametrize("error", [Stop, lambda: OSError(5, "broken")], ids=["interrupt", "error"])
@pytest.mark.parametrize("prepare", [prepare_command, prepare_pipeline, prepare_data_pipeline])
def test_stopped_anywhere(tmp_path, capsys, prepare, error):
    prepare(tmp_path, OLD)
    old = visible(tmp_path)
    whole = tmp_path.parent / (tmp_path.name + "_new")
    whole.mkdir()
    prepare(whole, OLD)
    prepare(whole, NEW)
    new = visible(whole)
    assert old.keys() == new.keys() and all(old[name] != new[name] for name in old if name.endswith((".bin", ".jsonl")))
    many, outcomes = 10**6, []
    n = many - stopped_at(many, error, lambda: prepare(tmp_path, NEW))
    prepare(tmp_path, OLD)
    for moment in [*range(0, n - 90, n // 45), *range(n - 90, n, 2)]:  # closely where names change

        def action():
            try:
                prepare(tmp_path, NEW)
            except AssertionError:  # the command says so by its exit status
                pass

        stopped_at(moment, error, action)
        found = visible(tmp_path)
        assert found in (old, new), (moment, [name for name in old if found.get(name) != old[name]])
        outcomes.append(found == new)
        if found == new:
            prepare(tmp_path, OLD)
            assert visible(tmp_path) == old
    assert outcomes.count(False) > 40
    if error is Stop:  # an OSError may be one that does not matter, such as that of a file system without links
        assert outcomes == sorted(outcomes)  # old until one moment, new from then on


@pytest.mark.parametrize("call", ["link", "rename", "replace"])
def test_each_change_of_names_fails(tmp_path, monkeypatch, call):
    """Whichever of the renames fails, those before it are taken back."""
    for name in "abd":
        (tmp_path / name).write_text("old " + name)
    real, before = getattr(os, call), visible(tmp_path)
    for count in itertools.count():
        left = [count]

        def failing(*arguments):
            left[0] -= 1
            if left[0] == -1:
                raise OSError(5, "broken", arguments[0])
            return real(*arguments)

        monkeypatch.setattr(os, call, failing)
        try:
            with AtomicFiles() as files:
                for name in "abcd":
                    with files.write(tmp_path / name, "w") as file:
                        file.write("new")
        except OSError:
            assert visible(tmp_path) == before
        monkeypatch.setattr(os, call, real)
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
        if left[0] >= 0:
            break
        for name in "abd":
            (tmp_path / name).write_text("old " + name)
        (tmp_path / "c").unlink(missing_ok=True)
    assert count == {"link": 3, "rename": 1, "replace": 4}[call] and set(visible(tmp_path).values()) == {b"new"}


def test_staged_twice_and_nothing(tmp_path):
    with AtomicFiles() as files:
        for content in "12":
            with files.write(tmp_path / "a", "w") as file:
                file.write(content)
    with AtomicFiles():
        pass
    assert visible(tmp_path) == {"a": b"2"}
    with pytest.raises(OSError, match="cannot write .*/none/a: the directory does not exist"), AtomicFiles() as files:
        with files.write(tmp_path / "none" / "a"):
            pass
    with pytest.raises(OSError, match="cannot write .*/b: the directory does not exist"), AtomicFiles() as files:
        files.stage(tmp_path / "b")  # and never written
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_interrupted_command(tmp_path):
    """Ctrl-C from outside, at many times: the old files or the new ones, whole, and no temporary file."""
    source, target, whole = tmp_path / "a.jsonl", tmp_path / "out", tmp_path / "whole"

    def command(folder):
        return [sys.executable, "-m", "rwkvtune.cli.prepare", source, folder / "t", "--tokenizer", "integer:9", "--n_epochs", "3"]

    source.write_text(json.dumps({"text": "1 2 3"}) + "\n")
    subprocess.run(command(target), check=True, capture_output=True)
    old = visible(target)
    source.write_text((json.dumps({"text": "4 5 6 " * 200}) + "\n") * 10000)
    subprocess.run(command(whole), check=True, capture_output=True)
    new = visible(whole)
    for wait in (0, 0.02, 0.05, 0.1, 0.2):
        with subprocess.Popen(command(target), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
            while run.poll() is None and not list(target.glob("*.tmp")):
                time.sleep(0.005)
            time.sleep(wait)
            run.send_signal(signal.SIGINT)
            _, err = run.communicate()
        assert "Traceback" not in err and not list(target.glob(".*")) and not list(target.glob("*.tmp"))
        if visible(target) == new:  # the command had done its work, whatever it was ending with
            break
        assert run.returncode != 0 and visible(target) == old
