"""The command line: what each command prints and writes, and one clear line for wrong input."""

import argparse
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rwkvtune import RWKV, BinIdxDataset, GenericTokenizer, ModelConfig, Trainer, create_byte_vocab_file
from rwkvtune.checkpoint.lazy_tensor import round_to_bfloat16, widen_bfloat16
from rwkvtune.cli import COMMANDS, _parser, main

TEXT = "\n\n".join(f"The {n}th paragraph says that {n} and {n} make {2 * n}." for n in range(400))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights, a byte vocabulary, a text and bin/idx data made of it."""
    root = tmp_path_factory.mktemp("cli")
    create_byte_vocab_file(str(root / "vocab.txt"))
    (root / "text.txt").write_text(TEXT)
    RWKV(ModelConfig(model_type="x070", n_layer=1, n_embd=32, vocab_size=257, head_size_a=32), seed=1).save(
        root / "m.pth"
    )
    assert main(["prepare", str(root / "text.txt"), str(root / "data" / "train"), "--document_chars", "500"]) == 0
    return root


def failure(capsys, *argv):
    """The one line on stderr of a command that must end with 2."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    out = capsys.readouterr()
    assert out.err.count("\n") == 1 and "Traceback" not in out.err
    return out.err


def test_help_of_everything(capsys):
    assert main([]) == 2 and main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {command}" in text for command in COMMANDS)
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        text = capsys.readouterr().out
        assert stop.value.code == 0 and f"usage: rwkvtune {command}" in text
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert "(default: 0.99)" in capsys.readouterr().out
    assert main(["--version"]) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_every_option_and_its_default(command):
    parser = _parser(command, "x")
    for action in parser._actions:
        assert action.help and len(action.help) > 2, action
        if action.option_strings and action.default not in (None, "", False, argparse.SUPPRESS):
            assert f"(default: {action.default})" in " ".join(parser._get_formatter()._expand_help(action).split()), action


def test_wrong_words(capsys):
    assert "no command 'trian'" in failure(capsys, "trian")
    with pytest.raises(SystemExit) as stop:
        main(["generate"])
    assert stop.value.code == 2 and "model" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_a_module(command):
    process = subprocess.run(
        [sys.executable, "-m", f"rwkvtune.cli.{command}", "--help"], capture_output=True, text=True
    )
    assert process.returncode == 0 and "usage: rwkvtune" in process.stdout


def test_info(capsys):
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert main(["info"]) == 0
    assert facts["isa"] in capsys.readouterr().out


def test_inspect(capsys, files, tmp_path):
    assert main(["inspect", str(files / "m.pth"), "--json", "--tensors"]) == 0
    facts = json.loads(capsys.readouterr().out)
    found = facts["detected_config"]
    assert (found["model_type"], found["n_layer"], found["n_embd"], found["vocab_size"], found["dtype"]) == (
        "x070",
        1,
        32,
        257,
        "fp32",
    )
    assert facts["tensors"]["emb.weight"] == ["float32", [257, 32]]
    assert main(["inspect", str(files / "m.pth")]) == 0
    out = capsys.readouterr().out
    assert "n_embd: 32" in out and "None" not in out
    Trainer(RWKV.load(files / "m.pth")).save(tmp_path / "state.pth")
    assert main(["inspect", str(tmp_path / "state.pth")]) == 0
    assert "steps: 0" in capsys.readouterr().out
    assert "Checkpoint not found" in failure(capsys, "inspect", tmp_path / "none.pth")
    assert "text.txt" in failure(capsys, "inspect", files / "text.txt")


def test_generate(capsys, files):
    argv = [
        "generate",
        str(files / "m.pth"),
        "--vocab",
        str(files / "vocab.txt"),
        "--prompt",
        "The ",
        "--max_new_tokens",
        "20",
        "--seed",
        "3",
    ]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert text.startswith("The ")
    model, tokenizer = RWKV.load(files / "m.pth"), GenericTokenizer(str(files / "vocab.txt"))
    assert (
        text
        == "The "
        + tokenizer.decodeBytes(model.generate(tokenizer.encode("The "), 20, seed=3)).decode("utf-8", "replace")
        + "\n"
    )
    assert main(["generate", str(files / "m.pth"), "--prompt_ids", "1 2", "--max_new_tokens", "3"]) == 0
    assert [int(word) for word in capsys.readouterr().out.split()] == model.generate([1, 2], 3)
    assert "--vocab" in failure(capsys, "generate", files / "m.pth", "--prompt", "x")
    assert "--prompt_ids" in failure(capsys, "generate", files / "m.pth", "--prompt_ids", "1 x")
    assert "prompt_ids[0, 0] is 300" in failure(capsys, "generate", files / "m.pth", "--prompt_ids", "300")
    assert "temperature" in failure(capsys, "generate", files / "m.pth", "--temperature", "-1")
    assert "--stop_tokens 'x'" in failure(capsys, "generate", files / "m.pth", "--stop_tokens", "x")
    assert main(["generate", str(files / "m.pth"), "--prompt_ids", "1", "--seed", "5", "--top_k", "9", "--presence_penalty", "1",
                 "--frequency_penalty", "0.5", "--penalty_decay", "0.9"]) == 0  # fmt: skip
    words = [int(word) for word in capsys.readouterr().out.split()]
    assert words == model.generate([1], 200, seed=5, top_k=9, presence_penalty=1.0, frequency_penalty=0.5, penalty_decay=0.9)
    stop = words[7]
    assert main(["generate", str(files / "m.pth"), "--prompt_ids", "1", "--seed", "5", "--top_k", "9", "--presence_penalty", "1",
                 "--frequency_penalty", "0.5", "--penalty_decay", "0.9", "--stop_tokens", f"300 {stop}"]) == 0  # fmt: skip
    assert [int(word) for word in capsys.readouterr().out.split()] == words[: words.index(stop)]


def test_a_failing_generate_prints_no_prompt(capsys, files):
    argv = ["generate", str(files / "m.pth"), "--vocab", str(files / "vocab.txt"), "--prompt", "The "]
    assert main([*argv, "--top_p", "2"]) == 2
    assert capsys.readouterr().out == ""
    assert main([*argv, "--max_new_tokens", "0"]) == 0
    assert capsys.readouterr().out == "The \n"
    with pytest.raises(SystemExit) as stop:
        main([*argv, "--prompt_ids", "1"])
    assert stop.value.code == 2 and "not allowed with" in capsys.readouterr().err


def test_a_vocabulary_that_is_not_the_models(capsys, files, tmp_path):
    (tmp_path / "large.txt").write_text("4000 'x' 1\n")
    text = failure(capsys, "generate", files / "m.pth", "--vocab", tmp_path / "large.txt", "--prompt", "x")
    assert "has 4001 ids" in text and "knows 257" in text and "--vocab" in text


# ---- wrong input of every kind: one line, exit code 2, and the name of what is wrong ----


@pytest.fixture
def bad_weights(files, tmp_path):
    whole = (files / "m.pth").read_bytes()
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "garbage.pth").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "directory.pth").mkdir()
    (tmp_path / "circle.pth").symlink_to("circle.pth")
    Trainer(RWKV.load(files / "m.pth")).save(tmp_path / "state.pth")
    return tmp_path


BAD_WEIGHTS = ["missing", "empty", "garbage", "truncated", "text", "directory", "circle", "state"]


@pytest.mark.parametrize("command, name", [
    (command, name) for command in ("inspect", "convert", "generate", "eval", "train") for name in BAD_WEIGHTS
    if (command, name) != ("inspect", "state")  # which it shows
])  # fmt: skip
def test_bad_weights(capsys, files, bad_weights, command, name):
    path = bad_weights / f"{name}.pth"
    more = {"inspect": [], "convert": [bad_weights / "new.pth"], "generate": ["--prompt_ids", "1"],
            "eval": ["--data_file", files / "data" / "train"]}  # fmt: skip
    argv = [command, path, *more[command]] if command in more else train_argv(files, bad_weights / "out", "--load_model", str(path))
    text = failure(capsys, *argv)
    assert str(bad_weights) in text and "Errno" not in text, text
    assert not (bad_weights / "new.pth").exists() and not list((bad_weights / "out").glob("rwkv-*"))


@pytest.mark.parametrize("argv, words", [
    (["eval", "M", "--vocab", "V", "--text", "none"], "none: there is no such file"),
    (["eval", "M", "--vocab", "none", "--text", "T"], "none"),
    (["eval", "M", "--vocab", "D", "--text", "T"], "directory"),
    (["eval", "M", "--vocab", "V", "--text", "D"], "this is a directory"),
    (["eval", "M", "--vocab", "T", "--text", "T"], "text.txt:1"),
    (["eval", "M", "--data_file", "none"], "`rwkvtune prepare INPUT OUTPUT` makes both"),
    (["eval", "M", "--data_file", "P.bin"], "give it without the ending"),
    (["convert", "M", "D/none/x.pth"], "the directory does not exist"),
    (["convert", "M", "T/x.pth"], "not a directory"),
    (["convert", "M", "D"], "ending"),
    (["train", "--data_file", "P", "--vocab_size", "257", "--proj_dir", "T"], "a directory is needed here"),
    (["train", "--data_file", "P", "--vocab_size", "257", "--proj_dir", "T/x"], "a directory is needed here"),
    (["quickstart", "D"], "this is a directory"),
    (["quickstart", "T", "--work_dir", "T"], "a directory is needed here"),
    (["bench", "--threads", "-1"], "--threads is -1"),
    (["bench", "--threads", "1000"], "--threads is 1000"),
    (["bench", "--seconds", "-1"], "--seconds is -1"),
    (["bench", "--n_embd", "33"], "head_size_a"),
    (["bench", "speed"], "there is no benchmark 'speed'"),
    (["bench", "train", "--json", "T/x.json"], "the directory does not exist"),
    (["bench", "tokenize", "--quick", "--vocab", "none"], "vocabulary not found: none"),
])  # fmt: skip
def test_wrong_paths_and_values(capsys, files, argv, words):
    places = {"M": files / "m.pth", "V": files / "vocab.txt", "T": files / "text.txt", "D": files, "P": files / "data" / "train"}
    known = [re.sub(r"^([MVTDP])(?=$|/|\.)", lambda match: str(places[match[1]]), word) for word in argv]
    text = failure(capsys, *known)
    assert words in text and "Errno" not in text, text


def test_words_for_errors_of_the_system():
    from rwkvtune.cli.messages import explain

    assert explain(PermissionError(errno.EACCES, "Permission denied", "a/b")).startswith("a/b: no permission; check the owner")
    assert explain(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"
    assert explain(OSError(errno.EROFS, "cannot write x: the file system is read-only")) == "cannot write x: the file system is read-only"
    assert explain(MemoryError()) == "MemoryError"
    with pytest.raises(UnicodeDecodeError) as error:
        b"abc\xff".decode()
    assert explain(error.value) == "the input is not UTF-8 text: byte 0xff at position 3"


@pytest.mark.parametrize("argv", [["--help"], ["info"], ["inspect", "M", "--tensors"], ["generate", "M", "--prompt_ids", "1"]])
def test_output_that_nobody_reads_or_that_has_no_room(files, argv):
    """`rwkvtune ... | head -0`, and a full disk: no traceback, no message of the interpreter at its end."""
    command = [sys.executable, "-m", "rwkvtune", *(str(files / "m.pth") if word == "M" else word for word in argv)]
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as closed:
        done = subprocess.run(command, check=False, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr == ""
    if os.path.exists("/dev/full"):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left" in done.stderr


@pytest.mark.parametrize("command", ["generate", "eval"])
def test_interrupted(files, tmp_path, command):
    """Ctrl-C ends a long command with one line and 130."""
    (tmp_path / "long.txt").write_text(TEXT * 1000)
    more = {"generate": ["--prompt_ids", "1", "--max_new_tokens", "2000000000"],
            "eval": ["--vocab", str(files / "vocab.txt"), "--text", str(tmp_path / "long.txt")]}[command]  # fmt: skip
    argv = [sys.executable, "-m", "rwkvtune", command, str(files / "m.pth"), *more]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    (process.stdout if command == "generate" else process.stderr).read(1)  # it has begun; the bar comes after two seconds
    os.kill(process.pid, signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130 and text.decode().endswith(f"rwkvtune {command}: interrupted\n") and b"Traceback" not in text


def test_prepare_writes_what_the_tokenizer_says(capsys, files, tmp_path):
    with BinIdxDataset(str(files / "data" / "train")) as dataset:
        assert dataset.total_tokens == sum(len(d) for d in _blocks(TEXT)) + len(_blocks(TEXT))
    np.save(tmp_path / "n.npy", np.arange(50).reshape(5, 10))
    assert (
        main(["prepare", str(tmp_path / "n.npy"), str(tmp_path / "n"), "--tokenizer", "integer:49", "--no_shuffle"])
        == 0
    )
    assert "5 documents, 55 tokens, vocabulary 51" in capsys.readouterr().out
    with BinIdxDataset(str(tmp_path / "n")) as dataset:
        assert dataset.get(1).tolist() == [*range(11, 21), 0]
    assert "--tokenizer" in failure(capsys, "prepare", files / "text.txt", tmp_path / "t", "--tokenizer", "words")
    assert "input not found" in failure(capsys, "prepare", tmp_path / "none", tmp_path / "t")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    assert "bad.jsonl:2" in failure(capsys, "prepare", tmp_path / "bad.jsonl", tmp_path / "t")
    assert not (tmp_path / "t.bin").exists()


def test_prepare_skips_bad_lines(capsys, tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_bytes(b'{"text": "a"}\n{"text": 5}\n{\n\xff\n{"text": "b"}\n')
    assert "a.jsonl:2: expected an object" in failure(capsys, "prepare", source, tmp_path / "t")
    assert main(["prepare", str(source), str(tmp_path / "t"), "--skip-bad", "--no_shuffle"]) == 0
    out = capsys.readouterr().out
    assert f"Skipped 3 bad lines, for example {source}:2: expected an object" in out and "2 documents, 4 tokens" in out
    source.write_text("{")
    assert "no lines" in failure(capsys, "prepare", source, tmp_path / "u", "--skip_bad")
    assert not (tmp_path / "u.bin").exists()


def test_prepare_csv(capsys, tmp_path):
    source = tmp_path / "a.csv"
    source.write_bytes('\ufeffid,body\r\n1,"a ""b"",\nc"\r\n\r\n2,日本\r\n3\r\n4,\r\n'.encode())
    assert "no column 'text'; there are 'id', 'body'" in failure(capsys, "prepare", source, tmp_path / "t")
    command = ["prepare", str(source), str(tmp_path / "t"), "--column", "body", "--no_shuffle"]
    assert f"{source}:6: 1 of 2 columns, none 'body'" in failure(capsys, *command)
    assert os.listdir(tmp_path) == ["a.csv"]
    assert main([*command, "--skip_bad"]) == 0
    assert "Skipped 1 rows without the column 'body'" in capsys.readouterr().out
    tokenizer = GenericTokenizer(str(tmp_path / "t.vocab.txt"))
    with BinIdxDataset(str(tmp_path / "t")) as dataset:
        assert [tokenizer.decode(item[:-1]) for item in dataset] == ['a "b",\nc', "日本", ""]
    for content, message in [(b"text\n\"a\n", "not CSV"), (b"text\n\xff\n", "not UTF-8"), (b"", "there are none")]:
        source.write_bytes(content)
        assert message in failure(capsys, "prepare", source, tmp_path / "t")


def _blocks(text):
    from rwkvtune.pipeline import text_documents

    return text_documents(text, 500)


def test_convert(capsys, files, tmp_path):
    pytest.importorskip("safetensors")
    assert main(["convert", str(files / "m.pth"), str(tmp_path / "m.safetensors"), "--dtype", "bf16"]) == 0
    assert main(["convert", str(tmp_path / "m.safetensors"), str(tmp_path / "back.pth"), "--dtype", "fp32"]) == 0
    first, second = RWKV.load(files / "m.pth").named_parameters(), RWKV.load(tmp_path / "back.pth").named_parameters()
    assert all(np.array_equal(widen_bfloat16(round_to_bfloat16(first[name].reshape(-1))), value.reshape(-1)) for name, value in second.items())
    assert "ending" in failure(capsys, "convert", files / "m.pth", tmp_path / "m.bin")
    assert "same file" in failure(capsys, "convert", files / "m.pth", files / "m.pth")


def test_eval(capsys, files):
    assert (
        main(["eval", str(files / "m.pth"), "--vocab", str(files / "vocab.txt"), "--text", str(files / "text.txt")])
        == 0
    )
    words = capsys.readouterr().out.split()
    loss, per_byte = float(words[words.index("loss") + 1]), float(words[-1])
    assert loss == pytest.approx(np.log(257), abs=0.3) and per_byte == pytest.approx(loss / np.log(2), abs=1e-3)
    assert (
        main(["eval", str(files / "m.pth"), "--data_file", str(files / "data" / "train"), "--max_tokens", "100"]) == 0
    )
    assert "tokens 100 " in capsys.readouterr().out
    assert "--text" in failure(capsys, "eval", files / "m.pth")


@pytest.mark.parametrize("name", ["text.txt", "data/train.jsonl", "data"])
def test_eval_reads_pieces_and_finds_what_evaluate_finds(capsys, files, monkeypatch, name):
    """All three kinds of input, read in small pieces, against `evaluate` on the whole."""
    from rwkvtune import evaluate
    from rwkvtune.cli import eval as command

    monkeypatch.setattr(command, "_READ", 100)
    (files / "vocab2.txt").write_text((files / "vocab.txt").read_text() + "257 'graph says ' 11\n258 'ph' 2\n259 'says that 1' 11\n260 '\\n\\nThe ' 6\n")
    vocab = files / ("vocab2.txt" if name == "text.txt" else "vocab.txt")
    model, tokenizer = RWKV(ModelConfig(model_type="x070", n_layer=1, n_embd=32, vocab_size=261, head_size_a=32), seed=2), GenericTokenizer(str(vocab))
    model.save(files / "wide.pth")
    source = ["--text", str(files / name)]
    if name == "text.txt":
        ids, size = tokenizer.encode(TEXT), len(TEXT)
        assert len(ids) < 0.8 * size  # long tokens are in use, some across the ends of pieces
    else:
        documents = [json.loads(line)["text"] for line in (files / "data" / "train.jsonl").read_text().splitlines()]
        ids, size = [token for text in documents for token in [*tokenizer.encode(text), 0]], sum(map(len, documents))
    if name == "data":
        main(["prepare", str(files / "data" / "train.jsonl"), str(files / "same"), "--vocab", str(vocab), "--no_shuffle"])
        source = ["--data_file", str(files / "same")]
    capsys.readouterr()
    assert main(["eval", str(files / "wide.pth"), "--vocab", str(vocab), *source]) == 0
    loss, count = evaluate(model, ids, context=[0])
    out = capsys.readouterr().out
    assert out.startswith(f"tokens {count:,}   loss {loss:.6f} ") and count == len(ids)
    assert f"bytes {size:,}   bits per byte {loss * count / np.log(2) / size:.4f}\n" in out


def test_eval_with_an_empty_state_every_so_many_tokens(capsys, files):
    """--ctx_len 7: the mean over pieces of 7 tokens, each after one token of context."""
    model, ids = RWKV.load(files / "m.pth"), GenericTokenizer(str(files / "vocab.txt")).encode(TEXT)[:100]
    argv = ["eval", str(files / "m.pth"), "--vocab", str(files / "vocab.txt"), "--text", str(files / "text.txt"), "--max_tokens", "100"]
    assert main([*argv, "--ctx_len", "7"]) == 0
    stream, losses = [0, *ids], []
    for at in range(0, 100, 7):
        x, y = stream[at : at + 7][: 100 - at], stream[at + 1 : at + 8]
        losses.append(model.loss([x], [y]) * len(y))
    assert f"loss {sum(losses) / 100:.6f} " in capsys.readouterr().out
    assert "--ctx_len is -1" in failure(capsys, *argv, "--ctx_len", "-1")


def test_eval_refuses(capsys, files, tmp_path):
    def refusal(name, content, *more):
        (tmp_path / name).write_bytes(content)
        return failure(capsys, "eval", files / "m.pth", "--vocab", files / "vocab.txt", "--text", tmp_path / name, *more)

    assert "a.txt is not UTF-8 text (byte 3)" in refusal("a.txt", b"ab\xff")
    assert "the input is empty" in refusal("a.txt", b"") and "the input is empty" in refusal("a.jsonl", b"\n\n")
    assert "a.jsonl:2: expected an object" in refusal("a.jsonl", b'{"text": "a"}\n{"txt": "a"}')
    assert "a.jsonl:1: expected an object" in refusal("a.jsonl", b'{"text": 3}')
    assert "a.jsonl:1: not UTF-8" in refusal("a.jsonl", b'{"text": "\xff"}')
    assert "--max_tokens is -1" in refusal("a.txt", b"ab", "--max_tokens", "-1")
    with pytest.raises(SystemExit) as stop:
        main(["eval", "m.pth", "--text", "a", "--data_file", "b"])
    assert stop.value.code == 2 and "not allowed with" in capsys.readouterr().err


def train_argv(files, out, *more):
    return ["train", "--data_file", str(files / "data" / "train"), "--proj_dir", str(out), "--vocab_size", "257", "--n_layer", "1", "--n_embd", "32",
            "--head_size", "32", "--ctx_len", "16", "--micro_bsz", "8", "--my_exit_tokens", "5120", "--save_every_seconds", "0", *more]  # fmt: skip


def test_train(capsys, files, tmp_path):
    assert main(train_argv(files, tmp_path / "a", "--train_stage", "1")) == 0
    assert sorted(path.name for path in (tmp_path / "a").glob("rwkv-*")) == ["rwkv-init.pth"]
    rwkv_lm = [
        "--accelerator",
        "gpu",
        "--devices",
        "1",
        "--strategy",
        "deepspeed_stage_2",
        "--precision",
        "bf16",
        "--my_testing",
        "x070",
    ]
    assert main(train_argv(files, tmp_path / "a", "--train_stage", "3", "--load_model", "0", *rwkv_lm)) == 0
    out = tmp_path / "a"
    assert (out / "loss.csv").read_text().count("\n") == 41
    assert (out / "train_log.txt").read_text().startswith("NEW RUN ")
    capsys.readouterr()
    main(["inspect", str(out / "rwkv-final.pth"), "--json"])
    assert json.loads(capsys.readouterr().out)["detected_config"]["dtype"] == "bf16"
    rates = [float(line.split(",")[3]) for line in (out / "loss.csv").read_text().splitlines()[1:]]
    assert rates[0] == pytest.approx(6e-4, rel=1e-2) and rates[-1] < 2e-5 and rates == sorted(rates, reverse=True)


def test_train_goes_on_from_weights_alone(capsys, files, tmp_path):
    (tmp_path / "b").mkdir()
    RWKV.load(files / "m.pth").save(tmp_path / "b" / "rwkv-0.pth")
    steps = 40320 // 8
    assert main(train_argv(files, tmp_path / "b", "--my_exit_tokens", str((steps + 3) * 128))) == 0
    rows = (tmp_path / "b" / "loss.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == [str(steps + n) for n in (1, 2, 3)]


def test_train_interrupted_and_repeated(files, tmp_path):
    out = tmp_path / "c"
    command = [sys.executable, "-m", "rwkvtune", *train_argv(files, out, "--my_exit_tokens", "128000")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 60
    while not (out / "loss.csv").exists() or (out / "loss.csv").read_text().count("\n") < 20:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "To go on: the same command." in text and "Traceback" not in text
    done = Trainer.resume(out / "trainer_state.pth").steps
    again = subprocess.run(command, capture_output=True, text=True)
    wider = subprocess.run([*command, "--n_embd", "64"], capture_output=True, text=True)
    assert wider.returncode == 2 and "--n_embd is 64" in wider.stderr
    clipped = subprocess.run([*command, "--grad_clip", "0.5"], capture_output=True, text=True)
    assert clipped.returncode == 2 and "grad_clip is 0.5" in clipped.stderr
    assert again.returncode == 0 and f"continuing the run in {out} after step {done}" in again.stdout


def test_train_refuses(capsys, files, tmp_path):
    assert "must divide 40320" in failure(capsys, *train_argv(files, tmp_path, "--micro_bsz", "11"))
    assert "weights not found" in failure(capsys, *train_argv(files, tmp_path, "--load_model", "none.pth"))
    assert "nowhere" in failure(capsys, *train_argv(files, tmp_path, "--data_file", str(tmp_path / "nowhere")))
    assert "--vocab_size" in failure(capsys, *train_argv(files, tmp_path, "--vocab_size", "0"))
    assert "lr_init" in failure(capsys, *train_argv(files, tmp_path, "--lr_init", "-1"))


def test_prepare_checks_its_arguments_first(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("one\n\ntwo")
    Path("d").mkdir()
    for output in ("", "d", "d/", "new/"):
        assert "a directory; give a name in it" in failure(capsys, "prepare", "t.txt", output)
    for flag in ("--ctx_len", "--sequence_length", "--n_epochs"):
        assert f"{flag} is 0; it must be at least 1" in failure(capsys, "prepare", "t.txt", "d/t", flag, 0)
    assert "--document_chars is -1" in failure(capsys, "prepare", "t.txt", "d/t", "--document_chars", -1)
    assert sorted(os.listdir()) == ["d", "t.txt"] and not os.listdir("d")


def test_eval_without_the_byte_order_mark(capsys, files, tmp_path):
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbf" + (files / "text.txt").read_bytes())
    found = []
    for path in (files / "text.txt", tmp_path / "bom.txt"):
        assert main(["eval", str(files / "m.pth"), "--vocab", str(files / "vocab.txt"), "--text", str(path), "--max_tokens", "50"]) == 0
        found.append(capsys.readouterr().out.split("loss", 1)[1])
    assert found[0] == found[1]
