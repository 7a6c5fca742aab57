"""Every operation of every backend against the definitions in tests/reference.

The tolerance of each number is the running error bound of its own computation (reference/running_error.py): nothing is
tuned. Destinations start as NaN, gradients that are added to start elsewhere, every array lies unaligned between
canaries, inputs must come back unchanged, and 1, 2 and 3 threads must give the same bits. The last sizes of each op are
large enough to be cut into tasks.
"""

import functools
from dataclasses import replace

import numpy as np
import pytest
from helpers import BACKENDS, assert_same_bits, assert_within, core, real_of, running_on, threads
from reference import ops
from reference.op_cases import CASES, Case
from reference.running_error import Bound, as_bound

CANARY = -12345.678

# What lies below float32's smallest normal number may be taken as zero, in each of the up to 4096 terms of a sum.
UNDERFLOW = 4096 * 2.0**-126


@functools.cache
def cases_of(op):
    if op not in CASES:
        pytest.fail(f"op {op} has no reference: add it to tests/reference/ops.py and its cases to op_cases.py")
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
        name: Bound(value, abs(value)) for name, value in case.settings.items()
    }


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
    tiny = 1e-300 if real_of(backend) is np.float64 else UNDERFLOW
    for name, value in expected.items():
        u = 2.0**-53 if op in ("sumsq", "sum", "clip") else unit  # float64 everywhere
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
        case = replace(case, given=case.given | {name: x.astype(np.float64) for name, x in saved.items()})
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
            for n in (1,) if name.startswith("cuda") else (1, 2, 3):
                with threads(n):
                    again = run_with_saved(case, name, op, direction, start)
                for (field_name, x), (_, y) in zip(flat(got), flat(again)):
                    assert_same_bits(y, x, f"{op} {direction} {field_name} on {backend} with {n} threads")


OPTIONAL = [
    ("layernorm", "fwd", {"stats"}),
    ("shift_lerp", "fwd", {"last"}),
    ("shift_lerp", "bwd", {"dprev"}),
    ("linear", "bwd", {"dx"}),
    ("linear", "bwd", {"dw"}),
    ("ddlerp", "fwd", {"last"}),
    ("ddlerp", "bwd", {"dprev"}),
    ("wkv5", "fwd", {"ckpt"}),
    ("wkv6", "fwd", {"ckpt", "sT"}),
    ("wkv6", "bwd", {"ds0"}),
    ("wkv7", "fwd", {"z", "ckpt"}),
    ("wkv7", "fwd", {"sT"}),
    ("wkv7", "fwd", {"z", "ckpt", "sT"}),
    ("wkv7", "bwd", {"ds0"}),
]


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


@pytest.mark.parametrize("op", ["wkv5", "wkv6", "wkv7"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_wkv_token_by_token_equals_the_sequence(backend, op):
    case = next(c for c in cases_of(op) if c.given["r"].shape == (1, 33, 2, 64))
    T, expected = 33, expected_forward(case)
    with running_on(backend) as name:
        state, ys = case.given["s0"], []
        for t in range(T):
            tokens = {k: x[:, t : t + 1] if x.ndim == 4 else x for k, x in case.given.items()}
            one = Case(given=tokens | dict(s0=state), forward=None)
            step = run(one, name, op, "fwd", dict(y=like_nan(one.given["r"]), sT=like_nan(state)))
            ys.append(step["y"])
            state = step["sT"].astype(np.float64)
        got = dict(y=np.concatenate(ys, axis=1), sT=state)
        compare(case, name, op, "fwd", {k: expected[k] for k in got}, got)


# ---- gradients against derivatives ----------------------------------------------------------------------------------


def parts(value):
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("backend", BACKENDS)
def test_lowrank_again_from_its_hidden_rows(backend):
    with running_on(backend) as name:
        for case in cases_of("lowrank"):
            start = starts(case, "fwd", expected_forward(case))
            whole = run(case, name, "lowrank", "fwd", start)
            known = {key: value for key, value in case.given.items() if key != "x"} | {"h": whole["h"].astype(np.float64)}
            again = run(replace(case, given=known), name, "lowrank", "fwd", {"y": start["y"]})
            assert_same_bits(again["y"], whole["y"], f"lowrank from its hidden rows on {backend}")


def objective(case, values):
    """The number whose gradient a backward computes, from inputs and outputs by name."""
    return sum(
        (x * weight).sum()
        for name, cotangent in case.cotangents.values()
        for x, weight in zip(parts(values[name]), parts(cotangent))
    )


def nudged(case, source, part, index, step):
    """The case's inputs with one number moved."""
    moved = [x + 0 * step for x in parts(case.given[source])]
    moved[part].ravel()[index] += step
    return case.given | {source: moved if isinstance(case.given[source], list) else moved[0]}


def numeric_gradient(case, source, slope):
    """slope(part, index) for every number of an input, in its shape."""
    return [
        np.reshape([slope(part, index) for index in range(x.size)], x.shape)
        for part, x in enumerate(parts(case.given[source]))
    ]


def small_cases(op):
    """Those whose inputs are few enough to nudge one by one."""

    def count(case):
        return sum(x.size for value in case.given.values() for x in parts(value))

    return [case for case in sorted(cases_of(op), key=count) if count(case) <= 1300 and case.backward is not None][:6]


DIFFERENTIABLE = [op for op in core.op_names() if op in CASES and any(case.backward for case in cases_of(op))]


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_reference_gradients_are_complex_step_derivatives(op):
    """The derivative as Im f(x + ih) / h is exact to rounding and shares nothing with the backward's formulas."""
    h = 1e-40

    def slope(case, source, part, index):
        inputs = nudged(case, source, part, index, h * 1j)
        return objective(case, inputs | case.forward(inputs | case.settings)).imag / h

    assert small_cases(op)
    for case in small_cases(op):
        values = case.given | case.settings
        saved = {name: x for name, x in case.forward(values).items() if name in case.saved}
        grads = case.backward(values | saved | {name: x for name, (_, x) in case.cotangents.items()})
        for name, source in case.gradient_of.items():
            numeric = numeric_gradient(case, source, functools.partial(slope, case, source))
            for got, want in zip(parts(grads[name]), numeric):
                assert_within(got, want, 1e-10 * np.abs(want) + 1e-12, f"{op} {name}")


def test_reference_loss_gradient_is_the_complex_step_derivative():
    """L2Wrap is the gradient of l2 max(z)^2 / 2, summed over the rows."""
    scale, l2, h = 0.2, 0.01, 1e-40
    for case in cases_of("xent")[:4]:
        z, targets = case.given["logits"], case.ids["targets"]
        z = z + 1e-3 * np.arange(z.size).reshape(z.shape)  # without ties
        want = np.empty(z.shape)
        for index in np.ndindex(z.shape):
            moved = z.astype(complex)
            moved[index] += h * 1j
            total = scale * ops.xent(moved, targets).sum() + l2 / 2 * (moved.max(axis=-1) ** 2).sum()
            want[index] = total.imag / h
        assert_within(ops.xent_grad(z, targets, scale, l2), want, 1e-13 * (1 + np.abs(z).max()), "gradient")


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_ref64_gradients_are_central_differences(op):
    """ref64's backward against ref64's own forward: steps 2e-4 and 1e-4, extrapolated: the error is about 1e-11."""

    def slope(case, blank, source, part, index):
        def value_at(step):
            inputs = nudged(case, source, part, index, step)
            return objective(case, inputs | run(replace(case, given=inputs), "ref64", op, "fwd", blank))

        wide, narrow = ((value_at(h) - value_at(-h)) / (2 * h) for h in (2e-4, 1e-4))
        return (4 * narrow - wide) / 3

    compared = 0
    for case in small_cases(op)[:3]:
        if op == "key_prep" and np.abs(case.given["k0"]).max(axis=-1).min() < 1e-9:
            continue  # next to a zero vector the normalisation is not smooth
        start = starts(case, "bwd", expected_backward(case))
        grads = run_with_saved(case, "ref64", op, "bwd", start)
        blank = starts(case, "fwd", expected_forward(case))
        for name, source in case.gradient_of.items():
            numeric = numeric_gradient(case, source, functools.partial(slope, case, blank, source))
            for got, begun, want in zip(parts(grads[name]), parts(start[name]), numeric):
                added = begun if name in case.added else 0
                assert_within(got - added, want, 1e-8 * (1 + np.abs(want).max()), f"{op} {name}")
                compared += 1
    assert compared
