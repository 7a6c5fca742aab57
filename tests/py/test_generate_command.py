"""rwkvtune generate beyond a plain prompt: several texts, stop strings, states, measures, and --chat; and Chat itself."""

import io
import re

import numpy as np
import pytest

from rwkvtune import RWKV, Chat, Generator, GenericTokenizer, IntegerTokenizer, ModelConfig, create_byte_vocab_file
from rwkvtune.cli import main


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model of bytes whose every text differs, and its vocabulary."""
    root = tmp_path_factory.mktemp("generate")
    create_byte_vocab_file(str(root / "vocab.txt"))
    model = RWKV(ModelConfig(model_type="x070", n_layer=2, n_embd=64, vocab_size=257, head_size_a=32), seed=1)
    rng = np.random.default_rng(0)
    for value in model.named_parameters().values():
        value += rng.normal(0, 0.3, value.shape).astype(value.dtype)
    model.save(root / "m.pth")
    return root


@pytest.fixture
def generator(files):
    return Generator(RWKV.load(files / "m.pth"), GenericTokenizer(str(files / "vocab.txt")))


def output(capsys, files, *words, code=0):
    """(stdout, stderr) of the command on the model."""
    capsys.readouterr()
    assert main(["generate", str(files / "m.pth"), "--vocab", str(files / "vocab.txt"), *map(str, words)]) == code
    return capsys.readouterr()


def test_measures_go_to_standard_error(capsys, files):
    out = output(capsys, files, "--prompt", "Once", "--max_new_tokens", 9, "--seed", 5)
    assert re.fullmatch(
        r"rwkvtune generate: 4 tokens read, first token after [\d.]+ s \(\d+ tokens/s\), 9 written at [\d.]+ tokens/s, ended by --max_new_tokens, seed 5\n",
        out.err,
    )
    assert "tokens/s" not in out.out


def test_several_texts_are_those_of_their_seeds(capsys, files):
    words = ("--prompt", "Once", "--max_new_tokens", 30)
    out = output(capsys, files, *words, "--n", 3, "--seed", 7)
    assert out.err.count("\n") == 3
    texts = [output(capsys, files, *words, "--seed", seed).out for seed in (7, 8, 9)]
    assert out.out == "".join(f"--- {i} of 3\n{text}" for i, text in enumerate(texts, 1)) and len(set(texts)) == 3


def test_all_options_reach_the_sampler(capsys, files, generator):
    words = ("--prompt", "Once", "--max_new_tokens", 40, "--seed", 2, "--min_p", 0.01, "--typical_p", 0.9, "--repetition_penalty", 1.2,
             "--logit_bias", "70=3 71=-2", "--banned_tokens", "98 99", "--stop", "qq", "--stop", r"z\n", "--top_p", 0.97,
             "--presence_penalty", 0.3, "--frequency_penalty", 0.2, "--penalty_decay", 0.9, "--temperature", 1.1, "--top_k", 50)  # fmt: skip
    want = generator.generate("Once", 40, seed=2, min_p=0.01, typical_p=0.9, repetition_penalty=1.2, logit_bias={70: 3, 71: -2},
                              banned_tokens=[98, 99], stop=["qq", "z\n"], top_p=0.97, presence_penalty=0.3, frequency_penalty=0.2,
                              penalty_decay=0.9, temperature=1.1, top_k=50)  # fmt: skip
    assert output(capsys, files, *words).out == f"Once{want.text}\n"


def test_a_stop_string_does_not_get_out(capsys, files, generator):
    whole = generator.generate("Once", 60, seed=2).text
    out = output(capsys, files, "--prompt", "Once", "--max_new_tokens", 60, "--seed", 2, "--stop", whole[21:24].replace("\n", r"\n"))
    assert out.out == f"Once{whole[: whole.index(whole[21:24])]}\n" and f"ended by {whole[21:24]!r}" in out.err


def test_a_state_continues_a_text(capsys, files, tmp_path):
    whole = output(capsys, files, "--prompt_ids", "5 6", "--max_new_tokens", 20, "--temperature", 0).out
    first = output(capsys, files, "--prompt_ids", "5 6", "--max_new_tokens", 9, "--temperature", 0, "--save_state", tmp_path / "s.npz").out
    assert whole.startswith(first[:-1])
    model = RWKV.load(files / "m.pth")
    ids = model.generate([5, 6], 20, temperature=0)
    rest = output(capsys, files, "--prompt_ids", ids[9], "--max_new_tokens", 10, "--temperature", 0, "--state", tmp_path / "s.npz").out
    assert rest == GenericTokenizer(str(files / "vocab.txt")).decode(ids[10:]) + "\n"


def test_a_conversation(capsys, files, monkeypatch, generator):
    monkeypatch.setattr("sys.stdin", io.StringIO("How are you?\n\n  \nAnd now?\n"))
    out = output(capsys, files, "--chat", "--system", "Be kind.", "--max_new_tokens", 20, "--seed", 3)
    chat = Chat(generator, system="Be kind.", seed=3)
    first, second = chat.say("How are you?", 20), chat.say("And now?", 20)
    assert out.out == f"User: \nAssistant:{first.text}\n\nUser: User: User: \nAssistant:{second.text}\n\nUser: \n"
    assert out.err.count("rwkvtune generate: ") == 2 and "of them known" in out.err.splitlines()[1]


def test_wrong_words(capsys, files):
    for words, message in (
        (("--logit_bias", "5"), "--logit_bias '5'"),
        (("--banned_tokens", "a"), "--banned_tokens 'a'"),
        (("--banned_tokens", "300"), "banned_tokens holds 300"),
        (("--n", 2, "--save_state", "x"), "--save_state is of one text"),
        (("--n", 2, "--chat"), "conversation"),
        (("--chat", "--state", "x"), "--chat keeps"),
        (("--state", files / "none.npz"), "none.npz"),
        (("--min_p", 2), "min_p"),
        (("--n", 0), "n is 0"),
    ):
        out = output(capsys, files, *words, code=2)
        assert message in out.err and out.err.count("\n") == 1 and out.out == ""
    capsys.readouterr()
    assert main(["generate", str(files / "m.pth"), "--chat"]) == 2
    assert "--vocab" in capsys.readouterr().err


# ---- Chat -----------------------------------------------------------------------------------------------------------


class Scripted:
    """A generator that writes what it is told to, and remembers what it was asked."""

    def __init__(self, tokenizer, replies):
        self.tokenizer, self.replies, self.prompts = tokenizer, list(replies), []

    def generate(self, prompt, max_new_tokens, *, stop, stop_tokens, seed, **options):
        from rwkvtune import Generation

        self.prompts.append((bytes(token - 1 for token in prompt[1:]).decode(), seed))
        text, how = self.replies.pop(0)
        ids = self.tokenizer.encode(text)
        if how == "stop":
            return Generation(0, text[: text.index(stop)], ids, "stop", stop)
        return Generation(0, text, ids, *(("stop", 0) if how == "end" else ("length", None)))


def test_turns_are_put_together(files):
    tokenizer = GenericTokenizer(str(files / "vocab.txt"))
    scripted = Scripted(tokenizer, [(" One.\n\nUser:", "stop"), (" Two.\n\nUser: x", "stop"), (" Three.", "end"), (" Four", "length"), (" Five", "end")])
    chat = Chat(scripted, system="S\r\n\r\nT ", seed=10)
    texts = [chat.say(text).text for text in ("a\n\n\nb ", "c", "d", "e", "f")]
    assert texts == [" One.", " Two.", " Three.", " Four", " Five"]
    start = "System: S\nT\n\nUser: a\nb\n\nAssistant:"
    parts = [start, " One.\n\nUser: c\n\nAssistant:", " Two.\n\nUser: d\n\nAssistant:", " Three.\n\nUser: e\n\nAssistant:", " Four\n\nUser: f\n\nAssistant:"]
    assert scripted.prompts == [("".join(parts[: i + 1]), 10 + i) for i in range(5)]


def test_a_conversation_reads_only_what_is_new(generator, files):
    cached = Generator(generator.model, generator.tokenizer, 10**8)
    chats = [Chat(one, seed=1) for one in (generator, cached)]
    read = []
    for text in ("One", "Two, and more of it", "Three"):
        plain, known = (chat.say(text, 25) for chat in chats)
        assert plain.ids == known.ids and plain.cached_tokens == 0
        read.append(known.prompt_tokens - known.cached_tokens)
    assert read[1] < 60 and read[2] < 60 < known.prompt_tokens


def test_a_conversation_needs_a_tokenizer(generator):
    with pytest.raises(ValueError, match="tokenizer"):
        Chat(Generator(generator.model))
    with pytest.raises(ValueError, match="stream is True"):
        Chat(generator).say("x", stream=True)


def test_numbers_are_written_apart():
    """A tokenizer whose tokens are words: spaces between them, in streams as well."""
    model = RWKV(ModelConfig(model_type="x070", n_layer=1, n_embd=32, vocab_size=32, head_size_a=32), seed=1)
    generator = Generator(model, IntegerTokenizer(30))
    result = generator.generate("1 2 3", 12, seed=4)
    assert result.text == generator.tokenizer.decode(result.ids)
    assert "".join(piece.text for piece in generator.generate("1 2 3", 12, seed=4, stream=True)) == result.text
