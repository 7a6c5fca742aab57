"""What a training run writes beside its checkpoints: loss.csv, val.csv, train_log.txt.

After a resume from step n the rows behind n are dropped first, so that a curve never shows a step twice.
"""

import math
import re
from datetime import datetime
from pathlib import Path

from .atomic import atomic_write

_EPOCH_LINE = re.compile(r"(\d+) -?[\d.naif]+ [\d.naief+]+ [\d.]+ \d{4}-\d\d-\d\d ")


class CsvLog:
    """A CSV file with one row per event, first column the step, each row on the disk's way as soon as it is written."""

    def __init__(self, path, columns, after_step):
        """columns: their names.  after_step: rows of later steps, and a torn last row, are dropped."""
        self.path, header = Path(path), ",".join(columns)
        kept = self._kept(header, len(columns), after_step) if self.path.exists() else []
        with atomic_write(self.path, "w") as file:
            file.writelines(f"{line}\n" for line in (header, *kept))
        self._file = open(self.path, "a", encoding="utf-8", newline="")

    def _kept(self, header, width, after_step):
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        if lines[0] != header:
            return []
        rows = (line for line in lines[1:-1] if line.count(",") == width - 1)
        return [row for row in rows if row.split(",")[0].isdigit() and int(row.split(",")[0]) <= after_step]

    def write(self, *values):
        """One row; floats in the shortest form that reads back exactly."""
        self._file.write(",".join(repr(v) if isinstance(v, float) else str(v) for v in values) + "\n")
        self._file.flush()

    def close(self):
        self._file.close()


class TrainLog:
    """RWKV-LM's train_log.txt: "NEW RUN" and the arguments, then a line per epoch."""

    def __init__(self, path, arguments, epochs_done):
        """arguments: dict.  epochs_done: the lines of this epoch and later ones are dropped, as they come again."""
        self.path = Path(path)
        self._first_epoch = epochs_done
        if self.path.exists():
            self._drop(epochs_done)
        self._append(f"NEW RUN {datetime.now():%Y-%m-%d-%H-%M-%S}\n{arguments!r}\n")

    def _drop(self, epochs_done):
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        found = [_EPOCH_LINE.match(line) for line in lines]
        kept = [line for line, epoch in zip(lines, found) if not epoch or int(epoch[1]) < epochs_done]
        if len(kept) < len(lines):
            with atomic_write(self.path, "w") as file:
                file.writelines(kept)

    def _append(self, text):
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(text)

    def epoch(self, epoch, loss, lr):
        """The line of an epoch: number, mean loss, its exponential, learning rate, time, number within this run."""
        perplexity = math.exp(loss) if loss < 700 else math.inf
        now = f"{datetime.now():%Y-%m-%d %H:%M:%S.%f}"
        self._append(f"{epoch} {loss:.6f} {perplexity:.4f} {lr:.8f} {now} {epoch - self._first_epoch}\n")
