"""The flags of `rwkvtune train`: those of RWKV-LM's train.py (RWKV-v7 and RWKV-v5) by name, and a few of our own.

A default of None is decided after parsing: by --model_config where one is given, otherwise by the value in the help.
"""

import sys

from ..config import VERSIONS

SIZES = ("vocab_size", "n_layer", "n_embd", "dim_att", "dim_ffn", "head_size_a", "dim_att_lora", "dim_gate_lora", "dim_mv_lora")  # fmt: skip
_FRESH_VERSION = "x070"
_FRESH = {"n_layer": 6, "n_embd": 512, "head_size_a": 64}
# flag: (default, field of the model configuration that replaces it)
_RECOMMENDED = {"ctx_len": (1024, "recommended_ctx_len"), "micro_bsz": (12, "recommended_batch_size"),
                "lr_init": (6e-4, "recommended_lr")}  # fmt: skip
_LR_FINAL = 1e-5

# Flags that mean nothing here: RWKV-LM's default, and why.  Accepted, so that its command lines run, and named when given.
_OLD_LAYERS, _LIGHTNING = "an option of layers this package does not have", "a setting of Lightning"
WITHOUT_EFFECT = {
    "devices": (1, "one process computes"), "num_nodes": (1, "one process computes"),
    "strategy": ("auto", "one process computes"), "ds_bucket_mb": (200, "a setting of DeepSpeed"),
    "kernel": ("", "a choice of CUDA kernels"), "head_chunk": (0, "the loss is always computed in pieces"),
    "num_sanity_val_steps": (0, _LIGHTNING), "check_val_every_n_epoch": (1, _LIGHTNING), "log_every_n_steps": (1, "every step is logged"),
    "pre_ffn": (0, _OLD_LAYERS), "head_qk": (0, _OLD_LAYERS), "tiny_att_dim": (0, _OLD_LAYERS), "tiny_att_layer": (-999, _OLD_LAYERS),
    "dropout": (0.0, _OLD_LAYERS), "my_pile_version": (1, "a choice of sampling for one data set"),
    "my_pile_shift": (-1, "a choice of sampling for one data set"), "layerwise_lr": (1, "the parameter groups are always those of RWKV-LM"),
    "my_sample_len": (0, "samples are ctx_len tokens"), "my_ffn_shift": (1, _OLD_LAYERS), "my_att_shift": (1, _OLD_LAYERS),
    "my_pos_emb": (0, _OLD_LAYERS), "my_qa_mask": (0, "every token of bin/idx data counts"), "my_random_steps": (0, "samples follow the magic prime"),
}  # fmt: skip
DATA_TYPES = ("binidx", "utf-8", "utf-16le", "numpy", "dummy", "uint16")


def _truth(text):
    words = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


_truth.__name__ = "True or False"  # what argparse calls the type in its message


def add_flags(parser):
    """Adds every flag to an argparse parser."""
    _run_flags(parser.add_argument_group("data and run"))
    _model_flags(parser.add_argument_group("model"))
    _length_flags(parser.add_argument_group("length and checkpoints"))
    _optimizer_flags(parser.add_argument_group("optimizer"))
    group = parser.add_argument_group("accepted for RWKV-LM's scripts, without effect here")
    for name, (default, why) in WITHOUT_EFFECT.items():
        group.add_argument(f"--{name}", type=type(default), help=f"no effect: {why} (RWKV-LM's default: {default!r})")


def _run_flags(group):
    add = group.add_argument
    add("--data_file", default="", help="path of the data without .bin and .idx")
    add("--data_type", default="binidx", choices=DATA_TYPES, help="kind of data; `rwkvtune prepare` makes binidx")
    add("--proj_dir", default="out", help="directory of everything that is written")
    add("--train_stage", "--my_pile_stage", dest="train_stage", type=int, default=0, choices=(0, 1, 2, 3),
        help="1 = write rwkv-init.pth and end; all others train, going on with what --proj_dir holds")  # fmt: skip
    add("--dry_run", action="store_true", help="print the plan (size, memory, steps, time), write nothing and end")
    add("--device", default="", help="cpu, cuda, cuda:N, or auto: a CUDA device where there is one; '' = as --accelerator says")
    add("--accelerator", default="cpu", choices=("cpu", "gpu", "cuda", "auto"),
        help="all but cpu: a CUDA device where there is one, else the processor; --device decides where both are given")  # fmt: skip
    add("--random_seed", type=int, default=-1, help="seed of new weights; negative = 0, so that a run can be repeated")
    add("--wandb", default="", help="project of Weights & Biases to log to (needs `pip install wandb`); '' = none")
    add("--tensorboard", action="store_true", help="log for TensorBoard to PROJ_DIR/tensorboard (needs `pip install tensorboard`)")
    add("--enable_progress_bar", type=_truth, default=True, help="show the progress bar")


def _model_flags(group):
    add = group.add_argument
    add("--model_config", default="", help="short name, full name or path of a model configuration")
    add("--default_arch", default="rwkv7", help="architecture that completes a short name")
    add("--load_model", default="", help="weights to start from; '' or 0 = model_file of --model_config, else rwkv-init.pth")  # fmt: skip
    add("--load_partial", type=int, default=0, choices=(0, 1), help="1 = tensors the weights lack are initialised")
    add("--my_testing", choices=VERSIONS, help=f"version of a new model (default: {_FRESH_VERSION})")
    add("--vocab_size", type=int, default=0, help="0 = that of the weights or of --model_config")
    for name, words in (("n_layer", "layers"), ("n_embd", "channels")):
        add(f"--{name}", type=int, help=f"{words} (default: {_FRESH[name]}, or as --model_config says)")
    add("--head_size_a", "--head_size", dest="head_size_a", type=int,
        help="channels of a head (default: 64, or as --model_config says)")  # fmt: skip
    add("--head_size_divisor", type=int, default=8, help="x052's divisor before its group norm")
    add("--dim_att", type=int, default=0, help="0 = n_embd")
    for name in ("dim_ffn", "dim_att_lora", "dim_gate_lora", "dim_mv_lora"):
        add(f"--{name}", type=int, default=0, help="0 = the version's rule, or as --model_config says")


def _length_flags(group):
    add = group.add_argument
    add("--ctx_len", type=int, help="tokens of a sample (default: 1024, or as --model_config recommends)")
    add("--my_exit_tokens", type=int, default=0,
        help="tokens of the run; 0 = one pass over the data, or --epoch_count epochs where that is less or --epoch_steps is given;"
        " negative = as many, with the mean of both learning rate rules")  # fmt: skip
    add("--magic_prime", type=int, default=0, help="samples of a pass over the data; 0 = computed from the data")
    add("--epoch_steps", type=int, default=0, help="steps of an epoch; 0, or with --magic_prime: 40320 samples")
    add("--epoch_count", type=int, default=0, help="end after so many epochs at the latest; 0 = no such end")
    add("--epoch_begin", type=int, default=0, help="epochs that --load_model has behind it")
    add("--epoch_save", type=int, default=5, help="write rwkv-N.pth every so many epochs")
    add("--my_exit", type=int, default=99999999, help="end at this epoch at the latest")
    add("--save_dtype", default="", choices=("", "fp32", "bf16", "fp16"), help="type of the weights written; '' = as --precision says")  # fmt: skip
    add("--save_every_seconds", type=float, default=60.0, help="seconds between two writings of the resume state, 0 = at the end of epochs only")


def _optimizer_flags(group):
    add = group.add_argument
    add("--micro_bsz", type=int,
        help="samples of a micro-batch; times --accumulate_grad_batches it must divide 40320 (default: 12, or as --model_config recommends)")  # fmt: skip
    add("--accumulate_grad_batches", type=int, default=1, help="micro-batches of a step")
    add("--lr_init", type=float, help="first learning rate (default: 0.0006, or as --model_config recommends)")
    add("--lr_final", type=float, help="last learning rate (default: 1e-05, or lr_init where that is lower)")
    add("--warmup_steps", type=int, default=-1, help="steps in which the rate rises to the first; -1 = none, 10 when going on from weights without a state")
    add("--beta1", type=float, default=0.9, help="how slowly Adam forgets earlier gradients")
    add("--beta2", type=float, default=0.99, help="how slowly Adam forgets their squares")
    add("--adam_eps", type=float, default=1e-18, help="added to the root in Adam's denominator")
    add("--weight_decay", type=float, default=0.0, help="decay of the matrices (names in .weight), apart from the gradient")
    add("--weight_decay_final", type=float, default=-1.0, help="> 0 = the decay goes there during the run")
    add("--my_pile_edecay", type=int, default=0, help="epoch where the decay by epochs begins (negative --my_exit_tokens)")  # fmt: skip
    add("--grad_clip", type=float, default=1.0, help="largest norm of the gradient, 0 = no limit")
    add("--grad_cp", type=int, default=0, help="1 = recompute activations, less memory")
    add("--precision", choices=("fp32", "tf32", "bf16", "fp16"),
        help="in which a CUDA device computes, and type of the weights written; the CPU computes in fp32 (default: fp32, on a CUDA device bf16)")  # fmt: skip
    add("--train_type", default="", choices=("", "none", "state", "states", "infctx"),
        help="state or states = train initial states only; infctx = samples of any length in memory of --chunk_ctx tokens")  # fmt: skip
    add("--chunk_ctx", type=int, default=512, help="with infctx: tokens after which gradients are cut; the state goes on")


def explicit_sizes(args):
    """dict: the sizes of the model that were given on the command line."""
    values = {name: getattr(args, name) for name in SIZES}
    return {name: value for name, value in values.items() if value is not None and (value or name in _FRESH)}


def fresh_sizes(args):
    """dict: the sizes of a model that neither weights nor a configuration file describe."""
    return _FRESH | explicit_sizes(args)


def _settle_device(args):
    """Decides --device and --precision.  Raises ValueError, DeviceError where --device names a device that is not there."""
    from .. import info
    from ..model import default_precision, full_device

    asked = args.device or ("cpu" if args.accelerator == "cpu" else "auto")
    args.device = full_device(asked)
    if asked == "auto" and args.device == "cpu" and args.accelerator in ("gpu", "cuda"):
        print(f"rwkvtune train: --accelerator {args.accelerator}: {info()['cuda_reason']}; the processor computes", file=sys.stderr)
    args.precision = args.precision or default_precision(args.device)


def settle(args, config):
    """Decides the flags that were left open and names those without effect, in one line on stderr.

    args: the parsed flags, changed in place.  config: `ModelConfig` of --model_config, or None.
    Raises ValueError, DeviceError.
    """
    _settle_device(args)
    for name, (default, field) in _RECOMMENDED.items():
        if getattr(args, name) is None:
            setattr(args, name, getattr(config, field) if config else default)
    args.train_type = {"none": "", "state": "states"}.get(args.train_type, args.train_type)  # RWKV-PEFT's names
    if args.lr_final is None:
        args.lr_final = min(_LR_FINAL, args.lr_init)
    given = [name for name in WITHOUT_EFFECT if getattr(args, name) is not None]
    if given:
        print(f"rwkvtune train: without effect here: {', '.join(f'--{name}' for name in given)}", file=sys.stderr)
    for name, (default, _) in WITHOUT_EFFECT.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    args.version_asked, args.my_testing = args.my_testing, args.my_testing or _FRESH_VERSION
    for name, low in (("epoch_steps", 0), ("epoch_count", 0), ("epoch_begin", 0), ("my_exit", 1), ("magic_prime", 0)):
        if getattr(args, name) < low:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least {low}")
