"""The training run: steps over a dataset with a progress bar, logs, checkpoints, and a way back from any interruption.

Everything a step does is a function of its absolute number: which samples, which learning rate.  The resume state
(`trainer_state.pth`) alone says how far a run is.  A checkpoint of the weights is written before the state that knows
of it, so a kill between the two only means that the same bits are computed and written once more.
"""

import math
import signal
import sys
import threading
import time
import zlib
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from .atomic import interrupts_wait
from .callbacks import CsvLog, TrainLog
from .errors import FormatError
from .plotting import plot_loss
from .trainer import evaluate

STATE_NAME, FINAL_NAME = "trainer_state.pth", "rwkv-final.pth"
PICTURE_SECONDS = 60  # drawing takes most of a second
LOSS_COLUMNS = ("step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second")


class BinIdxBatches:
    """Batches of a bin/idx dataset in the magic prime order, as a function of the step.

    dataset: `BinIdxDataset`.  ctx_len: tokens of a sample.  batch_size: samples of a step.
    magic_prime: default by rule; also the number of samples of one pass over the data, as `samples`.
    Raises ValueError where the data hold too little for ctx_len.
    """

    def __init__(self, dataset, ctx_len, batch_size, magic_prime=None):
        from .data.binidx import MagicPrimeSampler, compute_magic_prime

        prime = magic_prime or compute_magic_prime(dataset.total_tokens, ctx_len)
        if prime is None:
            raise ValueError(
                f"Dataset too small for ctx_len={ctx_len}: total_tokens={dataset.total_tokens}."
                f" Need at least {3 * ctx_len} tokens, or a smaller ctx_len."
            )
        self.dataset, self.ctx_len, self.batch_size, self.samples = dataset, ctx_len, batch_size, prime
        self._sampler = MagicPrimeSampler(dataset.total_tokens, ctx_len, magic_prime=prime, micro_bsz=batch_size)

    def __call__(self, step):
        """(ids, targets), int32 (batch_size, ctx_len), of the step with this number."""
        return self._sampler.batch(self.dataset, 0, step * self.batch_size, self.batch_size)

    def identity(self):
        """dict of plain values by which a resumed run recognises its data."""
        return {"tokens": int(self.dataset.total_tokens), "check": self._check(), "ctx_len": self.ctx_len,
                "batch_size": self.batch_size, "magic_prime": int(self.samples)}  # fmt: skip

    def _check(self):
        """CRC of the first and the last million tokens."""
        total = self.dataset.total_tokens
        step = min(total, 1 << 20)
        first, last = (self.dataset.stream(at, step) for at in (0, total - step))
        return zlib.crc32(last.tobytes(), zlib.crc32(first.tobytes()))


@dataclass
class RunPlan:
    """How long a run is and what it writes when.

    schedule: `Schedule`.  total_steps: where it ends.  epoch_samples, batch_size: samples of an epoch and of a step.
    epoch_save: weights every so many epochs, 0 = at the end only.  first_step: the step that is the schedule's step 0.
    """

    schedule: object
    total_steps: int
    epoch_samples: int
    batch_size: int
    epoch_save: int = 1
    first_step: int = 0

    def epochs_done(self, step):
        """Epochs done after `step` steps."""
        return step * self.batch_size // self.epoch_samples


class TrainingRun:
    """Runs a plan with a trainer, writing into a directory.

    trainer: `Trainer`, fresh or resumed.  batches: step -> (ids, targets); its `identity()` is kept in the state.
    plan: `RunPlan`.  out_dir: existing directory.  validation: 1-D ids of a held-out text, or None.
    arguments: dict for the head of train_log.txt.  how_to_resume: one line, shown after an interruption.
    progress: show the bar.  save_dtype: of the checkpoints.  callbacks: `rwkvtune.Callback`s to tell of every step.
    Raises ValueError where a resumed trainer saw other data, OSError.
    """

    def __init__(self, trainer, batches, plan, out_dir, *, validation=None, arguments=None, how_to_resume="", progress=True,
                 save_dtype="fp32", callbacks=()):  # fmt: skip
        self.trainer, self.batches, self.plan, self.out = trainer, batches, plan, Path(out_dir)
        self.validation, self.arguments, self.how_to_resume = validation, arguments or {}, how_to_resume
        for callback in callbacks:
            if isinstance(callback, type):
                raise ValueError(f"callbacks holds the class {callback.__name__}; give one of its objects, {callback.__name__}(...)")
        self.progress, self.save_dtype, self.callbacks = progress, save_dtype, tuple(callbacks)
        self._stop, self._drawn_at = False, time.monotonic()
        place = trainer.position
        identity = batches.identity()
        if place.get("data", identity) != identity:
            raise ValueError(
                f"the run in {self.out} was training on other data or in other batches ({place['data']}, now {identity});"
                " restore them, or start a new run in another directory"
            )
        place.setdefault("data", identity)
        place.setdefault("epoch_loss", [0.0, 0])

    # ---- files ----

    @property
    def state_path(self):
        """The file that `Trainer.resume` reads."""
        return self.out / STATE_NAME

    def _save_state(self):
        self.trainer.save(self.state_path)
        self._saved_at, self._saved_step = time.monotonic(), self.trainer.steps

    def _save_weights(self, name):
        self.trainer.save_weights(self.out / name, dtype=self.save_dtype)

    def _save_final(self):
        self._save_weights(FINAL_NAME)
        self.trainer.position["final_step"] = self.trainer.steps

    def _picture(self):
        self._drawn_at = time.monotonic()
        plot_loss(self.out / "loss.csv", self.out / "loss.png", self.out / "val.csv")

    # ---- running ----

    def run(self):
        """Run to the end of the plan.  Returns "finished" or "interrupted" (Ctrl-C or SIGTERM: the step is completed
        and the state saved; a second Ctrl-C raises KeyboardInterrupt at once).
        Raises FloatingPointError (see `Trainer.step`), OSError.
        """
        steps = self.trainer.steps
        for left_over in self.out.glob(".*.tmp"):  # of writes that a kill cut short
            left_over.unlink()
        self._loss_log = CsvLog(self.out / "loss.csv", LOSS_COLUMNS, steps)
        self._val_log = CsvLog(self.out / "val.csv", ("step", "loss"), steps) if self.validation is not None else None
        try:
            self._train_log = TrainLog(self.out / "train_log.txt", self.arguments, self.plan.epochs_done(steps))
            self._save_state()
            for callback in self.callbacks:
                callback.on_begin(self)
            with _Signals(self), self._bar() as bar:
                self._steps(bar)
        finally:
            for callback in self.callbacks:
                callback.on_end()
            self._loss_log.close()
            if self._val_log:
                self._val_log.close()
        if steps >= self.plan.total_steps and not (self.out / FINAL_NAME).exists():
            self._save_final()
            self._save_state()
        with interrupts_wait():
            self._picture()
        if self._stop and self.trainer.steps < self.plan.total_steps:
            print(
                f"Stopped after step {self.trainer.steps} of {self.plan.total_steps}; everything is saved in {self.out}.",
                file=sys.stderr,
            )
            if self.how_to_resume:
                print(self.how_to_resume, file=sys.stderr)
            return "interrupted"
        return "finished"

    def _bar(self):
        from tqdm.auto import tqdm

        quick = sys.stderr.isatty() or "ipykernel" in sys.modules  # a notebook shows the bar in place, as a terminal does
        return tqdm(total=self.plan.total_steps, initial=self.trainer.steps, unit="step", disable=not self.progress, dynamic_ncols=quick,
                    mininterval=0.5 if quick else 10.0)  # fmt: skip

    def _steps(self, bar):
        recent, speed = deque(maxlen=50), None
        while self.trainer.steps < self.plan.total_steps and not self._stop:
            began = time.monotonic()
            number = self.trainer.steps
            ids, targets = self.batches(number)
            schedule, at = self.plan.schedule, number - self.plan.first_step
            lr = schedule.lr(at)
            wd = schedule.wd(at)
            loss, norm = self.trainer.step(ids, targets, lr=lr, weight_decay=wd)
            rate = ids.size / max(1e-9, time.monotonic() - began)
            speed = rate if speed is None else 0.95 * speed + 0.05 * rate
            self._loss_log.write(self.trainer.steps, self.trainer.tokens, loss, lr, norm, round(rate, 1))
            values = {"loss": loss, "lr": lr, "wd": wd, "grad_norm": norm, "tokens": self.trainer.tokens, "tokens_per_second": rate}
            for callback in self.callbacks:
                callback.on_step(self.trainer.steps, values)
            self._count_epoch_loss(loss)
            recent.append(loss)
            bar.set_postfix_str(f"loss {sum(recent) / len(recent):.4f}, lr {lr:.2e}, {speed:,.0f} tok/s", refresh=False)
            bar.update()
            self._after_step(lr)
        if self._stop and self._saved_step != self.trainer.steps:
            self._save_state()

    def _count_epoch_loss(self, loss):
        total, count = self.trainer.position["epoch_loss"]
        if math.isfinite(loss):
            self.trainer.position["epoch_loss"] = [total + loss, count + 1]

    def _after_step(self, lr):
        """Whatever is due now: validation, the end of an epoch, the end of the run, the periodic state."""
        done, config = self.trainer.steps, self.trainer.config
        last = done >= self.plan.total_steps
        epochs = self.plan.epochs_done(done)
        new_epoch = epochs > self.plan.epochs_done(done - 1)
        every = config.eval_every_steps
        if self._val_log and (last or (done % every == 0 if every else new_epoch)):
            loss = evaluate(self.trainer.model, self.validation)[0]
            self._val_log.write(done, loss)
            for callback in self.callbacks:
                callback.on_validation(done, loss)
        if new_epoch:
            self._end_epoch(epochs - 1, lr)
        if last:
            self._save_final()
        due = config.save_every_steps and done % config.save_every_steps == 0
        due = due or config.save_every_seconds and time.monotonic() - self._saved_at >= config.save_every_seconds
        if new_epoch or last or due:
            self._save_state()
        if new_epoch and time.monotonic() - self._drawn_at > PICTURE_SECONDS:
            self._picture()

    def _end_epoch(self, epoch, lr):
        total, count = self.trainer.position["epoch_loss"]
        self._train_log.epoch(epoch, total / count if count else float("nan"), lr)
        self.trainer.position["epoch_loss"] = [0.0, 0]
        last = self.trainer.steps >= self.plan.total_steps
        if self.plan.epoch_save and (epoch % self.plan.epoch_save == 0 or last):
            self._save_weights(f"rwkv-{epoch}.pth")


class _Signals:
    """While open, the first Ctrl-C or SIGTERM asks the run to stop after its step; the second Ctrl-C interrupts."""

    def __init__(self, run):
        self._run, self._old = run, {}

    def _handle(self, number, frame):
        if self._run._stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._run._stop = True
        print("\nStopping after this step and saving; Ctrl-C again stops at once.", file=sys.stderr)

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error):
        for number, handler in self._old.items():
            signal.signal(number, handler)


def resume_or_none(out_dir, device="cpu", precision=None):
    """The trainer of the run in `out_dir`, None where there is no state; device, precision: as in `Trainer.resume`.

    Raises FormatError with advice, OSError, DeviceError.
    """
    from .trainer import Trainer

    path = Path(out_dir) / STATE_NAME
    if not path.exists():
        return None
    try:
        return Trainer.resume(path, device, precision)
    except FormatError as error:
        raise FormatError(f"{error}; delete it to start this run afresh") from error
