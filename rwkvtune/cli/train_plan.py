"""How long a run of `rwkvtune train` is, and what --dry_run tells about it.

The time of a step is measured on short pieces of text, 32 tokens and then twice as many until a piece takes long
enough or is a whole micro-batch, and continued along the straight line through the last two.
"""

import os
import time

EPOCH_SAMPLES = 40320
_ENOUGH_SECONDS = 1.0
_FIRST_TOKENS = 32


def epoch_samples(args, batch_size):
    """Samples of an epoch: RWKV-LM's 40320, or --epoch_steps steps where no --magic_prime is given.  Raises ValueError."""
    if args.epoch_steps and not args.magic_prime:
        return args.epoch_steps * batch_size
    if EPOCH_SAMPLES % batch_size:
        raise ValueError(
            f"micro_bsz x accumulate_grad_batches is {batch_size}; it must divide {EPOCH_SAMPLES} (for example 8, 12, 16),"
            " or give --epoch_steps"
        )
    return EPOCH_SAMPLES


def run_plan(args, epoch_begin, config, total_tokens):
    """`RunPlan`: RWKV-LM's schedule, whose warmup counts from where the optimizer started.

    args: the settled flags.  epoch_begin: epochs the first weights had behind them.  config: `TrainingConfig`.
    total_tokens: of the data.  Raises ValueError.
    """
    from ..loop import RunPlan
    from ..schedule import Schedule

    samples = epoch_samples(args, config.batch_size)
    epoch_steps, step_tokens = samples // config.batch_size, args.ctx_len * config.batch_size
    limit = min(args.my_exit, args.epoch_count or args.my_exit) * epoch_steps
    own_epochs = args.epoch_steps and args.epoch_count and not args.magic_prime
    exit_tokens = args.my_exit_tokens
    if not exit_tokens:
        exit_tokens = limit * step_tokens if own_epochs else min(int(total_tokens), limit * step_tokens)
    prime_epochs = max(1, total_tokens // args.ctx_len // samples)
    warmup = 10 if epoch_begin and config.warmup_steps < 0 else config.warmup_steps
    schedule = Schedule(lr_init=config.lr_init, lr_final=config.lr_final, warmup_steps=warmup, exit_tokens=exit_tokens, ctx_len=args.ctx_len,
                        real_bsz=config.batch_size, epoch_begin=epoch_begin, epoch_steps=epoch_steps,
                        epoch_count=args.epoch_count if own_epochs else prime_epochs, epoch_decay_begin=args.my_pile_edecay,
                        weight_decay=config.weight_decay, weight_decay_final=config.weight_decay_final)  # fmt: skip
    total = min(-(-abs(exit_tokens) // step_tokens), limit)
    return RunPlan(schedule, total, samples, config.batch_size, config.epoch_save, first_step=epoch_begin * epoch_steps)


def available_memory(device="cpu"):
    """Bytes that can still be had on this machine or device, None where it cannot tell."""
    if device != "cpu":
        from .. import _rwkvcore

        return _rwkvcore.device_memory(int(device.partition(":")[2]))[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            kilobytes = next(line.split()[1] for line in file if line.startswith("MemAvailable:"))
        return int(kilobytes) * 1024
    except (OSError, StopIteration, ValueError):
        pages = getattr(os, "sysconf_names", {}).get("SC_PHYS_PAGES")
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE") if pages is not None else None


def step_seconds(model, config, ctx_len):
    """Seconds of a step of config.batch_size x ctx_len tokens, from shorter ones.  Changes the weights of `model`."""
    import numpy as np

    from ..trainer import Trainer

    trainer = Trainer(model, config.replace(precision=model.precision, micro_bsz=config.batch_size))

    def seconds(rows, length):
        ids = np.arange(rows * length, dtype=np.int32).reshape(rows, length) % model.config.vocab_size
        began = time.perf_counter()
        trainer.step(ids, ids, lr=0.0)
        return time.perf_counter() - began

    rows, length = 1, min(_FIRST_TOKENS, ctx_len)
    seconds(rows, length)  # the first step allocates
    points = [(0, 0.0), (rows * length, seconds(rows, length))]
    while points[-1][1] < _ENOUGH_SECONDS and (rows, length) != (config.micro_bsz, ctx_len):
        rows, length = (1, min(2 * length, ctx_len)) if length < ctx_len else (min(2 * rows, config.micro_bsz), length)
        points.append((rows * length, seconds(rows, length)))
    (n, t), (more, longer) = points[-2:]
    slope = (longer - t) / (more - n) if longer > t else longer / more
    return longer + slope * (config.batch_size * ctx_len - more)


def _bytes(count):
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _duration(seconds):
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, days = minutes // 60, minutes // 1440
    return f"{days} d {hours % 24} h" if days else f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


def _unwritten_model(config, device="cpu", precision="fp32"):
    """A model without initialisation: on the CPU its weights take memory only once a step touches them."""
    from ..model import RWKV

    model = RWKV.__new__(RWKV)
    model._build(config, device, precision, "cpu")
    return model


def _sizes(config, training, ctx_len, device):
    """(model or None, number of parameters, bytes by purpose), also for a model that this machine or device cannot hold."""
    from ..trainer import trained_in

    where, size = (device, trained_in(training.precision, device)), (training.micro_bsz, training.tokens_at_once(ctx_len))
    try:
        model = _unwritten_model(config, *where)
        return model, model.num_parameters, model.plan(*size, grad_cp=training.grad_cp)
    except MemoryError:
        if config.layers or config.n_layer <= 3:
            raise
    # Every layer behind the first is the same, so all sizes lie on the line through those of 2 and 3 layers.
    short = [_unwritten_model(config.replace(n_layer=layers), *where) for layers in (2, 3)]
    plans = [model.plan(*size, grad_cp=training.grad_cp) | {"": model.num_parameters} for model in short]
    sizes = {name: two + (config.n_layer - 2) * (plans[1][name] - two) for name, two in plans[0].items()}
    return None, sizes.pop(""), sizes


def _time(model, config, ctx_len, needed, free, steps):
    """The line of the plan about time.  model: None where this machine cannot hold it."""
    if model is None or free is not None and needed > free:
        return "not measured, the run needs more memory than this machine has free"
    if not steps:
        return "nothing is left to do"
    each = step_seconds(model, config, ctx_len)
    return f"about {_duration(each * steps)}, {config.batch_size * ctx_len / each:,.0f} tokens/s, from a short measurement"


def _run_lines(plan, config, data, done):
    """The lines of the plan about a training run."""
    schedule, left = plan.schedule, max(0, plan.total_steps - done)
    tokens = config.batch_size * schedule.ctx_len
    return {
        "data": data,
        "steps": f"{left:,} of {config.batch_size} x {schedule.ctx_len} tokens, to step {plan.total_steps:,}",
        "tokens": f"{left * tokens:,}",
        "epochs": f"of {plan.epoch_samples:,} samples, weights every {plan.epoch_save} of them",
        "learning rate": f"{schedule.lr_init:g} -> {schedule.lr_final:g} over {abs(schedule.exit_tokens):,} tokens,"
                         f" warmup {max(0, schedule.warmup_steps)} steps",
    }  # fmt: skip


def show_plan(model_config, config, start, plan=None, data="", done=0, device="cpu"):
    """Prints what a run would be.

    model_config: `ModelConfig`.  config: `TrainingConfig`.  start: one line, what it starts from.
    plan: `RunPlan`, None = no training.  data: one line about the data.  done: steps done before.  device: "cpu" or "cuda:N".
    """
    ctx_len, free = plan.schedule.ctx_len if plan else model_config.ctx_len, available_memory(device)
    model, parameters, sizes = _sizes(model_config, config, ctx_len, device)
    lines = {"model": model_config.summary(), "parameters": f"{parameters:,}", "start": start}
    if plan:
        parts = ", ".join(f"{name} {_bytes(size)}" for name, size in sizes.items() if name != "total")
        lines["memory"] = f"{_bytes(sizes['total'])} ({parts})" + (f"; {_bytes(free)} free" if free else "")
        lines |= _run_lines(plan, config, data, done)
        lines["time"] = _time(model, config, ctx_len, sizes["total"], free, max(0, plan.total_steps - done))
    print("Plan (nothing is written)")
    for name, text in lines.items():
        print(f"  {name:14}{text}")
