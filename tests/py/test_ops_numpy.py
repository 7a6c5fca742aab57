"""Every operation of every backend against the definitions in tests/reference.

The tolerance of each number is the running error bound of its own computation (reference/running_error.py): nothing is
tuned. Destinations start as NaN, gradients that are added to start elsewhere, every array lies unaligned between
canaries, inputs must come back unchanged, and 1, 2 and 3 threads must give the same bits. The last sizes of each op are
large enough to be cut into tasks.
"""

import functools
from dataclasses import dataclass, field

import numpy as np
import pytest
from helpers import BACKENDS, assert_same_bits, assert_within, core, real_of, running_on, threads
from reference import ops
from reference.running_error import Bound, as_bound

WIDTHS = [1, 3, 8, 15, 16, 17, 31, 32, 33, 64, 130]
LENGTHS = [1, 2, 15, 16, 17, 33]
HEADS = [(1, 1, 2, 1), (2, 1, 3, 2), (1, 2, 2, 8), (2, 3, 1, 15), (1, 15, 2, 16), (1, 5, 2, 17), (2, 16, 1, 32), (1, 17, 2, 33),
         (1, 4, 1, 40), (1, 33, 2, 64), (1, 2, 1, 128), (1, 18, 2, 3)]  # (B,T,H,N)
CANARY = -12345.678


@dataclass(eq=False)
class Case:
    """One use of an op: what goes in, and functions that say what comes out."""

    given: dict  # field -> array, or list of arrays
    forward: object  # dict of everything given -> dict of outputs
    backward: object = None  # the same plus saved outputs and cotangents -> dict of gradients
    cotangents: dict = field(default_factory=dict)  # field -> (output it belongs to, array)
    gradient_of: dict = field(default_factory=dict)  # gradient field -> input field
    added: dict = field(default_factory=dict)  # gradient field -> what it starts from; the others are written
    saved: tuple = ()  # outputs the backward reads
    settings: dict = field(default_factory=dict)  # real numbers
    integers: dict = field(default_factory=dict)
    ids: dict = field(default_factory=dict)
    in_place: dict = field(default_factory=dict)  # output name in `forward` -> the given field it overwrites
    doubles: tuple = ()  # fields that are float64 on every backend
    scratch: dict = field(default_factory=dict)  # field -> shape
    additions: int = 0  # how many terms each added gradient receives
    may_share: dict = field(default_factory=dict)  # direction -> [(destination, source)] the header allows


def draw(rng, *shape, scale=1.0):
    """Normal numbers that float32 holds exactly."""
    return (scale * rng.standard_normal(shape)).astype(np.float32).astype(np.float64)


# ---- one generator of cases per op ----------------------------------------------------------------------------------


def embed_cases(rng):
    for V, R, C in [(11, 9, C) for C in WIDTHS] + [(50, 320, 300)]:
        ids = rng.integers(0, V, R)
        yield Case(
            given=dict(w=draw(rng, V, C)), ids=dict(ids=ids), additions=R,
            forward=lambda p, ids=ids: dict(y=ops.embed(ids, p["w"])),
            backward=lambda p, ids=ids, V=V: dict(dw=ops.embed_grad(ids, p["dy"], V)),
            cotangents=dict(dy=("y", draw(rng, R, C))), gradient_of=dict(dw="w"), added=dict(dw=1.0))


def add_cases(rng):
    for n in WIDTHS + [40001]:
        yield Case(given=dict(a=draw(rng, 2, n), b=draw(rng, 2, n)), forward=lambda p: dict(y=ops.add(p["a"], p["b"])),
                   may_share=dict(fwd=[("y", "a"), ("y", "b")]))


def layernorm_cases(rng):
    def forward(p):
        m, s = ops.norm_statistics(p["x"], p["eps"])
        return dict(y=ops.layernorm(p["x"], p["w"], p["b"], p["eps"]), stats=np.concatenate([m, s], axis=-1))

    def backward(p):
        m, s = p["stats"][..., :1], p["stats"][..., 1:]
        dx, dw, db = ops.layernorm_grad(p["x"], p["w"], p["dy"], m, s, p.get("dres", 0))
        return dict(dx=dx, dw=dw, db=db)

    for i, C in enumerate(WIDTHS + [300]):
        R, residual = 400 if C == 300 else 5 + i % 3, i % 2
        yield Case(
            given=dict(x=draw(rng, R, C) + 0.5, w=draw(rng, C), b=draw(rng, C)) | (dict(dres=draw(rng, R, C)) if residual else {}),
            settings=dict(eps=1e-5), forward=forward, backward=backward, saved=("stats",), additions=R,
            cotangents=dict(dy=("y", draw(rng, R, C))), gradient_of=dict(dx="x", dw="w", db="b"), added=dict(dw=1.0, db=1.0),
            may_share=dict(bwd=[("dx", "dres")] if residual else []))


def linear_cases(rng):
    def forward(p):
        return dict(y=ops.linear(p["x"].reshape(-1, p["x"].shape[-1]), p["w"]).reshape(*p["x"].shape[:-1], -1))

    def backward(p):
        rows = p["x"].reshape(-1, p["x"].shape[-1])
        dx, dw = ops.linear_grad(rows, p["w"], p["dy"].reshape(-1, p["dy"].shape[-1]))
        return dict(dx=dx.reshape(*p["x"].shape), dw=dw)

    sizes = [(B, T, K, WIDTHS[(i + B + T) % len(WIDTHS)]) for i, K in enumerate(WIDTHS)
             for B, T in [(1, 1), (1, 2), (1, 3), (2, 2), (1, 5), (2, 17)]]
    for B, T, K, M in sizes + [(2, 300, 130, 520), (1, 2, 260, 600), (1, 3, 600, 130)]:
        yield Case(given=dict(x=draw(rng, B, T, K), w=draw(rng, M, K)), forward=forward, backward=backward, additions=B * T,
                   cotangents=dict(dy=("y", draw(rng, B, T, M))), gradient_of=dict(dx="x", dw="w"), added=dict(dw=1.0),
                   may_share=dict(bwd=[("dx", "x")]))


def lowrank_cases(rng):
    def forward(p, act):
        h, y = ops.lowrank(p["x"], p["m1"], p["m2"], p.get("bias", 0), act)
        return dict(h=h, y=y)

    def backward(p, act):
        dx, dm1, dm2, dbias = ops.lowrank_grad(p["x"], p["m1"], p["m2"], p["h"], p["dy"], act)
        return dict(dx=dx, dm1=dm1, dm2=dm2) | (dict(dbias=dbias) if "bias" in p else {})

    sizes = [(R, C, D, WIDTHS[(i + D) % len(WIDTHS)]) for i, C in enumerate(WIDTHS) for R, D in [(1, 8), (2, 3), (5, 17), (19, 32)]]
    for i, (R, C, D, O) in enumerate(sizes + [(300, 300, 40, 290), (2, 600, 33, 610), (1, 300, 8, 300)]):
        act, biased = i % 3, (i // 3) % 2
        gradient_of = dict(dx="x", dm1="m1", dm2="m2") | (dict(dbias="bias") if biased else {})
        yield Case(
            given=dict(x=draw(rng, R, C), m1=draw(rng, C, D, scale=C**-0.5), m2=draw(rng, D, O))
            | (dict(bias=draw(rng, O)) if biased else {}),
            integers=dict(act=act), forward=functools.partial(forward, act=act), backward=functools.partial(backward, act=act),
            saved=("h",), scratch=dict(dh=(R, D)), additions=R, cotangents=dict(dy=("y", draw(rng, R, O))),
            gradient_of=gradient_of, added={name: 1.0 for name in gradient_of if name != "dx"},
            may_share=dict(bwd=[("dx", "x")]))


def shift_lerp_cases(rng):
    def forward(p):
        prev = p["prev"] if "prev" in p else np.zeros((p["x"].shape[0], p["x"].shape[2]))
        return dict(y=ops.shift_lerp(p["x"], prev, p["mu"])) | (dict(last=p["x"][:, -1]) if "prev" in p else {})

    def backward(p):
        zeros = np.zeros((p["x"].shape[0], p["x"].shape[2]))
        dx, dprev, dmu = ops.shift_lerp_grad(p["x"], p.get("prev", zeros), p["mu"], p["dy"], p.get("dlast", zeros))
        return dict(dx=dx, dmu=dmu) | (dict(dprev=dprev) if "prev" in p else {})

    for i, C in enumerate(WIDTHS + [600]):
        B, T, n, carried = (2, 70, 6, 1) if C == 600 else (1 + i % 2, LENGTHS[i % len(LENGTHS)], 1 + i % 6, i % 3)
        given = dict(x=draw(rng, B, T, C), mu=[draw(rng, C) for _ in range(n)])
        cotangents = dict(dy=("y", [draw(rng, B, T, C) for _ in range(n)]))
        gradient_of = dict(dx="x", dmu="mu")
        if carried:
            given["prev"], gradient_of["dprev"] = draw(rng, B, C), "prev"
            cotangents["dlast"] = ("last", draw(rng, B, C))
        yield Case(given=given, integers=dict(n=n), forward=forward, backward=backward, cotangents=cotangents, additions=B * T,
                   gradient_of=gradient_of, added=dict(dmu=1.0), may_share=dict(fwd=[("last", "prev")] if carried else []))


def value_residual_cases(rng):
    def forward(p):
        return dict(v=ops.value_residual(p["v0"], p["v_first"], p["nu"]))

    def backward(p):
        return dict(zip(("dv0", "dv_first", "dnu"), ops.value_residual_grad(p["v0"], p["v_first"], p["nu"], p["dv"])))

    for R, C in [(4, C) for C in WIDTHS] + [(100, 600)]:
        yield Case(
            given=dict(v0=draw(rng, R, C), v_first=draw(rng, R, C), nu=draw(rng, R, C, scale=8)), forward=forward, backward=backward,
            additions=1, cotangents=dict(dv=("v", draw(rng, R, C))), gradient_of=dict(dv0="v0", dv_first="v_first", dnu="nu"),
            added=dict(dv_first=draw(rng, R, C)), may_share=dict(bwd=[("dv0", "dv")]))


def key_prep_cases(rng):
    def vectors(p):
        H, N = p["k0"].shape[2:]
        return p["k_k"].reshape(H, N), p["k_a"].reshape(H, N)

    def forward(p):
        return dict(zip(("k", "alpha", "beta"), ops.key_prep(p["k0"], p["a"], *vectors(p))))

    def backward(p):
        C = p["k_k"].shape
        dk0, da, dk_k, dk_a = ops.key_prep_grad(p["k0"], p["a"], *vectors(p), p["dk"], p["dalpha"], p["dbeta"])
        return dict(dk0=dk0, da=da, dk_k=dk_k.reshape(*C), dk_a=dk_a.reshape(*C))

    for i, (B, T, H, N) in enumerate(HEADS + [(2, 40, 12, 64)]):
        k0 = draw(rng, B, T, H, N)
        if i % 3 == 1:  # vectors too short to be normalised
            k0[0, 0, 0], k0[-1, -1, -1] = 0, draw(rng, N, scale=1e-15)
        yield Case(
            given=dict(k0=k0, a=draw(rng, B, T, H, N, scale=3), k_k=draw(rng, H * N, scale=0.3) + 0.75, k_a=draw(rng, H * N) + 1),
            forward=forward, backward=backward, additions=B * T,
            cotangents={"d" + name: (name, draw(rng, B, T, H, N)) for name in ("k", "alpha", "beta")},
            gradient_of=dict(dk0="k0", da="a", dk_k="k_k", dk_a="k_a"), added=dict(dk_k=1.0, dk_a=1.0),
            may_share=dict(bwd=[("dk0", "dk")]))


def out_gate_cases(rng):
    order = ("y", "r", "k", "v", "r_k", "w", "b", "g")

    def headed(p):
        shape = p["y"].shape
        arrays = dict(p, w=p["w"].reshape(*shape[2:]), b=p["b"].reshape(*shape[2:]), g=p["g"].reshape(*shape))
        return [arrays[name] for name in order]

    def forward(p):
        return dict(o=ops.out_gate(*headed(p), p["eps"]).reshape(*p["g"].shape))

    def backward(p):
        grads = ops.out_gate_grad(*headed(p), p["eps"], p["do_"].reshape(*p["y"].shape))
        return {"d" + name: grad.reshape(*p[name].shape) for name, grad in zip(order, grads)}

    for B, T, H, N in HEADS + [(2, 40, 12, 64)]:
        given = {name: draw(rng, B, T, H, N) for name in ("y", "r", "k", "v")}
        given |= dict(r_k=draw(rng, H, N), w=draw(rng, H * N), b=draw(rng, H * N), g=draw(rng, B * T, H * N))
        yield Case(
            given=given, settings=dict(eps=64e-5), forward=forward, backward=backward, additions=B * T,
            cotangents=dict(do_=("o", draw(rng, B * T, H * N))), gradient_of={"d" + name: name for name in order},
            added=dict(dr_k=1.0, dw=1.0, db=1.0), may_share=dict(bwd=[("dg", "do_")]))


def wkv7_inputs(rng, B, T, H, N):
    """Shaped like the model's: a = -khat, b = khat times a rate in (0,1)."""
    shape = (B, T, H, N)
    khat = draw(rng, *shape)
    khat /= np.linalg.norm(khat, axis=-1, keepdims=True)
    given = dict(r=draw(rng, *shape), s=draw(rng, *shape, scale=2) - 1, k=draw(rng, *shape), v=draw(rng, *shape),
                 a=-khat, b=khat * ops.sigmoid(draw(rng, *shape)))
    return {name: x.astype(np.float32).astype(np.float64) for name, x in given.items()}


def wkv7_cases(rng):
    order = ("r", "s", "k", "v", "a", "b")

    def run(p):
        B, T, H, N = p["r"].shape
        s0 = p.get("s0", np.zeros((B, H, N, N)))
        return ops.wkv7(*(p[name] for name in order), s0)

    def forward(p):
        B, T, H, N = p["r"].shape
        y, z, states = run(p)
        ckpt = np.stack(states[0:T:16], axis=2).reshape(B * H, -1, N, N)
        return dict(y=y, z=z, ckpt=ckpt) | (dict(sT=states[-1]) if "s0" in p else {})

    def backward(p):
        B, T, H, N = p["r"].shape
        _, z, states = run(p)
        dsT = p.get("dsT", np.zeros((B, H, N, N)))
        *grads, ds0 = ops.wkv7_grad(*(p[name] for name in order), z, states, p["dy"], dsT)
        return {"d" + name: grad for name, grad in zip(order, grads)} | (dict(ds0=ds0) if "s0" in p else {})

    for i, (B, T, H, N) in enumerate(HEADS + [(1, 17, 1, 1), (2, 33, 1, 8), (1, 16, 1, 16), (2, 40, 5, 32)]):
        given, cotangents = wkv7_inputs(rng, B, T, H, N), dict(dy=("y", draw(rng, B, T, H, N)))
        gradient_of = {"d" + name: name for name in order}
        if i % 3 != 1:
            given["s0"], cotangents["dsT"], gradient_of["ds0"] = draw(rng, B, H, N, N), ("sT", draw(rng, B, H, N, N)), "s0"
        yield Case(
            given=given, forward=forward, backward=backward, saved=("z", "ckpt"), cotangents=cotangents, gradient_of=gradient_of,
            added={name: draw(rng, B, T, H, N) for name in ("dr", "dk", "dv")}, additions=1,
            may_share=dict(fwd=[("sT", "s0")] if "s0" in given else []))


def relu2_cases(rng):
    for R, n in [(3, n) for n in WIDTHS] + [(100, 600)]:
        yield Case(given=dict(x=draw(rng, R, n)), forward=lambda p: dict(y=ops.relu2(p["x"])),
                   backward=lambda p: dict(dx=ops.relu2_grad(p["x"], p["dy"])), cotangents=dict(dy=("y", draw(rng, R, n))),
                   gradient_of=dict(dx="x"), may_share=dict(fwd=[("y", "x")], bwd=[("dx", "dy")]))


def xent_cases(rng):
    for i, V in enumerate(WIDTHS[1:] + [1023, 1024, 1025, 2500, 2500]):
        R, grad = 64 if V == 2500 else 7, i % 4 != 0
        logits, targets = draw(rng, R, V, scale=[1, 5, 30][i % 3]), rng.integers(0, V, R)
        targets[[1, 4]] = ops.IGNORE
        logits[2, V // 2] = logits[2, V - 1] = logits[2].max()  # a tie goes to the lowest index
        logits[3] -= 200  # a negative maximum
        logits[4, 0] = 90 if i % 2 else logits[4, 0]

        def forward(p, targets=targets, grad=grad):
            out = dict(loss=ops.xent(p["logits"], targets))
            return out | (dict(gradient=ops.xent_grad(p["logits"], targets, p["scale"], p["l2"])) if grad else {})

        yield Case(given=dict(logits=logits), ids=dict(targets=targets), integers=dict(grad=int(grad)),
                   settings=dict(scale=1 / 5, l2=1e-4 / R if i % 3 else 0.0), doubles=("loss",), forward=forward,
                   in_place=dict(gradient="logits") if grad else {})


def adamw_cases(rng):
    def forward(p):
        names = ("gscale", "lr", "beta1", "beta2", "eps", "wd", "bias1", "bias2")
        return dict(zip(("p_new", "m_new", "v_new"), ops.adamw(p["p"], p["g"], p["m"], p["v"], *(p[name] for name in names))))

    for i, n in enumerate(WIDTHS + [1000, 100003]):
        given = dict(p=draw(rng, n), g=draw(rng, n), m=draw(rng, n, scale=0.1), v=draw(rng, n, scale=0.1) ** 2)
        for name in ("g", "m", "v"):
            given[name][0] = 0  # a parameter without gradient, as unused ones have
        given["v"] = given["v"].astype(np.float32).astype(np.float64)
        yield Case(given=given, forward=forward, in_place=dict(p_new="p", m_new="m", v_new="v"),
                   settings=dict(gscale=[1.0, 0.37][i % 2], lr=6e-4, beta1=0.9, beta2=0.99, eps=[1e-18, 1e-8][i % 2],
                                 wd=[0.1, 0.0][i % 2], bias1=1 - 0.9**3, bias2=1 - 0.99**3))


def sumsq_cases(rng):
    for n in WIDTHS + [1000, (1 << 17) + 5]:
        yield Case(given=dict(x=draw(rng, n)), forward=lambda p: dict(out=ops.sumsq(p["x"]).reshape(1)), doubles=("out", "partial"),
                   scratch=dict(partial=(-(-n // (1 << 16)),)))


CASES = {name[: -len("_cases")]: make for name, make in list(globals().items()) if name.endswith("_cases")}


@functools.cache
def cases_of(op):
    if op not in CASES:
        pytest.fail(f"op {op} has no reference: add it to tests/reference/ops.py and its cases here")
    return list(CASES[op](np.random.default_rng(sum(map(ord, op)))))


# ---- running an op of the core on guarded memory --------------------------------------------------------------------


class Guarded:
    """Arrays of one run, each unaligned and between canaries."""

    def __init__(self, real, doubles):
        self.real, self.doubles, self.held = real, doubles, {}

    def place(self, name, value):
        """A copy of value (or list of copies), remembered under the field's name; returned for run_op."""
        if isinstance(value, list):
            return [self.place(f"{name}[{i}]", x) for i, x in enumerate(value)]
        dtype = np.float64 if name in self.doubles else self.real
        buffer = np.full(value.size + 40, CANARY, dtype=dtype)
        view = buffer[3 : 3 + value.size].reshape(value.shape)
        view[...] = value
        self.held[name] = (buffer, view)
        return view

    def check_canaries(self, what):
        for name, (buffer, view) in self.held.items():
            outside = np.concatenate([buffer[:3], buffer[3 + view.size :]])
            assert np.all(outside == buffer.dtype.type(CANARY)), f"{what}: wrote outside {name}"


def like_nan(value):
    return [like_nan(x) for x in value] if isinstance(value, list) else np.full(value.shape, np.nan)


def run(case, backend, op, direction, start, share=None):
    """Runs the op; start: destination -> initial contents. Returns the destinations (field -> array or list)."""
    memory = Guarded(real_of(backend), case.doubles)
    sources = dict(case.given)
    if direction == "bwd":
        sources |= {name: value for name, (_, value) in case.cotangents.items()}
    args = {name: memory.place(name, value) for name, value in sources.items()}
    args |= {name: memory.place(name, value) for name, value in start.items() if name not in case.in_place.values()}
    args |= {name: memory.place(name, np.full(shape, np.nan)) for name, shape in case.scratch.items()}
    if share:
        args[share[0]] = args[share[1]]
    args |= {name: np.asarray(ids, dtype=np.int32) for name, ids in case.ids.items()} | case.integers | case.settings
    core.run_op(backend, op, direction, args)
    what = f"{op} {direction} on {backend}"
    memory.check_canaries(what)
    overwritten = set(case.in_place.values()) | ({share[1]} if share else set())
    for name, value in sources.items():
        parts = [(name, value)] if not isinstance(value, list) else [(f"{name}[{i}]", x) for i, x in enumerate(value)]
        for part, x in parts:
            if part not in overwritten:
                view = memory.held[part][1]
                assert_same_bits(view, x.astype(view.dtype), f"{what}: input {part} was changed")
    return {name: args[name] for name in start}


def bounds(value):
    return [as_bound(x) for x in value] if isinstance(value, list) else as_bound(value)


def reference_inputs(case):
    """Inputs are exact; settings are rounded to the backend's precision first."""
    return {name: bounds(value) for name, value in case.given.items()} | {
        name: Bound(value, abs(value)) for name, value in case.settings.items()}


@functools.cache
def expected_forward(case):
    return {name: bounds(value) for name, value in case.forward(reference_inputs(case)).items()}


@functools.cache
def expected_backward(case):
    values = reference_inputs(case) | {name: bounds(value) for name, (_, value) in case.cotangents.items()}
    outputs = expected_forward(case)
    grads = case.backward(values | {name: outputs[name] for name in case.saved})
    for name, start in case.added.items():
        def on_top(grad, start=start):
            v = start + grad.v
            return Bound(v, grad.c + case.additions * np.abs(start) + np.abs(v))
        grads[name] = [on_top(g) for g in grads[name]] if isinstance(grads[name], list) else on_top(grads[name])
    return grads


def starts(case, direction, expected):
    """Initial contents of every destination: NaN, or what an added gradient starts from."""
    start = {}
    for name, value in expected.items():
        name = case.in_place.get(name, name)
        shape_of = value if isinstance(value, list) else [value]
        if name in case.in_place.values():
            start[name] = case.given[name]
        elif direction == "bwd" and name in case.added:
            full = [np.broadcast_to(np.asarray(case.added[name], dtype=np.float64), x.shape) for x in shape_of]
            start[name] = full if isinstance(value, list) else full[0]
        else:
            start[name] = like_nan(value)
    return start


def compare(case, backend, op, direction, expected, got):
    unit = 2.0**-53 if real_of(backend) is np.float64 else 2.0**-24
    tiny = 1e-300 if real_of(backend) is np.float64 else 1e-36
    for name, value in expected.items():
        u = 2.0**-53 if op == "sumsq" else unit  # sums of squares are float64 everywhere
        field_name = case.in_place.get(name, name)
        pairs = zip(value, got[field_name]) if isinstance(value, list) else [(value, got[field_name])]
        for want, have in pairs:
            sizes = {n: (x.shape if not isinstance(x, list) else x[0].shape) for n, x in case.given.items()}
            assert_within(have, want.v, 2 * u * want.c + tiny, f"{op} {direction} {name} on {backend}, {sizes}")


def flat(outputs):
    return [(name, x) for name, value in outputs.items() for x in (value if isinstance(value, list) else [value])]


def run_with_saved(case, backend, op, direction, start, share=None):
    """A backward reads what its own backend's forward saved."""
    if direction == "bwd" and case.saved:
        outputs = expected_forward(case)
        forward = run(case, backend, op, "fwd", starts(case, "fwd", outputs))
        saved = {name: forward[name] for name in case.saved}
        case = Case(**{**case.__dict__, "given": case.given | {name: x.astype(np.float64) for name, x in saved.items()}})
    return run(case, backend, op, direction, start, share)


# ---- the tests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["fwd", "bwd"])
@pytest.mark.parametrize("op", core.op_names())
@pytest.mark.parametrize("backend", BACKENDS)
def test_op_equals_reference(backend, op, direction):
    with running_on(backend) as name:
        for case in cases_of(op):
            if direction == "bwd" and case.backward is None:
                with pytest.raises(NotImplementedError):
                    core.run_op(name, op, "bwd", {})
                return
            expected = expected_forward(case) if direction == "fwd" else expected_backward(case)
            start = starts(case, direction, expected)
            got = run_with_saved(case, name, op, direction, start)
            compare(case, name, op, direction, expected, got)
            for share in case.may_share.get(direction, []):
                shared = run_with_saved(case, name, op, direction, start, share)
                compare(case, name, op, direction, expected, shared)
            for n in (1, 2, 3):
                with threads(n):
                    again = run_with_saved(case, name, op, direction, start)
                for (field_name, x), (_, y) in zip(flat(got), flat(again)):
                    assert_same_bits(y, x, f"{op} {direction} {field_name} on {backend} with {n} threads")


OPTIONAL = [("layernorm", "fwd", {"stats"}), ("shift_lerp", "fwd", {"last"}), ("shift_lerp", "bwd", {"dprev"}),
            ("linear", "bwd", {"dx"}), ("linear", "bwd", {"dw"}), ("wkv7", "fwd", {"z", "ckpt"}), ("wkv7", "fwd", {"sT"}),
            ("wkv7", "fwd", {"z", "ckpt", "sT"}), ("wkv7", "bwd", {"ds0"})]


@pytest.mark.parametrize(("op", "direction", "absent"), OPTIONAL)
@pytest.mark.parametrize("backend", BACKENDS)
def test_optional_outputs_may_be_absent(backend, op, direction, absent):
    with running_on(backend) as name:
        for case in cases_of(op):
            expected = expected_forward(case) if direction == "fwd" else expected_backward(case)
            start = starts(case, direction, expected)
            whole = run_with_saved(case, name, op, direction, start)
            part = run_with_saved(case, name, op, direction, {k: v for k, v in start.items() if k not in absent})
            assert set(part) == set(whole) - absent
            for (field_name, x), (_, y) in zip(flat(part), flat({k: v for k, v in whole.items() if k in part})):
                assert_within(x, y, 0, f"{op} {direction} {field_name} on {backend} without {absent}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_wkv7_token_by_token_equals_the_sequence(backend):
    case = next(c for c in cases_of("wkv7") if c.given["r"].shape == (1, 33, 2, 64))
    T, expected = 33, expected_forward(case)
    with running_on(backend) as name:
        state, ys = case.given["s0"], []
        for t in range(T):
            one = Case(given={k: x[:, t : t + 1] for k, x in case.given.items()} | dict(s0=state), forward=None)
            step = run(one, name, "wkv7", "fwd", dict(y=like_nan(one.given["r"]), sT=like_nan(state)))
            ys.append(step["y"])
            state = step["sT"].astype(np.float64)
        got = dict(y=np.concatenate(ys, axis=1), sT=state)
        compare(case, name, "wkv7", "fwd", {k: expected[k] for k in got}, got)


def objective(outputs, case):
    """The number whose gradient a backward computes."""
    total = 0
    for name, (output, cotangent) in case.cotangents.items():
        values, weights = outputs[output], cotangent
        for x, w in zip(*((v if isinstance(v, list) else [v]) for v in (values, weights))):
            total = total + (x * w).sum()
    return total


def small_cases(op):
    """Those whose inputs are few enough to nudge one by one."""
    def count(case):
        return sum(x.size for value in case.given.values() for x in (value if isinstance(value, list) else [value]))

    chosen = sorted(cases_of(op), key=count)
    return [case for case in chosen if count(case) <= 1300 and case.backward is not None][:6]


DIFFERENTIABLE = [op for op in core.op_names() if op in CASES and any(case.backward for case in cases_of(op))]


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_reference_gradients_are_complex_step_derivatives(op):
    """The derivative as Im f(x + ih) / h is exact to rounding and shares nothing with the backward's formulas."""
    for case in small_cases(op):
        values = {name: x for name, x in case.given.items()} | case.settings
        outputs = case.forward(values)
        grads = case.backward(values | {n: outputs[n] for n in case.saved} | {n: x for n, (_, x) in case.cotangents.items()})
        for grad_name, source in case.gradient_of.items():
            parts = given_parts(case, source)
            for part, grad in zip(range(len(parts)), grads[grad_name] if isinstance(grads[grad_name], list) else [grads[grad_name]]):
                numeric = np.empty(parts[part].size)
                for i in range(numeric.size):
                    nudged = [x.astype(complex) for x in parts]
                    nudged[part].ravel()[i] += 1e-40j
                    value = nudged if isinstance(case.given[source], list) else nudged[0]
                    numeric[i] = objective(case.forward(values | {source: value}), case).imag / 1e-40
                extra = case.given["dres"] if (op, grad_name, "dres" in case.given) == ("layernorm", "dx", True) else 0
                assert_within(grad - extra, numeric.reshape(grad.shape), 1e-10 * np.abs(grad) + 1e-12, f"{op} {grad_name}")


def given_parts(case, name):
    return case.given[name] if isinstance(case.given[name], list) else [case.given[name]]


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_ref64_gradients_are_central_differences(op):
    """ref64's backward against ref64's own forward: step 1e-4, extrapolated once, so the error is of order 1e-11."""
    for case in small_cases(op)[:3]:
        if any(np.abs(x).max(axis=-1).min() < 1e-9 for name, x in case.given.items() if op == "key_prep" and name == "k0"):
            continue  # next to a zero vector the normalisation is not smooth
        start = starts(case, "bwd", expected_backward(case))
        grads = run_with_saved(case, "ref64", op, "bwd", start)
        blank = starts(case, "fwd", expected_forward(case))

        def value_at(given, case=case, blank=blank):
            return objective(run(Case(**{**case.__dict__, "given": given}), "ref64", op, "fwd", blank), case)

        for grad_name, source in case.gradient_of.items():
            parts = given_parts(case, source)
            begun = start[grad_name] if isinstance(start[grad_name], list) else [start[grad_name]]
            got = grads[grad_name] if isinstance(grads[grad_name], list) else [grads[grad_name]]
            for part, x in enumerate(parts):
                numeric = np.empty(x.size)
                for i in range(x.size):
                    slopes = [central_difference(value_at, case, source, part, i, h) for h in (2e-4, 1e-4)]
                    numeric[i] = (4 * slopes[1] - slopes[0]) / 3
                added = np.nan_to_num(begun[part]) if grad_name in case.added else 0
                extra = case.given["dres"] if (op, grad_name, "dres" in case.given) == ("layernorm", "dx", True) else 0
                assert_within(got[part] - added - extra, numeric.reshape(x.shape), 1e-8 * (1 + np.abs(numeric).max()), f"{op} {grad_name}")


def central_difference(value_at, case, source, part, i, h):
    values = []
    for sign in (1, -1):
        moved = [x.copy() for x in given_parts(case, source)]
        moved[part].ravel()[i] += sign * h
        values.append(value_at(case.given | {source: moved if isinstance(case.given[source], list) else moved[0]}))
    return (values[0] - values[1]) / (2 * h)
