"""Parameter groups of hybrid models: which parameters train with which multiple of the learning rate and which decay.

Two tables are in use, m being rwkv_lr_multiplier; what no row names keeps its own settings.

part          parameters                                    TrainingEngine           RWKVIntegrator
time_decay    decay of the RWKV time mix                    1.5 m, no decay          1.5 m, no decay
time_mix      token shift of the time mix                   1.2 m, att / 2           m, att / 2
time_first    bonus of the current token                    1.2 m, att / 2           (att)
channel_mix   token shift of the channel mix                m, ffn / 2               (time_mix)
att           everything else of time mix or attention      m, att                   m, att
ffn           everything else of channel mix or MLP         m, ffn                   m, ffn
"""

import logging
import re

log = logging.getLogger(__name__)

_DECAY = re.compile(r"att\.(w[012]|time_decay\w*)$")
_SHIFT = re.compile(r"\.(x_[rwkvag]|time_(mix|maa)\w*)$")
_BONUS = re.compile(r"att\.(r_k|time_faaaa|time_first)$")

# part -> (multiple of m, decay: "att" or "ffn" or None, factor of that decay)
ENGINE = {
    "time_decay": (1.5, None, 0.0), "time_mix": (1.2, "att", 0.5), "time_first": (1.2, "att", 0.5),
    "channel_mix": (1.0, "ffn", 0.5), "att": (1.0, "att", 1.0), "ffn": (1.0, "ffn", 1.0),
}  # fmt: skip
INTEGRATOR = {
    "time_decay": (1.5, None, 0.0), "time_mix": (1.0, "att", 0.5), "time_first": (1.0, "att", 1.0),
    "channel_mix": (1.0, "att", 0.5), "att": (1.0, "att", 1.0), "ffn": (1.0, "ffn", 1.0),
}  # fmt: skip


def part_of(name):
    """The part of a model a parameter belongs to, by its name; "other" outside time mix, attention, channel mix and MLP.

    >>> [part_of(name) for name in ("blocks.0.att.w0", "blocks.1.att.x_r", "blocks.1.ffn.x_k", "blocks.2.ffn.key.weight")]
    ['time_decay', 'time_mix', 'channel_mix', 'ffn']
    """
    block = re.match(r"blocks\.\d+\.(att|ffn)\.", name)
    if not block:
        return "other"
    if _DECAY.search(name):
        return "time_decay"
    if _BONUS.search(name):
        return "time_first"
    if _SHIFT.search(name):
        return "time_mix" if block[1] == "att" else "channel_mix"
    return block[1]


def rwkv_groups(names, table, rwkv_lr_multiplier, att_weight_decay, ffn_weight_decay):
    """Groups for `Trainer.set_parameter_groups`.

    names: of the parameters.  table: `ENGINE` or `INTEGRATOR`.  rwkv_lr_multiplier, att_weight_decay, ffn_weight_decay:
    numbers of at least 0.  Returns list of dicts: name, params, lr_scale, weight_decay; parts without parameters are left out.
    """
    decays = {"att": att_weight_decay, "ffn": ffn_weight_decay, None: 0.0}
    groups = []
    for part, (scale, decay, factor) in table.items():
        params = [name for name in names if part_of(name) == part]
        if params:
            groups.append(
                {
                    "name": part,
                    "params": params,
                    "lr_scale": scale * rwkv_lr_multiplier,
                    "weight_decay": factor * decays[decay],
                }
            )
    return groups


def setup_groups(trainer, table, rwkv_lr_multiplier, att_weight_decay, ffn_weight_decay):
    """Sets the groups of a table on a trainer; its moments stay.  Returns the trainer.

    Each group is told to the log of this module as "RWKV Optimizer: Found ...".  Raises ValueError (a number).
    """
    from ..trainer import Trainer

    if not isinstance(trainer, Trainer):
        raise ValueError(
            f"optimizer is a {type(trainer).__name__}; it must be a rwkvtune.Trainer, which holds model and optimizer"
        )
    given = {
        "rwkv_lr_multiplier": rwkv_lr_multiplier,
        "att_weight_decay": att_weight_decay,
        "ffn_weight_decay": ffn_weight_decay,
    }
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
            raise ValueError(f"{name} is {value!r}; it must be a number of at least 0")
    groups = rwkv_groups(trainer.parameter_rules, table, *given.values())
    trainer.set_parameter_groups(groups)
    grouped = 0
    for group in groups:
        grouped += len(group["params"])
        log.info("RWKV Optimizer: Found %d %s parameters (learning rate x %g, weight decay %g)", len(group["params"]), group["name"],
                 group["lr_scale"], group["weight_decay"])  # fmt: skip
    log.info("RWKV Optimizer: Found %d other parameters (as they were)", len(trainer.parameter_rules) - grouped)
    return trainer
