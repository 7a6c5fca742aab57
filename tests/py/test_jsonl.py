"""JSON lines read by the core, against Python's json line by line: the same texts, refused for the same reasons."""

import io
import json
import os
import random
import sys
import tempfile

import numpy as np
import pytest

from rwkvtune import _rwkvcore as core
from rwkvtune.errors import FormatError

BLOCKS = [1, 7, 64, 1000, 1 << 20]


def by_python(data, name="f"):
    """[(line number, text)] and the messages of the bad lines, as json.loads sees them."""
    texts, bad = [], []
    for number, line in enumerate(io.BytesIO(data), 1):
        line = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()
        try:
            value = json.loads(line.decode("utf-8")) if line else None
            if isinstance(value, dict) and isinstance(value.get("text"), str):
                texts.append((number, value["text"]))
            elif line:
                bad.append(f'{name}:{number}: expected an object with a text, {{"text": "..."}}')
        except UnicodeDecodeError as error:
            bad.append(f"{name}:{number}: not UTF-8: {error.reason} at byte {error.start + 1} of the line")
        except json.JSONDecodeError as error:
            bad.append(f"{name}:{number}: not JSON: {error.msg} at character {error.pos + 1} of the line")
        except RecursionError:
            bad.append(f"{name}:{number}: JSON nested too deeply")
        except ValueError:
            bad.append(f"{name}:{number}: not JSON: Integer of more than 4300 digits")
    return texts, bad


def by_core(data, block=1 << 20, skip_bad=True):
    reader = core.JsonlReader(io.BytesIO(data).readinto, "f", block, skip_bad)
    texts = [pair for batch in iter(reader.texts, None) for pair in batch]
    assert reader.n_bytes == len(data)
    return texts, reader.n_bad, reader.first_bad


def check(data, block=1 << 20):
    """Both readers agree on the whole of `data`, and on its first bad line without skip_bad."""
    texts, bad = by_python(data)
    assert by_core(data, block)[:2] == (texts, len(bad)), data
    if bad:
        with pytest.raises(FormatError) as error:
            by_core(data, block, skip_bad=False)
        assert str(error.value) == by_core(data, block)[2]
        place = ": ".join(bad[0].split(": ")[: 2 if sys.version_info >= (3, 13) else None])  # 3.13 has new reasons
        assert str(error.value).startswith(place), data


ODD = [
    "", '"', "\\", "\\n", '\\"', "\\/", "\\b\\f\\r\\t", "\\u0041", "\\u00e9", "\\ud83d\\ude00", "\\ud83d", "\\ude00", "\\ud83d\\u0041",
    "\\ud83d\\ude0", "\\u12", "\\u+123", "\\x", "\\", "é", "日本", "🙂", "\x7f", "\x1f", "\t", "\x00", "\u00a0", "\u2028", "\ufeff", "a" * 40,
    "text", "plain words ", " ", "\r", "\x0b", "\x0c",
]  # fmt: skip
TOKENS = [
    "{", "}", "[", "]", ",", ":", '"text"', '"t\\u0065xt"', '"text":', '"a":', '"a"', "0", "-0", "12", "-", "1.5", "1.", ".5", "01", "1e5",
    "1E+5", "1e", "-1.5e-7", "true", "false", "null", "tru", "NaN", "Infinity", "-Infinity", "-Inf", " ", "\t", '{"text": "a"}', "\x0b", "\u00a0",
]  # fmt: skip


def random_value(rng, depth=0):
    kind = rng.randrange(9 if depth < 4 else 6)
    if kind < 3:
        return "".join(rng.choice(ODD) for _ in range(rng.randrange(5)))
    if kind < 6:
        return rng.choice([None, True, False, 0, -7, 1.5, 1e300, float("nan"), float("inf"), 10**30])
    if kind == 6:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(["text", "a", "", "té", 'q"']): random_value(rng, depth + 1) for _ in range(rng.randrange(4))}


def random_line(rng):
    """Mostly an object with a text; half of them damaged, some not JSON from the start."""
    kind = rng.randrange(4)
    if kind == 0:
        line = "".join(rng.choice(TOKENS) for _ in range(rng.randrange(12)))
    elif kind == 1:
        line = '{"text": "' + "".join(rng.choice(ODD) for _ in range(rng.randrange(6))) + '"}'
    else:
        value = {
            "text": "".join(rng.choice(ODD) for _ in range(3)),
            **{k: random_value(rng) for k in "ab"[: rng.randrange(3)]},
        }
        value = value if rng.random() < 0.8 else random_value(rng)
        line = json.dumps(
            value, ensure_ascii=rng.random() < 0.5, separators=rng.choice([(", ", ": "), (",", ":"), (" ,\t", "\r: ")])
        )
    line = bytearray(line.encode("utf-8", "surrogatepass"))
    for _ in range(rng.choice([0, 0, 0, 1, 1, 3])):
        at = rng.randrange(len(line) + 1)
        byte = rng.choice([rng.randrange(256), *b'"\\{}[]:,utex0 ', 0xC3, 0xED, 0xF0, 0xE0, 0x80, 0xA0])
        line[at : at + rng.randrange(3)] = bytes([byte])[: rng.randrange(2)]
    return bytes(line) + rng.choice([b"\n", b"\n", b"\n", b"\r\n", b" \n", b"\n\n"])


@pytest.mark.parametrize("seed", range(20))
def test_random_lines(seed):
    rng = random.Random(seed)
    for _ in range(200):
        check(random_line(rng))
    for block in BLOCKS:
        data = b"".join(random_line(rng) for _ in range(100))
        check(rng.choice([b"", b"\xef\xbb\xbf"]) + data[: rng.choice([len(data), rng.randrange(len(data))])], block)


def test_every_cut():
    """A line that has everything, ended after each of its bytes."""
    line = '\ufeff {"a": [1, -2.5e+3, {"b": null}], "t\\u0065xt": "\\ud83d\\ude00\\n日🙂", "c": true} '.encode()
    for end in range(len(line) + 1):
        check(line[:end])
        check(b"\n" + line[3:end])


def test_utf8():
    """Every two bytes and the borders of longer characters, inside a text and at the end of a line."""
    for first in range(0x80, 0x100):
        for second in (0x22, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0):
            for rest in (b"", b"\x80", b"\xbf\xbf", b"\x80\x7f"):
                character = bytes([first, second]) + rest
                check(b'{"text": "' + character + b'"}\n' + character)
        check(bytes([first]))


def test_limits():
    nested = "[" * 900 + "]" * 900
    check(f'{{"a": {nested}, "text": "x"}}'.encode())
    assert by_core(b"[" * 100000)[2] == "f:1: JSON nested too deeply"
    check(b'{"a": %s, "text": "x"}' % (b"9" * 4300) + b'\n{"a": %s.5, "text": "x"}' % (b"9" * 5000))
    assert "Integer of more than 4300 digits" in by_core(b'{"a": -%s, "text": "x"}' % (b"9" * 4301))[2]


def test_long_lines_and_many():
    """Lines longer than a block, and more of them than threads."""
    rng = random.Random(3)
    lines = [json.dumps({"text": "é\n" * rng.choice([0, 1, 10, 5000])}, ensure_ascii=i % 2 == 0) for i in range(300)]
    for block in BLOCKS:
        check("\n".join(lines).encode(), block)


def written_ids(data, tokenizer, block):
    """(tokens of each document, the bytes written)"""
    reader, sizes = core.JsonlReader(io.BytesIO(data).readinto, "f", block), []
    with tempfile.TemporaryFile() as file:
        while (more := reader.write_ids(tokenizer, file.fileno(), os.fstat(file.fileno()).st_size)) is not None:
            sizes += more.tolist()
        return sizes, file.read()


@pytest.mark.parametrize("width, most", [(np.uint16, 359), (np.int32, 70000)])
def test_ids(width, most):
    """Ids and sizes are those of the tokenizer, whatever the block and the number of threads."""
    tokenizer, before = core.IntegerTokenizer(most), core.get_num_threads()
    texts = ["1 2 3", "", "0", *map(str, range(300))] * 5
    data = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
    expected = [[*tokenizer.encode(text), 0] for text in texts]
    try:
        for n_threads in (1, 2, 5):
            core.set_num_threads(n_threads)
            for block in BLOCKS:
                sizes, ids = written_ids(data, tokenizer, block)
                assert sizes == [len(e) for e in expected]
                assert ids == np.array([token_id for e in expected for token_id in e], width).tobytes()
    finally:
        core.set_num_threads(before)


def test_surrogates():
    data = rb'{"text": "ab\udc00"}' + b"\n" + rb'{"text": "\ud83d\ude00"}'
    assert by_core(data)[0] == [(1, "ab\udc00"), (2, "\U0001f600")]
    reader = core.JsonlReader(io.BytesIO(data).readinto, "f", 100)
    with pytest.raises(
        FormatError, match=r"^f:1: \\udc00 without its other half at character 3 .*surrogates not allowed$"
    ):
        reader.write_ids(core.IntegerTokenizer(5), -1, 0)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="block_bytes is 0"):
        core.JsonlReader(io.BytesIO().readinto, "f", 0)
    with pytest.raises(TypeError, match="core must be a tokenizer of this module, not dict"):
        core.JsonlReader(io.BytesIO().readinto, "f", 1).write_ids({}, -1, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        core.JsonlReader(io.BytesIO(b'{"text": "1"}').readinto, "f", 100).write_ids(core.IntegerTokenizer(5), -1, 0)
    for returned, error in [(5, ValueError), (-1, ValueError), (None, TypeError)]:
        with pytest.raises(error):
            core.JsonlReader(lambda view: returned, "f", 1).texts()  # noqa: B023
    reader = core.JsonlReader(lambda view: reader.texts(), "f", 1)
    with pytest.raises(ValueError, match="in use"):
        reader.texts()

    def broken(view):
        raise OSError(5, "broken")

    with pytest.raises(OSError, match="broken"):
        core.JsonlReader(broken, "f", 1).texts()
