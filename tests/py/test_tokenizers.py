"""Tokenizers against a slow greedy matcher, the World vocabulary's reference cases, and bad vocabulary files."""

import ast
import json
import random
import threading

import numpy as np
import pytest

from rwkvtune.data import tokenizers as tk
from rwkvtune.errors import FormatError


def greedy(vocab, data):
    """The definition, slowly: at each place the longest token that matches.  vocab: dict bytes -> id."""
    longest, ids, i = max(map(len, vocab), default=0), [], 0
    while i < len(data):
        for n in range(min(longest, len(data) - i), 0, -1):
            if data[i : i + n] in vocab:
                ids.append(vocab[data[i : i + n]])
                i += n
                break
        else:
            raise ValueError(i)
    return ids


def write(path, *lines):
    path.write_bytes("\n".join(lines).encode() + b"\n")
    return path


def from_dict(path, vocab):
    path.write_text("".join(tk._literal_line(i, t) for t, i in vocab.items()), encoding="utf-8")
    return tk.GenericTokenizer(path)


# ---- the documented examples ----


def test_integer_example():
    tok = tk.IntegerTokenizer(max_value=999)
    assert tok.vocab_size == 1001
    assert tok.encode_sequence([0, 100, 500, 999]) == [1, 101, 501, 1000]
    assert tok.decode_sequence([1, 101, 501, 1000]) == [0, 100, 500, 999]


def test_generic_example(tmp_path):
    path = tmp_path / "vocab.txt"
    assert tk.create_vocab_file_from_tokens(["hello", "world", " ", "!"], path) is None
    tok = tk.GenericTokenizer(str(path))
    assert tok.encode("hello world!") == [1, 3, 2, 4]
    assert tok.decode([1, 3, 2, 4]) == "hello world!"
    assert tok.vocab_size == 5
    assert path.read_text().splitlines()[0] == "0 b'\\x00' 1"


def test_angle_example():
    tok = tk.AngleTokenizer()
    assert tok.vocab_size == 361
    assert tok.encode_angle_sequence([0, 45, 90]) == [1, 46, 91]
    assert tok.decode_angle_sequence([0, 1, 46, 91]) == [0, 45, 90]
    assert tok.encode("102 348") == [103, 349]
    assert tok.decode([103, 0, 349]) == "102 348"


def test_world_cases(shared):
    tok = tk.GenericTokenizer(shared / "data" / "rwkv_vocab_v20230424.txt")
    cases = json.loads((shared / "golden/dev/tokenizer/world_cases.json").read_text())
    assert tok.vocab_size == 65530 and len(cases) > 20
    for case in cases:
        assert tok.encode(case["text"]) == case["ids"]
        assert tok.decode(case["ids"]) == case["text"]
    arrays = tok.encode_batch([case["text"] for case in cases])
    assert all(a.dtype == np.uint16 and a.tolist() == case["ids"] for a, case in zip(arrays, cases, strict=True))


def test_world_lines_are_what_python_reads(shared, tmp_path):
    path = shared / "data" / "rwkv_vocab_v20230424.txt"
    tok, expected = tk.GenericTokenizer(path), {}
    for line in path.read_text(encoding="utf-8").splitlines():
        token = ast.literal_eval(line[line.index(" ") + 1 : line.rindex(" ")])
        expected[int(line[: line.index(" ")])] = token.encode() if isinstance(token, str) else token
    assert dict(tok._core.lines()) == expected
    tok.save_vocab(tmp_path / "copy.txt")
    assert dict(tk.GenericTokenizer(tmp_path / "copy.txt")._core.lines()) == expected


def test_world_random_bytes_and_text(shared):
    path = shared / "data" / "rwkv_vocab_v20230424.txt"
    tok = tk.GenericTokenizer(path)
    vocab = {token: i for i, token in tok._core.lines()}
    rng = random.Random(1)
    pieces = list(vocab)
    for size in (1, 2, 3, 50, 700):
        noise = rng.randbytes(size)
        prose = b"".join(rng.choices(pieces, k=size))
        for data in (noise, prose):
            ids = tok.encodeBytes(data)
            assert ids == greedy(vocab, data)
            assert tok.decodeBytes(ids) == data


# ---- the trie against the definition ----


@pytest.mark.parametrize("seed", range(30))
def test_random_vocabularies(tmp_path, seed):
    rng = random.Random(seed)
    alphabet = bytes(rng.sample(range(256), rng.choice([1, 2, 4, 40, 256])))
    tokens = {bytes([c]) for c in alphabet}
    for _ in range(rng.choice([0, 5, 200, 3000])):
        tokens.add(bytes(rng.choices(alphabet, k=rng.randint(1, rng.choice([2, 4, 12])))))
    ids = rng.sample(range(1, rng.choice([1, 3, 40]) * len(tokens) + 1), len(tokens))
    vocab = dict(zip(sorted(tokens, key=lambda t: rng.random()), ids, strict=True))
    tok = from_dict(tmp_path / "v.txt", vocab)
    data = bytes(rng.choices(alphabet, k=2000))
    assert tok.encodeBytes(data) == greedy(vocab, data)
    for n in range(5):
        assert tok.encodeBytes(data[:n]) == greedy(vocab, data[:n])
    array = tok.encode_array(data)
    assert array.dtype == (np.uint16 if tok.vocab_size <= 65536 else np.int32)
    assert tok.decodeBytes(array) == data


@pytest.mark.parametrize("seed", range(12))
def test_long_texts(tmp_path, seed):
    """Texts long enough to be walked at several places at once, with places to cut them everywhere or hardly anywhere, and
    with tokens that reach further back than a node can say."""
    rng = random.Random(seed)
    letters, separators = b"abc", bytes(range(200, 200 + rng.choice([1, 1, 30])))
    tokens = {bytes([c]) for c in letters + separators}
    for _ in range(rng.choice([10, 300])):
        separator = bytes(rng.choices(separators, k=rng.randint(0, 1)))
        tokens.add(separator + bytes(rng.choices(letters, k=rng.randint(1, rng.choice([3, 9])))))
    if seed % 3 == 0:
        tokens |= {b"a" * 1030 + b"c", b"ab" * 40}
    vocab = {token: i for i, token in enumerate(sorted(tokens), 1)}
    tok = from_dict(tmp_path / "v.txt", vocab)

    def text(size):
        rare = rng.choice([3, 50, 3000])
        words = (bytes(rng.choices(letters, k=rng.randint(1, rare))) + bytes([rng.choice(separators)]) for _ in range(size))
        data = b"".join(word for word, _ in zip(words, range(max(1, 4 * size // rare)), strict=False))
        return (data + b"a" * 1100 * (seed % 2) + data)[:size]

    for size in [*range(0, 140, 7), 500, 3000, 20000, 300000]:
        data = text(size)
        expected = greedy({t: i for t, i in vocab.items() if len(t) < 20}, data) if seed % 3 else greedy(vocab, data[:3000])
        assert tok.encodeBytes(data if seed % 3 else data[:3000]) == expected
        assert tok.decodeBytes(tok.encode_array(data)) == data


def test_first_of_several_errors(tmp_path):
    """Wherever the bytes without a token are, the first one is named."""
    tok = from_dict(tmp_path / "v.txt", {bytes([c]): c for c in range(1, 200)} | {b" the": 300, b"he": 301})
    data = bytearray(b"in the here and there " * 2000)
    for place in (40000, 39999, 25000, 4099, 700, 1, 0):
        data[place] = 255
        with pytest.raises(ValueError, match=f"at position {place}: "):
            tok.encodeBytes(data)


def test_long_tokens_and_long_way_back(tmp_path):
    """A token of one byte, then far down the same path one that is never finished: the match is a long way back."""
    vocab = {b"a": 1, b"b": 2, b"a" * 5000 + b"b": 3, b"a" * 2000: 4, b"a" * 1023: 5}
    tok = from_dict(tmp_path / "v.txt", vocab)
    for n in (1, 900, 1022, 1023, 1024, 1999, 2000, 2001, 2046, 2047, 4999, 5000, 5001, 7001):
        for data in (b"a" * n, b"a" * n + b"b"):
            assert tok.encodeBytes(data) == greedy(vocab, data), n


def test_longest_match_is_not_revised(tmp_path):
    tok = from_dict(tmp_path / "v.txt", {b"ab": 1, b"a": 2, b"bcd": 3, b"c": 4, b"d": 5})
    assert tok.encode("abcd") == [1, 4, 5]


def test_later_line_wins_and_saving_keeps_that(tmp_path):
    tok = tk.GenericTokenizer(write(tmp_path / "v.txt", "7 'x' 1", "3 'x' 1", "4 'y' 1"))
    assert tok.encode("xy") == [3, 4] and tok.decode([7, 3]) == "xx"
    tok.save_vocab(tmp_path / "w.txt")
    again = tk.GenericTokenizer(tmp_path / "w.txt")
    assert again.encode("xy") == [3, 4] and again._core.lines() == tok._core.lines()


def test_wide_ids(tmp_path):
    tok = tk.GenericTokenizer(write(tmp_path / "v.txt", "65536 'a' 1", "4194302 'b' 1"))
    array = tok.encode_array("abba")
    assert array.dtype == np.int32 and array.tolist() == [65536, 4194302, 4194302, 65536]
    assert tok.decode(array) == "abba" and tok.vocab_size == 4194303


def test_cannot_encode(tmp_path):
    tok = from_dict(tmp_path / "v.txt", {b"a": 1, b"abc": 2, b"b": 3})
    with pytest.raises(
        ValueError, match=r"^Cannot encode byte at position 2: unknown token starting with b'c\\xc3\\xa9'$"
    ):
        tok.encode("aacé")
    with pytest.raises(ValueError, match="position 1"):
        tok.encode("a" + "\x00" * 100)
    with pytest.raises(ValueError, match="text 2: .*position 0"):
        tok.encode_batch(["a", "", "?", "!"])
    with pytest.raises(TypeError, match="str or bytes, not int"):
        tok.encode(3)
    with pytest.raises(UnicodeEncodeError):
        tok.encode("\ud800")


def test_empty(tmp_path):
    tok = tk.GenericTokenizer(write(tmp_path / "v.txt", "", "# nothing here"))
    assert tok.vocab_size == 0 and tok.encode("") == [] and tok.decode([]) == "" and tok.encode_batch([]) == []
    with pytest.raises(ValueError):
        tok.encode("a")
    assert len(tk.IntegerTokenizer(5).encode_array("")) == 0


# ---- decoding ----


def test_decode_malformed_and_unknown(tmp_path):
    tok = from_dict(tmp_path / "v.txt", {b"a": 1, "é".encode()[:1]: 2, "é".encode()[1:]: 3})
    assert tok.decode([1, 2, 3, 1]) == "aéa"
    assert tok.decode([1, 2, 1]) == "a�a" and tok.decode([1, 2, 1], errors="ignore") == "aa"
    with pytest.raises(UnicodeDecodeError):
        tok.decode([2], errors="strict")
    assert tok.decodeBytes([0, 1, 99, -1, 2**40, 1]) == b"aa"
    for dtype in (np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, ">i4"):
        assert tok.decode(np.array([[1], [1]], dtype=dtype)) == "aa"
    assert tok.decode(np.array([1, 9, 1, 9], np.int32)[::2]) == "aa"
    with pytest.raises(TypeError, match="float64"):
        tok.decode([1.0])


def test_decode_many_lengths(tmp_path):
    """Tokens around the size that is copied as one block, up to the very end of the output."""
    vocab = {bytes([65 + n % 26]) * n: n for n in range(1, 40)}
    tok = from_dict(tmp_path / "v.txt", vocab)
    tokens = {i: t for t, i in vocab.items()}
    rng = random.Random(0)
    for _ in range(50):
        ids = rng.choices(range(1, 40), k=rng.randint(0, 30))
        assert tok.decodeBytes(ids) == b"".join(tokens[i] for i in ids)


def test_print_tokens(tmp_path, capsys):
    tok = from_dict(tmp_path / "v.txt", {b"a": 1, b"\xff": 2})
    tok.printTokens([1, 2])
    assert capsys.readouterr().out == "'a'1 b'\\xff'2 \n"
    with pytest.raises(KeyError):
        tok.printTokens([1, 3])


# ---- vocabulary files ----

LITERALS = [
    r"'\n'", r"'\\'", r"'\''", r"'\"'", '"\'"', r"'\x41\xe9'", r"'\101\0\18'", r"'é\u20ac\U0001F600'", r"'\a\b\f\v\t\r'", r"'\q'",
    r"b'\xff\x00'", r"b'\u0041'", r"b'\377\'\"'", 'b"\'"', "B'x'", "' '", "'  a  '", "'#'", "'\t'", "'日本'", r"'\400'", "'\x7f'",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")
@pytest.mark.parametrize("literal", LITERALS)
def test_literals_as_python_reads_them(tmp_path, literal):
    value = ast.literal_eval(literal)
    value = value.encode() if isinstance(value, str) else value
    tok = tk.GenericTokenizer(write(tmp_path / "v.txt", f"1 {literal} {len(value)}"))
    assert tok._core.lines() == [(1, value)]


@pytest.mark.parametrize(
    "line, reason",
    [
        ("x 'a' 1", "id is not a number"),
        ("-1 'a' 1", "id is not a number"),
        ("4194303 'a' 1", "id is not a number from 0 to 4194302"),
        ("99999999999999999999 'a' 1", "id is not a number"),
        ("5 'a' x", "length is not a number"),
        ("5 'a'", "expected"),
        ("5", "expected"),
        ("5 1", "expected"),
        ("5 'a' 2", "says 2 bytes, but the token has 1"),
        ("5 'é' 1", "says 1 bytes, but the token has 2"),
        ("5 a 1", "not a quoted"),
        ("5 ' 1", "not a quoted"),
        ("5 'a 1", "quote is missing"),
        ("5 'a'b' 3", "quote inside"),
        ("5 'a' 'b' 2", "quote inside"),
        ("5 '''a''' 1", "quote inside"),
        ("5 r'a' 1", "not a quoted"),
        ("5 u'a' 1", "not a quoted"),
        ("5 f'a' 1", "not a quoted"),
        (r"5 '\' 1", "backslash before"),
        (r"5 '\x4' 1", "cut short"),
        (r"5 '\x4g' 1", "hexadecimal"),
        (r"5 '\ud800' 3", "surrogate"),
        (r"5 '\U00110000' 4", "10ffff"),
        (r"5 '\N{BULLET}' 3", "by name"),
        (r"5 b'\777' 1", "beyond one byte"),
        ("5 b'é' 2", "beyond ASCII"),
        ("5 '' 0", "empty token"),
        ("5 b'' 0", "empty token"),
        ("5 'a\x00b' 3", "control character"),
        ("1 'b' 1", "id 1 stands already on line 1"),
        ("5 __import__('os').system('true') 1", "not a quoted"),
    ],
)
def test_bad_lines(tmp_path, line, reason):
    path = write(tmp_path / "bad.txt", "1 'a' 1", "", "# comment", line)
    with pytest.raises(FormatError) as error:
        tk.GenericTokenizer(path)
    assert f"{path}:4: " in str(error.value) and reason in str(error.value)


def test_bad_utf8_and_nothing_else(tmp_path):
    path = tmp_path / "v.txt"
    for data in (
        b"1 '\xff' 1\n",
        b"1 '\xc3' 1",
        b"1 '\xe0\x80\x80' 3",
        b"1 '\xed\xa0\x80' 3",
        b"1 '\xf4\x90\x80\x80' 4",
        b"1 '\xc0\xaf' 2",
    ):
        path.write_bytes(data)
        with pytest.raises(FormatError, match="not UTF-8"):
            tk.GenericTokenizer(path)


def test_line_ends_mark_and_id_zero(tmp_path):
    path = tmp_path / "v.txt"
    path.write_bytes(b"\xef\xbb\xbf0 '' 0\r\n1 'a' 1\r\n\r\n  \t\n2 '\\r' 1")
    tok = tk.GenericTokenizer(path)
    assert tok._core.lines() == [(0, b""), (1, b"a"), (2, b"\r")]
    assert tok.encode("a\r") == [1, 2] and tok.decode([1, 0, 2]) == "a\r"
    tok.save_vocab(path)
    assert tk.GenericTokenizer(path)._core.lines() == tok._core.lines()
    other = tk.GenericTokenizer(write(path, r"0 b'\x00' 1", "1 'a' 1"))
    assert other.encode("a\x00") == [1, 0] and other.decode([0]) == "\x00"


def test_missing_files(tmp_path):
    for make in (tk.GenericTokenizer, lambda p: tk.IntegerTokenizer(vocab_file=p), tk.AngleTokenizer):
        with pytest.raises(FileNotFoundError) as error:
            make(tmp_path / "none.txt")
        assert "none.txt" in str(error.value)
    with pytest.raises(OSError):
        tk.GenericTokenizer(tmp_path)


def test_create_vocab_file(tmp_path):
    path = tmp_path / "v.txt"
    tokens = ["new\nline", b"\xff", "'", '"', "\\", " ", "é", b"ok", "\x85\u2028"]
    tk.create_vocab_file_from_tokens(tokens, path)
    lines = dict(tk.GenericTokenizer(path)._core.lines())
    assert lines == {0: b"\0"} | {i: t.encode() if isinstance(t, str) else t for i, t in enumerate(tokens, 1)}
    assert path.read_bytes().split(b"\n")[1] == b"1 'new\\nline' 8"
    before = path.read_bytes()
    for bad, reason in [
        (["a", ""], r"tokens\[1\] is empty"),
        (["a", "b", b"a"], r"tokens\[2\].*tokens\[0\]"),
        ([3], "str or bytes"),
    ]:
        with pytest.raises((ValueError, TypeError), match=reason):
            tk.create_vocab_file_from_tokens(bad, path)
    with pytest.raises(UnicodeEncodeError):
        tk.create_vocab_file_from_tokens(["\ud800"], path)
    assert path.read_bytes() == before


def test_byte_vocab(tmp_path):
    tok = tk.GenericTokenizer(tk.create_byte_vocab_file(tmp_path / "bytes.txt"))
    data = bytes(range(256))
    assert (
        tok.vocab_size == 257
        and tok.encodeBytes(data) == list(range(1, 257))
        and tok.decodeBytes(range(1, 257)) == data
    )
    assert tok.decode([0, 98, 0]) == "a"
    assert tok.decode(tok.encode("héllo 日本 🙂")) == "héllo 日本 🙂"


# ---- integers ----


def test_integer_text():
    tok = tk.IntegerTokenizer(359)
    assert tok.encode(" 0\t1\n+2 \r\n 359 007 -0\x1c5") == [1, 2, 3, 360, 8, 1, 6]
    assert tok.encode(b"5 6") == [6, 7] and tok.encodeBytes(b"5 6") == [6, 7]
    assert tok.decode([1, 0, 360]) == "0 359" and tok.decode([0]) == ""
    assert tok.decodeBytes(np.array([2, 3])) == b"1 2"
    wide = tk.IntegerTokenizer(2147483645)
    assert wide.encode_array("2147483645").dtype == np.int32 and wide.encode("2147483645") == [2147483646]
    assert wide.decode([2147483646, 1]) == "2147483645 0"
    assert tk.IntegerTokenizer(65534).encode_array("65534").dtype == np.uint16


@pytest.mark.parametrize(
    "text, message",
    [
        ("1 360", r"Value must be in \[0, 359\], got 360 \(at position 2\)"),
        ("1 -1", r"Value must be in \[0, 359\], got -1 \(at position 2\)"),
        ("9999999999999999999999", r"got 9999999999999999999999 \(at position 0\)"),
        ("1 2 abc", "Cannot read an integer at position 4: 'abc'"),
        ("1 2x", "position 2: '2x'"),
        ("1 +", r"position 2: '\+'"),
        ("1.5", "position 0: '1.5'"),
        ("1_0", "position 0: '1_0'"),
        ("400x", "position 0: '400x'"),
        ("--1", "position 0: '--1'"),
    ],
)
def test_integer_text_errors(text, message):
    with pytest.raises(ValueError, match=message):
        tk.IntegerTokenizer(359).encode(text)


def test_integer_sequences():
    tok = tk.IntegerTokenizer(359)
    assert tok.encode_sequence(np.array([0.0, 359.0])) == [1, 360] and tok.encode_sequence([]) == []
    assert tok.encode_sequence(np.array([[1, 2]], np.uint8)) == [2, 3]
    for bad, message in [([5, 360], r"in \[0, 359\], got 360"), ([-1], "got -1"), ([1.5], "must be an integer, got 1.5"),
                         ([float("nan")], "got nan"), ([10**30], "got 1000"), (["1"], "must be an integer")]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            tok.encode_sequence(bad)
    assert tok.decode_sequence([0, 1, 0, 360]) == [0, 359]
    for bad in (361, -1):
        for decode in (tok.decode_sequence, tok.decode):
            with pytest.raises(ValueError, match=f"Invalid token ID {bad}"):
                decode([1, bad])
    angle = tk.AngleTokenizer()
    for encode in (angle.encode_angle_sequence, lambda v: angle.encode(str(v[0]))):
        for bad in ([-1], [360]):
            with pytest.raises(ValueError, match=rf"Angle must be in \[0, 359\], got {bad[0]}"):
                encode(bad)
    for bad in (-1, 2**31):
        with pytest.raises(ValueError, match="max_value|out of range"):
            tk.IntegerTokenizer(bad)


def test_integer_vocab_file(tmp_path):
    path = tmp_path / "v.txt"
    assert tk.create_default_vocab_file(path) == path
    lines = path.read_text().splitlines()
    assert (lines[0], lines[1], lines[360], len(lines)) == ("0 '\\x00' 1", "1 '0' 1", "360 '359' 3", 361)
    assert tk.IntegerTokenizer(vocab_file=path).max_value == 359
    assert tk.AngleTokenizer(path).vocab_size == 361
    tk.IntegerTokenizer(10).save_vocab(path)
    assert tk.IntegerTokenizer(vocab_file=path).vocab_size == 12
    with pytest.raises(FormatError, match="angles"):
        tk.AngleTokenizer(path)
    path.write_text(path.read_text().replace("0 '\\x00' 1", "0 '' 0"))
    assert tk.IntegerTokenizer(vocab_file=path).max_value == 10
    for lines in (["1 'a' 1"], ["2 '1' 1"], ["0 '' 0"]):
        with pytest.raises(FormatError, match="integers"):
            tk.IntegerTokenizer(vocab_file=write(path, *lines))


# ---- calling, subclasses, threads ----


def test_call(tmp_path):
    tok = tk.IntegerTokenizer(9)
    assert tok("1 2").input_ids == [2, 3] and tok("1 2")["input_ids"] == [2, 3]
    assert tok(["1", "2 3"]).input_ids == [[2], [3, 4]]
    for kind in ("np", "pt"):
        ids = tok("1 2", return_tensors=kind).input_ids
        assert ids.shape == (1, 2) and ids.dtype == np.int64 and ids[0].tolist() == [2, 3]
    assert tok(["1", "2"], return_tensors="np").input_ids.shape == (2, 1)
    with pytest.raises(ValueError, match="different numbers"):
        tok(["1", "2 3"], return_tensors="np")
    with pytest.raises(ValueError, match="return_tensors"):
        tok("1", return_tensors="tf")


class Letters(tk.BaseTokenizer):
    """A user's own tokenizer: the three required members and nothing else."""

    vocab_size = 27

    def encode(self, text):
        return [ord(c) - 96 for c in text]

    def decode(self, ids):
        return "".join(chr(96 + i) for i in ids if i)


def test_own_class(tmp_path):
    tok = Letters()
    assert tok.encode_array("abz").tolist() == [1, 2, 26] and tok.encode_array("").dtype == np.uint16
    assert [a.tolist() for a in tok.encode_batch(["a", "b"])] == [[1], [2]]
    assert tok("ab").input_ids == [1, 2] and tok.encodeBytes(b"ab") == [1, 2] and tok.decodeBytes([1]) == b"a"
    tok.save_vocab(tmp_path / "v.txt")
    same = tk.GenericTokenizer(tmp_path / "v.txt")
    assert same.vocab_size == 27 and same.encode("hello") == tok.encode("hello")
    for bad in ("A", "~"):
        with pytest.raises(ValueError, match="token id"):
            tok.encode_array(bad)
    with pytest.raises(TypeError):
        tk.BaseTokenizer()


def test_batches_from_many_threads(tmp_path):
    tok = tk.GenericTokenizer(tk.create_byte_vocab_file(tmp_path / "v.txt"))
    texts = [f"text {i} " * (i % 50) for i in range(500)]
    expected, wrong = [tok.encode(t) for t in texts], []

    def work():
        for _ in range(5):
            if [a.tolist() for a in tok.encode_batch(texts)] != expected:
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
