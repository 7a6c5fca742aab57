"""The optimizer, which parameters decay, and the learning rate of every step."""

import math

from rwkvtune import Trainer


def is_matrix(shape, n_embd):
    """Whether a parameter is a matrix, and not a vector in disguise.

    A vector of the channels may be stored as (1, 1, C), or head by head as (H, N): it has C numbers and one of its axes, or
    its axes of heads, only say how they lie.

    >>> [is_matrix(shape, 128) for shape in ((1, 1, 128), (2, 64), (128,), (128, 32), (128, 128))]
    [False, False, False, True, True]
    """
    return sum(size > 1 for size in shape) > 1 and math.prod(shape) > n_embd


def parameter_groups(trainer, weight_decay):
    """The groups of a trainer's parameters: matrices decay, vectors never do; the vector of RWKV's decay learns twice as fast.

    RWKV-6's mixing matrices (time_maa_w1 and the like) belong to the vectors they change, and do not decay either.
    Returns list of dicts for `Trainer.set_parameter_groups`, each parameter in one; "name" is decay, no_decay or no_decay_2x.
    """
    weights, n_embd = trainer.model.named_parameters(), trainer.model.config.n_embd
    groups = {}
    for name, (scale, _) in trainer.parameter_rules.items():
        matrix = is_matrix(weights[name].shape, n_embd) and "time_" not in name
        group = ("decay" if matrix else "no_decay") + ("" if scale == 1 else f"_{scale:g}x")
        rule = {"name": group, "params": [], "lr_scale": scale, "weight_decay": weight_decay if matrix else 0.0}
        groups.setdefault(group, rule)["params"].append(name)
    return list(groups.values())


def configure_optimizers(model, training, model_type="rwkv", grad_cp=0, report=print):
    """A `rwkvtune.Trainer` on a model, with the groups above.

    training: `config.BaseTrainingConfig`.  report: told of each group in a line "RWKV Optimizer: Found ...".
    """
    return set_groups(Trainer(model, training.core(grad_cp)), training, model_type, report)


def set_groups(trainer, training, model_type="rwkv", report=print):
    """Sets the groups on a trainer and tells `report` of each; returns the trainer."""
    groups, weights = parameter_groups(trainer, training.weight_decay), trainer.model.named_parameters()
    trainer.set_parameter_groups(groups)
    for group in groups:
        size = sum(weights[name].size for name in group["params"])
        report(
            f"{model_type.upper()} Optimizer: Found {len(group['params'])} tensors / {size:,} params in {group['name']}"
            f" (lr x{group['lr_scale']:g}, wd {group['weight_decay']:g})"
        )
    return trainer


def get_lr(step, training):
    """Learning rate of a step, counted from 0: a linear rise, half a cosine, then min_lr_ratio of the largest.

    >>> from config import BaseTrainingConfig
    >>> training = BaseTrainingConfig(learning_rate=1.0, min_lr_ratio=0.5, warmup_steps=4, max_steps=8)
    >>> [get_lr(step, training) for step in (0, 3, 4, 6, 8, 9)]
    [0.25, 1.0, 1.0, 0.75, 0.5, 0.5]
    """
    highest, lowest = training.learning_rate, training.learning_rate * training.min_lr_ratio
    if step < training.warmup_steps:
        return highest * (step + 1) / training.warmup_steps
    if step > training.max_steps:
        return lowest
    done = (step - training.warmup_steps) / max(1, training.max_steps - training.warmup_steps)
    return lowest + 0.5 * (1 + math.cos(math.pi * done)) * (highest - lowest)
