"""Bad input of `rwkvtune prepare`: one line that names the file and the place, and the old data as they were."""

import json
import os
import sys
import types

import numpy as np
import pytest

from rwkvtune import BaseTokenizer, BinIdxDataset, GenericTokenizer, ModelConfig, RWKVTrainingPipeline
from rwkvtune.cli import main
from rwkvtune.data import create_byte_vocab_file

INTEGERS = ("--tokenizer", "integer:9", "--sequence_length", "2")


def npy(array, **options):
    def write(path):
        np.save(path, array, **options)

    return write


# name of the file -> (its bytes or what writes it, more arguments, what the message must say)
BAD = {
    "empty.jsonl": (b"", (), "no lines"),
    "blank.jsonl": (b"\n \r\n", (), "no lines"),
    "object.jsonl": (b'{"text": "a"}\n[1]\n', (), "object.jsonl:2: expected an object"),
    "cut.jsonl": (b'{"text": "a"}\n{"text": "b', (), "cut.jsonl:2: not JSON: Unterminated string"),
    "bytes.jsonl": (b'{"text": "a"}\n\n{"text": "\xff"}', (), "bytes.jsonl:3: not UTF-8"),
    "words.jsonl": (b'{"text": "1"}\n{"text": "hello"}', INTEGERS, "words.jsonl:2: Cannot read an integer at position 0: 'hello'"),
    "range.jsonl": (b'{"text": "1"}\n{"text": "3 10"}', INTEGERS, "range.jsonl:2: Value must be in [0, 9], got 10"),
    "skipped.jsonl": (b"{\n", ("--skip_bad",), "no lines"),
    "empty.txt": (b"", (), "holds no text"),
    "latin1.txt": (b"caf\xe9 au lait", (), "latin1.txt: not UTF-8: invalid continuation byte at byte 3"),
    "column.csv": (b"a,b\n1,2\n", (), "column.csv:1: no column 'text'; there are 'a', 'b'"),
    "row.csv": (b"a,text\n1,2\n3\n", (), "row.csv:3: 1 of 2 columns"),
    "quote.csv": (b'text\n"a\n', (), "not CSV"),
    "fraction.npy": (npy([[1.0, 2.0], [3.0, 4.5]]), INTEGERS, "fraction.npy: a value of sequence 2 is 4.5"),
    "nan.npy": (npy([[1.0, np.nan]]), INTEGERS, "nan.npy: a value of sequence 1 is nan"),
    "objects.npy": (npy(np.array([{}]), allow_pickle=True), INTEGERS, "objects.npy: not an array file without objects"),
    "words.npy": (npy([["a", "b"]]), INTEGERS, "words.npy: the values are <U1"),
    "complex.npy": (npy([[1j, 2]]), INTEGERS, "complex.npy: the values are complex128"),
    "cube.npy": (npy(np.zeros((2, 2, 2), int)), INTEGERS, "cube.npy: data has shape (2, 2, 2)"),
    "short.npy": (npy([1]), INTEGERS, "short.npy: data has 1 values, less than one sequence"),
    "range.npy": (npy([[1, 2], [3, 10]]), INTEGERS, "range.npy, document:2: Value must be in [0, 9], got 10"),
    "text.npy": (b"no array", INTEGERS, "text.npy: not an array file"),
    "cut.npy": (b"\x93NUMPY\x01\x00v\x00{", INTEGERS, "cut.npy: not an array file"),
    "good.jsonl": (b'{"text": "1"}', ("--vocab", "VOCAB"), "bad_vocab.txt:2: the id is not a number"),
    "fine.jsonl": (b'{"text": "1"}', ("--vocab", "FOLDER"), "this is a directory"),
    "ok.jsonl": (b'{"text": "1"}', ("--vocab", "none.txt"), "none.txt: there is no such file"),
    "once.jsonl": (b'{"text": "1"}', ("--n_epochs", "0"), "n_epochs is 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(tmp_path, capsys, name):
    content, arguments, message = BAD[name]
    (tmp_path / "good").write_text("old text")
    target = tmp_path / "data" / "t"
    assert main(["prepare", str(tmp_path / "good"), str(target)]) == 0
    before = {path.name: path.read_bytes() for path in target.parent.iterdir()}
    assert set(before) == {"t.bin", "t.idx", "t.jsonl", "t.vocab.txt"}
    (tmp_path / "bad_vocab.txt").write_text("1 'a' 1\nx 'b' 1\n")
    named = {"VOCAB": str(tmp_path / "bad_vocab.txt"), "FOLDER": str(tmp_path)}
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        content(tmp_path / name)
    capsys.readouterr()
    assert main(["prepare", str(tmp_path / name), str(target), *(named.get(a, a) for a in arguments)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in target.parent.iterdir()} == before


def test_directories_and_unreadable_files(tmp_path, capsys):
    (tmp_path / "a.jsonl").mkdir()
    (tmp_path / "file").write_text("x")
    for source, target, message in [
        (tmp_path / "a.jsonl", "t", "input is a directory"),
        (tmp_path / "none", "t", "input not found"),
        (tmp_path / "file", "file/t", "is no directory"),
    ]:
        assert main(["prepare", str(source), str(tmp_path / target)]) == 2
        assert message in capsys.readouterr().err
    if hasattr(os, "geteuid") and os.geteuid():
        (tmp_path / "file").chmod(0)
        assert main(["prepare", str(tmp_path / "file"), str(tmp_path / "t")]) == 2
        assert "Permission denied" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "file"]


def test_accepted(tmp_path, capsys):
    """A byte order mark, CRLF, big-endian numbers, whole floats, one token, ids beyond 16 bits."""
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "1 2"}\r\n\r\n{"text": ""}\r\n')
    np.save(tmp_path / "b.npy", np.arange(4, dtype=">i4").reshape(2, 2))
    np.save(tmp_path / "c.npy", np.array([[5.0, 6.0]]))
    (tmp_path / "d.jsonl").write_text('{"text": ""}')
    (tmp_path / "e.jsonl").write_text('{"text": "70000"}')
    (tmp_path / "f.txt").write_bytes(b"\xef\xbb\xbfab")
    for name, most, documents in [
        ("a.jsonl", 9, [[2, 3, 0], [0]]),
        ("b.npy", 9, [[1, 2, 0], [3, 4, 0]]),
        ("c.npy", 9, [[6, 7, 0]]),
        ("d.jsonl", 9, [[0]]),
        ("e.jsonl", 70000, [[70001, 0]]),
    ]:
        arguments = ["--no_shuffle", "--tokenizer", f"integer:{most}"]
        assert main(["prepare", str(tmp_path / name), str(tmp_path / "t"), *arguments]) == 0
        with BinIdxDataset(tmp_path / "t") as dataset:
            assert [item.tolist() for item in dataset] == documents
            assert dataset.dtype == (np.int32 if most > 65534 else np.uint16)
            assert (tmp_path / "t.idx").read_bytes()[17] == (4 if most > 65534 else 8)
    assert main(["prepare", str(tmp_path / "f.txt"), str(tmp_path / "t")]) == 0
    with BinIdxDataset(tmp_path / "t") as dataset:
        assert dataset[0].tolist() == [98, 99, 0]


# ---- tokenizers ----


class Letters(BaseTokenizer):
    """A tokenizer of one's own: a space is 1, a to z are 2 to 27."""

    vocab_size = 28

    def encode(self, text):
        return [" abcdefghijklmnopqrstuvwxyz".index(c) + 1 for c in text]

    def decode(self, ids):
        return "".join(" abcdefghijklmnopqrstuvwxyz"[i - 1] for i in ids if i)


class Halves(BaseTokenizer):
    """Numbers as two ids each."""

    vocab_size = 21

    def encode(self, text):
        return [part + 1 for word in text.split() for part in divmod(int(word), 20)]

    def decode(self, ids):
        return " ".join(str(20 * (a - 1) + b - 1) for a, b in zip(ids[::2], ids[1::2], strict=True))


def test_own_tokenizers_the_whole_way(tmp_path):
    """From JSON lines and from numbers, through the pipeline, without a line of C knowing the class."""
    model = ModelConfig(model_type="x070", n_layer=1, n_embd=32, ctx_len=4, head_size_a=32)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ["hello world", "", "abc"]))
    pipe = RWKVTrainingPipeline(tmp_path / "a", model, tokenizer=Letters())
    result = pipe.prepare_data_from_jsonl(tmp_path / "a.jsonl", n_epochs=1)
    with BinIdxDataset(result["binidx_prefix"]) as dataset:
        found = sorted(Letters().decode(item[:-1]) for item in dataset)
    assert found == ["", "abc", "hello world"] and pipe.model_config.vocab_size == 28
    assert GenericTokenizer(result["vocab_path"]).encode("abc") == Letters().encode("abc")
    with pytest.raises(ValueError, match=r"a\.jsonl:2: "):
        (tmp_path / "a.jsonl").write_text('{"text": "ab"}\n{"text": "A"}\n')
        pipe.prepare_data_from_jsonl(tmp_path / "a.jsonl")
    pipe = RWKVTrainingPipeline(tmp_path / "b", model, tokenizer=Halves())
    result = pipe.prepare_data(np.arange(30).reshape(10, 3))
    assert result["total_tokens"] == 3 * 10 * 7


def test_world_by_name(tmp_path, monkeypatch):
    """The vocabulary lies in a package that need not be importable; without it the message says what to install."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "pyrwkv_tokenizer", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r'pip install "rwkvtune\[world\]", or give the path of rwkv_vocab_v20230424\.txt'):
        GenericTokenizer("world")
    (tmp_path / "package").mkdir()
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path / "package")])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: {"pyrwkv_tokenizer": spec}[name])
    with pytest.raises(FileNotFoundError, match="World vocabulary is not installed"):
        GenericTokenizer("world")
    create_byte_vocab_file(tmp_path / "package" / "rwkv_vocab_v20230424.txt")
    assert GenericTokenizer("world").encode("a") == [98]
    (tmp_path / "world").write_text("5 'a' 1\n")  # a file of that name is that file
    assert GenericTokenizer("world").encode("a") == [5]


def test_world_package(shared):
    pytest.importorskip("pyrwkv_tokenizer")
    ours = GenericTokenizer(shared / "data" / "rwkv_vocab_v20230424.txt")
    assert GenericTokenizer("world")._core.lines() == ours._core.lines()
