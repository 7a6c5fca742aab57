"""A file under its name is always a whole one: `atomic_write`."""

import errno
import os
import stat
import subprocess
import sys

import pytest

from rwkvtune.atomic import atomic_write


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_new_file_appears_at_the_end_only(tmp_path):
    path = tmp_path / "a.bin"
    with atomic_write(path) as file:
        file.write(b"123")
        assert not path.exists()
        assert len(names(tmp_path)) == 1
    assert path.read_bytes() == b"123"
    assert names(tmp_path) == ["a.bin"]


def test_temporary_name_matches_no_checkpoint_pattern(tmp_path):
    with atomic_write(tmp_path / "rwkv-1.pth"):
        assert not list(tmp_path.glob("rwkv-*")) and not list(tmp_path.glob("*.pth"))


def test_text_is_utf8_with_the_line_ends_given(tmp_path):
    with atomic_write(tmp_path / "a.txt", "w") as file:
        file.write("é\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\n"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"new and longer")
        raise error("stop")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_mode_of_an_existing_file_is_kept_and_a_new_one_obeys_umask(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"")
    old.chmod(0o640)
    before = os.umask(0o027)
    try:
        for path in (old, new):
            with atomic_write(path) as file:
                file.write(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    assert stat.S_IMODE(new.stat().st_mode) == 0o640  # 0666 without 027


def test_a_link_stays_a_link(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with atomic_write(link) as file:
        file.write(b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"


def test_missing_directory_is_named_with_advice(tmp_path):
    path = tmp_path / "nowhere" / "a.bin"
    with pytest.raises(FileNotFoundError, match="create it first") as caught, atomic_write(path):
        pass
    assert str(path) in str(caught.value)


def test_a_directory_or_device_is_not_replaced(tmp_path):
    with pytest.raises(IsADirectoryError, match="name of a file"), atomic_write(tmp_path):
        pass
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(OSError, match="not|Invalid"), atomic_write(fifo):
        pass
    assert stat.S_ISFIFO(fifo.stat().st_mode)


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (errno.ENOSPC, OSError, "no space left"),
        (errno.EROFS, OSError, "read-only"),
        (errno.EACCES, PermissionError, "no permission"),
        (errno.EDQUOT, OSError, "quota"),
        (errno.EIO, OSError, "input/output"),
    ],
)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_errors_of_the_disk_name_the_path_and_what_to_do(tmp_path, monkeypatch, number, kind, text, step):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(*_args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(kind, match=text) as caught, atomic_write(path) as file:
        file.write(b"new")
    assert caught.value.errno == number and str(path) in str(caught.value)
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_an_error_about_another_file_stays_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "a.bin"):
        open(tmp_path / "input")
    assert caught.value.filename == str(tmp_path / "input")
    assert names(tmp_path) == []


def test_a_full_disk_while_writing_weights(tmp_path):
    """A limit on the file size stands for a disk that fills up in the middle."""
    path = tmp_path / "a.pth"
    path.write_bytes(b"old")
    program = f"""
import resource, numpy
from rwkvtune.checkpoint import write_pth, write_safetensors
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
for writer in (write_pth, write_safetensors):
    try:
        writer({str(path)!r}, {{"x": numpy.zeros(1 << 20, "f4")}})
    except OSError as error:
        print("cannot write {path}" in str(error), "too large" in str(error))
"""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert run.stdout.split() == ["True"] * 4, run.stderr
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.pth"]


def test_unknown_mode(tmp_path):
    with pytest.raises(ValueError, match="'rb'"), atomic_write(tmp_path / "a", "rb"):
        pass
