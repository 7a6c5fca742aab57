"""Generator: many texts at once, streams, stop strings, states that are used again; and Chat."""

import math

import numpy as np
import pytest
from helpers import assert_same_bits, small_model

from rwkvtune import (
    RWKV,
    BaseTokenizer,
    Generator,
    GenericTokenizer,
    IntegerTokenizer,
    ModelConfig,
    create_vocab_file_from_tokens,
)
from rwkvtune.prefix_cache import PrefixCache
from rwkvtune.text_stream import StopStrings, TextDecoder

V = 257
PROMPTS = ["The first", "The second of them, which is longer", "T", "The first", "Another", "The second of these"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """All bytes, and some longer tokens, of which one ends in the middle of a character."""
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    create_vocab_file_from_tokens([bytes([b]) for b in range(250)] + [b"\n\n", b"The ", b"ab", b"bc", b"x\xe2\x82", b"ther"], str(path))
    return GenericTokenizer(str(path))


def lively(**changes):
    """A small model whose logits are spread, so that texts differ and no two tokens are equally likely."""
    model = small_model(**{"vocab_size": V, "n_layer": 2, "n_embd": 64, "head_size_a": 32, **changes})
    rng = np.random.default_rng(0)
    for value in model.named_parameters().values():
        value += rng.normal(0, 0.3, value.shape).astype(value.dtype)
    return model


@pytest.fixture(scope="module")
def model():
    return lively()


def by_hand(model, ids, count):
    """The likeliest continuation, with a call of the model for each token."""
    ids = list(ids)
    for _ in range(count):
        ids.append(int(model(ids).logits[0, -1].argmax()))
    return ids[-count:]


# ---- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["x052", "x060", "x070", "hybrid"])
def test_prompts_of_different_lengths_continue_as_by_hand(kind, tokenizer):
    layers = dict(n_layer=None, layers=["x070", "attention", "x060"]) if kind == "hybrid" else dict(model_type=kind)
    model = lively(**layers)
    for cache_bytes in (0, 10**8):
        generator = Generator(model, tokenizer, cache_bytes, temperature=0)
        for _ in range(2):
            for result, prompt in zip(generator.generate(PROMPTS, 12), PROMPTS):
                ids = tokenizer.encode(prompt)
                assert result.ids == by_hand(model, ids, 12) and result.prompt_tokens == len(ids)
                assert result.text == tokenizer.decode(result.ids) and result.finish_reason == "length"


@pytest.mark.parametrize("kind", ["x070", "hybrid"])
def test_a_text_does_not_depend_on_its_neighbours(kind, tokenizer):
    """Alone, in another order, in a larger batch, with other texts that end early: seed and prompt decide.

    Logits of a batch differ from those of one sequence by rounding, here less than 1e-5; the seeds are fixed.
    """
    model = lively(**(dict(n_layer=None, layers=["x070", "attention"]) if kind == "hybrid" else {}))
    generator = Generator(model, tokenizer, top_p=0.95, presence_penalty=0.3, frequency_penalty=0.1, repetition_penalty=1.1)
    results = generator.generate(PROMPTS, 40, n=2, seed=11, stop="e")
    assert [result.seed for result in results] == list(range(11, 23))
    assert len({len(result.ids) for result in results}) > 3, "texts of different lengths"
    for i, result in enumerate(results):
        alone = generator.generate(PROMPTS[i // 2], 40, seed=result.seed, stop="e")
        assert (alone.ids, alone.text, alone.finish_reason) == (result.ids, result.text, result.finish_reason)
    turned = generator.generate(PROMPTS[::-1], 40, seed=[result.seed for result in results[::-2]], stop="e")
    assert [result.ids for result in turned] == [result.ids for result in results[::-2]]


def test_logits_of_a_ragged_batch_are_those_of_each_prompt(model):
    """What the batch hands to sampling and keeps as state, against one call per prompt: both float32, of values below 30."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, V, size).tolist() for size in (1, 2, 700, 64, 64, 3)]
    results = Generator(model, temperature=0).generate(prompts, 1, return_state=True)
    for prompt, result in zip(prompts, results):
        logits, state = model.process_with_state([*prompt, *result.ids])
        assert result.ids == [int(logits[0, -2].argmax())]
        for name, want in state.to_numpy().items():
            np.testing.assert_allclose(result.state.to_numpy()[name], want, atol=2e-4, rtol=1e-4, err_msg=name)


def test_a_prompt_of_parts_that_repeat_is_read_once(model):
    """n texts of a prompt, and what prompts have in common: counted by what the core is asked to read."""
    asked = []

    class Counting:
        def __getattr__(self, name):
            return getattr(core, name)

        def step(self, ids, *more):
            asked.append(ids.size)
            return core.step(ids, *more)

    core = model._core
    generator = Generator(model)
    common = list(range(1, 101))
    try:
        model._core = Counting()
        generator.generate([common + [1, 2], common + [1, 2], common + [3, 4, 5]], 0, n=5)
    finally:
        model._core = core
    assert sum(asked) == 100 + 1 + 2 + 2  # common, [1], [3, 4], and the last tokens of the two


# ---- text -----------------------------------------------------------------------------------------------------------


def test_streams_are_the_text(model, tokenizer):
    generator = Generator(model, tokenizer, top_p=1.0)
    whole = generator.generate(PROMPTS[:3], 60, seed=3, stop=["z\n", "qq"])
    texts, ids, results = [""] * 3, [[] for _ in range(3)], {}
    for piece in generator.generate(PROMPTS[:3], 60, seed=3, stop=["z\n", "qq"], stream=True):
        assert piece.index not in results, "a piece after the last"
        texts[piece.index] += piece.text
        if piece.token is not None:
            ids[piece.index].append(piece.token)
        if piece.result:
            results[piece.index] = piece.result
    for i, result in enumerate(whole):
        assert texts[i] == result.text == results[i].text and ids[i] == result.ids == results[i].ids
        assert result.text == tokenizer.decode(result.ids) and "\ufffd" in result.text  # bytes at random are seldom UTF-8


@pytest.mark.parametrize("stops", [["bca"], ["abc", "b"], ["aab", "ab", "b"], ["cc", "cb\n"], ["a\u20acb"], ["\n\nU", "\n\n\n"]], ids=str)
def test_stop_strings_do_not_depend_on_how_text_is_cut(stops):
    rng = np.random.default_rng(0)
    for _ in range(300):
        text = "".join(rng.choice(list("abc\n\u20acU"), 40, p=[0.3, 0.2, 0.2, 0.2, 0.05, 0.05]))
        ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        want = text[: min(ends)[1]] if ends else text
        cuts = [0, *sorted(rng.integers(0, 41, 12).tolist()), 40]
        held, streamed = StopStrings(stops), ""
        for low, high in zip(cuts, cuts[1:]):
            streamed += held.push(text[low:high])
            assert want.startswith(streamed), "part of a stop string got out"
            if held.found:
                break
        streamed += held.finish()
        assert streamed == want and (held.found in stops if ends else held.found is None)


def test_held_text_is_what_could_begin_a_stop_string():
    held = StopStrings(["\n\nUser", "\n\nQ"])
    assert [held.push(part) for part in ("Hi\n", "\nUs", "ual", "\n", "\n", "User and more")] == ["Hi", "", "\n\nUsual", "", "", ""]
    assert held.found == "\n\nUser" and held.finish() == "" and held.push("x") == ""


class Words(BaseTokenizer):
    """A tokenizer that is not one of ours: words between spaces."""

    def encode(self, text):
        return [int(word[1:]) for word in text.split()]

    def decode(self, ids):
        return " ".join(f"w{token}" for token in ids)

    @property
    def vocab_size(self):
        return V


@pytest.mark.parametrize("which", ["bytes", "integers", "words", "none"])
def test_decoding_token_by_token_is_decoding_at_once(which, tokenizer):
    of = {"bytes": tokenizer, "integers": IntegerTokenizer(V - 2), "words": Words(), "none": None}[which]
    rng = np.random.default_rng(2)
    texts = [tokenizer.encode("a\u20ac\U0001f600e\u0301\u20ac"), [0, 5, 0, 0, 7]] + [rng.integers(0, V, 50).tolist() for _ in range(20)]
    for ids in texts:
        decoder = TextDecoder(of)
        parts = [decoder.push(token) for token in ids]
        want = " ".join(map(str, ids)) if of is None else of.decode(ids)
        assert "".join(parts) + decoder.finish() == want
    decoder = TextDecoder(of)
    assert decoder.finish() == ""


def test_a_character_comes_when_it_is_whole(tokenizer):
    decoder = TextDecoder(tokenizer)
    assert [decoder.push(token) for token in tokenizer.encodeBytes("x\u20acy".encode())] == ["x", "\u20ac", "y"]  # x\xe2\x82 is one token


def test_stopping_by_string_id_length_and_caller(model, tokenizer):
    generator = Generator(model, tokenizer, top_p=1.0)
    whole = generator.generate("The ", 80, seed=2)
    middle = whole.text[20:23]
    cut = generator.generate("The ", 80, seed=2, stop=middle)
    assert cut.text == whole.text[: whole.text.index(middle)] and (cut.finish_reason, cut.stop) == ("stop", middle)
    assert cut.ids == whole.ids[: len(cut.ids)] and middle in tokenizer.decode(cut.ids)
    token = whole.ids[9]
    cut = generator.generate("The ", 80, seed=2, stop_tokens=[token, 300])
    assert cut.ids == whole.ids[: whole.ids.index(token)] and (cut.finish_reason, cut.stop) == ("stop", token)
    assert cut.text == tokenizer.decode(cut.ids)
    cut = generator.generate("The ", 80, seed=2, stream=lambda piece: len(piece.text) and piece.token == token)
    assert cut.ids == whole.ids[: whole.ids.index(token) + 1] and cut.finish_reason == "cancelled"
    none = generator.generate("The ", 0, return_state=True)
    assert (none.ids, none.text, none.finish_reason, none.time_to_first_token) == ([], "", "length", None)
    assert_same_bits(none.state.to_numpy()["wkv"], model.process_with_state(tokenizer.encode("The "))[1].to_numpy()["wkv"], "wkv")


def test_one_text_of_a_batch_can_be_ended(model, tokenizer):
    generator = Generator(model, tokenizer, top_p=1.0)
    whole = generator.generate(PROMPTS[:3], 30, seed=1)
    results = generator.generate(PROMPTS[:3], 30, seed=1, stream=lambda piece: piece.index == 1)
    assert [len(result.ids) for result in results] == [30, 1, 30]
    assert results[0].ids == whole[0].ids and results[2].ids == whole[2].ids and results[1].text == tokenizer.decode(results[1].ids)


# ---- states ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["x070", "hybrid"])
def test_states_continue_texts(kind, tokenizer):
    """Generated in two calls or in one: the same text, when all that was delivered is in the state."""
    model = lively(**(dict(n_layer=None, layers=["x070", "attention"]) if kind == "hybrid" else {}))
    generator = Generator(model, tokenizer, temperature=0)
    for prompts in (PROMPTS[:1], PROMPTS):
        whole = generator.generate(prompts, 30)
        first = generator.generate(prompts, 10, return_state=True)
        for text, full in zip(first, whole):
            logits, state = model.process_with_state(tokenizer.encode(prompts[text.index]) + text.ids)
            for name, want in state.to_numpy().items():
                np.testing.assert_allclose(text.state.to_numpy()[name], want, atol=1e-4, rtol=1e-4)
            more = generator.generate([full.ids[10]], 19, state=text.state)
            assert text.ids + [full.ids[10]] + more.ids == full.ids
    if kind == "x070":
        state = first[0].state.concatenate([text.state for text in first])
        more = generator.generate([[full.ids[10]] for full in whole], 19, state=state)
        assert [text.ids for text in more] == [full.ids[11:] for full in whole]


def test_a_stop_leaves_the_state_after_what_is_returned(model, tokenizer):
    generator = Generator(model, tokenizer, top_p=1.0)
    whole = generator.generate("The ", 40, seed=2)
    for options in ({"stop_tokens": [whole.ids[12]]}, {"stop": whole.text[8:10]}, {"stream": lambda piece: piece.token == whole.ids[5]}):
        result = generator.generate("The ", 40, seed=2, return_state=True, **options)
        assert result.finish_reason != "length"
        _, state = model.process_with_state(tokenizer.encode("The ") + result.ids)
        for name, want in state.to_numpy().items():
            np.testing.assert_allclose(result.state.to_numpy()[name], want, atol=1e-4, rtol=1e-4)


def test_the_given_state_is_not_changed(model):
    _, state = model.process_with_state([5, 6, 7])
    before = state.to_numpy()
    first = Generator(model).generate([[1, 2], [3]], 10, state=state)
    assert [result.ids for result in Generator(model).generate([[1, 2], [3]], 10, state=state)] == [result.ids for result in first]
    for name, value in state.to_numpy().items():
        assert_same_bits(value, before[name], name)


def test_the_cache_knows_prompts_texts_and_what_prompts_share(model, tokenizer):
    generator, plain = Generator(model, tokenizer, 10**8, temperature=0), Generator(model, tokenizer, temperature=0)
    system = "You are asked short questions and answer them. "
    known = []
    for question in ("What is it?", "Who are they, and why?", "Which one was that?", "Which one was that?"):
        result = generator.generate(system + question, 15)
        assert result.ids == plain.generate(system + question, 15).ids
        known.append((result.cached_tokens, result.prompt_tokens))
    shared = len(tokenizer.encode(system + "Wh"))
    assert [cached for cached, _ in known[:2]] == [0, 0]
    assert known[2][0] == shared and known[3][0] == known[3][1] - 1
    ids = tokenizer.encode(system + question) + result.ids
    result = generator.generate(ids + [5, 6], 15)
    assert result.cached_tokens == len(ids) - 1 and result.ids == plain.generate(ids + [5, 6], 15).ids
    assert generator.cache.hits == 3 and generator.cache.misses == 2 and generator.cache.tokens > 0
    pair = [system + "A?", system + "And B?"]  # they share more than the system prompt, which no prompt left a state of
    for cached in (0, len(tokenizer.encode(system + "A"))):
        results = generator.generate(pair, 9)
        assert [text.ids for text in results] == [text.ids for text in plain.generate(pair, 9)]
        assert all(text.cached_tokens >= cached for text in results) and (cached or results[1].cached_tokens == 0)
    generator.cache.clear()
    assert len(generator.cache) == generator.cache.nbytes == 0 and "0 hits" in repr(generator.cache)


def test_the_cache_keeps_within_its_memory(model):
    size = model.init_state()._core.nbytes
    cache, states = PrefixCache(3 * size), [model.init_state()._core for _ in range(5)]
    ids = [np.arange(k + 1, dtype=np.int32) for k in range(5)]
    for k in range(3):
        cache.put(ids[k], states[k])
    assert cache.find(ids[0]) == (1, states[0])  # used now, so the next one to go is another
    cache.put(ids[3], states[3])
    assert len(cache) == 3 and cache.nbytes == 3 * size
    assert cache.find(ids[1]) == (1, states[0]) and cache.find(ids[4]) == (4, states[3])
    cache.put(ids[3], states[4])
    assert len(cache) == 3 and cache.find(ids[3]) == (4, states[4])
    small = PrefixCache(size - 1)
    small.put(ids[0], states[0])
    assert len(small) == 0


# ---- measures, arguments --------------------------------------------------------------------------------------------


def test_results_tell_how_long_it_took(model):
    results = Generator(model).generate([[1, 2, 3], [4]], 20)
    for result in results:
        assert 0 < result.time_to_first_token < 60 and result.prefill_tokens_per_second > 0 and result.decode_tokens_per_second > 0
    assert Generator(model).generate([1], 1).decode_tokens_per_second is None


def test_options_of_the_generator_and_of_a_call(model):
    banned = Generator(model, banned_tokens=range(1, V), logit_bias={0: -math.inf})
    with pytest.raises(ValueError, match="every token forbidden"):
        banned.generate([1], 3)
    assert banned.generate([1], 3, logit_bias={}).ids == [0, 0, 0]
    assert Generator(model, temperature=0).generate([1], 5).ids == Generator(model).generate([1], 5, top_k=1).ids
    assert Generator(model).generate([1], 9, seed=4).ids == model.generate([1], 9, seed=4)
    assert model.generate([1], 9, min_p=1.0) == model.generate([1], 9, temperature=0)
    first, second = (Generator(model).generate([1], 30, seed=None) for _ in range(2))
    assert first.ids == Generator(model).generate([1], 30, seed=first.seed).ids and first.seed != second.seed


@pytest.mark.parametrize(
    ("prompt", "options", "word"),
    [
        ([], {}, "prompt_ids is empty"),
        ([1, V], {}, "prompt_ids"),
        ([[1], []], {}, "prompt_ids of prompt 1 is empty"),
        ([[[1]]], {}, "prompt_ids of prompt 0 has shape"),
        ("text", {}, "needs a tokenizer"),
        (["text"], {}, "needs a tokenizer"),
        ([1], {"stop": "x"}, "needs a tokenizer"),
        ([1], {"stop": [""]}, "stop is"),
        ([1], {"stop": None}, "stop is"),
        ([1], {"stop_tokens": [-1]}, "stop_tokens holds -1"),
        ([1], {"n": 0}, "n is 0"),
        ([1], {"seed": [1, 2]}, "seed is"),
        ([1], {"seed": 1.5}, "seed is"),
        ([1], {"max_new_tokens": -1}, "max_new_tokens"),
        ([1], {"stream": 5}, "stream"),
        ([1], {"top_p": 2}, "top_p"),
        ([1], {"state": {"wkv": np.zeros((1, 1, 2))}}, "state holds"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(model, prompt, options, word):
    with pytest.raises(ValueError, match=word):
        Generator(model).generate(prompt, **options)


def test_a_model_in_float64_generates_too():
    model = RWKV(ModelConfig(model_type="x070", n_layer=1, n_embd=32, vocab_size=20, head_size_a=16), precision="fp64", backend="ref")
    results = Generator(model, temperature=0).generate([[1, 2, 3], [4]], 5)
    assert [result.ids for result in results] == [by_hand(model, [1, 2, 3], 5), by_hand(model, [4], 5)]


# ---- the core's part ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["x070", "hybrid"])
def test_a_step_in_place_is_a_forward_with_a_new_state(kind):
    core = lively(**(dict(n_layer=None, layers=["x070", "attention"]) if kind == "hybrid" else {}))._core
    ids = np.random.default_rng(0).integers(0, V, (4, 6)).astype(np.int32)
    logits, want = core.forward(ids, None, "last")
    state, got = core.new_state(4), np.zeros((5, V), np.float32)
    core.step(ids, state, got)
    assert_same_bits(got[:4], logits, "logits")
    assert not got[4].any(), "a row that no sequence has"
    for (_, name, a), (_, _, b) in zip(state.rows(), want.rows()):
        assert_same_bits(a, b, name)


def test_sequences_that_a_step_leaves_out_come_back(model):
    core = model._core
    ids = np.random.default_rng(0).integers(0, V, (3, 4)).astype(np.int32)
    state = core.new_state(3)
    core.step(ids, state, None)
    before = [array.copy() for _, _, array in state.rows()]
    core.step((ids[:1] + 1) % V, state, None)
    assert state.batch_size == 1
    state.narrow(3)
    for (_, name, after), old in zip(state.rows(), before):
        assert_same_bits(after[1:], old[1:], name)
        assert not np.array_equal(after[0], old[0])
    taken = state.take([2, 0, 2, 1])
    state.put(0, taken, 2)
    for (_, name, a), (_, _, b) in zip(taken.rows(), state.rows()):
        assert_same_bits(a[[0, 2, 3]], b[[2, 0, 1]], name)


def test_the_core_refuses_what_does_not_fit(model):
    core, other = model._core, lively()._core
    state, ids, logits = core.new_state(2), np.zeros((2, 1), np.int32), np.zeros((2, V), np.float32)
    for call, word in (
        (lambda: core.step(ids, other.new_state(2), None), "of this model"),
        (lambda: core.step(np.zeros((3, 1), np.int32), state, None), "memory for 2 sequences"),
        (lambda: core.step(ids, state, logits[:1]), "at least 2 rows"),
        (lambda: core.step(ids, state, logits.astype(np.float64)), "float32"),
        (lambda: core.step(ids + V, state, logits), "ids"),
        (lambda: state.take([2]), "no sequence 2"),
        (lambda: state.take([]), "at least 1"),
        (lambda: state.put(0, other.new_state(1), 0), "one model"),
        (lambda: state.put(2, state, 0), "no sequence 2"),
        (lambda: state.narrow(0), "not for 0"),
        (lambda: state.narrow(3), "not for 3"),
    ):
        with pytest.raises(ValueError, match=word):
            call()
    grown = lively(n_layer=None, layers=["attention"])._core
    longer = grown.new_state(1)
    grown.step(np.zeros((1, 3), np.int32), longer, None)
    with pytest.raises(ValueError, match="equally many tokens"):
        grown.new_state(1).put(0, longer, 0)
