"""bin/idx files: the builder's bytes, every check of the reader, and that a failed writer leaves nothing behind."""

import gc
import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest

from rwkvtune.data import BinIdxBuilder, BinIdxDataset, MagicPrimeSampler
from rwkvtune.errors import FormatError

EXAMPLE_BIN = bytes.fromhex("020003000400000001000000")
EXAMPLE_IDX = bytes.fromhex(
    "4d4d4944494458000001000000000000000802000000000000000300000000000000" "0400000002000000"
    "00000000000000000800000000000000" "000000000000000001000000000000000200000000000000"
)  # fmt: skip


def slow_index(sizes, docs, code=8, width=2):
    """The index's bytes from its description."""
    offsets = np.cumsum([0, *sizes])[:-1] * width
    return (b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(sizes), len(docs)) + np.array(sizes, "<i4").tobytes()
            + np.array(offsets, "<i8").tobytes() + np.array(docs, "<i8").tobytes())  # fmt: skip


def put(tmp_path, idx, data=b""):
    (tmp_path / "d.idx").write_bytes(idx)
    (tmp_path / "d.bin").write_bytes(data)
    return tmp_path / "d"


def test_example_bytes(tmp_path):
    with BinIdxBuilder(tmp_path / "d") as builder:
        for document in ([2, 3, 4, 0], [1, 0]):
            builder.add_item(document)
            builder.end_document()
    assert (tmp_path / "d.bin").read_bytes() == EXAMPLE_BIN
    assert (tmp_path / "d.idx").read_bytes() == EXAMPLE_IDX
    assert sorted(os.listdir(tmp_path)) == ["d.bin", "d.idx"]


def test_reference_files_rebuilt(shared, tmp_path):
    folder = shared / "golden/dev/train"
    with BinIdxDataset(folder / "dev_data") as dataset, BinIdxBuilder(tmp_path / "copy") as builder:
        assert dataset.num_items == len(dataset) == 100 and dataset.total_tokens == 10307 and dataset.dtype == np.uint16
        reference = np.load(folder / "dataset.npz")
        assert np.array_equal(dataset.stream(), reference["tokens"])
        assert np.array_equal(dataset.sizes, reference["doc_sizes"])
        assert np.array_equal(dataset.documents, np.arange(101))
        for item in dataset:
            builder.add_item(item)
            builder.end_document()
    for ending in (".bin", ".idx"):
        assert (tmp_path / f"copy{ending}").read_bytes() == (folder / f"dev_data{ending}").read_bytes()


@pytest.mark.parametrize("dtype, code", [("u1", 1), ("i1", 2), ("i2", 3), ("i4", 4), ("i8", 5), ("u2", 8)])
def test_dtypes(tmp_path, dtype, code):
    rng = np.random.default_rng(code)
    items = [rng.integers(0, 100, size=n).astype(dtype) for n in (3, 0, 10000, 1)]
    with BinIdxBuilder(tmp_path / "a.b", dtype) as builder:
        for item in items[:3]:
            builder.add_item(item)
        builder.end_document()
        builder.end_document()
        builder.add_item(items[3].tolist())
        builder.end_document()
    assert (tmp_path / "a.b.idx").read_bytes() == slow_index(
        [3, 0, 10000, 1], [0, 3, 3, 4], code, np.dtype(dtype).itemsize
    )
    dataset = BinIdxDataset(str(tmp_path / "a.b"))
    assert dataset.dtype == dtype and [item.tolist() for item in dataset] == [item.tolist() for item in items]
    ids, _ = MagicPrimeSampler(dataset.total_tokens, 100).batch(dataset, 0, 0, 5, vocab_size=100)
    assert ids.dtype == np.int32 and ids.min() >= 0 and ids.max() < 100


def test_get(tmp_path):
    dataset = BinIdxDataset(put(tmp_path, EXAMPLE_IDX, EXAMPLE_BIN))
    assert dataset[0].tolist() == [2, 3, 4, 0] and dataset[-1].tolist() == [1, 0] == dataset.get(1).tolist()
    assert dataset.get(0, 2).tolist() == [4, 0] and dataset.get(0, 1, 4).tolist() == [3, 4, 0, 1]
    assert dataset.get(0, 5, 1).tolist() == [0] and dataset.get(0, 4).tolist() == [] and dataset.get(1, 0, 0).size == 0
    for i in (2, -3):
        with pytest.raises(IndexError):
            dataset.get(i)
    for arguments in ((0, -1), (0, 0, -1), (0, 0, 7), (1, 3), (1, 0, 2**63)):
        with pytest.raises(ValueError):
            dataset.get(*arguments)
    assert dataset.stream(3, 2).tolist() == [0, 1] and dataset.stream(6).size == 0
    with pytest.raises(ValueError):
        dataset.stream(7)
    assert "2 sequences, 6 tokens, uint16" in repr(dataset)


def test_arrays_are_read_only_and_outlive_the_data_set(tmp_path):
    with BinIdxDataset(put(tmp_path, EXAMPLE_IDX, EXAMPLE_BIN)) as dataset:
        array = dataset[0]
        assert pickle.loads(pickle.dumps(dataset))[1].tolist() == [1, 0]
    with pytest.raises(ValueError, match="closed"):
        dataset.get(0)
    del dataset
    gc.collect()
    assert array.tolist() == [2, 3, 4, 0]
    with pytest.raises(ValueError):
        array[0] = 1


def change(data, at, fmt, value):
    return data[:at] + struct.pack(fmt, value) + data[at + struct.calcsize(fmt) :]


BIG = 2**64 - 1
BAD = {
    "empty": (b"", "cut short"),
    "header cut": (EXAMPLE_IDX[:33], "cut short"),
    "magic": (b"X" + EXAMPLE_IDX[1:], "does not begin with MMIDIDX"),
    "magic's end": (change(EXAMPLE_IDX, 8, "<B", 1), "does not begin"),
    "version": (change(EXAMPLE_IDX, 9, "<Q", 2), "version 2 at byte 9"),
    "dtype 0": (change(EXAMPLE_IDX, 17, "<B", 0), "dtype code 0 at byte 17"),
    "dtype 6": (change(EXAMPLE_IDX, 17, "<B", 6), "float64"),
    "dtype 7": (change(EXAMPLE_IDX, 17, "<B", 7), "float64"),
    "dtype 9": (change(EXAMPLE_IDX, 17, "<B", 9), "dtype code 9"),
    "dtype 255": (change(EXAMPLE_IDX, 17, "<B", 255), "dtype code 255"),
    "dtype of another width": (change(EXAMPLE_IDX, 17, "<B", 4), "sequence 0 ends at byte 16"),
    "more items": (change(EXAMPLE_IDX, 18, "<Q", 3), "does not fit"),
    "huge items": (change(EXAMPLE_IDX, 18, "<Q", BIG), "does not fit"),
    "overflowing items": (change(EXAMPLE_IDX, 18, "<Q", BIG // 12 + 1), "does not fit"),
    "huge docs": (change(EXAMPLE_IDX, 26, "<Q", BIG), "does not fit"),
    "overflowing docs": (change(EXAMPLE_IDX, 26, "<Q", 3 + 2**61), "does not fit"),
    "cut": (EXAMPLE_IDX[:-1], "does not fit"),
    "longer": (EXAMPLE_IDX + b"\0" * 8, "does not fit"),
    "longer by a byte": (EXAMPLE_IDX + b"\0", "does not fit"),
    "negative length": (change(EXAMPLE_IDX, 34, "<i", -1), "sequence 0 has length -1"),
    "length beyond the file": (change(EXAMPLE_IDX, 38, "<i", 2**31 - 1), "has 12 bytes, but sequence 1"),
    "length too short": (change(EXAMPLE_IDX, 38, "<i", 1), "not of one pair"),
    "offset": (change(EXAMPLE_IDX, 50, "<q", 6), "sequence 1 starts at byte 6"),
    "negative offset": (change(EXAMPLE_IDX, 42, "<q", -8), "sequence 0 starts at byte -8"),
    "document too far": (change(EXAMPLE_IDX, 74, "<q", 3), "document entry 2 is 3"),
    "negative document": (change(EXAMPLE_IDX, 58, "<q", -1), "document entry 0 is -1"),
    "documents back": (change(EXAMPLE_IDX, 58, "<q", 2), "document entry 1 is 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_index(tmp_path, name):
    idx, message = BAD[name]
    with pytest.raises(FormatError, match=message) as error:
        BinIdxDataset(put(tmp_path, idx, EXAMPLE_BIN))
    assert str(tmp_path / "d") in str(error.value)


def test_bad_bin(tmp_path):
    for data in (b"", EXAMPLE_BIN[:-1], EXAMPLE_BIN[:-2], EXAMPLE_BIN + b"\0\0", EXAMPLE_BIN + b"\0"):
        with pytest.raises(FormatError, match="d.bin has"):
            BinIdxDataset(put(tmp_path, EXAMPLE_IDX, data))
    assert len(BinIdxDataset(put(tmp_path, slow_index([], [0])))) == 0
    assert BinIdxDataset(put(tmp_path, slow_index([0, 0], []))).total_tokens == 0


def test_missing(tmp_path):
    for ending in (".idx", ".bin"):
        put(tmp_path, EXAMPLE_IDX, EXAMPLE_BIN)
        (tmp_path / f"d{ending}").unlink()
        with pytest.raises(FileNotFoundError) as error:
            BinIdxDataset(tmp_path / "d")
        assert f"d{ending}" in str(error.value)


@pytest.mark.parametrize(
    "dtype, bad", [("i1", -1), ("i2", -2), ("i4", -3), ("i8", 2**40), ("i8", -1), ("i4", 7), ("u1", 7)]
)
def test_bad_tokens_are_found(tmp_path, dtype, bad):
    with BinIdxBuilder(tmp_path / "d", dtype) as builder:
        builder.add_item(np.array([1] * 20 + [bad] + [1] * 20, dtype))
    dataset = BinIdxDataset(tmp_path / "d")
    with pytest.raises(FormatError, match=f"token {bad} at position 20 is not from 0 to 6"):
        MagicPrimeSampler(41, 8, 5).batch(dataset, 0, 0, 5, vocab_size=7)
    if not 0 <= bad < 2**31:
        with pytest.raises(FormatError, match=f"token {bad} at position 20"):
            MagicPrimeSampler(41, 8, 5).batch(dataset, 0, 0, 5)


def test_copy_documents(tmp_path):
    """Documents that lie in a file: longer than one read, empty, and beyond its end."""
    tokens = np.arange(65536, dtype=np.uint16)
    (tmp_path / "tokens").write_bytes(tokens.tobytes())
    with open(tmp_path / "tokens", "rb") as file:
        with BinIdxBuilder(tmp_path / "a") as builder:
            builder.copy_documents(file, [0, 3, 3, 65536], [2, 1, 0])
        with BinIdxDataset(tmp_path / "a") as dataset:
            assert [item.tolist() for item in dataset] == [tokens[3:].tolist(), [], [0, 1, 2]]
        with pytest.raises(OSError, match=r"b\.bin: end of file"), BinIdxBuilder(tmp_path / "b") as builder:
            builder.copy_documents(file, [65535, 65537], [0])
        with pytest.raises(ValueError, match="order"), BinIdxBuilder(tmp_path / "b") as builder:
            builder.copy_documents(file, [0, 1], [1])
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.idx", "tokens"]


def test_builder_refuses(tmp_path):
    with pytest.raises(ValueError, match="float64"):
        BinIdxBuilder(tmp_path / "d", np.float64)
    builder = BinIdxBuilder(tmp_path / "d")
    for bad in ([65536], [-1], [1.5], ["a"]):
        with pytest.raises(ValueError, match="0 to 65535"):
            builder.add_item(bad)
    builder.add_item(np.array([[1, 2]], np.int64)[:, ::-1])
    builder.add_documents([5, 6, 7], [0, 1, 3], [1, 0, 1])
    with pytest.raises(ValueError, match=r"order\[1\] is 2"):
        builder.add_documents([5, 6, 7], [0, 1, 3], [0, 2])
    with pytest.raises(ValueError, match="tokens 0 to 4 of 3"):
        builder.add_documents([5, 6, 7], [0, 4], [0])
    builder.finalize()
    with pytest.raises(ValueError, match="closed"):
        builder.add_item([1])
    assert [item.tolist() for item in BinIdxDataset(tmp_path / "d")] == [[2, 1], [6, 7], [5], [6, 7], [5]]


def test_unfinished_writers_leave_the_old_files(tmp_path):
    put(tmp_path, EXAMPLE_IDX, EXAMPLE_BIN)
    with pytest.raises(KeyError), BinIdxBuilder(tmp_path / "d") as builder:
        builder.add_item([9] * 100000)
        raise KeyError
    builder = BinIdxBuilder(tmp_path / "d")
    builder.add_item([9])
    del builder
    gc.collect()
    assert sorted(os.listdir(tmp_path)) == ["d.bin", "d.idx"]
    assert (tmp_path / "d.bin").read_bytes() == EXAMPLE_BIN and (tmp_path / "d.idx").read_bytes() == EXAMPLE_IDX


def test_two_writers_of_one_name(tmp_path):
    first, second = BinIdxBuilder(tmp_path / "d"), BinIdxBuilder(tmp_path / "d")
    first.add_item([1])
    second.add_item([2])
    first.finalize()
    second.finalize()
    assert BinIdxDataset(tmp_path / "d")[0].tolist() == [2]
    assert sorted(os.listdir(tmp_path)) == ["d.bin", "d.idx"]


def test_usual_permissions(tmp_path):
    old = os.umask(0o027)
    try:
        with BinIdxBuilder(tmp_path / "d") as builder:
            builder.add_item([1])
    finally:
        os.umask(old)
    assert os.stat(tmp_path / "d.bin").st_mode & 0o777 == os.stat(tmp_path / "d.idx").st_mode & 0o777 == 0o640


def test_cannot_write(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        BinIdxBuilder(tmp_path / "nowhere" / "d")
    (tmp_path / "e.idx").mkdir()
    with pytest.raises(OSError, match="e.idx"):
        BinIdxBuilder(tmp_path / "e")
    assert os.listdir(tmp_path) == ["e.idx"]


LIMITED = """
import resource, signal, sys
from rwkvtune.data import BinIdxBuilder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))
try:
    with BinIdxBuilder(sys.argv[1]) as builder:
        for _ in range(100):
            builder.add_item([9] * 1000)
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits")
def test_full_disk(tmp_path):
    """A write that the system cuts short (a limit on the size of files stands for the full disk)."""
    put(tmp_path, EXAMPLE_IDX, EXAMPLE_BIN)
    run = subprocess.run([sys.executable, "-c", LIMITED, tmp_path / "d"], check=False, capture_output=True, text=True,
                         env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert f"cannot write {tmp_path / 'd'}.bin: " in run.stdout, run.stderr
    assert sorted(os.listdir(tmp_path)) == ["d.bin", "d.idx"]
    assert (tmp_path / "d.bin").read_bytes() == EXAMPLE_BIN and (tmp_path / "d.idx").read_bytes() == EXAMPLE_IDX


def test_many_items(tmp_path):
    """More sequences than the writer's buffers hold."""
    sizes = np.arange(20000) % 7
    with BinIdxBuilder(tmp_path / "d") as builder:
        tokens = np.arange(sizes.sum(), dtype=np.uint16)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        builder.add_documents(tokens, starts, np.arange(20000))
    assert (tmp_path / "d.idx").read_bytes() == slow_index(sizes, range(20001))
    assert (tmp_path / "d.bin").read_bytes() == tokens.tobytes()
