"""Who hears of every step of a training run: its own logs, TensorBoard, Weights & Biases, and observers of yours.

loss.csv, val.csv and train_log.txt are always written.  After a resume from step n the rows behind n are dropped
first, so that a curve never shows a step twice.  The rest are `Callback`s, handed to `TrainingRun` or to
`RWKVTrainingPipeline.train`; the two that come with the package need `tensorboard` or `wandb` installed.
"""

import math
import re
import time
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


class Callback:
    """Watches a training run.  Subclass it and override what you want to know; every method may be left out.

    An exception raised in a method ends the run as any error does; the state saved last is then the one to go on from.

    >>> class Best(Callback):
    ...     loss = float("inf")
    ...     def on_step(self, step, values):
    ...         self.loss = min(self.loss, values["loss"])
    >>> best = Best()
    >>> best.on_step(1, {"loss": 5.5}); best.on_step(2, {"loss": 5.6}); best.loss
    5.5
    """

    def on_begin(self, run):
        """Before the first step.  run: the `TrainingRun`, with run.trainer, run.arguments (dict) and run.out (Path)."""

    def on_step(self, step, values):
        """After a step.

        step: int, the steps done, those before a resume included.  values: dict of float: loss (nats per token), lr, wd,
        grad_norm (before clipping), tokens (seen in all), tokens_per_second.
        """

    def on_validation(self, step, loss):
        """After the validation loss was measured.  loss: float, nats per token."""

    def on_end(self):
        """After the last step, an interruption or an error; also where `on_begin` failed."""


class TensorBoardCallback(Callback):
    """Writes the numbers of every step for TensorBoard: `tensorboard --logdir DIRECTORY`.

    directory: default "tensorboard" in the run's directory.  Scalars by step: loss, lr, wd, grad_norm,
    tokens_per_second, val_loss.  After a resume, TensorBoard forgets the steps that are made again.
    Raises ImportError where the package `tensorboard` is not installed.
    """

    def __init__(self, directory=None):
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise ImportError(f"TensorBoard cannot be used: pip install tensorboard ({error})") from error
        self._event, self._session, self._summary, self._open = Event, SessionLog, Summary, EventFileWriter
        self.directory, self._writer = directory, None

    def on_begin(self, run):
        self._writer = self._open(str(self.directory or run.out / "tensorboard"), flush_secs=10)
        if run.trainer.steps:
            again = self._session(status=self._session.START)
            self._writer.add_event(self._event(wall_time=time.time(), step=run.trainer.steps + 1, session_log=again))

    def _write(self, step, values):
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=scalars)))

    def on_step(self, step, values):
        self._write(step, {name: value for name, value in values.items() if name != "tokens"})

    def on_validation(self, step, loss):
        self._write(step, {"val_loss": loss})

    def on_end(self):
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WandbCallback(Callback):
    """Logs a run to Weights & Biases, under RWKV-LM's names: loss, lr, wd, Gtokens, kt/s; and val_loss.

    project: the project's name.  The run is called "VOCABULARY ctxCTX_LEN LLAYERS DCHANNELS TIME"; each start of a run
    is one there, its steps counted from the beginning of training.  wandb's own settings hold, e.g. WANDB_MODE=offline.
    Raises ValueError (no name), ImportError where the package `wandb` is not installed; RuntimeError where a run begins and
    wandb refuses.
    """

    def __init__(self, project):
        if not isinstance(project, str) or not project:
            raise ValueError(f"project is {project!r}; it must be the name of a Weights & Biases project")
        try:
            import wandb
        except ImportError as error:
            raise ImportError(f"Weights & Biases cannot be used: pip install wandb ({error})") from error
        self.project, self._wandb, self._run = project, wandb, None

    def on_begin(self, run):
        c = run.trainer.model.config
        name = f"{c.vocab_size} ctx{run.arguments.get('ctx_len', c.ctx_len)} L{c.n_layer} D{c.n_embd} {datetime.now():%Y-%m-%d-%H-%M-%S}"
        try:
            self._run = self._wandb.init(project=self.project, name=name, config=dict(run.arguments), dir=str(run.out), save_code=False)
        except Exception as error:  # no account, no network: its own errors, which nobody here knows by name
            raise RuntimeError(f"Weights & Biases cannot begin a run: {error}; WANDB_MODE=offline needs neither account nor network") from error

    def on_step(self, step, values):
        named = {name: values[name] for name in ("loss", "lr", "wd")}
        named |= {"Gtokens": values["tokens"] / 1e9, "kt/s": values["tokens_per_second"] / 1e3}
        self._run.log(named, step=step)

    def on_validation(self, step, loss):
        self._run.log({"val_loss": loss}, step=step)

    def on_end(self):
        if self._run is not None:
            self._run.finish()
            self._run = None
