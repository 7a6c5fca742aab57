"""rwkvtune train: train on bin/idx data under RWKV-LM's flag names.

Stage 1 writes rwkv-init.pth and ends.  Otherwise the run in --proj_dir goes on from its trainer_state.pth, or from
the newest rwkv-N.pth where only weights are there, or starts from --load_model or rwkv-init.pth, made if need be.
An epoch is 40320 samples as in RWKV-LM.
"""

import sys
from pathlib import Path

from . import run_command

SUMMARY = "Train a model on bin/idx data, with RWKV-LM's flags."
EPOCH_SAMPLES = 40320
_SIZES = {"vocab_size": 0, "n_layer": 6, "n_embd": 512}
# Flags of RWKV-LM's scripts that mean nothing here: accepted, so that its command lines run unchanged.
_ACCEPTED = {"accelerator": "cpu", "devices": "1", "num_nodes": "1", "strategy": "auto", "ds_bucket_mb": "200", "wandb": "", "kernel": "",
             "head_chunk": "0", "load_partial": "0", "enable_progress_bar": "True", "my_pile_version": "1", "num_sanity_val_steps": "0",
             "check_val_every_n_epoch": "1", "log_every_n_steps": "1"}  # fmt: skip


def add_arguments(parser):
    group = parser.add_argument_group("data and run")
    group.add_argument("--data_file", required=True, help="path of the data without .bin and .idx")
    group.add_argument("--data_type", default="binidx", choices=("binidx",), help="kind of data")
    group.add_argument("--proj_dir", default="out", help="directory of everything that is written")
    group.add_argument("--load_model", default="", help="weights to start from; '' or 0 = rwkv-init.pth")
    group.add_argument(
        "--train_stage",
        "--my_pile_stage",
        dest="train_stage",
        type=int,
        default=3,
        help="1 = write rwkv-init.pth and end",
    )
    group.add_argument("--random_seed", type=int, default=-1, help="of the initialisation; negative = 0")
    group.add_argument("--magic_prime", type=int, default=0, help="samples of a pass; 0 = computed")
    group.add_argument(
        "--my_exit_tokens",
        type=int,
        default=0,
        help="tokens of the run; 0 = one pass over the data; negative = see docs",
    )
    group.add_argument("--epoch_save", type=int, default=5, help="write rwkv-N.pth every so many epochs")
    group.add_argument(
        "--save_dtype",
        default="",
        choices=("", "fp32", "bf16", "fp16"),
        help="of the weights written; default: --precision",
    )
    group.add_argument("--save_every_seconds", type=float, default=60.0, help="how often the resume state is written")
    _model_arguments(parser.add_argument_group("model"))
    _optimizer_arguments(parser.add_argument_group("optimizer"))
    group = parser.add_argument_group("accepted for RWKV-LM's scripts, without effect here")
    for name, default in _ACCEPTED.items():
        group.add_argument(f"--{name}", default=default, help="no effect")


def _model_arguments(group):
    group.add_argument("--my_testing", default="x070", choices=("x052", "x060", "x070"), help="version")
    group.add_argument("--model_config", default="", help="short name, full name or path of a model configuration")
    group.add_argument("--default_arch", default="rwkv7", help="architecture of a short name")
    group.add_argument(
        "--vocab_size", type=int, default=_SIZES["vocab_size"], help="0 = of --load_model or --model_config"
    )
    group.add_argument("--ctx_len", type=int, default=1024, help="tokens of a sample")
    group.add_argument("--n_layer", type=int, default=_SIZES["n_layer"], help="layers")
    group.add_argument("--n_embd", type=int, default=_SIZES["n_embd"], help="channels")
    group.add_argument("--dim_att", type=int, default=0, help="0 = n_embd")
    group.add_argument("--dim_ffn", type=int, default=0, help="0 = the version's rule")
    for name in ("dim_att_lora", "dim_gate_lora", "dim_mv_lora"):
        group.add_argument(f"--{name}", type=int, default=0, help="0 = the version's rule")
    group.add_argument(
        "--head_size_a", "--head_size", dest="head_size_a", type=int, default=64, help="channels of a head"
    )
    group.add_argument("--head_size_divisor", type=int, default=8, help="x052's divisor before its group norm")


def _optimizer_arguments(group):
    group.add_argument("--micro_bsz", type=int, default=12, help="samples of a micro-batch; must divide 40320")
    group.add_argument("--accumulate_grad_batches", type=int, default=1, help="micro-batches of a step")
    group.add_argument("--lr_init", type=float, default=6e-4, help="first learning rate")
    group.add_argument("--lr_final", type=float, default=1e-5, help="last learning rate")
    group.add_argument("--warmup_steps", type=int, default=-1, help="-1 = none, 10 when going on from weights")
    group.add_argument("--beta1", type=float, default=0.9, help="Adam")
    group.add_argument("--beta2", type=float, default=0.99, help="Adam")
    group.add_argument("--adam_eps", type=float, default=1e-18, help="Adam")
    group.add_argument("--weight_decay", type=float, default=0.0, help="of matrices")
    group.add_argument("--weight_decay_final", type=float, default=-1.0, help="> 0: where the decay goes")
    group.add_argument("--grad_clip", type=float, default=1.0, help="largest gradient norm")
    group.add_argument("--grad_cp", type=int, default=0, help="1 = recompute activations, less memory")
    group.add_argument(
        "--precision",
        default="fp32",
        choices=("fp32", "tf32", "bf16", "fp16"),
        help="the CPU trains in fp32 and saves so",
    )
    group.add_argument("--train_type", default="", choices=("", "states"), help="states = train initial states only")
    group.add_argument("--epoch_steps", type=int, default=0, help="no effect: 40320 / batch")
    group.add_argument(
        "--epoch_count", type=int, default=0, help="end after so many epochs at the latest, 0 = by tokens alone"
    )
    group.add_argument("--epoch_begin", type=int, default=0, help="no effect: read from --proj_dir")


def model_config(args):
    """`ModelConfig` of the flags."""
    from ..config import ModelConfig
    from ..model import config_of

    if given_weights(args):
        from ..checkpoint import read_checkpoint

        return config_of(read_checkpoint(args.load_model), args.load_model, ctx_len=args.ctx_len)
    if args.model_config:
        from ..configs.model_loader import load_model_config

        return load_model_config(args.model_config, default_arch=args.default_arch).replace(ctx_len=args.ctx_len)
    if not args.vocab_size:
        raise ValueError(
            "give --vocab_size (65536 for the RWKV World vocabulary; `rwkvtune prepare` prints that of other data)"
        )
    names = ("vocab_size", "ctx_len", "n_layer", "n_embd", "dim_att", "dim_ffn", "dim_att_lora", "dim_gate_lora", "dim_mv_lora", "head_size_a",
             "head_size_divisor")  # fmt: skip
    return ModelConfig(
        model_type=args.my_testing,
        time_state=args.train_type == "states",
        **{name: getattr(args, name) for name in names},
    )


def given_weights(args):
    """str: the weights asked for, '' for none (RWKV-LM's scripts write 0 for that)."""
    if args.load_model in ("", "0"):
        return ""
    if not Path(args.load_model).exists():
        raise FileNotFoundError(f"weights not found: {args.load_model}")
    return args.load_model


def training_config(args):
    """`TrainingConfig` of the flags."""
    from ..config import TrainingConfig

    names = ("lr_init", "lr_final", "micro_bsz", "grad_cp", "precision", "warmup_steps", "beta1", "beta2", "adam_eps", "weight_decay",
             "weight_decay_final", "epoch_save", "grad_clip", "accumulate_grad_batches", "train_type", "save_every_seconds")  # fmt: skip
    return TrainingConfig(random_seed=max(0, args.random_seed), **{name: getattr(args, name) for name in names})


def _numbered(out):
    found = {int(path.stem[5:]): path for path in out.glob("rwkv-*.pth") if path.stem[5:].isdigit()}
    return max(found.items()) if found else None


def _start(args, out, config):
    """The trainer; its position tells how many epochs its first weights had behind them."""
    from ..loop import resume_or_none
    from ..model import RWKV
    from ..trainer import Trainer

    trainer = resume_or_none(out)
    if trainer is not None:
        trainer.adopt(config)
        print(f"continuing the run in {out} after step {trainer.steps}")
        return trainer
    init, newest = out / "rwkv-init.pth", _numbered(out)
    epoch, path = (newest[0] + 1, newest[1]) if newest else (0, Path(given_weights(args) or init))
    if not path.exists():
        RWKV(model_config(args), seed=config.random_seed).save(path)
    if newest:
        print(f"continuing from {path} with a fresh optimizer (there is no trainer_state.pth)")
    trainer = Trainer(RWKV.load(path, ctx_len=args.ctx_len), config)
    trainer.steps = epoch * (EPOCH_SAMPLES // config.batch_size)
    trainer.position["epoch_begin"] = epoch
    return trainer


def _check_sizes(args, config):
    """Raises ValueError where a size asked for is not that of the weights found."""
    for name, default in _SIZES.items():
        asked, found = getattr(args, name), getattr(config, name)
        if asked not in (default, found):
            raise ValueError(f"--{name} is {asked} but the weights to go on with have {found}; use another --proj_dir")


def _check_ids(dataset, vocab_size):
    """Raises ValueError where the data hold an id the model has no row for; before a new run writes its first file."""
    step = 1 << 24
    for at in range(0, dataset.total_tokens, step):
        most = int(dataset.stream(at, min(step, dataset.total_tokens - at)).max())
        if most >= vocab_size:
            raise ValueError(f"the data hold token id {most}, but --vocab_size {vocab_size} allows 0 to {vocab_size - 1}")


def _plan(args, trainer, config, dataset):
    """`RunPlan`: RWKV-LM's schedule, whose warmup counts from where the optimizer started."""
    from ..loop import RunPlan
    from ..schedule import Schedule

    begin = trainer.position["epoch_begin"]
    warmup = 10 if begin and config.warmup_steps < 0 else config.warmup_steps
    exit_tokens = args.my_exit_tokens or int(dataset.total_tokens)
    epoch_steps, step_tokens = EPOCH_SAMPLES // config.batch_size, args.ctx_len * config.batch_size
    prime_epochs = max(1, dataset.total_tokens // args.ctx_len // EPOCH_SAMPLES)
    schedule = Schedule(lr_init=config.lr_init, lr_final=config.lr_final, warmup_steps=warmup, exit_tokens=exit_tokens, ctx_len=args.ctx_len,
                        real_bsz=config.batch_size, epoch_begin=begin, epoch_steps=epoch_steps, epoch_count=prime_epochs,
                        weight_decay=config.weight_decay, weight_decay_final=config.weight_decay_final)  # fmt: skip
    total = -(-abs(exit_tokens) // step_tokens)
    if args.epoch_count:
        total = min(total, args.epoch_count * epoch_steps)
    return RunPlan(schedule, total, EPOCH_SAMPLES, config.batch_size, config.epoch_save, first_step=begin * epoch_steps)


def run(args):
    from ..data.binidx import BinIdxDataset
    from ..lock import RunLock
    from ..loop import BinIdxBatches, TrainingRun
    from ..model import RWKV

    config = training_config(args)
    if EPOCH_SAMPLES % config.batch_size:
        raise ValueError(
            f"micro_bsz x accumulate_grad_batches is {config.batch_size}; it must divide {EPOCH_SAMPLES} (for example 8, 12, 16)"
        )
    out = Path(args.proj_dir)
    out.mkdir(parents=True, exist_ok=True)
    with RunLock(out), BinIdxDataset(args.data_file) as dataset:
        if args.train_stage == 1:
            model = RWKV(model_config(args), seed=config.random_seed)
            model.save(out / "rwkv-init.pth")
            print(f"{out / 'rwkv-init.pth'}: {model!r}\nNow go for stage 2 or 3.")
            return 0
        batches = BinIdxBatches(dataset, args.ctx_len, config.batch_size, args.magic_prime)
        if not any(out.glob("rwkv-*.pth")):
            _check_ids(dataset, model_config(args).vocab_size)
        trainer = _start(args, out, config)
        _check_sizes(args, trainer.model.config)
        plan = _plan(args, trainer, config, dataset)
        print(
            f"{trainer.model!r}\n{plan.total_steps} steps of {config.batch_size} x {args.ctx_len} tokens, lr {config.lr_init:g} -> {config.lr_final:g}"
        )
        run = TrainingRun(trainer, batches, plan, out, arguments=vars(args), how_to_resume="To go on: the same command.",
                          save_dtype=args.save_dtype or args.precision.replace("tf32", "fp32"))  # fmt: skip
        return 130 if run.run() == "interrupted" else 0


if __name__ == "__main__":
    sys.exit(run_command("train", sys.argv[1:]))
