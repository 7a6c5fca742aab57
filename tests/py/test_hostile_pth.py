"""Files made to harm, and files that came to harm: a FormatError with a reason, and nothing else happens."""

import os
import pickle
import random
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rwkvtune.checkpoint import read_checkpoint, read_pth, write_pth
from rwkvtune.checkpoint.unpickle import unpickle
from rwkvtune.errors import FormatError

CORPUS = Path(__file__).parents[1] / "corpora" / "pth"

# Pieces of pickles.  A tensor is TENSOR % (storage, offset, sizes, strides).
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpuK\x06tQ"  # six float32 in data/0
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
HOOKS = b"\x89ccollections\nOrderedDict\n)R"


def number(value):
    return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


def numbers(*values):
    return b"(" + b"".join(value if isinstance(value, bytes) else number(value) for value in values) + b"t"


def tensor(storage=STORAGE, offset=0, sizes=(2, 3), strides=(3, 1), call=REBUILD, tail=HOOKS):
    offset = offset if isinstance(offset, bytes) else number(offset)
    sizes = sizes if isinstance(sizes, bytes) else numbers(*sizes)
    strides = strides if isinstance(strides, bytes) else numbers(*strides)
    return call + b"(" + storage + offset + sizes + strides + tail + b"tR"


def of(*values):
    """A pickled dict: a, b, ... -> values."""
    items = b"".join(b"X\1\0\0\0" + bytes([97 + index]) + value for index, value in enumerate(values))
    return b"\x80\x02}(" + items + b"u."


def torch_zip(path, pickled, storages=(bytes(24),), extra=(), root="archive", **options):
    """A zip as torch would write it, around a pickle."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr(f"{root}/data.pkl", pickled)
        archive.writestr(f"{root}/byteorder", "little")
        for index, data in enumerate(storages):
            archive.writestr(f"{root}/data/{index}", data)
        for name, data in extra:
            archive.writestr(name, data)
    return path


def refused(path, *words):
    """The file must be refused, in a message that names it and gives the reason."""
    with pytest.raises(FormatError) as caught:
        for value in read_checkpoint(path).values():
            value.raw()
    text = str(caught.value)
    assert str(path) in text and len(text) < 1000
    for word in words:
        assert word in text, text


def test_the_pieces_make_a_good_file(tmp_path):
    """What the tests below change one thing of."""
    checkpoint = read_pth(torch_zip(tmp_path / "a.pth", of(tensor()), [np.arange(6, dtype="f4").tobytes()]))
    assert checkpoint["a"].numpy().tolist() == [[0, 1, 2], [3, 4, 5]]


# Pickles that run programs.


class Runs:
    """An object whose pickle calls a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def programs(target):
    """name -> pickle that creates the file `target` when Python's own unpickler reads it."""
    command = f"touch {target}"
    script = f"open({target!r}, 'w').close()"
    result = {}
    for protocol in range(6):
        result[f"system_{protocol}"] = pickle.dumps(Runs(os.system, command), protocol)
        result[f"exec_{protocol}"] = pickle.dumps(Runs(exec, script), protocol)
    result["eval"] = pickle.dumps(Runs(eval, f"open({target!r}, 'w').close()"), 2)
    result["getattr"] = pickle.dumps(Runs(getattr, Runs(__import__, "os"), "system"), 2)[:-1] + (
        b"(X" + struct.pack("<I", len(command)) + command.encode() + b"tR."
    )
    result["in_a_dict"] = b"\x80\x02}X\1\0\0\0a" + pickle.dumps(Runs(os.system, command), 2)[2:-1] + b"s."
    result["inst"] = b"(S" + repr(command).encode() + b"\nios\nsystem\n."
    result["obj"] = b"(cos\nsystem\nS" + repr(command).encode() + b"\no."
    result["popen"] = (
        b"\x80\x02(csubprocess\nPopen\n]X\5\0\0\0touch"
        + b"aX"
        + (struct.pack("<I", len(str(target))) + str(target).encode() + b"ao\x8c\x04waitb.")
    )
    return result


PROGRAMS = sorted(programs("x"))


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_is_executed(tmp_path, name, container):
    target = tmp_path / "executed"
    payload = programs(str(target))[name]
    path = tmp_path / "a.pth"
    if container == "zip":
        torch_zip(path, payload)
    else:
        head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        path.write_bytes(head + payload)
    refused(path, "byte")
    path.write_bytes(payload)
    with pytest.raises(FormatError):
        read_pth(path)
    assert not target.exists()


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in ("popen",)])
def test_these_programs_do_run_elsewhere(tmp_path, name):
    """Otherwise the test above would show nothing."""
    target = tmp_path / "executed"
    pickle.loads(programs(str(target))[name])
    assert target.exists()


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (b"cos\nsystem\n", "'os.system'"),
        (b"cnt\nsystem\n", "'nt.system'"),
        (b"c__builtin__\neval\n", "'__builtin__.eval'"),
        (b"cbuiltins\ngetattr\n", "'builtins.getattr'"),
        (b"ctorch\nload\n", "'torch.load'"),
        (b"ctorch.storage\n_load_from_bytes\n", "'torch.storage._load_from_bytes'"),
        (b"ctorch.hub\nload\n", "'torch.hub.load'"),
        (b"ctorch._utils\nos.system\n", "'torch._utils.os.system'"),
        (b"ccollections\nOrderedDict.__init__\n", "OrderedDict.__init__"),
        (b"\x8c\x02os\x8c\x06system\x93", "'os.system'"),
        (b"\x8c\x0btorch.utils\x8c\x09os.system\x93", "os.system"),
        (b"K\x01K\x02\x93", "something else than text"),
        (b"c" + b"a" * 300, "256"),
        (b"c\xff\xfe\nx\n", "not valid"),
        (b"S'x'\n", "STRING"),
        (b"I1\n", "INT"),
        (b"P0\n", "PERSID"),
        (b"(ios\nsystem\n", "INST"),
        (b"(o", "OBJ"),
        (b"ccollections\nOrderedDict\n)\x81", "NEWOBJ"),
        (b"ccollections\nOrderedDict\n)}\x92", "NEWOBJ_EX"),
        (b"\x82\x01", "EXT1"),
        (b"\x83\x01\0", "EXT2"),
        (b"\x84\x01\0\0\0", "EXT4"),
        (b"\x96" + bytes(8), "BYTEARRAY8"),
        (b"\x97", "NEXT_BUFFER"),
        (b"\xff", "0xff"),
        (b"NQ", "persistent id"),
        (b"X\4\0\0\0junkQ", "persistent id"),
        (b"(X\6\0\0\0modulecos\nsystem\ntQ", "os.system"),
        (b"(X\6\0\0\0moduleNNNNtQ", "persistent id"),
        (b"(X\7\0\0\0storagectorch\nSize\nNNNtQ", "storage type is torch.Size"),
        (b"NNR", "a call of None"),
        (b"X\2\0\0\0os)R", "a call of 'os'"),
        (b"ctorch\nFloatStorage\n)R", "a call of torch.FloatStorage"),
        (b"ctorch\nTensor\n)R", "a call of torch.Tensor"),
        (b"ccollections\nOrderedDict\nNR", "not with a tuple"),
        (b"ccollections\nOrderedDict\n(K\1tR", "1 arguments"),
        (tensor() + b"}b", "attributes"),
        (b"N}b", "attributes"),
        (b"ctorch\nTensor\n}b", "attributes"),
        (b"]}]Ns", "no key"),
        (b"})Ns", "no key"),
        (b"}\x8a\x10" + b"\x7f" * 16 + b"Ns", "no key"),
        (b"}(Nu", "without a value"),
        (b"NK\1a", "no list"),
        (b"]K\1K\2s", "no dict"),
        (b"h\x05", "never written"),
        (b"(q\0", "nothing to remember"),
        (b"e", "no beginning"),
        (b"R", "empty"),
        (b"\x8a\x11" + bytes(17), "17 bytes"),
        (b"\x8b\xff\xff\xff\x7f", "longer than any size"),
        (b"\x8d" + struct.pack("<Q", 1 << 60), "are left"),
        (b"\x8e" + struct.pack("<Q", 1 << 60), "are left"),
        (b"X\xff\xff\xff\x7f", "are left"),
        (b"X\1\0\0\0\xff", "not valid"),
        (b"\x80\x09", "protocol 9"),
        (b"G\0", "are left"),
    ],
)
def test_what_a_pickle_may_not_do(tmp_path, code, word):
    refused(torch_zip(tmp_path / "a.pth", b"\x80\x02" + code + b"."), "data.pkl", "byte", word)


# Tensors that are not where they say.


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (tensor(offset=1), "7 elements of a storage that has 6"),
        (tensor(offset=1 << 62), "from 0 to 2^60"),
        (tensor(offset=-1), "offset is -1"),
        (tensor(offset=b"N"), "offset is None"),
        (tensor(sizes=(3, 3)), "9 elements"),
        (tensor(strides=(4, 1)), "7 elements"),
        (tensor(strides=(-3, 1)), "contains -3"),
        (tensor(sizes=(-2, 3)), "contains -2"),
        (tensor(sizes=(1 << 100, 0)), "2^60"),
        (tensor(sizes=(1 << 59, 3), strides=(0, 1)), "too large to exist"),
        (tensor(sizes=(1 << 40, 0), strides=(1 << 59, 1)), "too large to exist"),
        (tensor(sizes=(1 << 30,) * 3, strides=(0, 0, 0)), "too large to exist"),
        (tensor(sizes=(1 << 30,), strides=(0,)), "claim 4294967296 bytes"),
        (tensor(sizes=(0,), strides=(1,), offset=7), "7 elements"),
        (tensor(sizes=(2,)), "1 sizes and 2 strides"),
        (tensor(sizes=numbers(*[1] * 33), strides=numbers(*[1] * 33)), "at most 32"),
        (tensor(sizes=b"K\6"), "shape is 6"),
        (tensor(sizes=b"(\x88K\3t"), "contains True"),
        (tensor(sizes=b"(G" + bytes(8) + b"K\3t"), "contains 0.0"),
        (tensor(sizes=b"(NK\3t"), "contains None"),
        (tensor(sizes=b"ctorch\nSize\n(K\1tR"), "torch.Size"),
        (tensor(storage=b"N"), "None and not on a typed storage"),
        (tensor(storage=STORAGE.replace(b"\0000", b"\0009")), "storage '9' is not in the file"),
        (tensor(storage=STORAGE.replace(b"K\6", b"K\7")), "24 bytes instead of 28"),
        (tensor(storage=STORAGE.replace(b"FloatS", b"DoubleS")), "24 bytes instead of 48"),
        (tensor(storage=STORAGE.replace(b"K\6", number(1 << 62))), "impossible"),
        (tensor(storage=STORAGE.replace(b"K\6", number(-1))), "impossible"),
        (tensor(storage=STORAGE.replace(b"X\1\0\0\0000", b"K\0")), "storage key 0"),
        (tensor(storage=STORAGE.replace(b"X\1\0\0\0000", b"X\x0d\0\0\0../../version")), "is not in the file"),
        (tensor(storage=STORAGE.replace(b"torch\nFloat", b"torch.storage\nUntyped")), "typed storage"),
        (tensor(storage=STORAGE[:-2] + b"NtQ", tail=HOOKS + b"NNNN"), "arguments"),
        (tensor(storage=STORAGE[:-2] + b"(X\1\0\0\0000K\0K\6ttQ"), "view of another"),
        (tensor(call=b"ctorch._utils\n_rebuild_tensor_v3\n", tail=HOOKS + b"X\4\0\0\0bool"), "dtype is 'bool'"),
        (tensor(call=b"ctorch._utils\n_rebuild_tensor_v3\n", tail=HOOKS + b"ctorch\nSize\n"), "dtype is torch.Size"),
        (b"ctorch._utils\n_rebuild_parameter\n(N\x89NtR", "parameter is built on None"),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch\nSize\nctorch\nTensor\n)NtR", "rebuilt by torch.Size"),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n(NN)NtR", "rebuilt by None"),
    ],
)
def test_tensors_outside_of_their_storage(tmp_path, value, word):
    refused(torch_zip(tmp_path / "a.pth", of(value)), word)


def test_one_storage_described_in_two_ways(tmp_path):
    other = tensor(storage=STORAGE.replace(b"K\6", b"K\5"), sizes=(5,), strides=(1,))
    refused(torch_zip(tmp_path / "a.pth", of(tensor(), other)), "two ways")


def test_many_tensors_over_the_same_bytes(tmp_path):
    """Reading all of them would take 300 times the file, converted still more."""
    size = 1 << 16
    storage = STORAGE.replace(b"K\6", number(size))
    value = tensor(storage=storage, sizes=(size,), strides=(1,))
    items = b"".join(b"M" + struct.pack("<H", index) + b"0X\3\0\0\0%03d" % index + value for index in range(300))
    refused(torch_zip(tmp_path / "a.pth", b"\x80\x02}(" + items + b"u.", [bytes(4 * size)]), "claim")


@pytest.mark.parametrize(
    ("pickled", "word"),
    [
        (b"\x80\x02N.", "NoneType"),
        (b"\x80\x02].", "holds a list"),
        (b"\x80\x02" + tensor() + b".", "holds a TensorRef"),
        (of(), "no tensors"),
        (of(b"N", b"K\1"), "its members are: a, b"),
        (b"\x80\x02}K\3" + tensor() + b"s.", "named by 3"),
        (b"\x80\x02}(X\1\0\0\0a" + tensor() + b"X\x08\0\0\0module.a" + tensor() + b"u.", "two tensors are named 'a'"),
        (b"\x80\x02}q\0X\5\0\0\0modelh\0s.", "no tensors"),
        (b"\x80\x02", "are left"),
        (b"", "are left"),
        (of(tensor()) + b"x", "1 bytes follow"),
    ],
)
def test_objects_that_hold_no_weights(tmp_path, pickled, word):
    refused(torch_zip(tmp_path / "a.pth", pickled), word)


# Pickles that exhaust something.


def peak_of(action):
    tracemalloc.start()
    try:
        action()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("level", [b"\x85", b"]q\0000h\0", b"}q\0000h\0"], ids=["tuples", "lists", "dicts"])
def test_deep_nesting(level):
    """A million levels, which recursion would not survive; the value is dropped level by level."""
    code = b"\x80\x02N" + (b"\x85" * 500_000 if level == b"\x85" else level * 100_000) + b"."
    assert unpickle(memoryview(code), "here").end == len(code)


def test_doubling_of_shared_values():
    """Thirty levels of pairs of the same: a thousand million values to walk, thirty to keep."""
    code = b"\x80\x02N" + b"q\0h\0\x86" * 30 + b"."
    assert peak_of(lambda: unpickle(memoryview(code), "here")) < 1 << 20


def test_memo_index_reserves_no_memory():
    code = b"\x80\x02Nr\xff\xff\xff\xff0j\xff\xff\xff\xff."
    assert peak_of(lambda: unpickle(memoryview(code), "here")) < 1 << 20


def test_number_of_opcodes_is_limited(monkeypatch):
    from rwkvtune.checkpoint import unpickle as module

    monkeypatch.setattr(module, "_MAX_OPCODES", 1000)
    with pytest.raises(FormatError, match="more than 1000 opcodes"):
        unpickle(memoryview(b"\x80\x02" + b"N" * 1000 + b"."), "here")


def test_cyclic_dict_of_tensors(tmp_path):
    pickled = b"\x80\x02}q\0(X\1\0\0\0a" + tensor() + b"X\x0a\0\0\0state_dicth\0u."
    assert list(read_pth(torch_zip(tmp_path / "a.pth", pickled))) == ["a"]


# Containers.


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"P", "no file of torch"),
        (b"PK\5\6" + bytes(18), "0 members NAME/data.pkl"),
        (b"PK\3\4", "cut off"),
        (b"\x80", "are left"),
        (b"\x80\x02N.", "no magic number"),
        (b"\x80\x02G" + struct.pack(">d", float(0x1950A86A20F9469CFC6C)) + b".", "no magic number"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2), "are left"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1002, 2) + pickle.dumps({}, 2), "unknown protocol"),
        (
            pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": False}, 2),
            "big-endian",
        ),
        (b"<!DOCTYPE html>", "web page"),
        (b"\n  <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"GGUF\3\0\0\0", "GGUF"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x93NUMPY\1\0", "NumPy"),
        (b"data/0" + bytes(500), "no file of torch"),
    ],
)
def test_other_files(tmp_path, data, word):
    path = tmp_path / "a.pth"
    path.write_bytes(data)
    refused(path, word)


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_pth(tmp_path / "a.pth")
    with pytest.raises(OSError):
        read_pth(tmp_path)


def test_compressed_members(tmp_path):
    """A bomb of 100 MB in 100 kB; nothing of it is unpacked."""
    pickled = of(tensor(storage=STORAGE.replace(b"K\6", number(25 << 20)), sizes=(25 << 20,), strides=(1,)))
    path = torch_zip(tmp_path / "a.pth", pickled, [bytes(100 << 20)], compression=zipfile.ZIP_DEFLATED)
    assert peak_of(lambda: refused(path, "compressed", "torch.save")) < 1 << 22


@pytest.mark.parametrize("name", ["../x", "/etc/x", "archive/../../x", "archive\\x"])
def test_member_names_that_leave_the_archive(tmp_path, name):
    refused(torch_zip(tmp_path / "a.pth", of(tensor()), extra=[(name, b"")]), "points outside")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["archive/data.pkl", "archive/data/0"])
def test_duplicate_members(tmp_path, name):
    refused(torch_zip(tmp_path / "a.pth", of(tensor()), extra=[(name, bytes(24))]), "twice", name)


def test_two_archives_in_one(tmp_path):
    refused(torch_zip(tmp_path / "a.pth", of(tensor()), extra=[("other/data.pkl", of(tensor()))]), "2 members")


def test_big_endian(tmp_path):
    path = torch_zip(tmp_path / "a.pth", of(tensor()))
    path.write_bytes(path.read_bytes().replace(b"little", b"big\n\n\n"))
    refused(path, "big-endian")


def test_damaged_pickle_is_found_by_its_checksum(tmp_path):
    path = torch_zip(tmp_path / "a.pth", of(tensor()))
    path.write_bytes(path.read_bytes().replace(b"X\1\0\0\0a", b"X\1\0\0\0b"))
    refused(path, "checksum")


def directory_entry(data, index):
    """Position of an entry of the zip directory."""
    at = data.index(b"PK\1\2")
    for _ in range(index):
        at = data.index(b"PK\1\2", at + 4)
    return at


@pytest.mark.parametrize(
    ("entry", "field", "value", "word"),
    [
        (2, 8, b"\1\0", "encrypted"),
        (2, 10, b"\x08\0", "compressed"),
        (2, 20, b"\x17\0\0\0", "compressed"),
        (2, 20, b"\x19\0\0\0\x19\0\0\0", "does not fit"),
        (1, 20, b"\xff\xff\0\0\xff\xff\0\0", "does not fit"),
        (1, 20, b"\x20\0\0\0\x20\0\0\0", "over the same bytes"),
        (2, 24, b"\xff\xff\xff\xff", "64-bit sizes"),
        (2, 42, b"\xff\xff\xff\xff", "64-bit sizes"),
        (2, 42, b"\xff\xff\xff\x7f", "outside the file"),
        (2, 42, b"\0\0\0\0", "another name"),
        (2, 42, b"\1\0\0\0", "agrees"),
        (2, 28, b"\xff\xff", "no entry"),
        (2, 0, b"XX", "no entry"),
        (2, 46, b"\xff", "UTF-8"),
        (2, 46, b"Archive", "another name"),
    ],
)
def test_directory_entries_that_lie(tmp_path, entry, field, value, word):
    path = torch_zip(tmp_path / "a.pth", of(tensor()))
    data = bytearray(path.read_bytes())
    at = directory_entry(data, entry) + field
    data[at : at + len(value)] = value
    path.write_bytes(data)
    refused(path, word)


def test_zip_end_record(tmp_path):
    path = torch_zip(tmp_path / "a.pth", of(tensor()))
    good = path.read_bytes()
    end = good.rindex(b"PK\5\6")
    for change, word in {
        b"prefix" + good: "no file of torch",
        b"PK" + good: "does not fit",
        good + b"suffix": "follow",
        good[:end] + good[end + 22 :]: "cut off",
        good[: end + 4] + b"\1\0" + good[end + 6 :]: "several disks",
        good[: end + 8] + b"\xff\xff\xff\xff" + good[end + 12 :]: "does not fit",
        good[: end + 8] + b"\2\0\2\0" + good[end + 12 :]: "longer than its entries",
        good[: end + 12] + b"\xff\xff\xff\xff" + good[end + 16 :]: "does not fit",
        good[: end + 16] + b"\xff\xff\xff\xff" + good[end + 20 :]: "does not fit",
        good[:end] + b"PK\6\7" + bytes(4) + b"\xff" * 8 + b"\1\0\0\0" + good[end:]: "zip64 record lies outside",
        good[:end] + b"PK\6\7" + bytes(12) + b"\1\0\0\0" + good[end:]: "zip64 record is not where",
    }.items():
        path.write_bytes(change)
        refused(path, word)


def test_bytes_before_the_first_member(tmp_path):
    """A zip with a program in front is valid as a zip; its positions are made to fit."""
    with open(tmp_path / "a.pth", "wb") as file:
        file.write(b"PK\3\4 something else")
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", of(tensor()))
            archive.writestr("archive/data/0", bytes(24))
    refused(tmp_path / "a.pth", "19 bytes precede")


def legacy(keys, pickled, storages):
    """A file of the format before torch 1.6."""
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return head + pickled + pickle.dumps(keys, 2) + b"".join(storages)


@pytest.mark.parametrize(
    ("keys", "storages", "word"),
    [
        (["0"], [struct.pack("<q", 5) + bytes(24)], "5 elements instead of 6"),
        (["0"], [struct.pack("<q", -6) + bytes(24)], "-6 elements"),
        (["0"], [struct.pack("<q", 6) + bytes(23)], "ends within"),
        (["0"], [bytes(7)], "ends before"),
        (["0", "0"], [struct.pack("<q", 6) + bytes(24)] * 2, "twice"),
        (["1"], [struct.pack("<q", 6) + bytes(24)], "no tensor uses it"),
        ([], [], "not in the file"),
        ([0], [], "list of storages"),
        ("0", [], "list of storages"),
    ],
)
def test_legacy_storages_that_do_not_fit(tmp_path, keys, storages, word):
    path = tmp_path / "a.pth"
    path.write_bytes(legacy(["0"], of(tensor()), [struct.pack("<q", 6) + bytes(24)]))
    assert read_pth(path)["a"].numpy().shape == (2, 3)
    path.write_bytes(legacy(keys, of(tensor()), storages))
    refused(path, word)


# Accidents.


def survives(path):
    """Read everything there is; returns True if the file was accepted."""
    try:
        for value in read_checkpoint(path).values():
            if not value.dtype.startswith("float8"):
                value.numpy()
    except FormatError as error:
        assert str(path) in str(error)
        return False
    return True


@pytest.mark.parametrize("name", ["zip", "zip_protocol5", "legacy"])
def test_every_truncation_is_noticed(tmp_path, name):
    good, path = (CORPUS / f"{name}.pth").read_bytes(), tmp_path / "a.pth"
    for length in range(0, len(good), 7):
        path.write_bytes(good[:length])
        assert not survives(path), length


@pytest.mark.parametrize("name", ["zip", "zip_without_checksums", "zip_protocol5", "legacy", "nested"])
def test_damaged_bytes(tmp_path, name):
    """Any bytes changed: FormatError or arrays.  Changes of a name or of a number cannot be noticed."""
    good, path = (CORPUS / f"{name}.pth").read_bytes(), tmp_path / "a.pth"
    rng = random.Random(name)
    accepted = 0
    for _ in range(700):
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        path.write_bytes(data)
        accepted += survives(path)
    assert 0 < accepted < 700


def test_damaged_pickles(tmp_path):
    """The pickle alone, with a checksum that fits: every opcode meets every neighbour."""
    with zipfile.ZipFile(CORPUS / "nested.pth") as archive:
        good = archive.read("nested/data.pkl")
    rng = random.Random(1)
    for _ in range(3000):
        data = bytearray(good)
        start = rng.randrange(len(data))
        kind = rng.randrange(3)
        if kind == 0:
            data[start] = rng.choice(b"().0123NQRXaebchjlpqrstu]}\x80\x85\x86\x87\x88\x89\x8a\x8c\x93\x94\x95")
        elif kind == 1:
            del data[start : start + rng.randrange(1, 9)]
        else:
            other = rng.randrange(len(data))
            data[start:start] = data[other : other + rng.randrange(1, 40)]
        try:
            unpickle(memoryview(bytes(data)), "here")
        except FormatError as error:
            assert str(error).startswith("here: byte")


def test_random_bytes_after_a_good_beginning(tmp_path):
    rng = random.Random(2)
    path = tmp_path / "a.pth"
    for start in (b"PK\3\4", b"\x80\x02", pickle.dumps(0x1950A86A20F9469CFC6C, 2), b""):
        for _ in range(100):
            path.write_bytes(start + rng.randbytes(rng.randrange(200)))
            assert not survives(path)


def test_a_written_file_read_with_one_bit_changed_in_its_numbers(tmp_path):
    """Numbers carry no redundancy on reading: the file opens, and one number differs."""
    path = tmp_path / "a.pth"
    write_pth(path, {"x": np.ones(4, "f4")})
    start = path.read_bytes().index(np.ones(4, "f4").tobytes())
    data = bytearray(path.read_bytes())
    data[start] ^= 1
    path.write_bytes(data)
    assert (read_pth(path)["x"].numpy() != 1).tolist() == [True, False, False, False]
