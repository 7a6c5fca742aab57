"""The initialisation against statistics of the reference's own: ramps and constants number by number, random tensors by
their distribution, and what a seed means."""

import json
import re

import numpy as np
import pytest
from helpers import assert_same_bits, assert_within, core, small_model, some_ids

from rwkvtune.config import ModelConfig
from rwkvtune.model import RWKV

SHAPES = ("L3_C128_V256_hs64", "L4_C96_V61_hs32")
CONFIGS = [f"{version}_{shape}" for version in ("x052", "x060", "x070") for shape in SHAPES]


@pytest.fixture(scope="module", params=CONFIGS)
def golden(request, shared):
    return json.loads((shared / "golden/init_stats.json").read_text())[request.param] | {"version": request.param[:4]}


def built(golden, seed=0, **options):
    config = ModelConfig(
        model_type=golden["version"],
        n_layer=golden["n_layer"],
        n_embd=golden["n_embd"],
        vocab_size=golden["vocab"],
        head_size_a=golden["head_size"],
        ctx_len=64,
    )
    return RWKV(config, seed=seed, **options)


def test_names_shapes_and_order(golden):
    model = built(golden)
    weights = model.named_parameters()
    assert list(weights) == golden["key_order"]
    assert {name: list(value.shape) for name, value in weights.items()} == {
        name: about["shape"] for name, about in golden["tensors"].items()
    }
    assert model.num_parameters == golden["n_params"] == sum(value.size for value in weights.values())


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_ramps_and_constants(golden, precision):
    weights = built(golden, precision=precision, backend="ref").named_parameters()
    checked = 0
    for name, about in golden["tensors"].items():
        got = weights[name].ravel()
        if "constant" in about:  # stored as the float32 that the reference writes
            assert_within(
                np.float32(got),
                np.full(got.size, about["constant"], dtype=np.float32),
                0 if "ln_x" not in name else 6e-8,
                name,
            )
        elif "values" in about:
            assert_within(got, about["values"], 5e-7 * np.maximum(1, np.abs(about["values"])), name)
        checked += "random" not in about
    assert checked > 50


def check_uniform(x, bound, name):
    """Inside the bounds, reaching for them, with mean and variance within five standard errors."""
    n = x.size
    assert np.abs(x).max() <= bound * (1 + 1e-6)
    assert np.abs(x).max() > bound * (1 - 20 / n), name
    assert_within(x.mean() / bound, 0, 5 / np.sqrt(3 * n), f"mean of {name}")
    assert_within(np.mean((x / bound) ** 2), 1 / 3, 5 * np.sqrt(4 / 45 / n), f"variance of {name}")
    heights, _ = np.histogram(x, bins=10, range=(-bound, bound))
    assert_within(heights / n, np.full(10, 0.1), 6 * np.sqrt(0.09 / n), f"histogram of {name}")


def check_orthogonal(x, gain, name):
    """The shorter side is orthonormal times gain; entries then have mean square gain^2 / longer side, exactly."""
    rows, cols = x.shape
    short = x if rows <= cols else x.T
    assert_within(short @ short.T / gain**2, np.eye(len(short)), 2e-6, f"{name}: orthonormal")
    n, deviation = x.size, gain / np.sqrt(max(rows, cols))
    assert_within(x.mean(), 0, 6 * deviation / np.sqrt(n), f"mean of {name}")
    assert np.abs(x).max() < deviation * np.sqrt(2 * np.log(n) + 12), name  # as a Gaussian of this many draws
    if (
        n > 4000
    ):  # close to a Gaussian: 68.3 % within one deviation (a bounded sphere's coordinate deviates by less than 1/side)
        assert_within(
            np.mean(np.abs(x) < deviation), 0.6827, 6 * np.sqrt(0.22 / n) + 0.5 / max(rows, cols), f"shape of {name}"
        )


def test_random_tensors(golden):
    weights = built(golden).named_parameters()
    checked = 0
    for name, about in golden["tensors"].items():
        if "random" not in about:
            continue
        x = weights[name].astype(np.float64)
        kind, argument = re.match(r"(\w+)\((.*?)\)", about["random"]).groups()
        if kind == "uniform":
            check_uniform(x.ravel(), float(argument.split(",")[1]), name)
        else:
            assert kind == "orthogonal"
            check_orthogonal(x.reshape(x.shape[-2:]), float(argument.partition("=")[2]), name)
        standard_error = about["std"] / np.sqrt(2 * x.size)
        assert_within(
            x.std(), about["std"], 8 * standard_error + 5e-3 * about["std"], f"deviation of {name} as in the reference"
        )
        checked += 1
    assert checked == sum("random" in about for about in golden["tensors"].values()) > 15


def test_a_seed_means_the_same_bits(golden):
    first, again, other = (built(golden, seed).named_parameters() for seed in (5, 5, 6))
    for name, about in golden["tensors"].items():
        assert_same_bits(again[name], first[name], name)
        assert ("random" in about) == (not np.array_equal(other[name], first[name])), name


def test_float64_and_float32_start_from_the_same_numbers(golden):
    single, double = built(golden).named_parameters(), built(golden, backend="ref", precision="fp64").named_parameters()
    for name, value in single.items():
        assert_within(double[name], value, 1e-7 * np.maximum(np.abs(value), 1e-6), name)


def test_names_have_streams_of_their_own(golden):
    """No tensor repeats another's numbers: correlations between all pairs of random tensors are noise."""
    weights = built(golden).named_parameters()
    rows = [
        weights[name].ravel()[:2000].astype(np.float64)
        for name, about in golden["tensors"].items()
        if "random" in about and weights[name].size >= 2000
    ]
    normal = np.stack([(x - x.mean()) / x.std() for x in rows])
    correlation = normal @ normal.T / 2000
    assert_within(correlation - np.eye(len(rows)), np.zeros_like(correlation), 6 / np.sqrt(2000), "correlation")


def test_one_tensor_does_not_depend_on_the_others():
    """A tensor is a function of (seed, its name, its shape): a deeper model starts with the same matrices."""
    shallow, deep = small_model(spread=0).named_parameters(), small_model(spread=0, n_layer=3).named_parameters()
    for name in (
        "emb.weight",
        "head.weight",
        "blocks.1.att.receptance.weight",
        "blocks.0.ffn.key.weight",
        "blocks.1.att.g2",
    ):
        assert_same_bits(deep[name], shallow[name], name)


@pytest.mark.parametrize(
    "sizes",
    [
        dict(n_layer=1),
        dict(n_layer=1, n_embd=1, head_size_a=1, vocab_size=2),
        dict(n_layer=2, n_embd=3, head_size_a=1, vocab_size=5),
        dict(n_layer=3, n_embd=8, head_size_a=8),
    ],
    ids=str,
)
def test_small_models_start_finite(sizes):
    model = RWKV(ModelConfig(model_type="x070", **(dict(n_embd=64, head_size_a=32, vocab_size=67, ctx_len=16) | sizes)))
    for name, value in model.named_parameters().items():
        assert np.isfinite(value).all(), name
    ids = some_ids(2, 5, model.config.vocab_size)
    loss, grads = model.loss_and_grads(ids, ids)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in grads.values())


def test_a_fresh_model_knows_nothing():
    """The head sees a normalised vector of nearly no information: the loss starts near log V."""
    model = RWKV(ModelConfig(model_type="x070", n_layer=2, n_embd=64, head_size_a=32, vocab_size=67, ctx_len=64))
    loss = model(some_ids(4, 64), some_ids(4, 64, seed=1)).loss
    assert abs(loss - np.log(67)) < 0.5


def test_time_state_starts_at_zero():
    model = core.Model(
        ModelConfig(
            model_type="x070", n_layer=2, n_embd=64, head_size_a=32, vocab_size=67, time_state=True
        ).to_core_dict()
    )
    model.init(3)
    states = [value for name, value in model.parameters().items() if name.endswith("time_state")]
    assert len(states) == 2 and all(value.shape == (2, 32, 32) and not value.any() for value in states)


def test_low_rank_matrices_taller_than_wide_have_a_larger_gain():
    """With fewer channels than the rank, the second matrix (D,C) is 0.1 sqrt(D / C) times orthonormal columns."""
    model = RWKV(
        ModelConfig(model_type="x070", n_layer=2, n_embd=16, head_size_a=16, vocab_size=67, ctx_len=16, dim_att_lora=64)
    )
    for name in ("w2", "a2", "v2", "g2"):
        x = model.named_parameters()[f"blocks.1.att.{name}"].astype(np.float64)
        assert x.shape[0] in (32, 64)
        check_orthogonal(x, 0.1 * np.sqrt(x.shape[0] / 16), name)
