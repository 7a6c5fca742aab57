"""Learning rate and weight decay as functions of the step, as the RWKV-LM trainers compute them.

With real = step + epoch_begin * epoch_steps, W = warmup_steps and tokens = ctx_len * real_bsz per step:

exit tokens X != 0   p = clamp((real*tokens - W*tokens) / (|X| - W*tokens), 0, 1),  f = lr_final / lr_init
                     lr = lr_init * ((1/2 + f/2) + (1/2 - f/2) * cos(pi * p))
epochs (X = 0)       D = epoch_decay_begin, p = clamp((real - D*epoch_steps - W + 1) / ((epoch_count - D)*epoch_steps - W), 0, 1)
                     lr = lr_init * (lr_final/lr_init)^p, linear when one of the two is 0, constant when they are equal
X < 0                the mean of both
warmup               while step < W: lr *= 0.01 + 0.99 * step / W  (step counts from the start of this run)
weight decay         constant, or wd * (wd_final/wd)^p when wd_final > 0, p being the last one computed above
"""

import math
from dataclasses import dataclass


def _clamp(p):
    return min(1.0, max(0.0, p))


def _ratio(part, whole):
    """part / whole as progress; a schedule without length is over."""
    return _clamp(part / whole) if whole > 0 else 1.0


@dataclass(frozen=True)
class Schedule:
    """Learning rate and weight decay of every step; see the head of this module for the formulas.

    warmup_steps: -1 or 0 = none.  exit_tokens: tokens of the whole run, 0 = by epochs, negative = mean of both.
    epoch_begin: epochs done before this run.  epoch_count 0 = constant learning rate (by epochs only).

    >>> schedule = Schedule(lr_init=6e-4, lr_final=6e-5, warmup_steps=10, exit_tokens=20000, ctx_len=16, real_bsz=8)
    >>> schedule.lr(10), schedule.finished(156), schedule.finished(157)
    (0.0006, False, True)
    """

    lr_init: float
    lr_final: float
    warmup_steps: int = -1
    exit_tokens: int = 0
    ctx_len: int = 1
    real_bsz: int = 1
    epoch_begin: int = 0
    epoch_steps: int = 0
    epoch_count: int = 0
    epoch_decay_begin: int = 0
    weight_decay: float = 0.0
    weight_decay_final: float = -1.0

    def _real(self, step):
        return step + self.epoch_begin * self.epoch_steps

    def _by_tokens(self, step):
        """(lr, progress) of the cosine over exit_tokens."""
        tokens = self.ctx_len * self.real_bsz
        warm = self.warmup_steps * tokens
        p = _ratio(self._real(step) * tokens - warm, abs(self.exit_tokens) - warm)
        f = self.lr_final / self.lr_init if self.lr_init else 0.0
        return self.lr_init * ((0.5 + f / 2) + (0.5 - f / 2) * math.cos(math.pi * p)), p

    def _by_epochs(self, step):
        """(lr, progress) of the decay over epoch_count epochs."""
        begin, end = self.epoch_decay_begin * self.epoch_steps, self.epoch_count * self.epoch_steps
        if self.lr_final == self.lr_init or self.epoch_count == 0:
            return self.lr_init, 0.0
        p = _ratio(self._real(step) - begin - self.warmup_steps + 1, end - begin - self.warmup_steps)
        if self.lr_init == 0 or self.lr_final == 0:
            return self.lr_init + (self.lr_final - self.lr_init) * p, p
        return self.lr_init * math.exp(math.log(self.lr_final / self.lr_init) * p), p

    def _base(self, step):
        """(lr before warmup, progress)."""
        if self.exit_tokens == 0:
            return self._by_epochs(step)
        lr, p = self._by_tokens(step)
        if self.exit_tokens < 0:
            lr = (lr + self._by_epochs(step)[0]) / 2
        return lr, p

    def lr(self, step):
        """Learning rate (float) of the step with this number, counted from 0."""
        lr, _ = self._base(step)
        if step < self.warmup_steps:
            lr *= 0.01 + 0.99 * step / self.warmup_steps
        return lr

    def wd(self, step):
        """Weight decay (float) of the step with this number."""
        if self.weight_decay_final <= 0 or self.weight_decay <= 0:
            return self.weight_decay
        _, p = self._base(step)
        return self.weight_decay * math.exp(math.log(self.weight_decay_final / self.weight_decay) * p)

    def finished(self, step):
        """True when exit_tokens are used up: the step with this number is not to be done."""
        return self.exit_tokens != 0 and self._by_tokens(step)[1] >= 1.0
