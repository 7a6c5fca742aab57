"""The magic prime sampler against reference samples, and its mathematics against slow exact integers."""

import json
import math
import random

import numpy as np
import pytest

from rwkvtune.data import BinIdxBuilder, BinIdxDataset, MagicPrimeSampler, compute_magic_prime, is_prime
from rwkvtune.errors import FormatError


def slow_is_prime(n):
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden/dev/train"
    return folder, json.loads((folder / "dataset.json").read_text()), np.load(folder / "dataset.npz")


def test_every_reference_offset(golden):
    _, description, arrays = golden
    seen = 0
    for case in description["cases"]:
        for epoch in case["epochs"]:
            for rank in range(case["world_size"]):
                sampler = MagicPrimeSampler(
                    case["data_size"], case["ctx_len"], case["magic_prime"], case["world_size"], rank, case["micro_bsz"]
                )
                assert sampler.factor == case["factor"]
                name = f"c{case['case']}_epoch{epoch}_rank{rank}"
                for idx, offset in zip(arrays[name + "_idx"].tolist(), arrays[name + "_offset"].tolist(), strict=True):
                    assert sampler.offset(epoch, idx) == offset
                    seen += 1
    assert seen > 1000


def test_reference_primes_and_samples(golden):
    folder, description, arrays = golden
    for case in description["magic_primes"]:
        assert compute_magic_prime(case["data_size"], case["ctx_len"]) == case["magic_prime"]
    with BinIdxDataset(folder / "dev_data") as dataset:
        assert compute_magic_prime(folder / "dev_data", 16) == compute_magic_prime(str(folder / "dev_data"), 16) == 641
        sampler = MagicPrimeSampler(dataset.total_tokens, 16)
        ids, targets = sampler.batch(dataset, 0, 0, 32)
    assert ids.dtype == targets.dtype == np.int32
    assert np.array_equal(ids, arrays["samples_x"]) and np.array_equal(targets, arrays["samples_y"])


@pytest.mark.parametrize(
    "tokens, ctx_len, prime",
    [(65000, 64, 1013), (1498226207, 512, 2926181), (3075000, 1024, 2999), (2100, 20, 101), (10100, 50, 197), (300, 50, 5), (200, 50, 2),
     (150, 50, 2), (149, 50, None), (0, 1, None), (3, 1, 2)],
)  # fmt: skip
def test_known_primes(tokens, ctx_len, prime):
    assert compute_magic_prime(tokens, ctx_len) == prime


def test_known_slots():
    for prime, factor, slots in [
        (2999, 1853, [1853, 2828, 2047, 1631, 702, 1381, 2790, 1052]),
        (1013, 626, [626, 956, 694, 557, 249, 487, 975, 404]),
    ]:
        sampler = MagicPrimeSampler(prime * 8 + 1, 8, prime)
        assert sampler.factor == factor and [sampler.offset(0, i) // 8 for i in range(8)] == slots


def test_is_prime():
    for n in range(5000):
        assert is_prime(n) == slow_is_prime(n), n
    assert not is_prime(-7)
    primes = (2**31 - 1, 1000000007, 2**61 - 1, 18446744073709551557)
    # Strong pseudoprimes to the first 4 to 9 prime bases, Carmichael numbers, a square, the ends of the range.
    others = (3215031751, 2152302898747, 3474749660383, 341550071728321, 3825123056546413051, 561, 825265,
              (2**31 - 1) ** 2, 2**64 - 1, 2**61 + 1)  # fmt: skip
    assert all(map(is_prime, primes)) and not any(map(is_prime, others))


def test_random_offsets_are_exact():
    rng = random.Random(3)
    golden_ratio = (math.sqrt(5) - 1) / 2
    for _ in range(300):
        ctx_len = rng.choice([1, 7, 512, 4096])
        tokens = rng.randrange(3 * ctx_len, 10 ** rng.randint(5, 15))
        world = rng.choice([1, 2, 8, 1000])
        rank, epoch, idx = rng.randrange(world), rng.randrange(10**6), rng.randrange(40320)
        sampler = MagicPrimeSampler(tokens, ctx_len, None, world, rank)
        prime = sampler.magic_prime
        m = 1 + epoch * 40320 + idx * world + rank
        assert sampler.offset(epoch, idx) == int(prime * golden_ratio) * m**3 % prime * ctx_len
        assert prime % 3 == 2 and is_prime(prime) and prime <= tokens // ctx_len - 1
        assert not any(p % 3 == 2 and is_prime(p) for p in range(prime + 1, min(tokens // ctx_len, prime + 2000)))


def test_every_slot_once_and_never_past_the_end(tmp_path):
    with BinIdxBuilder(tmp_path / "d") as builder:
        builder.add_item(np.arange(1000) % 500)
        builder.end_document()
    with BinIdxDataset(tmp_path / "d") as dataset:
        for ctx_len in (1, 3, 10, 333):
            sampler = MagicPrimeSampler(1000, ctx_len)
            ids, targets = sampler.batch(dataset, 0, 0, sampler.magic_prime)
            starts = [sampler.offset(0, i) for i in range(sampler.magic_prime)]
            assert sorted(starts) == [ctx_len * slot for slot in range(sampler.magic_prime)]
            for start, x, y in zip(starts, ids, targets, strict=True):
                assert x.tolist() == [t % 500 for t in range(start, start + ctx_len)]
                assert y.tolist() == [t % 500 for t in range(start + 1, start + ctx_len + 1)]


def test_ranks_share_the_samples():
    whole = MagicPrimeSampler(100000, 10)
    parts = [MagicPrimeSampler(100000, 10, None, 4, rank) for rank in range(4)]
    assert [part.offset(2, i) for i in range(50) for part in parts] == [whole.offset(2, i) for i in range(200)]


def test_largest_prime_that_fits():
    """magic_prime * ctx_len + 1 tokens are enough, one less is not."""
    assert MagicPrimeSampler(101 * 10 + 1, 10, 101).magic_prime == 101
    with pytest.raises(ValueError, match="past the end of 1010 tokens: at most 100"):
        MagicPrimeSampler(101 * 10, 10, 101)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((100, 50), "too few for ctx_len 50"),
        ((1000, 0), "ctx_len"),
        ((1000, 10, 97), "3 k \\+ 2"),
        ((1000, 10, 95), "3 k \\+ 2"),
        ((1000, 10, None, 0), "world_size"),
        ((1000, 10, None, 2, 2), "rank must be below"),
        ((1000, 10, None, 1, 0, 0), "micro_bsz"),
        ((-1, 10), "total_tokens is -1"),
        ((1000, 10, -5), "magic_prime is -5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MagicPrimeSampler(*arguments)


def test_bad_ctx_len_for_prime():
    with pytest.raises(ValueError, match="ctx_len"):
        compute_magic_prime(1000, 0)


def test_vocabulary_limit(tmp_path):
    with BinIdxBuilder(tmp_path / "d") as builder:
        builder.add_item([5] * 99 + [300])
        builder.end_document()
    with BinIdxDataset(tmp_path / "d") as dataset:
        sampler = MagicPrimeSampler(100, 33, 2)
        assert sampler.batch(dataset, 0, 0, 2, vocab_size=6)[0].max() == 5
        sampler = MagicPrimeSampler(100, 11, 5, micro_bsz=5)
        assert sampler.batch(dataset, 0, 0, vocab_size=301)[0].shape == (5, 11)
        big = MagicPrimeSampler(101, 10, 5)
        with pytest.raises(FormatError, match=r"token 5 at position \d+ is not from 0 to 4"):
            big.batch(dataset, 0, 0, 1, vocab_size=5)
        with pytest.raises(ValueError, match="past the end"):
            MagicPrimeSampler(10**6, 10).batch(dataset, 0, 0, 1)
