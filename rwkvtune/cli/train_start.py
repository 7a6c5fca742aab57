"""What a training run starts from: the model configuration asked for, the weights found, and how both are reported.

Weights, first that is there: trainer_state.pth of --proj_dir, its newest rwkv-N.pth, --load_model, model_file of the
configuration, rwkv-init.pth.  Without a configuration rwkv-init.pth is made; with one, weights must exist.
"""

import os
import sys
from collections import namedtuple
from pathlib import Path

from .common import open_weights
from .train_flags import explicit_sizes, fresh_sizes

INIT_NAME = "rwkv-init.pth"
_METHODS = """
💡 Three configuration methods are supported:
   1. Short name: 0.1b, 0.4b, 1.5b, 2.9b, 7.2b
   2. Full name: rwkv7-0.1b, rwkv7-1.5b, ...
   3. File path: /path/to/config.json"""

# kind: "run" (trainer_state.pth), "weights", or "fresh" (path is yet to be written); epoch: epochs the weights have behind them
Start = namedtuple("Start", "kind path epoch")


def _show(text, file=None):
    """Prints, with the marks replaced where the terminal cannot show them."""
    file = file or sys.stdout
    encoding = getattr(file, "encoding", None) or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), file=file)


def requested_config(args):
    """`ModelConfig` of --model_config, None without.  Raises as `load_model_config`."""
    from ..configs.model_loader import load_model_config

    return load_model_config(args.model_config, default_arch=args.default_arch) if args.model_config else None


def show_config_error(name, error):
    """Tells on stderr why a configuration could not be loaded and which ways there are to name one."""
    lines = "\n   ".join(str(error).splitlines())
    _show(f"❌ Error: Unable to load model configuration {name!r}\n   {lines}\n{_METHODS}", sys.stderr)


def asked_weights(args):
    """str: --load_model, '' for none (RWKV-LM's scripts write 0 for that)."""
    return "" if args.load_model in ("", "0") else args.load_model


def _existing(path, whose):
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights not found: {path} ({whose})")
    open_weights(path)
    return path


def _newest_numbered(out):
    found = {int(path.stem[5:]): path for path in out.glob("rwkv-*.pth") if path.stem[5:].isdigit()}
    return max(found.items()) if found else None


def find_start(args, out, config):
    """`Start` of the run in the directory `out`; config: of --model_config or None.

    Raises FileNotFoundError, ValueError where a configuration is given and no weights are.
    """
    from ..loop import STATE_NAME

    if (out / STATE_NAME).exists():
        return Start("run", str(out / STATE_NAME), 0)
    if newest := _newest_numbered(out):
        return Start("weights", str(newest[1]), newest[0] + 1)
    if asked := asked_weights(args):
        return Start("weights", _existing(asked, "--load_model"), args.epoch_begin)
    if config and config.model_file:
        whose = f"model_file of {config.config_source}; --load_model overrides it"
        return Start("weights", _existing(config.model_file, whose), args.epoch_begin)
    if (out / INIT_NAME).exists():
        return Start("weights", str(out / INIT_NAME), 0)
    if config:
        raise ValueError(
            f"no weights: {config.config_source} has no model_file, so give --load_model, or make fresh weights with"
            " --train_stage 1 first"
        )
    return Start("fresh", str(out / INIT_NAME), 0)


def new_model_config(args, config):
    """`ModelConfig` of a model to be initialised: --model_config or the flags, with the sizes given on the command line."""
    from ..config import ModelConfig

    states = args.train_type == "states"
    if config:
        return config.replace(**explicit_sizes(args), ctx_len=args.ctx_len, time_state=states)
    if not args.vocab_size:
        raise ValueError(
            "give --vocab_size (65536 for the RWKV World vocabulary; `rwkvtune prepare` prints that of other data)"
        )
    return ModelConfig(model_type=args.my_testing, ctx_len=args.ctx_len, time_state=states,
                       head_size_divisor=args.head_size_divisor, **fresh_sizes(args))  # fmt: skip


def config_of_start(args, start, config):
    """`ModelConfig` of the model a run starts with, without loading it.  Raises FormatError, ValueError."""
    from ..checkpoint import read_checkpoint
    from ..config import ModelConfig
    from ..model import config_of
    from ..trainer import read_position

    if start.kind == "run":
        return ModelConfig.from_dict(read_position(start.path)["model"])
    sizes_given = config or explicit_sizes(args).keys() & {"n_layer", "n_embd"}
    if start.kind == "fresh" or args.load_partial and sizes_given:
        return new_model_config(args, config)
    found = config_of(read_checkpoint(start.path), start.path, ctx_len=args.ctx_len)
    return found.replace(time_state=args.train_type == "states") if args.load_partial else found


def load_weights(args, start, config, seed):
    """`RWKV` of a `Start` of kind weights or fresh; the latter is written first."""
    from ..checkpoint import read_checkpoint
    from ..model import RWKV
    from ..trainer import trained_in

    where = {"device": args.device, "precision": trained_in(args.precision, args.device)}
    if start.kind == "fresh":
        RWKV(new_model_config(args, config), seed=seed).save(start.path)
    if not args.load_partial or start.kind == "fresh":
        model = RWKV.load(start.path, ctx_len=args.ctx_len, **where)
        if args.train_type == "states" and not model.config.time_state:
            raise ValueError(f"--train_type states: {start.path} has no initial states to train; --load_partial 1 makes them")
        return model
    model = RWKV(config_of_start(args, start, config), seed=seed, **where)
    model.load_state_dict({**model.named_parameters(), **read_checkpoint(start.path)})
    return model


def check_sizes(args, config, found):
    """Raises ValueError where a size asked for, by flag or by --model_config, is not `found`, the model's `ModelConfig`."""
    wanted = {name: (value, f"--{name}") for name, value in explicit_sizes(args).items()}
    for name, value in (config.to_train_config_dict() if config else {}).items():
        wanted.setdefault(name, (value, f"{name} of {config.config_source}"))
    if args.version_asked and args.version_asked not in found.kinds:
        raise ValueError(
            f"--my_testing is {args.version_asked} but the weights to go on with are {' and '.join(found.kinds)}; leave it out, or use"
            " another --proj_dir or other weights"
        )
    told = found.to_dict()  # 0 where the weights do not tell, e.g. the value width of a single layer
    for name, (value, whose) in wanted.items():
        if told[name] not in (0, value):
            raise ValueError(
                f"{whose} is {value} but the weights to go on with have {told[name]}; use another --proj_dir or other weights"
            )


def show_verification(args, config, start):
    """Prints what was understood of --model_config, and the size of the weights."""
    weights = start.path if start else f"{Path(args.proj_dir) / INIT_NAME} (fresh)"
    overridden = config.model_file if start and start.path == asked_weights(args) != config.model_file else None
    lines = [f"✓ Using model config: {config.model_name} ({config.architecture_version})",
             f"✓ Config source: {config.config_source}", f"✓ Model weights: {weights}"]  # fmt: skip
    if overridden:
        lines.append(f"  (Overriding config file: {overridden})")
    lines += [f"✓ Architecture params: {config.n_layer} layers, {config.n_embd} dims, {config.vocab_size} vocab",
              f"✓ LORA dims: att={config.dim_att_lora}, gate={config.dim_gate_lora}, mv={config.dim_mv_lora}",
              f"✓ Training params: ctx_len={args.ctx_len}, batch_size={args.micro_bsz}, lr={args.lr_init}"]  # fmt: skip
    _show("\n".join(lines))
    if start:
        print(f"Size of the weights: {os.path.getsize(start.path) / 1e6:,.1f} MB")
