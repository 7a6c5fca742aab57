"""Training: whole optimizer steps (forward, backward, clipping, AdamW) in float32."""

from . import Table
from .shapes import batch_of, in_products, split
from .timing import best_in_turn, in_a_process, peak_mib

_COLUMNS = {
    "shape": "shape", "tokens_per_second": "tok/s", "gflops": "GFLOP/s", "sgemm_gflops": "sgemm", "share": "of sgemm", "one_thread": "1 thread",
    "threads_gain": "gain", "grad_cp_cost": "grad_cp", "forward": "forward", "update_gbs": "update GB/s", "copy_gbs": "copy GB/s",
    "peak_mib": "peak MiB", "plan_mib": "start + plan", "least_mib": "16 B/param",
}  # fmt: skip
_BYTES_OF_UPDATE = 32  # per parameter: w, g, m, v read and w, m, v written; before that g read for the norm


def run_shape(sizes, threads, seconds):
    """The figures of one shape, in this process."""
    from .. import set_num_threads
    from ..config import TrainingConfig
    from ..model import RWKV
    from ..trainer import Trainer
    from .machine import copy_gbs, sgemm_gflops

    set_num_threads(threads)
    config, batch = split(sizes)
    begin = peak_mib()
    model = RWKV(config, seed=0)
    trainer = Trainer(model, TrainingConfig(precision="fp32", micro_bsz=batch, grad_cp=0, weight_decay=0.001, l2wrap=0))
    plan = model.plan(batch, config.ctx_len, training=True, grad_cp=0)["total"] / 2**20
    ids, targets = batch_of(config, batch)
    step = lambda: trainer.step(ids, targets, lr=1e-4)  # noqa: E731
    step()
    peak = peak_mib()
    sgemm, copy = sgemm_gflops(), copy_gbs(threads)
    update = lambda: trainer._core.apply(0.0, lr=1e-4, weight_decay=0.0, trainable=trainer._trainable)  # noqa: E731
    works = {"step": step, "update": update, "forward": lambda: model.loss(ids, targets),
             "grad_cp": _other_setting(trainer, step)}  # fmt: skip
    if threads > 1:
        works["one_thread"] = _with_threads(1, threads, step)
    took = dict(zip(works, best_in_turn(works.values(), seconds, warm=False), strict=True))
    sgemm, copy = max(sgemm, sgemm_gflops()), max(copy, copy_gbs(threads))
    rate, slow = ids.size / took["step"], took.get("one_thread")
    gflops = 6e-9 * sum(in_products(model)) * rate
    return {"parameters": model.num_parameters, "tokens_per_second": rate, "gflops": gflops, "sgemm_gflops": sgemm, "share": gflops / sgemm,
            "one_thread": slow and ids.size / slow, "threads_gain": slow and slow / took["step"], "grad_cp_cost": took["grad_cp"] / took["step"],
            "forward": took["forward"] / took["step"], "update_gbs": 1e-9 * _BYTES_OF_UPDATE * model.num_parameters / took["update"], "copy_gbs": copy,
            "peak_mib": peak, "plan_mib": begin + plan, "least_mib": 16 * model.num_parameters / 2**20}  # fmt: skip


def _with_threads(number, usual, work):
    """work() with another number of threads."""
    from .. import set_num_threads

    def run():
        set_num_threads(number)
        work()
        set_num_threads(usual)

    return run


def _other_setting(trainer, step):
    """step() that computes activations again."""
    plain = trainer.config
    recomputing = plain.replace(grad_cp=1)

    def run():
        trainer.adopt(recomputing)
        step()
        trainer.adopt(plain)

    return run


def measure_train(options):
    """One row for each shape, each in a process of its own, so that its memory is its own."""
    rows = []
    for name, sizes in options.shapes.items():
        found = in_a_process("train:run_shape", sizes=sizes, threads=options.threads, seconds=options.seconds * (1 if name == "tiny" else 2))
        rows.append({"shape": name, **found})
    notes = (
        "GFLOP/s by 6 N, N the parameters in matrix products, without the embedding; gain: steps of all threads over steps of one;",
        "grad_cp: a step that computes activations again over one that does not (bound by FLOPs: 1.33); forward: share of the step;",
        "update: clipping and AdamW, 32 bytes per parameter; peak: of the process, beside what it held before plus the plan.",
    )
    return [Table("train: whole optimizer steps, float32", _COLUMNS, rows, "share", notes)]
