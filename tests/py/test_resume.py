"""A run survives anything: kills at any moment, Ctrl-C, a full disk, a directory that cannot be written.

Every test compares with a run that nothing happened to, bit for bit.
"""

import csv
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from rwkvtune import DataConfig, IntegerTokenizer, ModelConfig, RWKVTrainingPipeline, Trainer, TrainingConfig
from rwkvtune.checkpoint import read_checkpoint

STEPS = 120
WORKER = """
import os, signal, sys, warnings
from rwkvtune import RWKVTrainingPipeline

warnings.simplefilter("ignore")
steps, die_at_rename = int(sys.argv[2]), int(sys.argv[3])
renames = 0

def replace(source, target, real=os.replace):
    global renames
    renames += 1
    if renames == die_at_rename:
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)

os.replace = replace
pipe = RWKVTrainingPipeline(sys.argv[1])
going_on = (pipe.output_dir / "trainer_state.pth").exists()
result = pipe.train(max_steps=steps, continue_training=going_on)
sys.exit(130 if result["status"] == "interrupted" else 0)
"""


def prepare(directory):
    """A directory with prepared data and a configuration that saves often."""
    data = np.random.default_rng(0).integers(0, 20, (30, 40))
    model = ModelConfig(model_type="x070", n_layer=1, n_embd=32, ctx_len=16, head_size_a=32)
    training = TrainingConfig(
        precision="fp32", micro_bsz=4, lr_init=3e-3, save_every_steps=7, save_every_seconds=0, grad_cp=0
    )
    pipe = RWKVTrainingPipeline(
        directory, model, training, DataConfig(n_epochs_duplication=2, val_fraction=0.1), IntegerTokenizer(20)
    )
    pipe.prepare_data(data)
    return pipe


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The directory of a run that nothing happened to, and one prepared for others to copy."""
    root = tmp_path_factory.mktemp("reference")
    prepare(root / "fresh")
    shutil.copytree(root / "fresh", root / "done")
    assert RWKVTrainingPipeline(root / "done").train(max_steps=STEPS)["status"] == "finished"
    return root


@pytest.fixture
def work(reference, tmp_path):
    shutil.copytree(reference / "fresh", tmp_path / "work")
    return tmp_path / "work"


def start(directory, steps=STEPS, die_at_rename=0, **options):
    command = [sys.executable, "-c", WORKER, str(directory), str(steps), str(die_at_rename)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def rows(directory):
    try:
        return (directory / "out" / "loss.csv").read_text().count("\n") - 1
    except FileNotFoundError:
        return 0


def runs(directory):
    log = directory / "out" / "train_log.txt"
    return log.read_text().count("NEW RUN") if log.exists() else 0


def wait_for_rows(process, directory, count, run):
    """Until the run with this number has written so many rows, or is over."""
    end = time.monotonic() + 120
    while process.poll() is None and (runs(directory) < run or rows(directory) < count):
        assert time.monotonic() < end, "the run makes no progress"
        time.sleep(0.001)


def table(path, names):
    with open(path, newline="") as file:
        return [[row[name] for name in names] for row in csv.DictReader(file)]


def assert_same_run(directory, reference):
    """Weights, moments, position and curves of the two runs are equal."""
    done = reference / "done" / "out"
    out = directory / "out"
    for name in ("rwkv-final.pth", "trainer_state.pth", *(path.name for path in done.glob("rwkv-[0-9]*.pth"))):
        first, second = read_checkpoint(done / name), read_checkpoint(out / name)
        assert list(first) == list(second)
        for key in first:
            assert first[key].numpy().tobytes() == second[key].numpy().tobytes(), (name, key)
    for name, columns in (("loss.csv", ("step", "tokens", "loss", "lr", "grad_norm")), ("val.csv", ("step", "loss"))):
        assert table(done / name, columns) == table(out / name, columns)
    steps = [int(row[0]) for row in table(out / "loss.csv", ["step"])]
    assert steps == list(range(1, STEPS + 1))
    epochs = [
        [line.split()[:4] for line in (place / "train_log.txt").read_text().splitlines() if line[0].isdigit()]
        for place in (done, out)
    ]
    assert epochs[0] == epochs[1] and len(epochs[0]) > 2
    assert not list(out.glob(".*"))


def test_kill_at_random_moments(work, reference):
    chance = random.Random(1)
    kills, done = 0, 0
    for number in range(1, 31):
        process = start(work)
        wait_for_rows(process, work, done + chance.randint(2, 30), number)
        time.sleep(chance.random() * 0.01)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            break
        done = Trainer.resume(work / "out" / "trainer_state.pth").steps
    assert process.returncode == 0 and kills >= 3
    assert_same_run(work, reference)


def test_kill_before_every_rename(work, reference):
    """Each file appears by a rename; dying just before the n-th of a process covers every order of files on the disk."""
    deaths = 0
    for number in range(2, 60):
        process = start(work, die_at_rename=number)
        process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        deaths += 1
    assert process.returncode == 0 and deaths >= 5
    assert_same_run(work, reference)


def test_interrupt_saves_and_goes_on(work, reference):
    for run, number in enumerate((signal.SIGINT, signal.SIGTERM), 1):
        process = start(work)
        wait_for_rows(process, work, rows(work) + 8, run)
        process.send_signal(number)
        text, _ = process.communicate(timeout=60)
        assert process.returncode == 130, text
        assert "Stopped after step" in text and "continue_training=True" in text and "Traceback" not in text
        assert Trainer.resume(work / "out" / "trainer_state.pth").steps == rows(work)
    process = start(work)
    process.communicate()
    assert process.returncode == 0
    assert_same_run(work, reference)


def test_second_interrupt_stops_at_once(work, monkeypatch):
    pipe = RWKVTrainingPipeline(work)
    real = Trainer.step

    def step(self, *args, **options):
        if self.steps == 9:
            signal.raise_signal(signal.SIGINT)  # to this thread, so that two never arrive as one
            signal.raise_signal(signal.SIGINT)
        return real(self, *args, **options)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(KeyboardInterrupt):
        pipe.train(max_steps=STEPS)
    assert Trainer.resume(work / "out" / "trainer_state.pth").steps == 7
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_longer_run_after_a_finished_one(work):
    first = RWKVTrainingPipeline(work).train(num_epochs=2)
    again = RWKVTrainingPipeline(work).train(num_epochs=3, continue_training=True)
    assert again["steps"] > first["steps"] and again["status"] == "finished"
    assert RWKVTrainingPipeline(work).train(num_epochs=3, continue_training=True)["steps"] == again["steps"]


def test_resume_on_other_data_is_refused(work):
    RWKVTrainingPipeline(work).train(max_steps=5)
    pipe, other = RWKVTrainingPipeline(work), np.random.default_rng(1).integers(0, 20, (30, 40))
    with pytest.raises(RuntimeError, match="leave data out"):
        pipe.prepare_data(other)
    with pytest.raises(RuntimeError, match="leave data out"):
        pipe.train(other, max_steps=10, continue_training=True)
    assert RWKVTrainingPipeline(work).train(max_steps=10, continue_training=True)["steps"] == 10


def test_another_model_in_the_directory_of_a_run_is_refused(work):
    RWKVTrainingPipeline(work).train(max_steps=5)
    before = (work / "configs" / "config.json").read_bytes()
    with pytest.raises(ValueError, match="n_layer is 2, there 1"):
        RWKVTrainingPipeline(work, RWKVTrainingPipeline(work).model_config.replace(n_layer=2))
    assert (work / "configs" / "config.json").read_bytes() == before


def test_a_flipped_bit_in_the_state_is_noticed(work):
    RWKVTrainingPipeline(work).train(max_steps=5)
    state = work / "out" / "trainer_state.pth"
    damaged = bytearray(state.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    state.write_bytes(damaged)
    with pytest.raises(ValueError, match="checksum.*delete it"):
        RWKVTrainingPipeline(work).train(max_steps=10, continue_training=True)


def test_damaged_state_is_named(work):
    RWKVTrainingPipeline(work).train(max_steps=5)
    state = work / "out" / "trainer_state.pth"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(ValueError, match="trainer_state.pth.*delete it"):
        RWKVTrainingPipeline(work).train(max_steps=10, continue_training=True)


def test_full_disk_leaves_the_state_whole(work, reference):
    RWKVTrainingPipeline(work).train(max_steps=20)
    shutil.copytree(work, work.parent / "before")
    state = work / "out" / "trainer_state.pth"
    kept, limit = state.read_bytes(), state.stat().st_size // 2

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = start(work, preexec_fn=limited)
    text, _ = process.communicate()
    assert process.returncode == 1 and "OSError" in text
    assert "trainer_state.pth" in text.splitlines()[-1] and "too large" in text.splitlines()[-1]
    assert state.read_bytes() == kept
    assert sorted(path.name for path in state.parent.iterdir()) == sorted(
        path.name for path in (work.parent / "before" / "out").iterdir()
    )


@pytest.mark.skipif(
    shutil.which("mount") is None or os.geteuid() != 0, reason="needs the right to mount a small file system"
)
def test_disk_that_runs_full_while_training(work, reference):
    small = work.parent / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        shutil.copytree(work, small / "work")
        filler = small / "filler"
        assert start(small / "work", steps=20).wait() == 0
        free = shutil.disk_usage(small).free
        filler.write_bytes(bytes(max(0, free - 100_000)))
        process = start(small / "work")
        text, _ = process.communicate()
        assert process.returncode == 1 and "no space left" in text.splitlines()[-1]
        assert Trainer.resume(small / "work" / "out" / "trainer_state.pth").steps == 20
        filler.unlink()
        assert start(small / "work").wait() == 0
        shutil.copytree(small / "work", work.parent / "copy")
    finally:
        subprocess.run(["umount", small])
    final = Trainer.resume(work.parent / "copy" / "out" / "trainer_state.pth")
    assert final.steps == STEPS


def test_directory_that_cannot_be_written(work):
    """As an ordinary user: the error names the file, and the run is as it was."""
    RWKVTrainingPipeline(work).train(max_steps=10)
    place = Path(tempfile.mkdtemp())
    try:
        shutil.copytree(work, place / "work")
        out = place / "work" / "out"
        kept = {path.name: path.read_bytes() for path in out.iterdir()}
        for path in (place, place / "work", *(place / "work").rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)
        out.chmod(0o555)
        code = WORKER.replace("pipe =", "import rwkvtune.pipeline, rwkvtune.checkpoint.pth, rwkvtune.data.binidx, tqdm.auto\n"
                              "if os.geteuid() == 0: os.setuid(65534)\npipe =")  # fmt: skip
        process = subprocess.run(
            [sys.executable, "-c", code, str(place / "work"), str(STEPS), "0"], capture_output=True, text=True
        )
        assert process.returncode == 1
        assert "PermissionError" in process.stderr and str(out) in process.stderr.splitlines()[-1]
        assert {path.name: path.read_bytes() for path in out.iterdir()} == kept
    finally:
        shutil.rmtree(place, ignore_errors=True)


def test_config_of_a_run_is_readable_json(work):
    RWKVTrainingPipeline(work).train(max_steps=3)
    stored = json.loads((work / "configs" / "config.json").read_text())
    assert stored["training"]["lr_init"] == 3e-3 and stored["data_state"]["validation"] is True
