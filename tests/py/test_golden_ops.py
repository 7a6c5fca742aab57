"""Single operations against the golden files: the wkv recurrences, norms, key normalisation, decay, shift, loss."""

import numpy as np
import pytest
from helpers import BACKENDS, assert_within, core, real_of, running_on

FLOAT32_STORED = 6e-8  # half a unit in the last place of a number stored as float32

# (outputs, gradients), relative to the largest number of a tensor
TOLERANCE = {np.float64: (1e-10, 1e-8), np.float32: (1e-5, 1e-4)}


def run(backend, op, direction, out, **args):
    """Calls the op; out: destination -> shape, filled with NaN, or an array that is added to."""
    real = real_of(backend)
    arrays = {}
    for name, value in (args | out).items():
        if isinstance(value, tuple):
            arrays[name] = np.full(value, np.nan, dtype=real)
        elif isinstance(value, list):
            arrays[name] = [np.ascontiguousarray(x, dtype=real) for x in value]
        elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
            arrays[name] = np.array(value, dtype=real, order="C")
        else:
            arrays[name] = value
    with running_on(backend) as name:
        core.run_op(name, op, direction, arrays)
    return {name: arrays[name] for name in out}


def check(backend, got, want, what, gradient=False, scale=None):
    want = np.asarray(want)
    tolerance = TOLERANCE[real_of(backend)][gradient] * (2 if backend.startswith("cuda") else 1)  # a warp sums in another order
    stored = FLOAT32_STORED if want.dtype == np.float32 else 0
    largest = np.abs(want).max() if scale is None else scale
    assert_within(got, want, tolerance * largest + stored * np.abs(want), f"{what} on {backend}")


WKV7 = ["B1T1H1N64_state", "B2T17H2N32_state", "B1T130H1N64", "B1T64H1N64_maxdecay", "B1T1024H1N32_realistic"]


@pytest.mark.parametrize("case", WKV7)
@pytest.mark.parametrize("backend", BACKENDS)
def test_wkv7(shared, backend, case):
    golden = np.load(shared / f"golden/dev/ops/wkv7_{case}.npz")
    given = {name: golden[f"in_{name}"] for name in "rskvab"}
    B, T, H, N = given["r"].shape
    key_major = {name: np.swapaxes(golden[f"in_{name}"], -1, -2) for name in ("S0", "dST")}
    state = (B, H, N, N)
    fwd = run(
        backend,
        "wkv7",
        "fwd",
        dict(y=(B, T, H, N), z=(B, T, H, N), ckpt=(B * H, -(-T // 16), N, N), sT=state),
        **given,
        s0=key_major["S0"],
    )
    check(backend, fwd["y"], golden["y"], "y")
    check(backend, np.swapaxes(fwd["sT"], -1, -2), golden["ST"], "final state")
    out = {name: np.zeros((B, T, H, N)) for name in ("dr", "dk", "dv")} | {
        name: (B, T, H, N) for name in ("ds", "da", "db")
    }
    bwd = run(
        backend,
        "wkv7",
        "bwd",
        out | dict(ds0=state),
        **given,
        s0=key_major["S0"],
        z=fwd["z"],
        ckpt=fwd["ckpt"],
        dy=golden["in_dy"],
        dsT=key_major["dST"],
    )
    for name in ("dr", "ds", "dk", "dv", "da", "db"):
        check(backend, bwd[name], golden[name], name, gradient=True)
    check(backend, np.swapaxes(bwd["ds0"], -1, -2), golden["dS0"], "dS0", gradient=True)


WKV56 = ["B1T1H1N64_state", "B2T17H2N32_state", "B1T130H1N64", "B1T1024H1N32_realistic"]


@pytest.mark.parametrize("case", WKV56)
@pytest.mark.parametrize("op", ["wkv5", "wkv6"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_wkv5_and_wkv6(shared, backend, op, case):
    golden = np.load(shared / f"golden/dev/ops/{op}_{case}.npz")
    given = {name: golden[f"in_{name}"] for name in "rkvwu"}
    B, T, H, N = given["r"].shape
    rows, state = (B, T, H, N), (B, H, N, N)
    given["s0"], dsT = (np.swapaxes(golden[f"in_{name}"], -1, -2) for name in ("S0", "dST"))
    fwd = run(backend, op, "fwd", dict(y=rows, ckpt=(B * H, -(-T // 16), N, N), sT=state), **given)
    check(backend, fwd["y"], golden["y"], "y")
    check(backend, np.swapaxes(fwd["sT"], -1, -2), golden["ST"], "final state")
    out = dict(dr=rows, dk=rows, dv=rows, du=np.zeros((H, N)), sums=(B * H, 2, N), ds0=state)
    out["dw"] = rows if op == "wkv6" else np.zeros((H, N))
    bwd = run(backend, op, "bwd", out, **given, ckpt=fwd["ckpt"], dy=golden["in_dy"], dsT=dsT)
    for name in ("dr", "dk", "dv", "dw", "du"):
        check(backend, bwd[name], golden[name], name, gradient=True)
    check(backend, np.swapaxes(bwd["ds0"], -1, -2), golden["dS0"], "dS0", gradient=True)


@pytest.fixture(scope="module")
def misc(shared):
    return np.load(shared / "golden/dev/ops/misc_ops.npz")


@pytest.mark.parametrize("backend", BACKENDS)
def test_layernorm(misc, backend):
    shape = misc["ln_x"].shape
    given = dict(x=misc["ln_x"], w=misc["ln_w"], b=misc["ln_b"], eps=1e-5)
    fwd = run(backend, "layernorm", "fwd", dict(y=shape, stats=(*shape[:2], 2)), **given)
    check(backend, fwd["y"], misc["ln_y"], "y")
    bwd = run(
        backend,
        "layernorm",
        "bwd",
        dict(dx=shape, dw=np.zeros(shape[-1]), db=np.zeros(shape[-1])),
        **given,
        stats=fwd["stats"],
        dy=misc["ln_dout"],
    )
    for name in ("dx", "dw", "db"):
        check(backend, bwd[name], misc[f"ln_{name}"], name, gradient=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_group_norm_of_tiny_activations(misc, backend):
    """The output gate without bonus (r = k = 0) and with gate 1 is the group norm."""
    B, T, C = misc["gn_x"].shape
    H = int(misc["gn_groups"])
    head, row = (B, T, H, C // H), (B * T, C)
    zeros = np.zeros(head)
    given = dict(
        y=misc["gn_x"].reshape(head),
        r=zeros,
        k=zeros,
        v=np.ones(head),
        r_k=np.ones((H, C // H)),
        w=misc["gn_w"],
        b=misc["gn_b"],
        g=np.ones(row),
        eps=64e-5,
    )
    fwd = run(backend, "out_gate", "fwd", dict(o=row), **given)
    check(backend, fwd["o"], misc["gn_y"].reshape(row), "y")
    out = {name: head for name in ("dy", "dr", "dk", "dv")} | dict(
        dg=row, dr_k=np.zeros((H, C // H)), dw=np.zeros(C), db=np.zeros(C)
    )
    bwd = run(backend, "out_gate", "bwd", out, **given, do_=misc["gn_dout"].reshape(row))
    check(backend, bwd["dy"], misc["gn_dx"].reshape(head), "dx", gradient=True)
    check(backend, bwd["dw"], misc["gn_dw"], "dw", gradient=True)
    check(backend, bwd["db"], misc["gn_db"], "db", gradient=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_group_norm_before_a_gate(misc, backend):
    """RWKV-5's and 6's read-out is the group norm times silu(g); g = 30 makes silu(g) = 30 and its slope 1."""
    B, T, C = misc["gn_x"].shape
    H = int(misc["gn_groups"])
    head, row = (B, T, H, C // H), (B * T, C)
    given = dict(y=misc["gn_x"].reshape(head), w=misc["gn_w"], b=misc["gn_b"], g=np.full(row, 30.0), eps=64e-5)
    fwd = run(backend, "norm_gate", "fwd", dict(o=row), **given)
    check(backend, fwd["o"] / 30, misc["gn_y"].reshape(row), "y")
    out = dict(dy=head, dg=row, dw=np.zeros(C), db=np.zeros(C))
    bwd = run(backend, "norm_gate", "bwd", out, **given, do_=misc["gn_dout"].reshape(row) / 30)
    check(backend, bwd["dy"], misc["gn_dx"].reshape(head), "dx", gradient=True)
    check(backend, bwd["dw"], misc["gn_dw"], "dw", gradient=True)
    check(backend, bwd["db"], misc["gn_db"], "db", gradient=True)
    check(backend, bwd["dg"], (misc["gn_dout"] * misc["gn_y"]).reshape(row) / 30, "dg", gradient=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_key_normalisation_of_short_vectors(misc, backend):
    """With k_k = 1 and a cotangent on alpha alone, key_prep is -q / max(|q|, 1e-12), and its gradient."""
    shape = misc["kk_in"].shape
    C = shape[2] * shape[3]
    given = dict(k0=misc["kk_in"], a=np.zeros(shape), k_k=np.ones(C), k_a=np.zeros(C))
    fwd = run(backend, "key_prep", "fwd", dict(k=shape, alpha=shape, beta=shape), **given)
    check(backend, -fwd["alpha"], misc["kk_out"], "khat")
    check(backend, fwd["beta"], misc["kk_out"] / 2, "beta")
    zeros = np.zeros(shape)
    bwd = run(
        backend,
        "key_prep",
        "bwd",
        dict(dk0=shape, da=shape, dk_k=np.zeros(C), dk_a=np.zeros(C)),
        **given,
        dk=zeros,
        dalpha=-misc["kk_dout"],
        dbeta=zeros,
    )
    per_head = np.abs(misc["kk_din"]).max(axis=-1, keepdims=True)  # they differ by a factor of 1e12
    check(backend, bwd["dk0"], misc["kk_din"], "gradient", gradient=True, scale=per_head)


@pytest.mark.parametrize("backend", BACKENDS)
def test_decay_at_extreme_logits(misc, backend):
    """With everything else zero the recurrence multiplies each key slot of the state by its decay."""
    N = misc["decay_s"].size
    row, state = (1, 1, 1, N), (1, 1, N, N)
    zeros, ones = np.zeros(row), np.ones(state)
    given = dict(r=zeros, k=zeros, v=zeros, a=zeros, b=zeros, s=misc["decay_s"].reshape(row), s0=ones)
    fwd = run(backend, "wkv7", "fwd", dict(y=row, z=row, ckpt=(1, 1, N, N), sT=state), **given)
    for value_slot in range(N):
        check(backend, fwd["sT"][0, 0, :, value_slot], misc["decay_out"], "decay")
    cotangent = np.zeros(state)
    cotangent[0, 0, :, 0] = 1
    out = {name: np.zeros(row) for name in ("dr", "dk", "dv")} | {name: row for name in ("ds", "da", "db")}
    bwd = run(backend, "wkv7", "bwd", out, **given, z=fwd["z"], ckpt=fwd["ckpt"], dy=zeros, dsT=cotangent)
    check(backend, bwd["ds"].ravel(), misc["decay_dds"], "gradient of the logit", gradient=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_token_shift(misc, backend):
    shape = misc["shift_x"].shape
    carried = (shape[0], shape[2])
    given = dict(x=misc["shift_x"], prev=misc["shift_prev"], mu=list(misc["shift_mu"]), n=3)
    destinations = dict(y=[np.full(shape, np.nan) for _ in range(3)], last=carried)
    fwd = run(backend, "shift_lerp", "fwd", destinations, **given)
    check(backend, np.stack(fwd["y"]), misc["shift_out"], "mixed inputs")
    check(backend, fwd["last"], misc["shift_x"][:, -1], "last")
    bwd = run(
        backend,
        "shift_lerp",
        "bwd",
        dict(dx=shape, dprev=carried, dmu=[np.zeros(shape[2]) for _ in range(3)]),
        **given,
        dy=list(misc["shift_dout"]),
    )
    check(backend, bwd["dx"], misc["shift_dx"], "dx", gradient=True)
    check(backend, bwd["dprev"], misc["shift_dprev"], "dprev", gradient=True)
    check(backend, np.stack(bwd["dmu"]), misc["shift_dmu"], "dmu", gradient=True)


@pytest.mark.parametrize("l2wrap", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_cross_entropy_with_ties_and_negative_maxima(misc, backend, l2wrap):
    V = misc["ce_logits"].shape[-1]
    R = misc["ce_targets"].size
    loss = np.full(R, np.nan)
    logits = np.array(misc["ce_logits"].reshape(R, V), dtype=real_of(backend))
    with running_on(backend) as name:
        core.run_op(
            name,
            "xent",
            "fwd",
            dict(
                logits=logits,
                targets=misc["ce_targets"].ravel().astype(np.int32),
                loss=loss,
                grad=1,
                scale=1 / R,
                l2=1e-4 / R if l2wrap else 0.0,
            ),
        )
    want = misc["ce_dlogits_l2wrap" if l2wrap else "ce_dlogits_plain"].reshape(R, V)
    check(backend, loss.mean(), misc["ce_loss"], "loss")
    check(backend, logits, want, "gradient", gradient=True)
    if l2wrap:  # the added term is small beside the softmax: look at it alone
        plain = misc["ce_dlogits_plain"].reshape(R, V)
        assert_within(
            logits - plain, want - plain, 1e-13 if logits.dtype == np.float64 else 3e-8, f"L2Wrap on {backend}"
        )
