"""Training against the golden files: parameter groups, three AdamW steps, and thirty steps of RWKV-LM's trainer.

In float64 every number must agree. In float32 losses and gradient norms must; weights are compared by how far they
moved, because Adam with an epsilon of 1e-18 turns the rounding noise of a vanishing gradient into a full step.
"""

import json

import numpy as np
import pytest
from helpers import MODEL_RUNS, assert_fingerprints, assert_within, core, load_model, read_weights

SIZES = dict(d_decay=32, d_aaa=32, d_mv=32, d_gate=32, d_mix=32, n_kv_head=1)


def check_groups(groups, manifest):
    """Every parameter in exactly one golden group, with that group's learning-rate multiple and decay."""
    rows = {row["name"]: row for row in manifest}
    seen = [name for group in groups for name in group["names"]]
    assert sorted(seen) == sorted(rows)
    decay_setting = max(group["weight_decay"] for group in groups)
    for group in groups:
        for name in group["names"]:
            assert rows[name]["lr_scale"] == group["my_lr_scale"], name
            assert (decay_setting if rows[name]["decay"] else 0) == group["weight_decay"], name


VERSIONS = ("x052", "x060", "x070")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("weight_decay", ["0.0", "0.1"])
def test_optimizer_groups(shared, version, weight_decay):
    golden = json.loads((shared / "golden/dev/train/optimizer_groups.json").read_text())
    groups = golden[f"{version}_wd{weight_decay}_stage3_layerwise1"]["groups"]
    names = [name for group in groups for name in group["names"]]
    layers = 1 + max(int(name.split(".")[1]) for name in names if name.startswith("blocks."))
    layer = dict(time_mix=version, channel_mix=version, head_size=32, dim_ffn=128, **SIZES)
    model = core.Model(
        dict(vocab_size=31, n_embd=32, ln0=True, time_state=False, rope=False, head_size_divisor=8, layers=[layer] * layers), "ref"
    )
    check_groups(groups, model.manifest())


@pytest.mark.parametrize("case", ["adam3_x070", "adam3_x070_eps1e-8_noclip", *(f"train30_{v}" for v in VERSIONS)])
def test_groups_of_the_training_runs(shared, case):
    description = json.loads((shared / f"golden/dev/train/{case}.json").read_text())
    check_groups(
        description["groups"], load_model(shared / f"golden/dev/train/{case}.pth", "ref-fp32")._core.manifest()
    )


def check_weights(golden, prefix, start, weights, run):
    """float64: every fingerprint. float32: most sampled weights moved as they should."""
    if run == "ref-fp64":
        assert_fingerprints(golden, prefix, weights, 1e-9, 1e-12, exactly=False)
        return
    misses, moved = [], []
    for i, name in enumerate(golden[f"{prefix}_names"]):
        where = golden[f"{prefix}_idx"][i]
        used = where >= 0
        begin = start[name].ravel()[where[used]]
        want = golden[f"{prefix}_val"][i][used]
        misses.append(np.abs(weights[name].ravel()[where[used]] - want))
        moved.append(np.abs(want - begin))
    misses, moved = np.concatenate(misses), np.concatenate(moved)
    assert moved.max() > 0
    assert np.isfinite(misses).all()
    assert misses.max() <= 2.1 * moved.max()
    close = misses <= 0.01 * moved + 1e-7
    assert close.mean() > 0.97, f"only {close.mean():.1%} of the sampled weights moved as in the reference"


@pytest.mark.parametrize("case", ["adam3_x070", "adam3_x070_eps1e-8_noclip"])
@pytest.mark.parametrize("run", MODEL_RUNS)
def test_three_steps(shared, run, case):
    from rwkvtune.config import TrainingConfig
    from rwkvtune.trainer import Trainer

    golden = np.load(shared / f"golden/dev/train/{case}.npz")
    path = shared / f"golden/dev/train/{case}.pth"
    model, start, exact = load_model(path, run), read_weights(path), run == "ref-fp64"
    beta1, beta2 = map(float, golden["betas"])
    config = TrainingConfig(
        grad_clip=float(golden["clip"]),
        weight_decay=float(golden["weight_decay"]),
        beta1=beta1,
        beta2=beta2,
        adam_eps=float(golden["eps"]),
        l2wrap=True,
        precision="fp32",
        micro_bsz=golden["ids"].shape[1],
    )
    trainer = Trainer(model, config)
    for step in range(3):
        loss, norm = trainer.step(golden["ids"][step], golden["targets"][step], lr=float(golden["lr"][step]))
        assert_within(loss, golden["loss"][step], 1e-10 if exact else 1e-5, f"loss of step {step}")
        assert_within(
            norm,
            golden["gnorm"][step],
            (1e-9 if exact else 1e-4) * golden["gnorm"][step],
            f"gradient norm of step {step}",
        )
        weights = model.named_parameters()
        check_weights(golden, f"p{step + 1}", start, weights, run)
        for key in golden.files:
            if exact and key.startswith(f"step{step + 1}/"):
                want = golden[key]
                slack = 6e-8 * np.abs(want) if want.dtype == np.float32 else 0
                assert_within(
                    np.reshape(weights[key.partition("/")[2]], want.shape),
                    want,
                    1e-9 * np.abs(want).max() + 1e-12 + slack,
                    key,
                )


@pytest.mark.parametrize("run", MODEL_RUNS)
def test_micro_batches_change_nothing(shared, run):
    """The gradient is that of the mean over the whole batch, however it is cut, the last piece being shorter."""
    from rwkvtune.config import TrainingConfig
    from rwkvtune.trainer import Trainer

    golden = np.load(shared / "golden/dev/train/adam3_x070.npz")
    exact = run == "ref-fp64"
    targets = golden["targets"][0].copy()
    targets[0, 3:] = -100  # rows with different numbers of counted targets
    results = []
    for micro_bsz in (3, 2, 1):
        model = load_model(shared / "golden/dev/train/adam3_x070.pth", run)
        trainer = Trainer(model, TrainingConfig(micro_bsz=micro_bsz, precision="fp32"))
        results.append(trainer.step(golden["ids"][0], targets, lr=1e-3))
    for loss, norm in results[1:]:
        assert_within(loss, results[0][0], 1e-12 if exact else 1e-5, "loss")
        assert_within(norm, results[0][1], (1e-10 if exact else 1e-4) * results[0][1], "gradient norm")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("run", MODEL_RUNS)
def test_thirty_steps(shared, run, version):
    from rwkvtune.config import TrainingConfig
    from rwkvtune.data.binidx import BinIdxDataset, MagicPrimeSampler
    from rwkvtune.schedule import Schedule
    from rwkvtune.trainer import Trainer

    folder = shared / "golden/dev/train"
    case = folder / f"train30_{version}"
    golden, about = np.load(f"{case}.npz"), json.loads(case.with_suffix(".json").read_text())
    model, start, exact = load_model(f"{case}.pth", run), read_weights(f"{case}.pth"), run == "ref-fp64"
    dataset, T, B = BinIdxDataset(folder / about["data"]), about["ctx_len"], about["real_bsz"]
    sampler = MagicPrimeSampler(dataset.total_tokens, T, magic_prime=about["magic_prime"], micro_bsz=B)
    schedule = Schedule(
        lr_init=about["lr_init"],
        lr_final=about["lr_final"],
        warmup_steps=about["warmup_steps"],
        exit_tokens=about["my_exit_tokens"],
        ctx_len=T,
        real_bsz=B,
        epoch_begin=about["epoch_begin"],
        epoch_steps=about["epoch_steps"],
    )
    beta1, beta2 = about["betas"]
    trainer = Trainer(
        model,
        TrainingConfig(
            grad_clip=about["grad_clip"],
            beta1=beta1,
            beta2=beta2,
            adam_eps=about["adam_eps"],
            weight_decay=about["weight_decay"],
            micro_bsz=B,
            precision="fp32",
            l2wrap=True,
        ),
    )
    for step in range(30):
        lr = schedule.lr(step)
        assert_within(lr, golden["lr"][step], 1e-12, f"learning rate of step {step}")
        ids, targets = sampler.batch(dataset, about["epoch_begin"], step * B, B)
        loss, norm = trainer.step(ids, targets, lr=lr)
        assert_within(loss, golden["loss_f64"][step], 1e-8 if exact else 1e-5, f"loss of step {step}")
        assert_within(
            norm,
            golden["gnorm_f64"][step],
            (1e-7 if exact else 1e-3) * golden["gnorm_f64"][step],
            f"gradient norm of step {step}",
        )
    assert schedule.finished(30)
    if exact:
        assert_fingerprints(golden, "final", model.named_parameters(), 1e-7, 1e-9, exactly=False)
    assert set(start) == set(model.named_parameters())
