"""The quickstart on a small text: it learns, measures honestly, goes on where it was, and knows when it is done."""

import gzip
import json
import lzma
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from rwkvtune import RWKV, GenericTokenizer, evaluate
from rwkvtune.cli import main
from rwkvtune.cli.quickstart import compressed_bits, source_text

TEXT = "\n\n".join(
    f"The {n}th paragraph of this text says once more that {n} and {n} make {2 * n}, and nothing besides." * 3
    for n in range(300)
)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def argv(place, *more):
    return ["quickstart", str(place / "text.txt"), "--work_dir", str(place / "run"), "--steps", "40", "--n_layer", "1", "--n_embd", "64", "--ctx_len",
            "32", "--micro_bsz", "8", "--max_new_tokens", "20", *more]  # fmt: skip


def bits_of(text):
    return [float(number) for number in re.findall(r"^  \S.* (\d+\.\d{3})$", text, re.MULTILINE)]


def test_first_run_second_run_fresh_run(place, capsys):
    assert main(argv(place)) == 0
    first = capsys.readouterr().out
    out = place / "run" / "out"
    for name in ("rwkv-init.pth", "rwkv-final.pth", "train_log.txt", "loss.csv", "val.csv", "trainer_state.pth"):
        assert (out / name).exists(), name
    ours, gzipped, xzed = bits_of(first)
    assert ours < 4 and "rwkvtune generate" in first
    assert main(argv(place)) == 0
    second = capsys.readouterr().out
    assert "finished run of 40 steps" in second and "--fresh" in second
    assert bits_of(second) == [ours, gzipped, xzed]
    (place / "text.txt").write_text(TEXT.upper())
    assert main(argv(place)) == 2
    assert "another text; add --fresh" in capsys.readouterr().err
    assert main(argv(place, "--fresh")) == 0
    assert bits_of(capsys.readouterr().out)[0] != ours


def test_fewer_steps_than_done_and_other_sizes(place, capsys):
    assert main(argv(place, "--steps", "6", "--n_embd", "48")) == 0
    assert RWKV.load(place / "run" / "out" / "rwkv-final.pth").config.head_size_a == 16
    before = (place / "run" / "out" / "rwkv-final.pth").read_bytes()
    capsys.readouterr()
    assert main(argv(place, "--steps", "5", "--n_embd", "48")) == 2
    error = capsys.readouterr().err
    assert "holds a run of 6 steps, more than --steps 5" in error and "--fresh" in error
    assert main(argv(place, "--steps", "6")) == 2
    assert "another model" in capsys.readouterr().err
    assert (place / "run" / "out" / "rwkv-final.pth").read_bytes() == before
    for name, value, words in (("n_embd", "33", "multiple of 16"), ("n_embd", "0", "at least 16"), ("steps", "0", "at least 1")):
        assert main(argv(place, f"--{name}", value)) == 2
        assert words in capsys.readouterr().err


def test_bits_per_byte_are_those_of_the_text(place, capsys):
    """The reported number, computed again from the files alone."""
    assert main(argv(place)) == 0
    reported = bits_of(capsys.readouterr().out)
    data = place / "run" / "data"
    lines = [(data / f"{name}.jsonl").read_text().splitlines() for name in ("train", "val")]
    train, held = ([json.loads(line)["text"] for line in part] for part in lines)
    assert "\n\n".join(train + held) == TEXT
    assert 0.03 < len("\n\n".join(held)) / len(TEXT) < 0.08
    tokenizer = GenericTokenizer(str(data / "vocab.txt"))
    streams = [
        [token for document in documents for token in [*tokenizer.encode(document), 0]] for documents in (train, held)
    ]
    loss, count = evaluate(RWKV.load(place / "run" / "out" / "rwkv-final.pth"), streams[1], context=streams[0][-4096:])
    size = len("\n\n".join(held).encode())
    assert reported[0] == pytest.approx(loss * count / size / 0.6931471805599453, abs=6e-4)
    before, after = (part.encode() for part in ("\n\n".join(train) + "\n\n", "\n\n".join(train + held)))
    assert reported[1] == pytest.approx(
        8 * (len(gzip.compress(after, 9)) - len(gzip.compress(before, 9))) / size, abs=6e-4
    )
    assert reported[2] == pytest.approx(
        8 * (len(lzma.compress(after, preset=9)) - len(lzma.compress(before, preset=9))) / size, abs=6e-4
    )


def test_interrupted_and_repeated(place):
    command = [sys.executable, "-m", "rwkvtune", *argv(place, "--steps", "400")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log, end = place / "run" / "out" / "loss.csv", time.monotonic() + 60
    while not log.exists() or log.read_text().count("\n") < 10:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command" in text and "Traceback" not in text
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and "Going on after step" in again.stdout
    assert [line.split(",")[0] for line in log.read_text().splitlines()[1:]] == [str(n) for n in range(1, 401)]


def test_fresh_deletes_only_its_own_files(place, capsys):
    (place / "run" / "out").mkdir(parents=True)
    (place / "run" / "out" / "rwkv-final.pth").write_text("somebody's")
    (place / "run" / "notes.txt").write_text("mine")
    main(argv(place, "--fresh", "--steps", "1"))
    assert (place / "run" / "notes.txt").read_text() == "mine"


def test_texts(place, capsys):
    text, name = source_text("")
    assert len(text) > 100_000 and "reference" in name and source_text("")[0] == text
    assert source_text(str(place / "text.txt"))[0] == TEXT
    (place / "latin").write_bytes(b"\xff\xfe\xfa" * 99)
    (place / "short").write_text("Too short.")
    for word, message in (("nowhere", "text not found"), ("latin", "UTF-8"), ("short", "at least 20")):
        assert main(["quickstart", str(place / word), "--work_dir", str(place / "x")]) == 2
        assert message in capsys.readouterr().err


def test_compressors_see_the_training_text():
    first = bytes(range(256)) * 8
    rates = list(compressed_bits(first, first).values())
    alone = 8 * len(gzip.compress(first, 9)) / len(first)
    assert all(rate < alone / 2 for rate in rates)
