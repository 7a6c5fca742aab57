"""Small things the tests share: backends, tolerance checks in which NaN always fails, models from golden files."""

import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from rwkvtune import _rwkvcore as core

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `from reference import ...`

# With a CUDA device the same tests run on it, and where RWKVTUNE_TEST_CORE is the build of tests/cuda_host they run on that.
CUDA = core.info()["cuda_devices"] > 0
BACKENDS = ["ref64", "ref"] + [f"cpu-{isa}" for isa in core.info()["isa_available"]] + ["cuda-fp32"] * CUDA


@contextmanager
def running_on(backend):
    """Yields the core's name of a backend such as "cpu-avx2", with that instruction set chosen; restores it after."""
    name, _, isa = backend.partition("-") if backend.startswith("cpu") else (backend, "", "")
    before = core.info()["isa"]
    if isa:
        assert core.select_isa(isa) == isa
    try:
        yield name
    finally:
        core.select_isa(before)


@contextmanager
def threads(n):
    before = core.get_num_threads()
    core.set_num_threads(n)
    try:
        yield
    finally:
        core.set_num_threads(before)


def real_of(backend):
    return np.float64 if backend.startswith("ref64") else np.float32


def assert_within(got, want, tolerance, what):
    """|got - want| <= tolerance everywhere; a NaN on either side fails."""
    got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    difference = np.abs(got - want)
    bad = ~(difference <= tolerance)
    if bad.any():
        excess = np.where(bad, np.nan_to_num(difference / tolerance, nan=np.inf), 0)
        at = np.unravel_index(np.argmax(excess), bad.shape)
        raise AssertionError(
            f"{what}: {bad.sum()} of {bad.size} values off, worst at {tuple(map(int, at))}: got {got[at]!r}, "
            f"expected {want[at]!r}, difference {difference[at]:.3g}, "
            f"allowed {np.broadcast_to(tolerance, bad.shape)[at]:.3g}"
        )


def assert_same_bits(got, want, what):
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype and got.shape == want.shape, what
    assert got.tobytes() == want.tobytes(), f"{what}: {np.sum(got != want)} of {got.size} values differ"


def dot_with_cosine(x):
    flat = np.asarray(x, dtype=np.float64).ravel()
    return float(flat @ np.cos(0.1 * np.arange(flat.size) + 0.3))


def assert_fingerprints(golden, prefix, tensors, relative, floor, exactly=True):
    """Norm, sum, cosine product and sampled values of named tensors against the arrays <prefix>_* of a golden file.

    Every element may be off by e = relative * max|x| + floor, so a sum over n elements by n e, the norm by sqrt(n) e.
    """
    names = [str(name) for name in golden[f"{prefix}_names"]]
    if exactly:
        silent = {name for name in tensors if name not in names and not np.any(tensors[name])}
        assert set(tensors) - silent == set(names)
    for i, name in enumerate(names):
        x = np.asarray(tensors[name], dtype=np.float64).ravel()
        norm = float(golden[f"{prefix}_norm"][i])
        largest = max(np.abs(x).max(), norm / np.sqrt(x.size))
        e = relative * largest + floor
        assert_within(np.linalg.norm(x), norm, np.sqrt(x.size) * e, f"{prefix} norm of {name}")
        assert_within(dot_with_cosine(x), golden[f"{prefix}_dot"][i], x.size * e, f"{prefix} dot of {name}")
        if f"{prefix}_sum" in golden:
            assert_within(x.sum(), golden[f"{prefix}_sum"][i], x.size * e, f"{prefix} sum of {name}")
        if f"{prefix}_idx" in golden:
            where = golden[f"{prefix}_idx"][i]
            used = where >= 0
            assert_within(x[where[used]], golden[f"{prefix}_val"][i][used], e, f"{prefix} values of {name}")


def global_norm(tensors):
    return float(np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in tensors.values())))


def read_weights(path):
    """name -> float64 array of a checkpoint."""
    from rwkvtune.checkpoint.pth import read_pth

    return {name: np.asarray(tensor.numpy(), dtype=np.float64) for name, tensor in read_pth(path).items()}


# backend and precision of the three ways the model tests run, with the golden README's tolerances:
# logits (absolute), loss (absolute), gradients (relative to a tensor's maximum), floor (relative to the global norm)
MODEL_RUNS = {
    "ref-fp64": dict(backend="ref", precision="fp64", logits=1e-10, loss=1e-10, gradient=1e-8, floor=1e-12),
    "ref-fp32": dict(backend="ref", precision="fp32", logits=2e-5, loss=1e-5, gradient=1e-4, floor=1e-6),
    "cpu-fp32": dict(backend="cpu", precision="fp32", logits=2e-5, loss=1e-5, gradient=1e-4, floor=1e-6),
} | ({"cuda-fp32": dict(backend="cpu", precision="fp32", device="cuda", logits=2e-5, loss=1e-5, gradient=1e-4, floor=1e-6)} if CUDA else {})


def load_model(path, run, **more):
    from rwkvtune import RWKV

    how = MODEL_RUNS[run]
    return RWKV.load(str(path), backend=how["backend"], precision=how["precision"], device=how.get("device", "cpu"), **more)


def small_model(backend="cpu", precision="fp32", seed=1, spread=0.3, device="cpu", **sizes):
    """A model whose every parameter matters: the reference initialisation leaves many at zero, so add noise to all."""
    from rwkvtune import RWKV, ModelConfig

    sizes = dict(model_type="x070", n_layer=2, n_embd=64, vocab_size=67, ctx_len=64, head_size_a=32) | sizes
    model = RWKV(ModelConfig(**sizes), seed=seed, backend=backend, precision=precision, device=device)
    rng = np.random.default_rng(seed)
    weights = model.named_parameters()
    for value in weights.values():
        noise = rng.standard_normal(value.shape)
        value += spread * noise / np.sqrt(value.shape[-1] if value.ndim == 2 else 16)
    if device != "cpu":
        model.load_state_dict(weights)  # they were copies
    return model


def some_ids(batch, length, vocab_size=67, seed=0):
    return np.random.default_rng(seed).integers(0, vocab_size, (batch, length))
