"""rwkvtune train: train on bin/idx data under RWKV-LM's flag names.

Stage 1 writes rwkv-init.pth and ends.  Otherwise the run in --proj_dir goes on from its trainer_state.pth, or from
the newest rwkv-N.pth where only weights are there, or starts as train_start.py says.  An epoch is 40320 samples.
"""

import sys
from pathlib import Path

from . import run_command
from .common import open_data
from .train_flags import add_flags, settle
from .train_plan import epoch_samples, run_plan, show_plan
from .train_start import (
    INIT_NAME,
    check_sizes,
    config_of_start,
    find_start,
    load_weights,
    new_model_config,
    requested_config,
    show_config_error,
    show_verification,
)

SUMMARY = "Train a model on bin/idx data, with RWKV-LM's flags."
add_arguments = add_flags


def training_config(args):
    """`TrainingConfig` of the flags."""
    from ..config import TrainingConfig

    names = ("lr_init", "lr_final", "micro_bsz", "grad_cp", "precision", "warmup_steps", "beta1", "beta2", "adam_eps", "weight_decay",
             "weight_decay_final", "epoch_save", "grad_clip", "accumulate_grad_batches", "train_type", "save_every_seconds",
             "chunk_ctx")  # fmt: skip
    return TrainingConfig(random_seed=max(0, args.random_seed), **{name: getattr(args, name) for name in names})


def _open_data(args):
    if args.data_type != "binidx":
        raise ValueError(
            f"--data_type {args.data_type}: make the data with `rwkvtune prepare INPUT OUTPUT` first, then --data_type binidx"
        )
    if not args.data_file:
        raise ValueError("give --data_file, the path of the data without .bin and .idx")
    return open_data(args.data_file)


def _check_ids(dataset, vocab_size):
    """Raises ValueError where the data hold an id the model has no row for; before a new run writes its first file."""
    step = 1 << 24
    for at in range(0, dataset.total_tokens, step):
        most = int(dataset.stream(at, min(step, dataset.total_tokens - at)).max())
        if most >= vocab_size:
            raise ValueError(f"the data hold token id {most}, but --vocab_size {vocab_size} allows 0 to {vocab_size - 1}")


def _trainer(args, start, wanted, config):
    """The `Trainer` of a start; its position tells how many epochs its first weights had behind them."""
    from ..loop import resume_or_none
    from ..trainer import Trainer

    out = Path(args.proj_dir)
    if start.kind == "run":
        trainer = resume_or_none(out, args.device, args.precision)
        trainer.adopt(config)
        print(f"continuing the run in {out} after step {trainer.steps}")
        return trainer
    trainer = Trainer(load_weights(args, start, wanted, config.random_seed), config)
    if start.epoch:
        print(f"continuing from {start.path} with a fresh optimizer (there is no trainer_state.pth)")
    trainer.steps = start.epoch * (epoch_samples(args, config.batch_size) // config.batch_size)
    trainer.tokens = trainer.steps * config.batch_size * args.ctx_len
    trainer.position["epoch_begin"] = start.epoch
    return trainer


def _callbacks(args):
    """The `Callback`s asked for.  Raises ImportError where their package is missing, before the run begins."""
    from ..callbacks import TensorBoardCallback, WandbCallback

    return [*([TensorBoardCallback()] if args.tensorboard else []), *([WandbCallback(args.wandb)] if args.wandb else [])]


def _dry_run(args, start, wanted, config):
    from ..loop import BinIdxBatches
    from ..trainer import read_position

    if args.train_stage == 1:
        show_plan(new_model_config(args, wanted), config, f"fresh weights, written to {Path(args.proj_dir) / INIT_NAME}")
        return
    found = config_of_start(args, start, wanted)
    check_sizes(args, wanted, found)
    place = read_position(start.path) if start.kind == "run" else {"position": {"epoch_begin": start.epoch}}
    with _open_data(args) as dataset:
        _check_ids(dataset, found.vocab_size)
        plan = run_plan(args, place["position"]["epoch_begin"], config, dataset.total_tokens)
        prime = BinIdxBatches(dataset, args.ctx_len, config.batch_size, args.magic_prime).samples
        data = f"{args.data_file}: {dataset.total_tokens:,} tokens, {prime:,} samples a pass (magic prime)"
    beginning = "fresh weights" if start.kind == "fresh" else start.path
    show_plan(found, config, beginning, plan, data, place.get("steps", plan.first_step), args.device)


def _write_initial(args, wanted, config):
    from ..lock import RunLock
    from ..loop import STATE_NAME
    from ..model import RWKV

    out = Path(args.proj_dir)
    out.mkdir(parents=True, exist_ok=True)
    with RunLock(out):
        model = RWKV(new_model_config(args, wanted), seed=config.random_seed)
        model.save(out / INIT_NAME)
        begun = [name for name in (STATE_NAME, *(path.name for path in out.glob("rwkv-[0-9]*.pth"))) if (out / name).exists()]
    print(f"{out / INIT_NAME}: {model!r}\nNow go for stage 2 or 3.")
    if begun:
        print(f"rwkvtune train: {out} holds a run ({begun[0]}), which training goes on with; new weights need another --proj_dir",
              file=sys.stderr)  # fmt: skip


def _train(args, wanted, config):
    """The exit code of a training run; what it starts from is looked up while the directory is held."""
    from ..lock import RunLock
    from ..loop import BinIdxBatches, TrainingRun

    out, callbacks = Path(args.proj_dir), _callbacks(args)
    with _open_data(args) as dataset:
        out.mkdir(parents=True, exist_ok=True)
        with RunLock(out):
            start = find_start(args, out, wanted)
            if wanted:
                show_verification(args, wanted, start)
            batches = BinIdxBatches(dataset, args.ctx_len, config.batch_size, args.magic_prime)
            if start.kind != "run":
                _check_ids(dataset, config_of_start(args, start, wanted).vocab_size)
            trainer = _trainer(args, start, wanted, config)
            check_sizes(args, wanted, trainer.model.config)
            plan = run_plan(args, trainer.position["epoch_begin"], config, dataset.total_tokens)
            print(
                f"{trainer.model!r}\n{plan.total_steps} steps of {config.batch_size} x {args.ctx_len} tokens,"
                f" lr {config.lr_init:g} -> {config.lr_final:g}"
            )
            run = TrainingRun(trainer, batches, plan, out, arguments=vars(args), how_to_resume="To go on: the same command.",
                              progress=args.enable_progress_bar, save_dtype=args.save_dtype or args.precision.replace("tf32", "fp32"),
                              callbacks=callbacks)  # fmt: skip
            return _told(run, trainer.steps)


def _told(run, steps_before):
    """Runs a `TrainingRun` and tells how it ended.  Returns the exit code."""
    from ..loop import FINAL_NAME

    if run.run() == "interrupted":
        return 130
    picture = run.out / "loss.png"
    what = "Finished" if run.trainer.steps > steps_before else "This run was finished before; --my_exit_tokens or --epoch_count sets its end. It ended"
    print(f"{what} at step {run.trainer.steps}: weights {run.out / FINAL_NAME}, loss curve {picture if picture.exists() else run.out / 'loss.csv'}")
    return 0


def run(args):
    try:
        wanted = requested_config(args)
    except (OSError, ValueError) as error:
        show_config_error(args.model_config, error)
        return 2
    settle(args, wanted)
    config = training_config(args)
    epoch_samples(args, config.batch_size)  # refuses a batch before anything is written
    if args.train_stage == 1 or args.dry_run:
        start = None if args.train_stage == 1 else find_start(args, Path(args.proj_dir), wanted)
        if wanted:
            show_verification(args, wanted, start)
        if args.dry_run:
            return _dry_run(args, start, wanted, config)
        return _write_initial(args, wanted, config)
    return _train(args, wanted, config)


if __name__ == "__main__":
    sys.exit(run_command("train", sys.argv[1:]))
