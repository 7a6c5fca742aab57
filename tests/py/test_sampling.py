"""Drawing tokens: the core against float64, on large vocabularies, with every option, and what a draw depends on."""

import math

import numpy as np
import pytest
from helpers import assert_within
from reference import sampling

from rwkvtune import SamplingOptions
from rwkvtune import _rwkvcore as core

V = 5000
OPTIONS = [
    dict(),
    dict(temperature=0.6),
    dict(top_p=0.9),
    dict(top_p=0.999, temperature=1.4),
    dict(top_p=0.0),
    dict(top_k=1),
    dict(top_k=40),
    dict(top_k=4999),
    dict(min_p=0.05),
    dict(min_p=1.0),
    dict(typical_p=0.2),
    dict(typical_p=0.95, temperature=0.8),
    dict(top_p=0.8, top_k=30, min_p=0.01, typical_p=0.9, temperature=1.2),
]
ROWS = {
    "peaked": lambda rng: rng.normal(0, 4, V),
    "flat": lambda rng: rng.normal(0, 1e-3, V),
    "of a few values": lambda rng: rng.integers(-3, 3, V).astype(float),
    "mostly forbidden": lambda rng: np.where(rng.random(V) < 0.99, -np.inf, rng.normal(0, 1, V)),
    "far apart": lambda rng: rng.normal(0, 60, V),
}


def row_of(kind, seed=0):
    return ROWS[kind](np.random.default_rng(seed)).astype(np.float32)


def sums_and_slack(logits, options):
    """Running sums of the distribution, and how far rounding in float32 may move them.

    exp and sums are off by a few units of 6e-8 in each p and in each block's sum, about 1e-6 of the whole; 1e-5 is allowed.
    The same error may move what is kept over an edge: as far as the sums move when every limit is changed by 3e-6.
    """
    sums = np.cumsum(sampling.distribution(logits, **options))
    slack = 1e-5
    for factor in (1 - 3e-6, 1 + 3e-6):
        moved = {name: value * factor if name in ("top_p", "min_p", "typical_p") and value < 1 else value for name, value in options.items()}
        slack = max(slack, 1e-5 + np.abs(np.cumsum(sampling.distribution(logits, **moved)) - sums).max())
    return sums, slack


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_draws_are_those_of_float64(kind, options):
    """A draw is the token at which the running sum passes u, unless u is so near to a boundary that rounding decides."""
    how = dict(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, typical_p=1.0) | options
    compared = 0
    for seed in range(4):
        logits = row_of(kind, seed)
        sums, slack = sums_and_slack(logits, how)
        for u in np.random.default_rng(seed).random(60):
            if np.abs(sums - u).min() < slack:
                continue
            compared += 1
            got = core.sample(logits, how["temperature"], how["top_p"], how["top_k"], u, how["min_p"], how["typical_p"])
            assert got == np.searchsorted(sums, u, side="right"), (seed, u)
    assert compared > (15 if kind == "flat" else 60)  # 5000 almost equal tokens lie 2e-4 apart, others farther


@pytest.mark.parametrize("isa", core.info()["isa_available"])
def test_every_instruction_set_draws_the_same(isa):
    before, logits = core.info()["isa"], row_of("peaked")
    uniforms = np.random.default_rng(1).random(50)
    want = [core.sample(logits, 0.9, 0.95, 0, u) for u in uniforms]
    try:
        core.select_isa(isa)
        assert [core.sample(logits, 0.9, 0.95, 0, u) for u in uniforms] == want
    finally:
        core.select_isa(before)


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 127, 1000])
@pytest.mark.parametrize("options", [(1.0, 1.0, 0), (0.7, 0.9, 0), (1.0, 1.0, 3), (2.0, 0.5, 7)], ids=str)
def test_every_size_of_a_row(size, options):
    """Blocks of 64 begin and end everywhere; each token can be drawn, and no other."""
    logits = np.random.default_rng(size).normal(0, 1, size).astype(np.float32)
    want = sampling.distribution(logits, options[0], options[1], options[2])
    n = 4000
    counts = np.bincount([core.sample(logits, *options, (i + 0.5) / n) for i in range(n)], minlength=size)
    assert_within(counts / n, want, 1.5 / n, "frequencies")


@pytest.mark.parametrize("options", [dict(), dict(top_p=0.9), dict(typical_p=0.7, temperature=0.8), dict(top_k=9, min_p=0.02)], ids=str)
def test_frequencies_of_seeds_follow_the_distribution(options):
    """Pearson's statistic of the counts over fixed seeds; its mean is the number of tokens k, its standard deviation sqrt(2 k)."""
    logits = np.random.default_rng(3).normal(0, 1.5, 40).astype(np.float32)
    n, tokens, counts = 4000, np.zeros(1, np.int32), np.zeros(40)
    how = dict(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, typical_p=1.0) | options
    for seed in range(n):
        core.draw([core.Sampler(40, seed=seed, **how)], logits[None].copy(), tokens)
        counts[tokens[0]] += 1
    want = sampling.distribution(logits, **how) * n
    assert counts[want == 0].sum() == 0
    often = want >= 5
    expected = np.append(want[often], want[~often].sum() or 1)
    seen = np.append(counts[often], counts[~often].sum() if want[~often].sum() else 1)
    statistic = ((seen - expected) ** 2 / expected).sum()
    assert statistic < len(expected) + 5 * math.sqrt(2 * len(expected))


def test_penalties_and_bias_are_those_of_the_formula():
    """Draws of a long text from rows that do not change, by hand: every occurrence counts, fades, and moves the logits."""
    rng, size = np.random.default_rng(5), 50
    row, prompt = rng.normal(0, 2, size).astype(np.float32), [3, 7, 7, 11]
    options = SamplingOptions(top_p=1.0, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2, penalty_decay=0.9,
                              logit_bias={5: 2.5, 6: -1.0}, banned_tokens=(8,))  # fmt: skip
    sampler, tokens, counts = options.sampler(size, 9, np.array(prompt, np.int32)), np.zeros(1, np.int32), {}
    for n in range(200):
        logits = row[None].copy()
        core.draw([sampler], logits, tokens)
        want = sampling.changed_logits(row, counts, prompt, 1.3, 0.4, 0.2, {5: 2.5, 6: -1.0, 8: -math.inf})
        finite = np.isfinite(want)
        assert not finite[8] and np.array_equal(finite, np.isfinite(logits[0]))
        assert_within(logits[0][finite], want[finite], 4 * 2.0**-24 * (np.abs(row).max() * 1.3 + 3), f"logits of token {n}")  # four roundings
        sums = np.cumsum(sampling.distribution(want))
        u = sampling.uniform(9, "generate", n)
        if np.abs(sums - u).min() > 1e-5:
            assert tokens[0] == np.searchsorted(sums, u, side="right")
        counts = {token: count * 0.9 for token, count in counts.items()}
        counts[int(tokens[0])] = counts.get(int(tokens[0]), 0) + 1
    assert len(counts) > 10


def test_a_draw_depends_on_its_own_sequence_alone():
    """Row, options, seed and position: not on the other rows, their number, or the threads."""
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 3, (30, 6, V)).astype(np.float32)

    def samplers():
        return [core.Sampler(V, top_p=0.9, seed=k, presence_penalty=0.5, penalty_decay=0.99) for k in range(6)]

    together, tokens, texts = samplers(), np.zeros(6, np.int32), []
    threads = core.get_num_threads()
    try:
        for step, logits in enumerate(rows):
            core.set_num_threads(1 + step % 3)
            core.draw(together, logits.copy(), tokens)
            texts.append(tokens.copy())
    finally:
        core.set_num_threads(threads)
    for k, sampler in enumerate(samplers()):
        for logits, want in zip(rows, texts):
            core.draw([sampler], logits[k : k + 1].copy(), tokens)
            assert tokens[0] == want[k]


def test_wrong_arguments_are_named():
    for wrong, word in (({"min_p": 1.5}, "min_p"), ({"typical_p": -1}, "typical_p"), ({"repetition_penalty": 0}, "repetition_penalty"),
                        ({"temperature": math.inf}, "temperature"), ({"top_k": 1.5}, "top_k"), ({"penalty_decay": True}, "penalty_decay")):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            SamplingOptions(**wrong)
    for wrong, word in (({"logit_bias": {99: 1.0}}, "logit_bias holds 99"), ({"banned_tokens": [-1]}, "banned_tokens holds -1"),
                        ({"logit_bias": {1: math.nan}}, "logit_bias"), ({"logit_bias": {1: math.inf}}, "logit_bias")):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            SamplingOptions(**wrong).sampler(9, 0, np.zeros(1, np.int32))
    with pytest.raises(ValueError, match="every token forbidden"):
        core.draw([SamplingOptions(banned_tokens=range(9)).sampler(9, 0, np.zeros(1, np.int32))], np.zeros((1, 9), np.float32), np.zeros(1, np.int32))
    logits, tokens = np.zeros((2, 9), np.float32), np.zeros(2, np.int32)
    logits[1, 4] = np.nan
    with pytest.raises(ValueError, match="token 4 is not a number"):
        core.draw([core.Sampler(9), core.Sampler(9)], logits, tokens)
    with pytest.raises(ValueError, match="Sampler of 9"):
        core.draw([core.Sampler(8)], logits, tokens)
    with pytest.raises(ValueError, match="float32"):
        core.draw([core.Sampler(9)], logits.astype(np.float64), tokens)
