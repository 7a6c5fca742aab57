"""Arrays to JSON lines to bin/idx: the documented numbers, the reference's order of lines, and bad input."""

import json
import os
import random
import stat
import subprocess
import sys

import numpy as np
import pytest

from rwkvtune.data import (
    BaseTokenizer,
    BinIdxDataset,
    DataPipeline,
    GenericTokenizer,
    IntegerTokenizer,
    JsonlToBinIdxConverter,
    NumpyToJsonlConverter,
    create_byte_vocab_file,
    get_data_info,
)
from rwkvtune.errors import FormatError


def lines_of(path):
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def jsonl(path, *texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def documents(prefix):
    with BinIdxDataset(prefix) as dataset:
        assert np.array_equal(dataset.documents, np.arange(len(dataset) + 1))
        return [item.tolist() for item in dataset]


def by_reference_rules(texts, tokenizer, n_epochs, shuffle, rng):
    """The lines in the order that one list, shuffled again in every epoch, gives; as ids with a 0 at the end."""
    texts, out = list(texts), []
    for _ in range(n_epochs):
        if shuffle:
            rng.shuffle(texts)
        out += texts
    return [[*tokenizer.encode(text), 0] for text in out]


# ---- arrays to lines ----


def test_numpy_rows(tmp_path):
    path = tmp_path / "sub" / "a.jsonl"
    assert NumpyToJsonlConverter().convert(np.arange(9).reshape(3, 3), path) == path
    assert path.read_bytes() == b'{"text": "0 1 2"}\n{"text": "3 4 5"}\n{"text": "6 7 8"}\n'


def test_numpy_flat(tmp_path):
    convert, path = NumpyToJsonlConverter().convert, tmp_path / "a.jsonl"
    convert(np.arange(20), path, sequence_length=5)
    assert len(lines_of(path)) == 4
    convert(range(23), path, 5)
    assert lines_of(path)[-1] == "15 16 17 18 19" and len(lines_of(path)) == 4
    convert([1, 2, 3], str(path))
    assert lines_of(path) == ["1 2 3"]
    convert(np.array([1.0, -1.0]), path)
    assert lines_of(path) == ["1 -1"]
    with pytest.raises(ValueError, match="1.9.*transform"):
        convert(np.array([1.0, 1.9]), path)
    assert lines_of(path) == ["1 -1"]
    convert(np.array([2**63], np.uint64), path)
    assert lines_of(path) == [str(2**63)]
    NumpyToJsonlConverter(transform=lambda x: f"<{x}>").convert([1, 2], path)
    assert lines_of(path) == ["<1> <2>"]


def test_numpy_file(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(2050))
    NumpyToJsonlConverter().convert_file(tmp_path / "a.npy", tmp_path / "a.jsonl")
    assert [len(line.split()) for line in lines_of(tmp_path / "a.jsonl")] == [1024, 1024]


@pytest.mark.parametrize(
    "data, length, message",
    [
        (np.zeros((2, 2, 2)), None, "shape"),
        (np.array(3), None, "shape"),
        (np.zeros(4, int), 5, "4 values, less than one sequence"),
        (np.zeros(4, int), 0, "sequence_length is 0"),
        (np.array([1.0, np.nan]), None, "nan"),
        (np.array([np.inf]), None, "inf"),
    ],
)
def test_numpy_refuses(tmp_path, data, length, message):
    path = jsonl(tmp_path / "a.jsonl", "old")
    with pytest.raises(ValueError, match=message):
        NumpyToJsonlConverter().convert(data, path, length)
    assert lines_of(path) == ["old"] and os.listdir(tmp_path) == ["a.jsonl"]


# ---- lines to bin/idx ----


def test_order_is_the_reference_s(tmp_path):
    texts = [str(i) for i in range(300)]
    source, tok = jsonl(tmp_path / "a.jsonl", *texts), IntegerTokenizer(359)
    convert = JsonlToBinIdxConverter(verbose=False).convert
    for n_epochs, shuffle, seed in [(1, True, 0), (3, True, 42), (2, False, 1), (3, True, 7)]:
        assert convert(source, tmp_path / "out", n_epochs, shuffle, seed) == tmp_path / "out"
        assert documents(tmp_path / "out") == by_reference_rules(texts, tok, n_epochs, shuffle, random.Random(seed))
    random.seed(5)
    convert(source, tmp_path / "out")
    random.seed(5)
    assert documents(tmp_path / "out") == by_reference_rules(texts, tok, 3, True, random)


def test_known_order(tmp_path):
    """Three lines, two epochs, seed 0, written out: the order must never change."""
    JsonlToBinIdxConverter(verbose=False).convert(jsonl(tmp_path / "a", "0", "1", "2"), tmp_path / "out", 2, True, 0)
    assert (tmp_path / "out.bin").read_bytes() == np.array([1, 0, 3, 0, 2, 0, 2, 0, 3, 0, 1, 0], "<u2").tobytes()


def test_ten_documents(tmp_path, capsys):
    JsonlToBinIdxConverter().convert(
        jsonl(tmp_path / "a.jsonl", *"0123456789"), tmp_path / "new" / "a.b", n_epochs=1, random_seed=3
    )
    assert get_data_info(tmp_path / "new" / "a.b") == {
        "num_items": 10,
        "total_tokens": 20,
        "dtype": "<class 'numpy.uint16'>",
    }
    assert capsys.readouterr().out.splitlines() == [
        f"### Loaded 10 sequences from {tmp_path / 'a.jsonl'}",
        "### Using fixed random seed: 3",
        "### Building bin/idx...",
        f"### Done! Created {tmp_path / 'new' / 'a.b'}.bin and {tmp_path / 'new' / 'a.b'}.idx",
    ]
    assert sorted(os.listdir(tmp_path / "new")) == ["a.b.bin", "a.b.idx"]


def test_line_forms(tmp_path):
    """Blank lines, other keys, CRLF, a byte order mark, no last line end, an empty text."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "1"}\r\n\r\n   \n {"id": [1], "text": "2 3"} \n{"text": ""}\n{"text":"4"}')
    JsonlToBinIdxConverter(verbose=False).convert(path, tmp_path / "out", 1, False)
    assert documents(tmp_path / "out") == [[2, 0], [3, 4, 0], [0], [5, 0]]


def test_bytes_and_unicode(tmp_path):
    tok = GenericTokenizer(create_byte_vocab_file(tmp_path / "v.txt"))
    texts = ["héllo", "日本\n", "🙂\x00", "a" * 100000]
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"text": t}, ensure_ascii=i % 2 == 0) + "\n" for i, t in enumerate(texts)), encoding="utf-8"
    )
    JsonlToBinIdxConverter(tok, verbose=False).convert(path, tmp_path / "out", 1, False)
    assert [tok.decode(document) for document in documents(tmp_path / "out")] == texts


def test_many_batches(tmp_path, monkeypatch):
    """Cut into batches of any size, the result and the line numbers are the same."""
    from rwkvtune.data import converters

    texts = [str(i % 360) for i in range(500)]
    source, convert = jsonl(tmp_path / "a.jsonl", *texts), JsonlToBinIdxConverter(verbose=False).convert
    convert(source, tmp_path / "whole", 2, True, 9)
    monkeypatch.setattr(converters, "_BATCH_BYTES", 100)
    monkeypatch.setattr(converters, "_WRITE_DOCUMENTS", 7)
    convert(source, tmp_path / "cut", 2, True, 9)
    for ending in (".bin", ".idx"):
        assert (tmp_path / f"whole{ending}").read_bytes() == (tmp_path / f"cut{ending}").read_bytes()
    with source.open("a") as file:
        file.write('{"text": "360"}\n')
    with pytest.raises(FormatError, match=r"a\.jsonl:501: Value must be in"):
        convert(source, tmp_path / "cut")


class Own(BaseTokenizer):
    """A tokenizer with a vocabulary of any size whose text is ids."""

    def __init__(self, vocab_size):
        self.size = vocab_size

    vocab_size = property(lambda self: self.size)

    def encode(self, text):
        return [int(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(map(str, ids))


class Duck:
    """Not a BaseTokenizer, but has its three members."""

    vocab_size = 100
    encode = staticmethod(lambda text: [int(word) for word in text.split()])
    decode = staticmethod(lambda ids: " ".join(map(str, ids)))


def test_own_tokenizers_and_wide_ids(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", "1 2", "99", "")
    for tok, dtype in [(Own(100), np.uint16), (Duck(), np.uint16), (Own(65536), np.uint16), (Own(65537), np.int32)]:
        JsonlToBinIdxConverter(tok, verbose=False).convert(source, tmp_path / "out", 1, False)
        assert documents(tmp_path / "out") == [[1, 2, 0], [99, 0], [0]]
        assert BinIdxDataset(tmp_path / "out").dtype == dtype
    jsonl(source, "70000 65535")
    JsonlToBinIdxConverter(Own(70001), verbose=False).convert(source, tmp_path / "out", 1, False)
    assert documents(tmp_path / "out") == [[70000, 65535, 0]]
    for tok in (Own(99), type("Small", (Duck,), {"vocab_size": 99})()):
        jsonl(source, "1", "98 99")
        with pytest.raises(FormatError, match=r"a\.jsonl:2: token id 99 is not in \[0, 99\)"):
            JsonlToBinIdxConverter(tok, verbose=False).convert(source, tmp_path / "out")
    jsonl(source, "1", "-1")
    with pytest.raises(FormatError, match=r"a\.jsonl:2: token id -1"):
        JsonlToBinIdxConverter(Own(99), verbose=False).convert(source, tmp_path / "out")


BAD_LINES = {
    "{": "not JSON",
    "not json": "not JSON: Expecting value at character 1",
    '{"text": "1"} x': "not JSON: Extra data",
    "[]": "expected an object",
    "3": "expected an object",
    "{}": "expected an object",
    '{"Text": "1"}': "expected an object",
    '{"text": 5}': "expected an object",
    '{"text": null}': "expected an object",
    '{"text": "abc"}': "Cannot read an integer at position 0",
    '{"text": "1 360"}': r"Value must be in \[0, 359\], got 360",
    '{"text": "\\ud800"}': "surrogates not allowed",
    "[" * 100000: "nested too deeply|not JSON",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:20])
def test_bad_lines(tmp_path, line):
    source, convert = jsonl(tmp_path / "a.jsonl", "1", "2"), JsonlToBinIdxConverter(verbose=False).convert
    convert(source, tmp_path / "out")
    before = [(tmp_path / f"out{ending}").read_bytes() for ending in (".bin", ".idx")]
    with source.open("a") as file:
        file.write("\n" + line + "\n" + '{"text": "3"}\n')
    with pytest.raises(FormatError, match=BAD_LINES[line]) as error:
        convert(source, tmp_path / "out")
    assert str(error.value).startswith(f"{source}:4: ")
    assert [(tmp_path / f"out{ending}").read_bytes() for ending in (".bin", ".idx")] == before
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "out.bin", "out.idx"]


def test_skip_bad(tmp_path, capsys):
    """Bad lines of all kinds left out, by the core's tokenizers and by others."""
    source = tmp_path / "a.jsonl"
    source.write_bytes(b'{"text": "1"}\n{\n{"text": "x"}\n\xff\n{"text": "101 2"}\n\n{"text": "2 3"}\n{"text": "\\ud800"}\n')
    for tok in (IntegerTokenizer(99), Own(100), Duck()):
        converter = JsonlToBinIdxConverter(tok)
        converter.convert(source, tmp_path / "out", 1, False, skip_bad=True)
        first = 1 if isinstance(tok, IntegerTokenizer) else 0
        assert documents(tmp_path / "out") == [[1 + first, 0], [2 + first, 3 + first, 0]]
        assert converter.n_skipped == 5 and f"Skipped 5 bad lines, for example {source}:2: not JSON" in capsys.readouterr().out
        jsonl(tmp_path / "good", "1")
        converter.convert(tmp_path / "good", tmp_path / "out", skip_bad=True)
        assert converter.n_skipped == 0 and "Skipped" not in capsys.readouterr().out


def test_derived_tokenizer(tmp_path):
    """A class derived from one of the core's is asked itself."""

    class Reversed(IntegerTokenizer):
        def encode_batch(self, texts):
            return [ids[::-1] for ids in super().encode_batch(texts)]

    JsonlToBinIdxConverter(Reversed(9), verbose=False).convert(jsonl(tmp_path / "a", "1 2"), tmp_path / "out", 1, False)
    assert documents(tmp_path / "out") == [[3, 2, 0]]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_reads_a_pipe(tmp_path):
    pipe, text = tmp_path / "pipe", '{"text": "1 2"}\n' * 50000
    os.mkfifo(pipe)
    with subprocess.Popen([sys.executable, "-c", "import sys; open(sys.argv[1], 'w').write(sys.argv[2] * 50000)", pipe, text[:16]]):
        JsonlToBinIdxConverter(verbose=False).convert(pipe, tmp_path / "out", 1, False)
    assert get_data_info(tmp_path / "out")["total_tokens"] == 150000


def test_bad_files(tmp_path):
    convert, path = JsonlToBinIdxConverter(verbose=False).convert, tmp_path / "a.jsonl"
    with pytest.raises(FileNotFoundError, match=r"a\.jsonl"):
        convert(path, tmp_path / "out")
    for content, message in [
        (b"", "no lines"),
        (b"\n \n", "no lines"),
        (b'{"text": "1"}\n\xff\n', r"a\.jsonl:2: not UTF-8.*byte 1"),
    ]:
        path.write_bytes(content)
        with pytest.raises(FormatError, match=message):
            convert(path, tmp_path / "out")
    with pytest.raises(ValueError, match="n_epochs is 0"):
        convert(path, tmp_path / "out", n_epochs=0)
    assert os.listdir(tmp_path) == ["a.jsonl"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_read_only_directory(tmp_path):
    source, locked = jsonl(tmp_path / "a.jsonl", "1"), tmp_path / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(OSError, match="locked"):
            JsonlToBinIdxConverter(verbose=False).convert(source, locked / "out")
    finally:
        locked.chmod(stat.S_IRWXU)


LIMITED = """
import resource, signal, sys
from rwkvtune.data import JsonlToBinIdxConverter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    JsonlToBinIdxConverter(verbose=False).convert(sys.argv[1], sys.argv[2], n_epochs=3)
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits")
@pytest.mark.parametrize("limit", [1000, 1000000])  # while the lines are tokenized; while the repetitions are written
def test_full_disk(tmp_path, limit):
    """A limit on the size of files stands for the full disk."""
    source, convert = jsonl(tmp_path / "a.jsonl", "1"), JsonlToBinIdxConverter(verbose=False).convert
    convert(source, tmp_path / "out")
    before = (tmp_path / "out.bin").read_bytes()
    jsonl(source, *["5 " * 20000] * 20)
    run = subprocess.run([sys.executable, "-c", LIMITED, source, tmp_path / "out", str(limit)], check=False, capture_output=True, text=True,
                         env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert f"cannot write {tmp_path / 'out'}.bin: " in run.stdout, run.stderr
    assert (tmp_path / "out.bin").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "out.bin", "out.idx"]


# ---- the whole way ----


def test_pipeline_numpy(tmp_path):
    data = np.random.default_rng(0).integers(0, 360, size=(30, 100))
    result = DataPipeline(verbose=False).process(data, tmp_path, "train", sequence_length=50)
    assert result == {
        "jsonl_path": tmp_path / "train.jsonl", "binidx_prefix": tmp_path / "train", "vocab_path": tmp_path / "vocab.txt",
        "num_sequences": 90, "total_tokens": 90 * 101, "magic_prime": 179,
    }  # fmt: skip
    assert sorted(os.listdir(tmp_path)) == ["train.bin", "train.idx", "train.jsonl", "vocab.txt"]
    assert sorted(documents(tmp_path / "train")) == sorted([*(row + 1).tolist(), 0] for row in data for _ in range(3))
    assert IntegerTokenizer(vocab_file=tmp_path / "vocab.txt").max_value == 359


def test_pipeline_jsonl(tmp_path):
    source = jsonl(tmp_path / "source.jsonl", *["1 2 3"] * 50)
    tok = GenericTokenizer(create_byte_vocab_file(tmp_path / "v.txt"))
    result = DataPipeline(tok, verbose=False).process_jsonl(source, tmp_path / "out", n_epochs=2)
    assert result["num_sequences"] == 100 and result["total_tokens"] == 600 and result["magic_prime"] is None
    assert (tmp_path / "out" / "data.jsonl").read_bytes() == source.read_bytes()
    again = DataPipeline(tok, verbose=False).process_jsonl(
        tmp_path / "out" / "data.jsonl", tmp_path / "out", sequence_length=20
    )
    assert again["num_sequences"] == 150 and again["magic_prime"] == 41
    assert GenericTokenizer(again["vocab_path"]).encode("a") == [98]
    with pytest.raises(FileNotFoundError, match="none"):
        DataPipeline(verbose=False).process_jsonl(tmp_path / "none.jsonl", tmp_path / "out2")


def test_documented_example_numbers(tmp_path):
    """Example 1: 1000 sequences of 1024, three times, each with its end of document."""
    data = np.random.default_rng(1).integers(0, 1000, size=(1000, 1024))
    result = DataPipeline(IntegerTokenizer(999), verbose=False).process_numpy(data, tmp_path)
    assert result["total_tokens"] == 3075000 and result["magic_prime"] == 2999 and result["num_sequences"] == 3000
