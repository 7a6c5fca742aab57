"""Weight files larger than memory: inspected from their header, converted a piece at a time."""

import json
import subprocess
import sys
import zlib

import numpy as np
import pytest

from rwkvtune import RWKV, ModelConfig
from rwkvtune.checkpoint import bfloat16_tensor, pth, read_checkpoint, write_pth, write_safetensors
from rwkvtune.cli import main

VOCAB = 60_000_000  # with 64 channels of bf16: emb.weight and head.weight are 7.68 GB each


def large_shapes():
    """name -> shape of a model of 15 GB."""
    model = RWKV(ModelConfig(model_type="x070", n_layer=1, n_embd=64, vocab_size=2, ctx_len=8))
    shapes = {name: value.shape for name, value in model.named_parameters().items()}
    return shapes | {"emb.weight": (VOCAB, 64), "head.weight": (VOCAB, 64)}


def sparse_safetensors(path, shapes):
    """A file of zeros that takes next to no space on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + end)


def sparse_pth(path, shapes):
    """As torch writes it: a zip with 64-bit sizes, one stored member per tensor; the zeros are holes in the file."""
    pickled = [pth._pickle_tensor(name, key, "bfloat16", shape) for key, (name, shape) in enumerate(shapes.items())]
    pickle = b"\x80\x02}(" + b"".join(pickled) + b"u."
    members = [("archive/data.pkl", pickle, len(pickle))]
    members += [(f"archive/data/{key}", b"", 2 * int(np.prod(shape))) for key, shape in enumerate(shapes.values())]
    directory = b""
    with open(path, "wb") as file:
        for name, data, size in members:
            offset, encoded, crc = file.tell(), name.encode(), zlib.crc32(data) if data else 0
            file.write(b"PK\3\4" + bytes(22) + len(encoded).to_bytes(2, "little") + bytes(2) + encoded + data)
            file.seek(size - len(data), 1)
            directory += b"PK\1\2" + bytes(12) + crc.to_bytes(4, "little") + b"\xff" * 8 + len(encoded).to_bytes(2, "little")
            directory += (28).to_bytes(2, "little") + bytes(10) + b"\xff" * 4 + encoded + b"\1\0" + (24).to_bytes(2, "little")
            directory += np.array([size, size, offset], "<u8").tobytes()
        start, count = file.tell(), len(members)
        end = start + len(directory)
        counts = np.array([count, count, len(directory), start], "<u8").tobytes()
        file.write(directory + b"PK\6\6" + (44).to_bytes(8, "little") + bytes(12) + counts)
        file.write(b"PK\6\7" + bytes(4) + end.to_bytes(8, "little") + (1).to_bytes(4, "little") + b"PK\5\6" + bytes(4) + b"\xff" * 12 + bytes(2))


@pytest.mark.parametrize("ending, write", [("pth", sparse_pth), ("safetensors", sparse_safetensors)])
def test_inspect_reads_the_header_only(tmp_path, capsys, ending, write):
    path = tmp_path / f"m.{ending}"
    write(path, large_shapes())
    assert path.stat().st_size > 15e9
    if path.stat().st_blocks * 512 > 1e6:
        pytest.skip("this file system has no sparse files")
    assert main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    found = facts["detected_config"]
    assert (found["model_type"], found["n_layer"], found["n_embd"], found["vocab_size"], found["dtype"]) == ("x070", 1, 64, VOCAB, "bf16")
    assert facts["num_parameters"] > 2 * 64 * VOCAB


# ---- conversion ----

_MEASURE = """
import sys
from rwkvtune.cli import main

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) * 1024

small, large, target, *more = sys.argv[1:]
assert main(["convert", small, target, *more]) == 0  # all code is loaded now
before = peak()
assert main(["convert", large, target, *more]) == 0
print(peak() - before)
"""
TENSOR = 32 << 20  # bytes
CHUNKS = 24 << 20  # the pieces of 2^20 numbers that are converted at a time, and read-ahead


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("source, target, more", [
    ("pth", "safetensors", []), ("safetensors", "pth", []), ("safetensors", "pth", ["--dtype", "fp32"]), ("pth", "safetensors", ["--dtype", "fp16"]),
])  # fmt: skip
def test_conversion_takes_the_memory_of_one_tensor(tmp_path, source, target, more):
    write = {"pth": write_pth, "safetensors": write_safetensors}[source]
    bits = np.full((TENSOR // 2048, 1024), 0x3F80, np.uint16)
    for name, tensor, count in (("small", bits[:2], 1), ("large", bits, 8)):
        write(tmp_path / f"{name}.{source}", {f"t{n}": bfloat16_tensor(tensor) for n in range(count)})
    argv = [str(tmp_path / name) for name in (f"small.{source}", f"large.{source}", f"out.{target}")]
    done = subprocess.run([sys.executable, "-c", _MEASURE, *argv, *more], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 1.1 * TENSOR + CHUNKS  # the file is 8 tensors


def every_kind():
    rng = np.random.default_rng(0)
    return {
        "f32": rng.standard_normal((700, 1500)).astype("f4"), "bf16": bfloat16_tensor(rng.integers(0, 1 << 16, (3, 5), np.uint16)),
        "f16": rng.standard_normal(7).astype("f2"), "f64": rng.standard_normal((2, 3)), "i64": np.arange(5), "u8": np.arange(4, dtype="u1"),
        "bool": np.array([True, False]), "scalar": np.float32(3), "empty": np.empty((0, 4), "f4"),
    }  # fmt: skip


@pytest.mark.parametrize("middle", ["safetensors", "pth"])
def test_there_and_back_gives_the_same_bytes(tmp_path, middle):
    first, write = ("pth", write_pth) if middle == "safetensors" else ("safetensors", write_safetensors)
    paths = [tmp_path / name for name in (f"a.{first}", f"b.{middle}", f"c.{first}")]
    tensors = every_kind()
    write(paths[0], tensors)
    for source, target in zip(paths, paths[1:]):
        assert main(["convert", str(source), str(target)]) == 0
    assert list(read_checkpoint(paths[1])) == list(tensors)
    assert paths[0].read_bytes() == paths[2].read_bytes()


def test_dtypes(tmp_path):
    """fp32 -> bf16 -> fp32 keeps the bf16 numbers; integers are left alone."""
    write_pth(tmp_path / "a.pth", every_kind())
    for source, target, dtype in (("a.pth", "b.safetensors", "bf16"), ("b.safetensors", "c.pth", "fp32"), ("c.pth", "d.safetensors", "bf16")):
        assert main(["convert", str(tmp_path / source), str(tmp_path / target), "--dtype", dtype]) == 0
    half, wide, again = (read_checkpoint(tmp_path / name) for name in ("b.safetensors", "c.pth", "d.safetensors"))
    assert (half["f32"].dtype, wide["bf16"].dtype, wide["i64"].dtype, wide["bool"].dtype) == ("bfloat16", "float32", "int64", "bool")
    for name in ("f32", "f16", "f64", "scalar"):
        assert np.array_equal(half[name].numpy(), wide[name].numpy()) and np.array_equal(half[name].raw(), again[name].raw()), name


def test_strided_tensors(tmp_path):
    """A transposed array is written in C order, piece by piece."""
    array = np.arange(3 * 700 * 1000, dtype="f4").reshape(1000, 1, 2100).transpose(2, 1, 0)
    for write, name in ((write_pth, "a.pth"), (write_safetensors, "a.safetensors")):
        write(tmp_path / name, {"x": array})
        assert np.array_equal(read_checkpoint(tmp_path / name)["x"].numpy(), array)
