"""Reading what torch wrote and writing what torch reads, without torch.

The files in tests/corpora/pth were written by torch 2.13 (make.py there says how).
"""

import io
import pickletools
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from rwkvtune.checkpoint import (
    bfloat16_tensor,
    load_state_dict,
    read_checkpoint,
    read_pth,
    write_pth,
)
from rwkvtune.checkpoint.lazy_tensor import round_to_bfloat16, strip_prefix, widen_bfloat16
from rwkvtune.errors import FormatError

CORPUS = Path(__file__).parents[1] / "corpora" / "pth"
CONTAINERS = {"zip": "zip", "zip_protocol5": "zip", "zip_without_checksums": "zip", "legacy": "legacy"}


@pytest.fixture(scope="module")
def expected():
    with np.load(CORPUS / "expected.npz") as file:
        return {name: file[name] for name in file.files}


def assert_same(array, wanted):
    assert array.shape == wanted.shape and array.dtype == wanted.dtype
    assert np.array_equal(array, wanted)


# Reading.


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_dtype_and_view_of_torch(name, expected):
    checkpoint = read_pth(CORPUS / f"{name}.pth")
    assert checkpoint.container == CONTAINERS[name]
    assert list(checkpoint) == list(expected)
    for key, wanted in expected.items():
        assert_same(checkpoint[key].numpy(), wanted)
        assert checkpoint.shapes[key] == wanted.shape
        assert checkpoint.dtypes[key] == {"bfloat16": "bfloat16"}.get(key, wanted.dtype.name)


@pytest.mark.parametrize("name", ["zip_ordered", "zip_plain", "legacy"])
def test_reference_files(name, shared):
    folder = shared / "golden" / "dev" / "pth"
    with np.load(folder / "expected.npz") as wanted:
        checkpoint = read_pth(folder / f"{name}.pth")
        assert set(checkpoint) == set(wanted.files)
        for key in wanted.files:
            assert_same(checkpoint[key].numpy(), wanted[key])


def test_reference_nested_and_prefixed(shared):
    folder = shared / "golden" / "dev" / "pth"
    assert read_pth(folder / "nested.pth").shapes == {"x": (6, 8)}
    prefixed = folder / "forward_module_prefix.pth"
    assert list(read_pth(prefixed)) == ["emb.weight", "head.weight"]
    assert list(read_pth(prefixed, strip_prefixes=False)) == [
        f"_forward_module.{n}" for n in ("emb.weight", "head.weight")
    ]


def test_nested_dict_with_values_that_are_no_tensors(expected):
    checkpoint = read_pth(CORPUS / "nested.pth")
    assert list(checkpoint) == ["float32", "bfloat16"]
    assert_same(checkpoint["bfloat16"].numpy(), expected["bfloat16"])


def test_float8_is_listed_and_its_conversion_refused(expected):
    checkpoint = read_pth(CORPUS / "float8.pth")
    assert checkpoint.dtypes == {"float8": "float8_e4m3fn", "float32": "float32"}
    assert checkpoint["float8"].raw().tolist() == [0x38] * 4
    with pytest.raises(FormatError, match="float8_e4m3fn"):
        checkpoint["float8"].numpy()


def test_lazy_conjugate_is_refused_with_the_remedy():
    with pytest.raises(FormatError, match="resolve_conj"):
        read_pth(CORPUS / "conjugate.pth")


def test_arrays_are_views_of_the_file_and_outlive_the_checkpoint(expected):
    checkpoint = read_pth(CORPUS / "zip.pth")
    first, second = checkpoint["float32"].numpy(), checkpoint["float32"].raw()
    assert np.shares_memory(first, second) and not first.flags.writeable
    assert np.shares_memory(checkpoint["shared_a"].raw(), checkpoint["shared_b"].raw())
    assert checkpoint["transposed"].strides == (1, 8)
    del checkpoint
    assert_same(first, expected["float32"])


def test_conversion_of_dtypes(expected):
    checkpoint = read_pth(CORPUS / "zip.pth")
    for name in ("float16", "bfloat16", "float64", "int32", "bool"):
        assert_same(checkpoint[name].numpy("float32"), expected[name].astype("float32"))
    assert_same(np.asarray(checkpoint["float16"]), expected["float16"])
    assert checkpoint["bfloat16"].raw().dtype == np.uint16
    with pytest.raises(TypeError):
        checkpoint["float32"].numpy("int32")


def test_load_state_dict(expected):
    arrays = load_state_dict(CORPUS / "legacy.pth")
    for name, array in arrays.items():
        assert_same(array, expected[name])
    assert load_state_dict(CORPUS / "zip.pth", "float32")["float64"].dtype == np.float32
    assert load_state_dict(CORPUS / "zip.pth", "float32")["int8"].dtype == np.int8


def test_prefixes():
    assert strip_prefix("_forward_module.model.blocks.0.att.w0") == "blocks.0.att.w0"
    assert strip_prefix("module.module.x") == "x"
    assert strip_prefix("blocks.0.model.x") == "blocks.0.model.x"
    assert strip_prefix("model.") == "model."


# Writing.


@pytest.fixture
def tensors(expected):
    """What can be written: everything but the unsigned integers that torch has no storage for."""
    kept = {name: value for name, value in expected.items() if name not in ("uint16", "uint32", "uint64")}
    rng = np.random.default_rng(0)
    kept["backwards"] = rng.standard_normal((300, 7)).astype("f4")[::-1, ::2]
    kept["big_endian"] = np.arange(5, dtype=">f4")
    kept["more_than_a_chunk"] = rng.standard_normal((1 << 20) + 3).astype("f4")
    kept["ñame with spaces"] = np.zeros((1, 1, 4), "f2")
    return kept


@pytest.mark.parametrize("dtype", [None, "fp32", "fp16", "bf16"])
def test_round_trip(tmp_path, tensors, dtype):
    path = tmp_path / "a.pth"
    write_pth(path, tensors, dtype)
    checkpoint = read_checkpoint(path)
    assert list(checkpoint) == list(tensors)
    for name, wanted in tensors.items():
        wanted = wanted.astype(wanted.dtype.newbyteorder("="))
        if dtype and wanted.dtype.kind == "f":
            assert checkpoint.dtypes[name] == {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[dtype]
            if dtype == "bf16":
                wanted = widen_bfloat16(round_to_bfloat16(wanted.reshape(-1).astype("f4"))).reshape(wanted.shape)
            else:
                wanted = wanted.astype({"fp32": "f4", "fp16": "f2"}[dtype])
        assert_same(checkpoint[name].numpy(), wanted)


def test_bfloat16_passes_through_without_a_change(tmp_path):
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 1, 256)  # every number there is, each NaN included
    write_pth(tmp_path / "a.pth", {"bits": bfloat16_tensor(bits), "turned": bfloat16_tensor(bits.T)})
    checkpoint = read_pth(tmp_path / "a.pth")
    assert np.array_equal(checkpoint["bits"].raw(), bits)
    assert np.array_equal(checkpoint["turned"].raw(), bits.T)
    write_pth(tmp_path / "b.pth", checkpoint)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    write_pth(tmp_path / "c.pth", {"bits": checkpoint["bits"]}, "fp32")
    back = read_pth(tmp_path / "c.pth")["bits"].numpy()
    assert np.array_equal(back.view(np.uint32), bits.astype(np.uint32) << 16)


def test_rounding_to_bfloat16():
    def rounded(*values, dtype="f4"):
        return widen_bfloat16(round_to_bfloat16(np.array(values, dtype))).tolist()

    step = 2.0**-7
    assert rounded(1 + step / 2, 1 + 1.5 * step, -1 - step / 2) == [1, 1 + 2 * step, -1]  # ties go to even
    assert rounded(1 + step / 2 + 2.0**-20, 1 + step / 2 - 2.0**-20) == [1 + step, 1]
    assert rounded(3.4e38, -3.4e38, np.inf, -np.inf) == [np.inf, -np.inf, np.inf, -np.inf]
    assert rounded(1e-45, -0.0) == [0, 0] and np.signbit(rounded(-0.0)[0])
    nans = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view("f4")
    assert np.isnan(widen_bfloat16(round_to_bfloat16(nans))).all()
    # Just above a tie, by less than float32 can tell: rounding by way of float32 would go down.
    assert rounded(1 + step / 2 + 2.0**-40, -1 - step / 2 - 2.0**-40, dtype="f8") == [1 + step, -1 - step]
    assert rounded(1 + 1.5 * step - 2.0**-40, 1e300, -1e300, dtype="f8") == [1 + step, np.inf, -np.inf]


def test_rounding_to_bfloat16_is_to_the_nearest():
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 1 << 32, 20000, dtype=np.uint32)
    values = bits.view("f4")
    values = values[np.isfinite(values) & (np.abs(values) < 1e38)]
    near = round_to_bfloat16(values)
    error = np.abs(widen_bfloat16(near).astype("f8") - values)
    for other in (near + np.uint16(1), near - np.uint16(1)):
        assert (error <= np.abs(widen_bfloat16(other).astype("f8") - values)).all()


def test_numbers_beyond_float16_are_an_error_and_infinities_are_not(tmp_path):
    with pytest.raises(ValueError, match="'large'.*65504"):
        write_pth(tmp_path / "a.pth", {"large": np.array([1.0, 7e4], "f4")}, "fp16")
    assert not list(tmp_path.iterdir())
    write_pth(tmp_path / "a.pth", {"inf": np.array([np.inf], "f4")}, "fp16")
    assert np.isinf(read_pth(tmp_path / "a.pth")["inf"].numpy()).all()


def test_container_is_as_torch_writes_it(tmp_path, tensors):
    path = tmp_path / "a.pth"
    write_pth(path, tensors)
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names[:2] == ["archive/data.pkl", "archive/byteorder"]
        assert names[2:-2] == [f"archive/data/{index}" for index in range(len(tensors))]
        assert names[-2:] == ["archive/version", "archive/.data/serialization_id"]
        assert archive.read("archive/version") == b"3\n" and archive.read("archive/byteorder") == b"little"
        assert len(archive.read("archive/.data/serialization_id")) == 40
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            name_length, extra_length = np.frombuffer(raw, "<u2", 2, info.header_offset + 26)
            assert (info.header_offset + 30 + int(name_length) + int(extra_length)) % 64 == 0
        opcodes = {op.name for op, _, _ in pickletools.genops(archive.read("archive/data.pkl"))}
    # torch's own restricted unpickler knows these.
    assert opcodes <= {
        "PROTO", "EMPTY_DICT", "MARK", "BINUNICODE", "GLOBAL", "BINPERSID", "BININT", "LONG1", "TUPLE", "NEWFALSE",
        "EMPTY_TUPLE", "REDUCE", "SETITEMS", "STOP",
    }  # fmt: skip


def test_storages_of_more_than_a_gibibyte_announce_64_bits(tmp_path, monkeypatch, tensors):
    from rwkvtune.checkpoint import pth

    monkeypatch.setattr(pth, "_ZIP64_FROM", 100)
    write_pth(tmp_path / "a.pth", tensors)
    checkpoint = read_pth(tmp_path / "a.pth")
    for name, wanted in tensors.items():
        assert np.array_equal(checkpoint[name].numpy(), wanted)
        assert checkpoint[name].numel == 0 or checkpoint[name].raw().ctypes.data % 64 == 0


def test_positions_beyond_4_gibibytes(tmp_path):
    """A sparse file: 5 GiB by name, a few kilobytes on the disk."""
    path, hole = tmp_path / "a.pth", 5 << 30
    write_pth(path, {"x": np.zeros(16, "f4"), "y": np.arange(3, dtype="f4")})
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    pickle = members[0][1].replace(b"J" + (16).to_bytes(4, "little"), b"\x8a\x05" + (hole // 4).to_bytes(5, "little"))
    with open(path, "wb") as file:
        directory = b""
        for name, data in members:
            data = pickle if name.endswith(".pkl") else data
            size = hole if name.endswith("data/0") else len(data)
            offset = file.tell()
            encoded, crc = name.encode(), zlib.crc32(data)
            wide = np.array([size, size, offset], "<u8").tobytes()
            file.write(b"PK\3\4" + bytes(22) + len(encoded).to_bytes(2, "little") + bytes(2) + encoded + data)
            file.seek(size - len(data), io.SEEK_CUR)
            directory += b"PK\1\2" + bytes(12) + crc.to_bytes(4, "little") + b"\xff" * 8
            directory += len(encoded).to_bytes(2, "little") + (28).to_bytes(2, "little") + bytes(10) + b"\xff" * 4
            directory += encoded + b"\1\0" + (24).to_bytes(2, "little") + wide
        start = file.tell()
        end = start + len(directory)
        count = len(members)
        file.write(directory)
        file.write(
            b"PK\6\6"
            + (44).to_bytes(8, "little")
            + bytes(12)
            + np.array([count, count, len(directory), start], "<u8").tobytes()
        )
        file.write(b"PK\6\7" + bytes(4) + end.to_bytes(8, "little") + (1).to_bytes(4, "little"))
        file.write(b"PK\5\6" + bytes(4) + b"\xff" * 12 + bytes(2))
    checkpoint = read_pth(path)
    assert checkpoint.shapes == {"x": (hole // 4,), "y": (3,)}
    assert checkpoint["y"].numpy().tolist() == [0, 1, 2]
    assert checkpoint["x"].raw()[-1] == 0


def test_equal_tensors_give_equal_files(tmp_path, tensors):
    write_pth(tmp_path / "a.pth", tensors)
    write_pth(tmp_path / "b.pth", {name: value.copy() for name, value in tensors.items()})
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    changed = tensors | {"scalar": np.float32(3)}
    write_pth(tmp_path / "c.pth", changed)
    assert (tmp_path / "a.pth").read_bytes() != (tmp_path / "c.pth").read_bytes()


def test_a_file_can_be_rewritten_from_itself(tmp_path, tensors):
    path = tmp_path / "a.pth"
    write_pth(path, tensors)
    write_pth(path, read_pth(path), "bf16")
    assert read_pth(path).dtypes["float32"] == "bfloat16"


def test_only_one_tensor_is_in_memory_at_a_time(tmp_path):
    import tracemalloc

    class Made:
        """Makes each tensor when it is asked for."""

        def __iter__(self):
            return iter([f"t{index}" for index in range(12)])

        def __len__(self):
            return 12

        def __getitem__(self, _name):
            return np.ones(1 << 20, "f4")

    tracemalloc.start()
    write_pth(tmp_path / "a.pth", Made(), "bf16")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20  # one tensor of 4 MiB and the chunks of its conversion; all twelve would be 48 MiB and more
    assert len(read_pth(tmp_path / "a.pth")) == 12


@pytest.mark.parametrize(
    ("tensors", "dtype", "error", "text"),
    [
        ({}, None, ValueError, "no tensors"),
        ({"x": np.zeros(2, "f4")}, "fp8", ValueError, "'fp8'.*'bf16'"),
        ({"x": np.zeros(2, "u2")}, None, TypeError, "'x'.*uint16.*bfloat16_tensor"),
        ({"x": np.array(["a"])}, None, TypeError, "'x'"),
        ({"x": np.array([None])}, None, TypeError, "'x'.*object"),
        ({3: np.zeros(2, "f4")}, None, TypeError, "3"),
    ],
)
def test_what_cannot_be_written(tmp_path, tensors, dtype, error, text):
    with pytest.raises(error, match=text):
        write_pth(tmp_path / "a.pth", tensors, dtype)
    assert not list(tmp_path.iterdir())


def test_bits_of_bfloat16_must_be_uint16():
    with pytest.raises(TypeError, match="float32"):
        bfloat16_tensor(np.zeros(3, "f4"))
