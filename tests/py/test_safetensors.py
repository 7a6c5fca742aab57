"""The safetensors container: our reader and writer, against themselves, the format and its own package."""

import json
import random

import numpy as np
import pytest

from rwkvtune.checkpoint import bfloat16_tensor, read_checkpoint, read_safetensors, write_pth, write_safetensors
from rwkvtune.errors import FormatError


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((3, 4))
    kinds = ("f2", "i1", "f8", "u1", "f4", "i2", "u8", "i4", "u2", "i8", "u4", "c8", "?")
    result = {f"t.{kind}": (numbers.real * 3).astype(kind) for kind in kinds}
    return result | {"scalar": np.float32(2), "empty": np.zeros((0, 3), "f4"), "turned": numbers.T.astype("f4")}


def test_round_trip(tmp_path, tensors):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, tensors)
    checkpoint = read_checkpoint(path)
    assert checkpoint.container == "safetensors" and list(checkpoint) == list(tensors)
    for name, wanted in tensors.items():
        array = checkpoint[name].numpy()
        assert array.dtype == wanted.dtype and np.array_equal(array, wanted)
        assert checkpoint[name].raw().flags.aligned


def test_conversion_and_bfloat16(tmp_path, tensors):
    path = tmp_path / "a.safetensors"
    bits = np.arange(1 << 16, dtype=np.uint16)
    write_safetensors(path, tensors | {"bits": bfloat16_tensor(bits)}, "bf16")
    checkpoint = read_safetensors(path)
    assert np.array_equal(checkpoint["bits"].raw(), bits)
    assert checkpoint.dtypes["t.f8"] == "bfloat16" and checkpoint.dtypes["t.i4"] == "int32"
    write_pth(tmp_path / "b.pth", {name: checkpoint[name] for name in ("bits", "t.f8", "t.i4")})
    assert np.array_equal(read_checkpoint(tmp_path / "b.pth")["bits"].raw(), bits)


def test_the_package_reads_ours(tmp_path, tensors):
    package = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "a.safetensors"
    write_safetensors(path, tensors, metadata={"format": "pt", "made by": "a test"})
    loaded = package.load_file(path)
    assert set(loaded) == set(tensors)
    for name, wanted in tensors.items():
        assert loaded[name].dtype == wanted.dtype and np.array_equal(loaded[name], wanted)
    with pytest.importorskip("safetensors").safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt", "made by": "a test"}


def test_we_read_the_package(tmp_path, tensors):
    package = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "a.safetensors"
    package.save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
    checkpoint = read_safetensors(path)
    assert set(checkpoint) == set(tensors)
    for name, wanted in tensors.items():
        assert np.array_equal(checkpoint[name].numpy().reshape(np.shape(wanted)), wanted)


def test_prefixes(tmp_path):
    write_safetensors(tmp_path / "a", {"model.x": np.zeros(1, "f4")})
    assert list(read_checkpoint(tmp_path / "a")) == ["x"]
    assert list(read_safetensors(tmp_path / "a", strip_prefixes=False)) == ["model.x"]


@pytest.mark.parametrize(
    ("tensors", "options", "error"),
    [
        ({}, {}, ValueError),
        ({"x": np.zeros(1, "f4")}, {"dtype": "int8"}, ValueError),
        ({"x": np.zeros(1, "c16")}, {}, TypeError),
        ({"__metadata__": np.zeros(1, "f4")}, {}, TypeError),
        ({1: np.zeros(1, "f4")}, {}, TypeError),
        ({"x": np.zeros(1, "f4")}, {"metadata": {"a": 1}}, TypeError),
        ({"x": np.full(1, 1e6, "f4")}, {"dtype": "fp16"}, ValueError),
    ],
)
def test_what_cannot_be_written(tmp_path, tensors, options, error):
    with pytest.raises(error):
        write_safetensors(tmp_path / "a", tensors, **options)
    assert not list(tmp_path.iterdir())


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)} | more


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ({}, "no tensors"),
        ({"__metadata__": {"a": "b"}}, "no tensors"),
        ({"x": entry(dtype="F31")}, "'F31' is unknown"),
        ({"x": entry(dtype=None)}, "unknown"),
        ({"x": entry(shape=(3,))}, "8 bytes for shape (3,)"),
        ({"x": entry(shape=(-2,))}, "non-negative"),
        ({"x": entry(shape=(2.0,))}, "non-negative"),
        ({"x": entry(shape=(True, 2))}, "non-negative"),
        ({"x": entry(shape=(1 << 60,))}, "non-negative"),
        ({"x": entry(shape=(1 << 40, 1 << 40, 0), offsets=(0, 0))}, "impossible"),
        ({"x": entry(shape=(1,) * 33)}, "impossible"),
        ({"x": entry(offsets=(0, 8, 8))}, "impossible"),
        ({"x": entry(offsets=(8, 0))}, "-8 bytes"),
        ({"x": entry(offsets=(4, 12))}, "gap"),
        ({"x": entry(offsets=(0, 16), shape=(4,))}, "cut off"),
        ({"x": entry(shape=(1,), offsets=(0, 4))}, "the file has 8"),
        ({"x": entry(), "y": entry()}, "overlap"),
        ({"x": entry(), "model.x": entry(shape=(0,), offsets=(8, 8))}, "two tensors"),
        ({"x": entry(extra=1)}, "exactly"),
        ({"x": [1]}, "exactly"),
        (b'{"x": 1, "x": 2}', "twice"),
        (b'{"x": ', "damaged"),
        (b"{" + b'"a":[' * 5000, "damaged"),
        (b'{"x": ' + b"9" * 5000 + b"}", "damaged"),
        (b'{"\xff": 1}', "damaged"),
    ],
)
def test_headers_that_lie(tmp_path, header, word):
    path = tmp_path / "a.safetensors"
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(FormatError) as caught:
        read_safetensors(path)
    assert word in str(caught.value) and str(path) in str(caught.value)


def test_damaged_files(tmp_path, tensors):
    """Every truncation is noticed; changed bytes give a FormatError or arrays."""
    path = tmp_path / "a"
    write_safetensors(path, tensors)
    good = path.read_bytes()
    for length in range(0, len(good), 5):
        path.write_bytes(good[:length])
        with pytest.raises(FormatError):
            read_safetensors(path)
    rng, accepted = random.Random(0), 0
    for _ in range(1500):
        data = bytearray(good)
        data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            for value in read_safetensors(path).values():
                value.raw()
            accepted += 1
        except FormatError as error:
            assert str(path) in str(error)
    assert 0 < accepted < 1500
