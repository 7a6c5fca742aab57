"""The weights in the out/ of a run, by name and by age."""

import re
from pathlib import Path

from .errors import FormatError
from .loop import FINAL_NAME, STATE_NAME
from .trainer import read_position

INIT_NAME = "rwkv-init.pth"
_NUMBERED = re.compile(r"rwkv-(\d+)\.pth")


def numbered_weights(directory):
    """list of (epoch, path) of the files rwkv-N.pth, by N.  Others, such as rwkv-best.pth, are passed over."""
    matches = ((_NUMBERED.fullmatch(path.name), path) for path in Path(directory).glob("rwkv-*.pth"))
    return sorted((int(match[1]), path) for match, path in matches if match)


def weights_by_age(directory):
    """list of paths, oldest first: the initial weights, those of each epoch, the final ones.

    Final weights of a run that was then continued stand before the epochs they are older than.
    """
    directory = Path(directory)
    init, final = ([path] if path.exists() else [] for path in (directory / INIT_NAME, directory / FINAL_NAME))
    numbered = numbered_weights(directory)
    later = [path for epoch, path in numbered if final and _is_later(directory, epoch, path, final[0])]
    return init + [path for _, path in numbered if path not in later] + final + later


def _is_later(directory, epoch, path, final):
    """Whether the weights of an epoch were trained longer than the final ones: by their steps, else by their times."""
    try:
        position = read_position(directory / STATE_NAME)["position"]
        data = position["data"]
        return -(-(epoch + 1) * data["magic_prime"] // data["batch_size"]) > position["final_step"]
    except (OSError, FormatError, KeyError, TypeError):
        return path.stat().st_mtime_ns > final.stat().st_mtime_ns
