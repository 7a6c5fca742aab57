"""Attention of few queries after many tokens, which splits the keys: every size of head, in float32 and 16 bits, against the definition."""

import numpy as np
import pytest
from helpers import CUDA, assert_same_bits, assert_within
from reference import ops
from reference.running_error import as_bound
from test_cuda_half import KINDS, Setting, assert_as_good_as_rounding, attention_compute, blank, packed, unpacked

pytestmark = pytest.mark.skipif(not CUDA, reason="no CUDA device, and not the build of tests/cuda_host")

# sequences, queries, heads, heads of keys, channels, tokens before: one piece of 256 keys and many, the last one with a single key
SHAPES = [(1, 1, 2, 2, 64, 255), (2, 1, 4, 2, 32, 256), (1, 1, 8, 1, 128, 700), (1, 3, 2, 2, 64, 1022), (2, 5, 3, 1, 16, 300), (1, 16, 1, 1, 4, 511), (1, 2, 2, 1, 100, 513)]


def values(shape, kind):
    B, T, H, G, N, past = shape
    rng = np.random.default_rng(shape)
    p = dict(q=2 * rng.standard_normal((B, T, H, N)))
    for name in "kv":
        p[name] = rng.standard_normal((B, T, G, N))
        p[f"{name}_past"] = rng.standard_normal((B, past, G, N))
    if kind in KINDS:
        p |= {name: unpacked(packed(x, kind)) for name, x in p.items() if name.endswith("past")}  # as they were when they came
    return {name: np.float64(np.float32(x)) for name, x in p.items()}


def run(kind, shape, p):
    B, T, H, G, N, past = shape
    caches = ("k_past", "v_past", "k_all", "v_all", "lse")
    setting = Setting(kind, caches if kind in KINDS else (*caches, "q", "k", "v", "y"))
    out = dict(y=blank(B, T, H, N), lse=blank(B, H, T), k_all=blank(B, past + T, G, N), v_all=blank(B, past + T, G, N))
    return setting, setting.run("attention", "fwd", p | out, past=past)


@pytest.mark.parametrize("shape", SHAPES)
def test_float32(shape):
    p = values(shape, "cuda-fp32")
    _, got = run("cuda-fp32", shape, p)
    k, v = (np.concatenate([p[f"{name}_past"], p[name]], axis=1) for name in "kv")
    y, lse = ops.attention(*map(as_bound, (p["q"], k, v)), shape[-1])
    for name, want in (("y", y), ("lse", lse)):
        assert_within(got[name], want.v, 2 * 2.0**-24 * want.c, f"{name} of {shape}")
    assert_same_bits(got["k_all"], k, "the cache")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_16_bits(kind, shape):
    p = values(shape, kind)
    setting, got = run(kind, shape, p)
    zeros = {name: np.zeros_like(p["q"]) for name in ("dy",)}
    more = {f"d{name}_all": np.zeros((shape[0], shape[5] + shape[1], shape[3], shape[4])) for name in "kv"}

    def compute(q):
        return {name: x for name, x in attention_compute(shape[-1])(q | zeros | more).items() if name in ("y", "lse")}

    assert_as_good_as_rounding(setting, {name: got[name] for name in ("y", "lse")}, compute, p, f"{kind} {shape}")
    for name, again in run(kind, shape, p)[1].items():
        assert_same_bits(again, got[name], f"{name} of a second run")


def test_a_number_that_is_none_is_seen():
    """Of one key in the middle: by the heads that see it, and no other."""
    shape = (1, 1, 4, 2, 32, 600)
    p = values(shape, "cuda-bf16")
    p["k_past"][0, 300, 1, 5] = np.nan
    y = run("cuda-bf16", shape, p)[1]["y"][0, 0]
    assert np.isfinite(y[:2]).all() and np.isnan(y[2:]).all()
