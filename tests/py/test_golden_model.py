"""Whole models of every version against the golden files: the NumPy reference first, then the model on every backend.

What RWKV-LM's own classes computed in float64 from the weights beside each file: logits, loss, states, gradients with
and without L2Wrap, from given states, through truncated segments, of trained initial states, and every intermediate.
"""

import numpy as np
import pytest
from helpers import (
    MODEL_RUNS,
    assert_fingerprints,
    assert_within,
    global_norm,
    load_model,
    read_weights,
)
from reference import model as reference
from reference import ops

FLOAT32_STORED = 6e-8
STATE = ("att_shift", "wkv", "ffn_shift")

VERSIONS = ("x052", "x060", "x070")


def of_each_version(*cases):
    return [(model.format(version), case) for version in VERSIONS for model, case in cases]


PLAIN = of_each_version(
    ("m1_{}", "B2T17"),
    ("m1_{}", "B3T1"),
    ("m1_{}", "B1T130"),
    ("m2_{}", "B1T1"),
    ("m2_{}", "B2T64"),
    ("m2_{}_bf16", "B2T17"),
    ("m3_{}_bf16", "B1T64"),
)
OTHERS = of_each_version(
    ("m2_{}", "stateful_B3T17"),
    ("m1_{}", "infctx_B2T70S32"),
    ("m3_{}_bf16", "statetune_B2T17"),
    ("m2_{}", "trace_B1T6"),
)


def golden_of(shared, model, case):
    return np.load(shared / f"golden/dev/model/{model}__{case}.npz")


def weights_of(shared, model):
    return shared / f"golden/dev/model/{model}.pth"


def stored_slack(want):
    """Numbers that were rounded to float32 for storage."""
    return FLOAT32_STORED * np.abs(want) if want.dtype == np.float32 else 0


def given_state(golden):
    return {name: golden[f"init_{name}"].astype(np.float64) for name in STATE} if "init_wkv" in golden else None


def check_state(golden, state, tolerance):
    for name in STATE:
        if f"final_{name}" in golden:
            want = golden[f"final_{name}"]
            assert_within(
                state[name], want, tolerance * max(1, np.abs(want).max()) + stored_slack(want), f"final {name}"
            )


def golden_floor(golden, prefix, run):
    """Gradients that vanish by symmetry are rounding noise: allow a share of the norm of all gradients together."""
    return MODEL_RUNS[run]["floor"] * float(np.linalg.norm(golden[f"{prefix}_norm"]))


# ---- the reference ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "case"), PLAIN + OTHERS)
def test_numpy_reference_reproduces(shared, model, case):
    golden, params = golden_of(shared, model, case), read_weights(weights_of(shared, model))
    params |= {name.partition("/")[2]: golden[name] for name in golden.files if name.startswith("time_state/")}
    trace = {} if "trace" in case else None
    logits, state = reference.forward(params, golden["ids"], given_state(golden), trace)
    assert_within(logits, golden["logits"], 1e-10 + stored_slack(golden["logits"]), "logits")
    check_state(golden, state, 1e-10)
    if "targets" in golden:
        want = golden["loss"] if "loss" in golden else golden["total_loss"]
        assert_within(reference.loss(logits, golden["targets"]), want, 1e-10, "loss")
    for kind in ("plain", "l2wrap"):
        if f"dlogits_{kind}" in golden:
            want = golden[f"dlogits_{kind}"]
            got = reference.logit_gradient(logits, golden["targets"], kind == "l2wrap")
            assert_within(got, want, 1e-12 + stored_slack(want), f"logit gradient, {kind}")
    for name in set(golden.files) & set(trace or ()):
        want = golden[name]
        assert_within(np.reshape(trace[name], want.shape), want, 1e-10 + stored_slack(want), name)
    assert trace is None or len(set(golden.files) & set(trace)) == len(golden.files) - 1  # all but the ids


# ---- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "case"), PLAIN)
@pytest.mark.parametrize("run", MODEL_RUNS)
def test_forward_and_gradients(shared, run, model, case):
    tolerance, golden = MODEL_RUNS[run], golden_of(shared, model, case)
    rwkv = load_model(weights_of(shared, model), run)
    ids, targets = golden["ids"], golden["targets"]
    logits, loss = rwkv(ids, targets)
    assert_within(logits, golden["logits"], tolerance["logits"] + stored_slack(golden["logits"]), "logits")
    assert_within(loss, golden["loss"], tolerance["loss"], "loss")
    assert_within(rwkv.loss(ids, targets), golden["loss"], tolerance["loss"], "loss without logits")
    _, state = rwkv.process_with_state(ids)
    check_state(golden, state.to_numpy(), tolerance["logits"])
    for prefix, l2wrap in (("grad", True), ("gradplain", False)):
        loss, grads = rwkv.loss_and_grads(ids, targets, l2wrap=l2wrap)
        assert_within(loss, golden["loss"], tolerance["loss"], "loss, which never includes L2Wrap")
        assert set(grads) == set(rwkv.named_parameters())
        assert_fingerprints(golden, prefix, grads, tolerance["gradient"], golden_floor(golden, prefix, run))
        if l2wrap:
            check_full_gradients(golden, grads, run)


def check_full_gradients(golden, grads, run):
    tolerance = MODEL_RUNS[run]
    for key in golden.files:
        if key.startswith("grad/"):
            want = golden[key]
            allowed = (
                tolerance["gradient"] * np.abs(want).max() + golden_floor(golden, "grad", run) + stored_slack(want)
            )
            assert_within(np.reshape(grads[key[5:]], want.shape), want, allowed, key)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("run", MODEL_RUNS)
def test_from_a_given_state(shared, run, version):
    from rwkvtune.state import RWKVState

    tolerance, golden = MODEL_RUNS[run], golden_of(shared, f"m2_{version}", "stateful_B3T17")
    rwkv = load_model(weights_of(shared, f"m2_{version}"), run)
    state = RWKVState.from_numpy({name: golden[f"init_{name}"] for name in STATE})
    logits, after = rwkv.process_with_state(golden["ids"], state)
    assert_within(logits, golden["logits"], tolerance["logits"] + stored_slack(golden["logits"]), "logits")
    check_state(golden, after.to_numpy(), tolerance["logits"])
    loss, grads = rwkv.loss_and_grads(golden["ids"], golden["targets"], l2wrap=True, state=state)
    assert_within(loss, golden["loss"], tolerance["loss"], "loss")
    floor = golden_floor(golden, "grad", run)
    for name in STATE:
        want = golden[f"grad_init_{name}"]
        allowed = tolerance["gradient"] * np.abs(want).max() + floor + stored_slack(want)
        assert_within(grads.pop(f"state.{name}"), want, allowed, f"gradient of the initial {name}")
    assert_fingerprints(golden, "grad", grads, tolerance["gradient"], floor)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("run", MODEL_RUNS)
def test_truncated_segments(shared, run, version):
    from rwkvtune.state import RWKVState

    tolerance, golden = MODEL_RUNS[run], golden_of(shared, f"m1_{version}", "infctx_B2T70S32")
    rwkv = load_model(weights_of(shared, f"m1_{version}"), run)
    segment = int(golden["segment"])
    rwkv.set_chunk_size(segment)
    loss, grads = rwkv.loss_and_grads(golden["ids"], golden["targets"], l2wrap=True, chunked="truncated")
    assert_within(loss, golden["total_loss"], tolerance["loss"], "total loss")
    assert_fingerprints(golden, "grad", grads, tolerance["gradient"], golden_floor(golden, "grad", run))
    logits, loss = rwkv.forward_chunked(golden["ids"], golden["targets"])
    assert_within(logits, golden["logits"], tolerance["logits"] + stored_slack(golden["logits"]), "logits")
    assert_within(loss, golden["total_loss"], tolerance["loss"], "loss")
    state = rwkv.init_state(len(golden["ids"]))
    for i, want in enumerate(golden["segment_losses"]):
        cut = slice(i * segment, (i + 1) * segment)
        got = rwkv(golden["ids"][:, cut], golden["targets"][:, cut], state).loss
        assert_within(got, want, tolerance["loss"], f"loss of segment {i}")
        _, state = rwkv.process_with_state(golden["ids"][:, cut], state)
    assert isinstance(state, RWKVState)
    check_state(golden, state.to_numpy(), tolerance["logits"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("run", MODEL_RUNS)
def test_trained_initial_state(shared, run, version, tmp_path):
    """`time_state` keys merged into a checkpoint start every sequence; their gradient sums over the batch."""
    from rwkvtune.checkpoint.pth import write_pth

    tolerance, golden = MODEL_RUNS[run], golden_of(shared, f"m3_{version}_bf16", "statetune_B2T17")
    weights = {
        name: value.astype(np.float32) for name, value in read_weights(weights_of(shared, f"m3_{version}_bf16")).items()
    }
    states = {name.partition("/")[2]: golden[name] for name in golden.files if name.startswith("time_state/")}
    assert len(states) == 2
    write_pth(tmp_path / "merged.pth", weights | states)
    rwkv = load_model(tmp_path / "merged.pth", run)
    logits, loss = rwkv(golden["ids"], golden["targets"])
    assert_within(logits, golden["logits"], tolerance["logits"] + stored_slack(golden["logits"]), "logits")
    assert_within(loss, golden["loss"], tolerance["loss"], "loss")
    start = rwkv.init_state(2).to_numpy()["wkv"]
    for layer in range(2):
        for row in range(2):
            assert_within(start[layer, row], states[f"blocks.{layer}.att.time_state"], 0, "initial state")
    _, grads = rwkv.loss_and_grads(golden["ids"], golden["targets"], l2wrap=True)
    floor = tolerance["floor"] * global_norm(grads)
    for name in states:
        want = golden[f"grad/{name}"]
        allowed = tolerance["gradient"] * np.abs(want).max() + floor + stored_slack(want)
        assert_within(np.reshape(grads[name], want.shape), want, allowed, f"gradient of {name}")


# Golden name -> name of the saved row, and what the row is still to go through; p: the layer's parameters. Of a thin product
# only the hidden row is saved.
TRACE = {
    "x052": {"r": "r", "k": "k", "v": "v"},
    "x060": {"r": "r", "k": "k", "v": "v"},
    "x070": {"r": "r", "k_raw": "k0", "v_raw": "v0"},
}
TRACE_GATES = {
    "x052": {"gate": ("g", lambda g, p: g * ops.sigmoid(g))},
    "x060": {
        "gate": ("g", lambda g, p: g * ops.sigmoid(g)),
        "w_raw": ("hw", lambda h, p: p["time_decay"] + h @ p["time_decay_w2"]),
    },
    "x070": {
        "decay_logit": ("hw", lambda h, p: p["w0"] + h @ p["w2"]),
        "gate": ("hg", lambda h, p: h @ p["g2"]),
        "a": ("ha", lambda h, p: ops.sigmoid(p["a0"] + h @ p["a2"])),
        "v_gate": ("hv", lambda h, p: ops.sigmoid(p["v0"] + h @ p["v2"])),
    },
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("run", MODEL_RUNS)
def test_intermediates(shared, run, version):
    tolerance, golden = MODEL_RUNS[run], golden_of(shared, f"m2_{version}", "trace_B1T6")
    rwkv = load_model(weights_of(shared, f"m2_{version}"), run)
    seen = rwkv._core.activations(golden["ids"].astype(np.int32))
    rows = {theirs: (ours, lambda x, p: x) for theirs, ours in TRACE[version].items()} | TRACE_GATES[version]
    compared = 0
    for layer in range(3):
        start = f"blocks.{layer}.att."
        p = {name.removeprefix(start): np.asarray(value, np.float64)
             for name, value in rwkv.named_parameters().items() if name.startswith(start)}
        for theirs, (ours, function) in rows.items():
            if layer == 0 and ours in ("v0", "hv"):
                continue  # the first layer's values are v_first itself, and it has no value gate
            want = golden[f"L{layer}.{theirs}"]
            got = function(seen[start + ours].astype(np.float64), p)
            allowed = tolerance["logits"] * max(1, np.abs(want).max()) + stored_slack(want)
            assert_within(got.reshape(want.shape), want, allowed, f"layer {layer} {theirs}")
            compared += 1
    assert compared == 3 * len(rows) - (2 if version == "x070" else 0)
