"""Uses of every operation: inputs around the widths of vector registers and of tasks, and what must come out.

Each `<op>_cases` yields `Case`s; `CASES` finds them by the op's name. The functions of a case run on arrays, on complex
arrays and on `running_error.Bound`s, see `ops`.
"""

import functools
from dataclasses import dataclass, field

import numpy as np

from . import ops
from .running_error import Bound

WIDTHS = [1, 3, 8, 15, 16, 17, 31, 32, 33, 64, 130]
LENGTHS = [1, 2, 15, 16, 17, 33]
HEADS = [
    (1, 1, 2, 1),
    (2, 1, 3, 2),
    (1, 2, 2, 8),
    (2, 3, 1, 15),
    (1, 15, 2, 16),
    (1, 5, 2, 17),
    (2, 16, 1, 32),
    (1, 17, 2, 33),
    (1, 4, 1, 40),
    (1, 33, 2, 64),
    (1, 2, 1, 128),
    (1, 18, 2, 3),
]  # (B,T,H,N)


@dataclass(eq=False)
class Case:
    """One use of an op: what goes in, and functions that say what comes out."""

    given: dict  # field -> array, or list of arrays
    forward: object  # dict of everything given -> dict of outputs
    backward: object = None  # the same plus saved outputs and cotangents -> dict of gradients
    cotangents: dict = field(default_factory=dict)  # field -> (output, or input passed on, it belongs to; array)
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


def draw(rng, *shape, scale=1.0, mean=0.0):
    """Normal numbers that float32 holds exactly."""
    return exact(mean + scale * rng.standard_normal(shape))


def exact(x):
    """Rounded to numbers that float32 holds exactly."""
    return x.astype(np.float32).astype(np.float64)


# ---- one generator of cases per op ----------------------------------------------------------------------------------


def embed_cases(rng):
    for V, R, C in [(11, 9, C) for C in WIDTHS] + [(50, 320, 300)]:
        ids = rng.integers(0, V, R)
        yield Case(
            given=dict(w=draw(rng, V, C)),
            ids=dict(ids=ids),
            additions=R,
            forward=lambda p, ids=ids: dict(y=ops.embed(ids, p["w"])),
            backward=lambda p, ids=ids, V=V: dict(dw=ops.embed_grad(ids, p["dy"], V)),
            cotangents=dict(dy=("y", draw(rng, R, C))),
            gradient_of=dict(dw="w"),
            added=dict(dw=1.0),
        )


def add_cases(rng):
    for n in WIDTHS + [40001]:
        yield Case(
            given=dict(a=draw(rng, 2, n), b=draw(rng, 2, n)),
            forward=lambda p: dict(y=ops.add(p["a"], p["b"])),
            may_share=dict(fwd=[("y", "a"), ("y", "b")]),
        )


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
            given=dict(x=draw(rng, R, C, mean=0.5), w=draw(rng, C), b=draw(rng, C)),
            settings=dict(eps=1e-5),
            forward=forward,
            backward=backward,
            saved=("stats",),
            additions=R,
            cotangents=dict(dy=("y", draw(rng, R, C))) | (dict(dres=("x", draw(rng, R, C))) if residual else {}),
            gradient_of=dict(dx="x", dw="w", db="b"),
            added=dict(dw=1.0, db=1.0),
            may_share=dict(bwd=[("dx", "dres")] if residual else []),
        )


def linear_cases(rng):
    def forward(p):
        return dict(y=ops.linear(p["x"].reshape(-1, p["x"].shape[-1]), p["w"]).reshape(*p["x"].shape[:-1], -1))

    def backward(p):
        rows = p["x"].reshape(-1, p["x"].shape[-1])
        dx, dw = ops.linear_grad(rows, p["w"], p["dy"].reshape(-1, p["dy"].shape[-1]))
        return dict(dx=dx.reshape(*p["x"].shape), dw=dw)

    sizes = [
        (B, T, K, WIDTHS[(i + B + T) % len(WIDTHS)])
        for i, K in enumerate(WIDTHS)
        for B, T in [(1, 1), (1, 2), (1, 3), (2, 2), (1, 5), (2, 17)]
    ]
    for i, (B, T, K, M) in enumerate(sizes + [(2, 300, 130, 520), (1, 2, 260, 600), (1, 3, 600, 130)]):
        fresh = i % 3 == 2
        yield Case(
            given=dict(x=draw(rng, B, T, K), w=draw(rng, M, K)),
            integers=dict(fresh=int(fresh)),
            forward=forward,
            backward=backward,
            additions=B * T,
            cotangents=dict(dy=("y", draw(rng, B, T, M))),
            gradient_of=dict(dx="x", dw="w"),
            added={} if fresh else dict(dw=1.0),
            may_share=dict(bwd=[("dx", "x")]),
        )


def lowrank_cases(rng):
    def forward(p, act):
        h, y = ops.lowrank(p["x"], p["m1"], p["m2"], p.get("bias", 0), act)
        return dict(h=h, y=y)

    def backward(p, act):
        dx, dm1, dm2, dbias = ops.lowrank_grad(p["x"], p["m1"], p["m2"], p["h"], p["dy"], act)
        return dict(dx=dx, dm1=dm1, dm2=dm2) | (dict(dbias=dbias) if "bias" in p else {})

    sizes = [
        (R, C, D, WIDTHS[(i + D) % len(WIDTHS)])
        for i, C in enumerate(WIDTHS)
        for R, D in [(1, 8), (2, 3), (5, 17), (19, 32)]
    ]
    for i, (R, C, D, M) in enumerate(sizes + [(300, 300, 40, 290), (2, 600, 33, 610), (1, 300, 8, 300)]):
        act, biased = i % 3, (i // 3) % 2
        gradient_of = dict(dx="x", dm1="m1", dm2="m2") | (dict(dbias="bias") if biased else {})
        yield Case(
            given=dict(x=draw(rng, R, C), m1=draw(rng, C, D, scale=C**-0.5), m2=draw(rng, D, M))
            | (dict(bias=draw(rng, M)) if biased else {}),
            integers=dict(act=act),
            forward=functools.partial(forward, act=act),
            backward=functools.partial(backward, act=act),
            saved=("h",),
            scratch=dict(dh=(R, D)),
            additions=R,
            cotangents=dict(dy=("y", draw(rng, R, M))),
            gradient_of=gradient_of,
            added={name: 1.0 for name in gradient_of if name != "dx"},
            may_share=dict(bwd=[("dx", "x")]),
        )


def shift_lerp_cases(rng):
    def forward(p, keep):
        prev = p["prev"] if "prev" in p else np.zeros((p["x"].shape[0], p["x"].shape[2]))
        return dict(y=ops.shift_lerp(p["x"], prev, p["mu"], keep)) | (dict(last=p["x"][:, -1]) if "prev" in p else {})

    def backward(p, keep):
        zeros = np.zeros((p["x"].shape[0], p["x"].shape[2]))
        prev, dlast = p.get("prev", zeros), p.get("dlast", zeros)
        dx, dprev, dmu = ops.shift_lerp_grad(p["x"], prev, p["mu"], p["dy"], dlast, keep)
        return dict(dx=dx, dmu=dmu) | (dict(dprev=dprev) if "prev" in p else {})

    for i, C in enumerate(WIDTHS + WIDTHS + [600, 600]):
        keep = i >= len(WIDTHS) and i % 2
        B, T, n, carried = (2, 70, 6, 1) if C == 600 else (1 + i % 2, LENGTHS[i % len(LENGTHS)], 1 + i % 6, i % 3)
        given = dict(x=draw(rng, B, T, C), mu=[draw(rng, C) for _ in range(n)])
        cotangents = dict(dy=("y", [draw(rng, B, T, C) for _ in range(n)]))
        gradient_of = dict(dx="x", dmu="mu")
        if carried:
            given["prev"], gradient_of["dprev"] = draw(rng, B, C), "prev"
            cotangents["dlast"] = ("last", draw(rng, B, C))
        yield Case(
            given=given,
            integers=dict(n=n, keep=int(keep)),
            forward=functools.partial(forward, keep=keep),
            backward=functools.partial(backward, keep=keep),
            cotangents=cotangents,
            additions=B * T,
            gradient_of=gradient_of,
            added=dict(dmu=1.0),
            may_share=dict(fwd=[("last", "prev")] if carried else []),
        )


def ddlerp_cases(rng):
    order = ("mu_x", "mu", "m1", "m2")

    def shared(p):
        return p["x"], p.get("prev", np.zeros((p["x"].shape[0], p["x"].shape[2]))), *(p[name] for name in order)

    def forward(p):
        h, y = ops.ddlerp(*shared(p))
        return dict(h=h, y=y) | (dict(last=p["x"][:, -1]) if "prev" in p else {})

    def backward(p):
        zeros = np.zeros((p["x"].shape[0], p["x"].shape[2]))
        dx, dprev, *grads = ops.ddlerp_grad(*shared(p), p["dy"], p.get("dlast", zeros))
        return (
            dict(zip(["d" + name for name in order], grads)) | dict(dx=dx) | (dict(dprev=dprev) if "prev" in p else {})
        )

    for i, C in enumerate(WIDTHS + [600]):
        B, T, n, D, carried = (1 + i % 2, LENGTHS[i % len(LENGTHS)], 1 + i % 6, 1 + 3 * (i % 4), i % 3)
        if C == 600:
            B, T, n, D, carried = 2, 70, 5, 32, 1
        given = dict(x=draw(rng, B, T, C), mu_x=draw(rng, C), mu=[draw(rng, C) for _ in range(n)])
        given |= dict(m1=draw(rng, C, n * D, scale=C**-0.5), m2=draw(rng, n, D, C, scale=D**-0.5))
        cotangents = dict(dy=("y", [draw(rng, B, T, C) for _ in range(n)]))
        gradient_of = {"d" + name: name for name in ("x", *order)}
        if carried:
            given["prev"], gradient_of["dprev"] = draw(rng, B, C), "prev"
            cotangents["dlast"] = ("last", draw(rng, B, C))
        yield Case(
            given=given,
            forward=forward,
            backward=backward,
            saved=("h",),
            scratch=dict(mixed=(B, T, C), e=(B, T, C), dh=(B, T, n * D)),
            cotangents=cotangents,
            additions=B * T,
            gradient_of=gradient_of,
            added={"d" + name: 1.0 for name in order},
            may_share=dict(fwd=[("last", "prev")] if carried else []),
        )


def sigmoid_gate_cases(rng):
    for R, C in [(4, C) for C in WIDTHS] + [(100, 600)]:
        yield Case(
            given=dict(q=draw(rng, R, C, scale=8), v=draw(rng, R, C)),
            forward=lambda p: dict(y=ops.sigmoid_gate(p["q"], p["v"])),
            backward=lambda p: dict(zip(("dq", "dv"), ops.sigmoid_gate_grad(p["q"], p["v"], p["dy"]))),
            cotangents=dict(dy=("y", draw(rng, R, C))),
            gradient_of=dict(dq="q", dv="v"),
            may_share=dict(fwd=[("y", "q"), ("y", "v")], bwd=[("dq", "dy"), ("dv", "dy")]),
        )


def gate_functions(order, op, op_grad):
    """(forward, backward) of a gate behind a norm per head, whose arguments are those of `order` and eps."""

    def headed(p):
        shape = p["y"].shape
        arrays = dict(p, w=p["w"].reshape(*shape[2:]), b=p["b"].reshape(*shape[2:]), g=p["g"].reshape(*shape))
        return [arrays[name] for name in order]

    def forward(p):
        return dict(o=op(*headed(p), p["eps"]).reshape(*p["g"].shape))

    def backward(p):
        grads = op_grad(*headed(p), p["eps"], p["do_"].reshape(*p["y"].shape))
        return {"d" + name: grad.reshape(*p[name].shape) for name, grad in zip(order, grads)}

    return forward, backward


def norm_gate_cases(rng):
    order = ("y", "w", "b", "g")
    forward, backward = gate_functions(order, ops.norm_gate, ops.norm_gate_grad)
    for B, T, H, N in HEADS + [(2, 40, 12, 64)]:
        yield Case(
            given=dict(
                y=draw(rng, B, T, H, N), w=draw(rng, H * N), b=draw(rng, H * N), g=draw(rng, B * T, H * N, scale=3)
            ),
            settings=dict(eps=64e-5),
            forward=forward,
            backward=backward,
            additions=B * T,
            cotangents=dict(do_=("o", draw(rng, B * T, H * N))),
            gradient_of={"d" + name: name for name in order},
            added=dict(dw=1.0, db=1.0),
            may_share=dict(bwd=[("dg", "do_")]),
        )


def value_residual_cases(rng):
    def forward(p):
        return dict(v=ops.value_residual(p["v0"], p["v_first"], p["nu"]))

    def backward(p):
        return dict(zip(("dv0", "dv_first", "dnu"), ops.value_residual_grad(p["v0"], p["v_first"], p["nu"], p["dv"])))

    for R, C in [(4, C) for C in WIDTHS] + [(100, 600)]:
        yield Case(
            given=dict(v0=draw(rng, R, C), v_first=draw(rng, R, C), nu=draw(rng, R, C, scale=8)),
            forward=forward,
            backward=backward,
            additions=1,
            cotangents=dict(dv=("v", draw(rng, R, C))),
            gradient_of=dict(dv0="v0", dv_first="v_first", dnu="nu"),
            added=dict(dv_first=draw(rng, R, C)),
            may_share=dict(bwd=[("dv0", "dv")]),
        )


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
        k0, k_k = draw(rng, B, T, H, N), draw(rng, H * N, scale=0.3, mean=0.75)
        if i % 3 == 1:  # norms of 0, just above and just below the 1e-12 that is divided by at least
            direction = np.ones(N) / np.sqrt(N)
            for at, norm in (((0, 0, 0), 0), ((0, -1, -1), 3e-12), ((-1, 0, -1), 3e-13)):
                k0[at] = norm * direction / k_k.reshape(H, N)[at[2]]
            k0 = exact(k0)
        yield Case(
            given=dict(
                k0=k0,
                a=draw(rng, B, T, H, N, scale=3),
                k_k=k_k,
                k_a=draw(rng, H * N, mean=1),
            ),
            forward=forward,
            backward=backward,
            additions=B * T,
            cotangents={"d" + name: (name, draw(rng, B, T, H, N)) for name in ("k", "alpha", "beta")},
            gradient_of=dict(dk0="k0", da="a", dk_k="k_k", dk_a="k_a"),
            added=dict(dk_k=1.0, dk_a=1.0),
            may_share=dict(bwd=[("dk0", "dk")]),
        )


def out_gate_cases(rng):
    order = ("y", "r", "k", "v", "r_k", "w", "b", "g")
    forward, backward = gate_functions(order, ops.out_gate, ops.out_gate_grad)
    for B, T, H, N in HEADS + [(2, 40, 12, 64)]:
        given = {name: draw(rng, B, T, H, N) for name in ("y", "r", "k", "v")}
        given |= dict(r_k=draw(rng, H, N), w=draw(rng, H * N), b=draw(rng, H * N), g=draw(rng, B * T, H * N))
        yield Case(
            given=given,
            settings=dict(eps=64e-5),
            forward=forward,
            backward=backward,
            additions=B * T,
            cotangents=dict(do_=("o", draw(rng, B * T, H * N))),
            gradient_of={"d" + name: name for name in order},
            added=dict(dr_k=1.0, dw=1.0, db=1.0),
            may_share=dict(bwd=[("dg", "do_")]),
        )


def wkv7_inputs(rng, B, T, H, N):
    """Shaped like the model's: a = -khat, b = khat times a rate in (0,1)."""
    shape = (B, T, H, N)
    khat = draw(rng, *shape)
    khat /= np.linalg.norm(khat, axis=-1, keepdims=True)
    given = dict(
        r=draw(rng, *shape),
        s=draw(rng, *shape, scale=2, mean=-1),
        k=draw(rng, *shape),
        v=draw(rng, *shape),
        a=-khat,
        b=khat * ops.sigmoid(draw(rng, *shape)),
    )
    return {name: exact(x) for name, x in given.items()}


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
            given["s0"], cotangents["dsT"], gradient_of["ds0"] = (
                draw(rng, B, H, N, N),
                ("sT", draw(rng, B, H, N, N)),
                "s0",
            )
        yield Case(
            given=given,
            forward=forward,
            backward=backward,
            saved=("z", "ckpt"),
            cotangents=cotangents,
            gradient_of=gradient_of,
            added={name: draw(rng, B, T, H, N) for name in ("dr", "dk", "dv")},
            additions=1,
            may_share=dict(fwd=[("sT", "s0")] if "s0" in given else []),
        )


def wkv6_cases(rng, constant=False):
    """Decays from almost none to all at once; constant: wkv5, one row of them."""
    order = ("r", "k", "v", "w", "u")

    def run(p):
        B, T, H, N = p["r"].shape
        return ops.wkv6(*(p[name] for name in order), p.get("s0", np.zeros((B, H, N, N))))

    def forward(p):
        B, T, H, N = p["r"].shape
        y, states = run(p)
        ckpt = np.stack(states[0:T:16], axis=2).reshape(B * H, -1, N, N)
        return dict(y=y, ckpt=ckpt) | (dict(sT=states[-1]) if "s0" in p else {})

    def backward(p):
        B, T, H, N = p["r"].shape
        dsT = p.get("dsT", np.zeros((B, H, N, N)))
        *grads, ds0 = ops.wkv6_grad(*(p[name] for name in order), run(p)[1], p["dy"], dsT)
        return {"d" + name: grad for name, grad in zip(order, grads)} | (dict(ds0=ds0) if "s0" in p else {})

    for i, (B, T, H, N) in enumerate(HEADS + [(1, 17, 1, 1), (2, 33, 1, 8), (1, 16, 1, 16), (2, 40, 5, 32)]):
        given = {name: draw(rng, B, T, H, N) for name in ("r", "k", "v")}
        given["w"] = draw(rng, *((H, N) if constant else (B, T, H, N)), scale=2, mean=-2)
        given["w"].ravel()[:1] = 120  # the rate overflows: nothing is left, and no NaN comes of it
        given["u"] = draw(rng, H, N)
        cotangents = dict(dy=("y", draw(rng, B, T, H, N)))
        gradient_of = {"d" + name: name for name in order}
        if i % 3 != 1:
            given["s0"], gradient_of["ds0"] = draw(rng, B, H, N, N), "s0"
            cotangents["dsT"] = ("sT", draw(rng, B, H, N, N))
        yield Case(
            given=given,
            forward=forward,
            backward=backward,
            saved=("ckpt",),
            scratch=dict(sums=(B * H, 2, N)),
            cotangents=cotangents,
            gradient_of=gradient_of,
            added=dict(du=1.0) | (dict(dw=1.0) if constant else {}),
            additions=B * T,
            may_share=dict(fwd=[("sT", "s0")] if "s0" in given else []),
        )


def wkv5_cases(rng):
    return wkv6_cases(rng, constant=True)


def initial_state_cases(rng):
    for B, H, N in [(1, 1, 1), (2, 3, 5), (3, 2, 32), (1, 2, 64)]:
        yield Case(
            given=dict(p=draw(rng, H, N, N)),
            forward=lambda p, B=B: dict(s=ops.initial_state(p["p"], B)),
            backward=lambda p: dict(dp=ops.initial_state_grad(p["ds"])),
            cotangents=dict(ds=("s", draw(rng, B, H, N, N))),
            gradient_of=dict(dp="p"),
            added=dict(dp=1.0),
            additions=B,
        )


def relu2_cases(rng):
    for R, n in [(3, n) for n in WIDTHS] + [(100, 600)]:
        yield Case(
            given=dict(x=draw(rng, R, n)),
            forward=lambda p: dict(y=ops.relu2(p["x"])),
            backward=lambda p: dict(dx=ops.relu2_grad(p["x"], p["dy"])),
            cotangents=dict(dy=("y", draw(rng, R, n))),
            gradient_of=dict(dx="x"),
            may_share=dict(fwd=[("y", "x")], bwd=[("dx", "dy")]),
        )


def gelu_cases(rng):
    for R, n in [(3, n) for n in WIDTHS] + [(100, 600)]:
        x = draw(rng, R, n, scale=2)
        x[0, 0] = -9  # far in the tail
        yield Case(
            given=dict(x=x),
            forward=lambda p: dict(y=ops.gelu(p["x"])),
            backward=lambda p: dict(dx=ops.gelu_grad(p["x"], p["dy"])),
            cotangents=dict(dy=("y", draw(rng, R, n))),
            gradient_of=dict(dx="x"),
            may_share=dict(fwd=[("y", "x")], bwd=[("dx", "dy")]),
        )


def rope_cases(rng):
    def turned(x, past, direction):
        angles = ops.rope_angles(past, x.shape[1], x.shape[3])
        c, s = np.cos(angles), direction * np.sin(angles)
        if isinstance(x, Bound):  # rounded to the precision; the angle itself has a float64's error
            c, s = Bound(c, np.abs(c) + 2 * np.abs(angles * s)), Bound(s, np.abs(s) + 2 * np.abs(angles * c))
        return ops.rope(x, c, s)

    for i, (B, T, H, N) in enumerate([(B, T, H, N) for B, T, H, N in HEADS if N % 2 == 0] + [(2, 40, 5, 64)]):
        past = [0, 3, 1][i % 3]
        yield Case(
            given=dict(x=draw(rng, B, T, H, N)),
            integers=dict(past=past),
            forward=lambda p, past=past: dict(y=turned(p["x"], past, 1)),
            backward=lambda p, past=past: dict(dx=turned(p["dy"], past, -1)),
            cotangents=dict(dy=("y", draw(rng, B, T, H, N))),
            gradient_of=dict(dx="x"),
            may_share=dict(fwd=[("y", "x")], bwd=[("dx", "dy")]),
        )


def attention_cases(rng):
    def joined(p, name):
        return np.concatenate([p[f"{name}_past"], p[name]], axis=1) if f"{name}_past" in p else p[name]

    def begun_at(total, start, terms):
        """A sum of `terms` that begins at start, which then takes part in every rounding."""
        total = total + start
        return Bound(total.v, total.c + terms * np.abs(start.v)) if isinstance(total, Bound) else total

    def forward(p, past):
        k, v = joined(p, "k"), joined(p, "v")
        y, lse = ops.attention(p["q"], k, v, past)
        return dict(y=y, lse=lse) | (dict(k_all=k, v_all=v) if "k_past" in p else {})

    def backward(p, past):
        dq, dk, dv = ops.attention_grad(p["q"], joined(p, "k"), joined(p, "v"), past, p["y"], p["lse"], p["dy"])
        if "k_past" not in p:
            return dict(dq=dq, dk=dk, dv=dv)
        terms = p["q"].shape[1] * p["q"].shape[2] // p["k"].shape[2]
        dk, dv = begun_at(dk, p["dk_all"], terms), begun_at(dv, p["dv_all"], terms)
        return dict(dq=dq, dk=dk[:, past:], dv=dv[:, past:], dk_past=dk[:, :past], dv_past=dv[:, :past])

    sizes = [(B, T, H, H, N, (0, 1, 5)[i % 3]) for i, (B, T, H, N) in enumerate(HEADS)]
    sizes += [(1, 3, 4, 2, 3, 2), (2, 4, 3, 1, 8, 0), (1, 64, 2, 1, 16, 1), (1, 65, 2, 2, 32, 64), (2, 130, 4, 2, 16, 70), (1, 1, 2, 2, 64, 129)]
    for B, T, H, G, N, past in sizes:
        given = dict(q=draw(rng, B, T, H, N, scale=2), k=draw(rng, B, T, G, N), v=draw(rng, B, T, G, N))
        cotangents, gradient_of = dict(dy=("y", draw(rng, B, T, H, N))), dict(dq="q", dk="k", dv="v")
        if past:
            for name in ("k", "v"):
                given[f"{name}_past"] = draw(rng, B, past, G, N)
                cotangents[f"d{name}_all"] = (f"{name}_all", draw(rng, B, past + T, G, N))
                gradient_of[f"d{name}_past"] = f"{name}_past"
        yield Case(
            given=given,
            integers=dict(past=past),
            forward=functools.partial(forward, past=past),
            backward=functools.partial(backward, past=past),
            saved=("y", "lse"),
            cotangents=cotangents,
            gradient_of=gradient_of,
        )


def xent_cases(rng):
    for i, V in enumerate(WIDTHS[1:] + [1023, 1024, 1025, 2500, 2500]):
        R, grad = 64 if V == 2500 else 7, i % 4 != 0
        logits, targets = draw(rng, R, V, scale=[1, 5, 30][i % 3]), rng.integers(0, V, R)
        targets[[1, 4]] = ops.IGNORE
        logits[2, V // 2] = logits[2, V - 1] = logits[2].max()  # a tie goes to the lowest index
        logits[3] -= 200  # a negative maximum
        logits[4, 0] = 90 if i % 2 else logits[4, 0]
        logits = exact(logits)

        settings = dict(scale=1 / 5, l2=0.05 if i % 3 else 0.0)
        elsewhere = i % 2 == 1  # the two numbers come from memory

        def forward(p, targets=targets, grad=grad, elsewhere=elsewhere):
            scale, l2 = (p["factors"][0], p["factors"][1]) if elsewhere else (p["scale"], p["l2"])
            out = dict(loss=ops.xent(p["logits"], targets))
            return out | (dict(gradient=ops.xent_grad(p["logits"], targets, scale, l2)) if grad else {})

        yield Case(
            given=dict(logits=logits) | (dict(factors=np.array([settings["scale"], settings["l2"]])) if elsewhere else {}),
            ids=dict(targets=targets),
            integers=dict(grad=int(grad)),
            settings=dict(scale=np.nan, l2=np.nan) if elsewhere else settings,
            doubles=("loss", "factors"),
            forward=forward,
            in_place=dict(gradient="logits") if grad else {},
        )


def sum_cases(rng):
    for n in WIDTHS + [1000, 5003]:
        yield Case(
            given=dict(x=rng.standard_normal(n), out=np.array([0.7])),
            forward=lambda p: dict(out_new=p["out"] + p["x"].sum()),
            in_place=dict(out_new="out"),
            doubles=("x", "out"),
        )


def adamw_cases(rng):
    def forward(p):
        gscale = p["gscale"] * p["clip"][0] if "clip" in p else p["gscale"]
        lr, wd, bias1, bias2 = (p[name] for name in ("lr", "wd", "bias1", "bias2"))
        if "rates" in p:
            lr, bias1, bias2 = lr * p["rates"][0], 1 / p["rates"][2], 1 / p["rates"][3]
            wd = p["rates"][1] if wd.v < 0 else wd
        new = ops.adamw(p["p"], p["g"], p["m"], p["v"], gscale, lr, p["beta1"], p["beta2"], p["eps"], wd, bias1, bias2)
        return dict(zip(("p_new", "m_new", "v_new"), new))

    def skipped(p):
        return dict(p_new=p["p"], m_new=p["m"], v_new=p["v"])

    for i, shape in enumerate([(n,) for n in WIDTHS + [1000, 100003]] + [(9, 1), (40, 17), (70, 1300)]):
        given = dict(p=draw(rng, *shape), g=draw(rng, *shape), m=draw(rng, *shape, scale=0.1))
        given["v"] = draw(rng, *shape, scale=0.1) ** 2
        rows = rng.integers(0, 3, shape[0])  # asleep, idle, live
        for name in ("g", "m", "v"):
            given[name][0] = 0  # a parameter without gradient, as unused ones have
            if len(shape) == 2:
                given[name][rows < (2 if name == "g" else 1)] = 0
        given["v"] = exact(given["v"])
        if i % 3:
            given["clip"] = np.array([[0.25, 0.0][i % 3 - 1]])
        elsewhere = i % 4 > 1  # the step's numbers come from memory
        if elsewhere:
            given["rates"] = np.array([3e-4, 0.1, 1 / (1 - 0.9**3), 1 / (1 - 0.99**3)])
        yield Case(
            given=given,
            ids=dict(rows=rows) if len(shape) == 2 else {},
            forward=skipped if i % 3 == 2 else forward,
            doubles=("clip", "rates"),
            in_place=dict(p_new="p", m_new="m", v_new="v"),
            settings=dict(
                gscale=[1.0, 0.37][i % 2],
                lr=2.0 if elsewhere else 6e-4,
                beta1=0.9,
                beta2=0.99,
                eps=[1e-18, 1e-8][i % 2],
                wd=([-1.0, 0.2] if elsewhere else [0.1, 0.0])[i % 2],
                bias1=np.nan if elsewhere else 1 - 0.9**3,
                bias2=np.nan if elsewhere else 1 - 0.99**3,
            ),
        )


def sumsq_cases(rng):
    for shape in [(n,) for n in WIDTHS + [1000, (1 << 17) + 5]] + [(300, 700), (5, 90000)]:
        x, rows = draw(rng, *shape), np.zeros(shape[0], int)
        if len(shape) == 2:
            rows[[1, shape[0] - 2]] = 1
            x[rows == 0] = 0
        yield Case(
            given=dict(x=x),
            ids=dict(rows=rows) if len(shape) == 2 else {},
            forward=lambda p: dict(out=ops.sumsq(p["x"]).reshape(1)),
            doubles=("out", "partial"),
            scratch=dict(partial=(-(-x.size // (1 << 16)),)),
        )


def clip_cases(rng):
    for i, n in enumerate([1, 3, 33, 256, 257, 1000]):
        max_norm, scale = [1.0, 1e6, 0.0][i % 3], [1.0, 1024.0][i % 2]
        squares = rng.standard_normal(n) ** 2 * (100 * scale**2)
        clipped = max_norm > 0 and np.sqrt(squares.sum()) / scale + 1e-6 > max_norm

        def forward(p, max_norm=max_norm, scale=scale, clipped=clipped):
            norm = np.sqrt(p["squares"].sum()) / scale
            return dict(norm=norm.reshape(1), factor=(max_norm / scale / (norm + 1e-6) if clipped else 0 * norm + 1 / scale).reshape(1))

        yield Case(
            given=dict(squares=squares, loss=np.array([3.0])),
            forward=forward,
            settings=dict(max_norm=max_norm, scale=scale),
            doubles=("squares", "loss", "factor", "norm"),
        )


CASES = {name[: -len("_cases")]: make for name, make in list(globals().items()) if name.endswith("_cases")}
