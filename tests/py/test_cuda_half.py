"""The recurrences and attention on 16-bit activations: on tensor cores, with errors of the size that 16 bits must have.

The measure is the naive 16-bit computation: inputs rounded to 16 bits, everything else exact, results rounded again. The kernels,
which round their operands on the way as well, may be off by at most twice as much in the root mean square of each result.
"""

import numpy as np
import pytest
from helpers import CUDA, assert_same_bits, core
from reference import ops

pytestmark = pytest.mark.skipif(not CUDA, reason="no CUDA device, and not the build of tests/cuda_host")

KINDS = ["cuda-bf16", "cuda-fp16"]
WKV7 = ("r", "s", "k", "v", "a", "b")


def packed(x, kind):
    """Float64 as 16-bit elements in NumPy's types: float16, or the bits of bfloat16 in uint16; to nearest, ties to even."""
    if kind == "cuda-fp16":
        return np.asarray(x, dtype=np.float16)
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return np.where(np.isnan(x), 0x7FC0, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def unpacked(x):
    return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64) if x.dtype == np.uint16 else x.astype(np.float64)


class Setting:
    """Runs ops on dicts of float64 arrays; those called `wide` stay float32, as in csrc/cuda/launch.h."""

    def __init__(self, kind, wide):
        self.kind, self.wide = kind, wide

    def rounded(self, values):
        return {name: np.float64(np.float32(x)) if name in self.wide else unpacked(packed(x, self.kind)) for name, x in values.items()}

    def run(self, op, direction, values, raw=None, **integers):
        """All arrays after the op; raw: arrays handed over as they are, and changed in place."""
        args = {name: np.array(x, dtype=np.float32) if name in self.wide else packed(x, self.kind) for name, x in values.items()}
        core.run_op(self.kind, op, direction, args | (raw or {}) | integers)
        return {name: unpacked(x) for name, x in args.items()}

    def run_lists(self, op, direction, values, lists, raw=None, **integers):
        """The same where some arguments are lists of arrays; those come back as one array. raw: lists handed over as they are."""
        packs = {name: [packed(x, self.kind) for x in xs] for name, xs in lists.items()} | (raw or {})
        got = self.run(op, direction, values, packs, **integers)
        return got | {name: np.stack([unpacked(x) for x in xs]) for name, xs in packs.items()}


def blank(*shape):
    return np.full(shape, np.nan)


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


def assert_as_good_as_rounding(setting, got, compute, values, what):
    """compute(values) gives every result in float64."""
    truth, naive = compute(values), setting.rounded(compute(setting.rounded(values)))
    for name, want in truth.items():
        allowed = 2 * rms(naive[name] - want) + 1e-5  # float32 sums of up to 128 terms of size 1 that cancel
        error = rms(got[name] - want)
        assert error <= allowed, f"{what}: {name} off by {error:.3g}, allowed {allowed:.3g}"


# ---- WKV-7 ----------------------------------------------------------------------------------------------------------


def wkv7_values(B, T, H, N, inputs):
    rng = np.random.default_rng([B, T, H, N])
    shape, draw = (B, T, H, N), rng.standard_normal
    khat = draw(shape) if inputs != "one key" else draw(N) + 0.1 * draw(shape)
    khat /= np.linalg.norm(khat, axis=-1, keepdims=True)
    scale, mean = {"typical": (2, -3), "wide": (3, 0), "fast": (1, 8), "slow": (1, -8), "one key": (2, -3)}[inputs]
    rate = ops.sigmoid(draw(shape) + (3 if inputs == "one key" else 0))
    values = dict(r=draw(shape), s=scale * draw(shape) + mean, k=draw(shape), v=draw(shape), a=-khat, b=khat * rate)
    values |= dict(s0=draw((B, H, N, N)), dy=draw(shape), dsT=draw((B, H, N, N)))
    return values | {f"{name}_start": draw(shape) for name in ("dr", "dk", "dv")}


def wkv7_compute(p):
    y, z, states = ops.wkv7(*(p[name] for name in WKV7), p["s0"])
    *grads, ds0 = ops.wkv7_grad(*(p[name] for name in WKV7), z, states, p["dy"], p["dsT"])
    out = dict(y=y, sT=states[-1], ds0=ds0) | {"d" + name: grad for name, grad in zip(WKV7, grads)}
    return out | {name: out[name] + p[f"{name}_start"] for name in ("dr", "dk", "dv")}


def wkv7_run(setting, p):
    shape, state = p["r"].shape, p["s0"].shape
    B, T, H, N = shape
    inputs, checkpoints = {name: p[name] for name in (*WKV7, "s0")}, blank(B * H, -(-T // 16), N, N)
    if N in (32, 64, 128):  # by chunks
        saved = dict(ckpt=packed(checkpoints, setting.kind))
    else:
        saved = dict(ckpt=checkpoints.astype(np.float32), z=packed(blank(*shape), setting.kind))
    forward = setting.run("wkv7", "fwd", inputs | dict(y=blank(*shape), sT=blank(*state)), saved)
    out = {name: p[f"{name}_start"] for name in ("dr", "dk", "dv")} | {name: blank(*shape) for name in ("ds", "da", "db")}
    backward = setting.run("wkv7", "bwd", inputs | dict(dy=p["dy"], dsT=p["dsT"], ds0=blank(*state)) | out, saved)
    return {name: forward[name] for name in ("y", "sT")} | {name: backward[name] for name in (*out, "ds0")}


WKV7_WIDE = ("s0", "sT", "dsT", "ds0", "ckpt")
WKV7_CASES = [((2, 37, 2, 64), inputs) for inputs in ("typical", "wide", "fast", "slow", "one key")]
WKV7_CASES += [((1, 33, 1, 32), "wide"), ((1, 50, 1, 128), "wide"), ((3, 1, 1, 64), "typical"), ((1, 16, 2, 64), "fast"), ((1, 20, 1, 48), "wide")]


@pytest.mark.parametrize("shape, inputs", WKV7_CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_wkv7(kind, shape, inputs):
    setting, values = Setting(kind, WKV7_WIDE), wkv7_values(*shape, inputs)
    got = wkv7_run(setting, values)
    assert_as_good_as_rounding(setting, got, wkv7_compute, values, f"{kind} {shape} {inputs}")
    for name, again in wkv7_run(setting, values).items():
        assert_same_bits(again, got[name], f"{kind} {name} of a second run")


def test_checkpoints_of_another_type_are_refused():
    setting, p = Setting("cuda-bf16", WKV7_WIDE), wkv7_values(1, 20, 1, 64, "typical")
    given = {name: p[name] for name in (*WKV7, "s0")} | dict(y=blank(*p["r"].shape))
    with pytest.raises(ValueError, match="the activations' type"):
        setting.run("wkv7", "fwd", given, dict(ckpt=np.zeros((1, 2, 64, 64), dtype=np.float32)))


def test_wkv7_continues_from_its_state():
    """A prompt in two parts, on tensor cores and not, against one run."""
    setting, p = Setting("cuda-bf16", WKV7_WIDE), wkv7_values(1, 40, 2, 64, "typical")
    for cut in (16, 35):  # the rest is 24 tokens, then 5: fewer than a chunk
        state, ys = p["s0"], []
        for part in (slice(0, cut), slice(cut, 40)):
            tokens = {name: p[name][:, part] for name in WKV7}
            out = setting.run("wkv7", "fwd", tokens | dict(s0=state, y=blank(*tokens["r"].shape), sT=blank(*state.shape)))
            state = out["sT"]
            ys.append(out["y"])
        forward = dict(y=np.concatenate(ys, axis=1), sT=state)
        assert_as_good_as_rounding(setting, forward, lambda q: {n: x for n, x in wkv7_compute(q).items() if n in ("y", "sT")}, p, f"cut at {cut}")


def test_wkv7_outputs_do_not_depend_on_later_tokens():
    setting, p = Setting("cuda-bf16", WKV7_WIDE), wkv7_values(1, 40, 1, 64, "typical")
    changed = p | {name: np.concatenate([p[name][:, :21], 2 - p[name][:, 21:]], axis=1) for name in WKV7}
    y, other = wkv7_run(setting, p)["y"], wkv7_run(setting, changed)["y"]
    assert np.any(y[:, 21:] != other[:, 21:])
    assert_same_bits(y[:, :21], other[:, :21], "outputs before the change")


# ---- WKV-5 and 6 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["wkv5", "wkv6"])
@pytest.mark.parametrize("kind", KINDS)
def test_wkv6(kind, op):
    B, T, H, N = shape = (2, 35, 2, 64)
    rng = np.random.default_rng(5)
    setting = Setting(kind, ("s0", "sT", "dsT", "ds0", "du") + ("dw",) * (op == "wkv5"))
    p = {name: rng.standard_normal(shape) for name in ("r", "k", "v", "dy")}
    p |= dict(w=2 * rng.standard_normal((H, N) if op == "wkv5" else shape) - 2, u=rng.standard_normal((H, N)))
    p |= {name: rng.standard_normal((B, H, N, N)) for name in ("s0", "dsT")}
    order = ("r", "k", "v", "w", "u")

    def compute(q):
        y, states = ops.wkv6(*(q[name] for name in order), q["s0"])
        *grads, ds0 = ops.wkv6_grad(*(q[name] for name in order), states, q["dy"], q["dsT"])
        return dict(y=y, sT=states[-1], ds0=ds0) | {"d" + name: grad for name, grad in zip(order, grads)}

    raw = dict(ckpt=np.full((B * H, -(-T // 16), N, N), np.nan, dtype=np.float32))
    inputs = {name: p[name] for name in (*order, "s0")}
    forward = setting.run(op, "fwd", inputs | dict(y=blank(*shape), sT=blank(*p["s0"].shape)), raw)
    out = {"d" + name: blank(*shape) for name in ("r", "k", "v")} | dict(dw=blank(*shape) if op == "wkv6" else np.zeros((H, N)), du=np.zeros((H, N)))
    raw["sums"] = np.full((B * H, 2, N), np.nan, dtype=np.float32)
    backward = setting.run(op, "bwd", inputs | dict(dy=p["dy"], dsT=p["dsT"], ds0=blank(*p["s0"].shape)) | out, raw)
    assert_as_good_as_rounding(setting, {n: forward[n] for n in ("y", "sT")} | {n: backward[n] for n in (*out, "ds0")}, compute, p, f"{kind} {op}")


# ---- attention ------------------------------------------------------------------------------------------------------


def attention_compute(past):
    def compute(p):
        k, v = (np.concatenate([p[f"{name}_past"], p[name]], axis=1) if past else p[name] for name in "kv")
        y, lse = ops.attention(p["q"], k, v, past)
        dq, dk, dv = ops.attention_grad(p["q"], k, v, past, y, lse, p["dy"])
        if not past:
            return dict(y=y, lse=lse, dq=dq, dk=dk, dv=dv)
        dk, dv = dk + p["dk_all"], dv + p["dv_all"]
        return dict(y=y, lse=lse, dq=dq, dk=dk[:, past:], dv=dv[:, past:], dk_past=dk[:, :past], dv_past=dv[:, :past])

    return compute


ATTENTION_SHAPES = [(1, 1, 2, 2, 64, 0), (2, 70, 4, 2, 32, 0), (1, 130, 2, 1, 64, 70), (1, 65, 1, 1, 128, 3), (1, 5, 2, 1, 64, 129), (1, 20, 2, 2, 16, 3)]


@pytest.mark.parametrize("shape", ATTENTION_SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_attention(kind, shape):
    B, T, H, G, N, past = shape
    rng = np.random.default_rng(shape)
    caches = ("k_past", "v_past", "k_all", "v_all", "dk_all", "dv_all", "dk_past", "dv_past")
    setting = Setting(kind, (*caches, "lse"))
    p = dict(q=2 * rng.standard_normal((B, T, H, N)), dy=rng.standard_normal((B, T, H, N)))
    p |= {name: rng.standard_normal((B, T, G, N)) for name in "kv"}
    if past:
        p |= {f"{name}_past": unpacked(packed(rng.standard_normal((B, past, G, N)), kind)) for name in "kv"}  # as they were when they came
        p |= {f"d{name}_all": rng.standard_normal((B, past + T, G, N)) for name in "kv"}
    inputs = {name: x for name, x in p.items() if name in ("q", "k", "v", "k_past", "v_past")}
    out = dict(y=blank(B, T, H, N), lse=blank(B, H, T), k_all=blank(B, past + T, G, N), v_all=blank(B, past + T, G, N))
    forward = setting.run("attention", "fwd", inputs | out, past=past)
    grads = dict(dq=blank(B, T, H, N), dk=blank(B, T, G, N), dv=blank(B, T, G, N))
    if past:
        grads |= {f"d{name}_past": blank(B, past, G, N) for name in "kv"}
    given = inputs | {name: x for name, x in p.items() if name.startswith("d")} | {name: forward[name] for name in ("y", "lse")}
    backward = setting.run("attention", "bwd", given | grads, past=past)
    got = {name: forward[name] for name in ("y", "lse")} | {name: backward[name] for name in grads}
    assert_as_good_as_rounding(setting, got, attention_compute(past), p, f"{kind} {shape}")
    rounded = setting.rounded(p)
    for name in "kv":
        whole = np.concatenate([rounded[f"{name}_past"], rounded[name]], axis=1) if past else rounded[name]
        assert_same_bits(forward[f"{name}_all"], whole, f"{name} of the cache")


def test_a_head_that_is_too_large_is_refused():
    x = np.zeros((1, 1, 1, 160), dtype=np.float32)
    state = np.zeros((1, 1, 160, 160), dtype=np.float32)
    with pytest.raises(NotImplementedError, match="head size of 160"):
        core.run_op("cuda-fp32", "wkv7", "fwd", {name: x.copy() for name in (*WKV7, "y")} | dict(s0=state))
    with pytest.raises(NotImplementedError, match="head size of 160"):
        core.run_op("cuda-fp32", "attention", "fwd", {name: x.copy() for name in ("q", "k", "v", "y")} | dict(past=0))
