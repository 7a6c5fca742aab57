"""How the next token is chosen: the options, and the core's samplers made of them."""

import math
from dataclasses import dataclass, field
from numbers import Real

import numpy as np

from . import _rwkvcore

_RANGES = {
    "temperature": (0, math.inf), "top_p": (0, 1), "top_k": (0, 2**31 - 1), "min_p": (0, 1), "typical_p": (0, 1),
    "repetition_penalty": (0, math.inf), "presence_penalty": (-math.inf, math.inf), "frequency_penalty": (-math.inf, math.inf),
    "penalty_decay": (0, 1),
}  # fmt: skip


@dataclass(frozen=True)
class SamplingOptions:
    """Which tokens may follow, and with what weights; applied in this order, from the last to the first.

    temperature: 0 = always the likeliest; other probabilities are raised to the power of 1/temperature.
    top_p: smallest set of likeliest tokens with more than that much probability, 1 = all.  top_k: at most so many, 0 = all.
    min_p: only tokens with at least this share of the likeliest one's probability, 0 = all.
    typical_p: of what is left, the tokens nearest to the expected surprise, with that much probability, 1 = all.
    repetition_penalty: logits of tokens in the prompt or the text, divided by it where positive, times it where negative; 1 = none.
    presence_penalty, frequency_penalty: taken off the logits of tokens already generated, once, and per occurrence.
    penalty_decay: what is left of an occurrence after each token (`alpha_decay` elsewhere).
    logit_bias: dict, id -> number added to its logit; -inf forbids it.  banned_tokens: ids that are never chosen.
    Raises ValueError naming the option.
    """

    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_decay: float = 0.996
    logit_bias: dict = field(default_factory=dict)
    banned_tokens: tuple = ()

    def __post_init__(self):
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (Real, np.number)) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}; it must be a number in [{low}, {high}]")
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value!r}; it must be finite")
        if not hasattr(self.top_k, "__index__"):
            raise ValueError(f"top_k is {self.top_k!r}; it must be an integer")
        if self.repetition_penalty == 0:
            raise ValueError("repetition_penalty is 0; it must be greater, 1 = none")

    def _biases(self, vocab_size):
        """(ids, numbers) of what is added to logits, arrays of the core's types."""
        bias = {token_id("logit_bias", token, vocab_size): value for token, value in dict(self.logit_bias).items()}
        for token, value in bias.items():
            if isinstance(value, bool) or not isinstance(value, (Real, np.number)) or not value < math.inf:
                raise ValueError(f"logit_bias[{token}] is {value!r}; it must be a number, or -inf to forbid the token")
        bias |= {token_id("banned_tokens", token, vocab_size): -math.inf for token in self.banned_tokens}
        return np.array(list(bias), np.int32), np.array(list(bias.values()), np.float32)

    def sampler(self, vocab_size, seed, prompt):
        """The core's sampler of one sequence.  prompt: int32 ids.  Raises ValueError (ids out of range)."""
        ids, bias = self._biases(vocab_size)
        penalised = np.unique(prompt) if self.repetition_penalty != 1 else None
        names = [name for name in _RANGES if name != "top_k"]
        numbers = {name: float(getattr(self, name)) for name in names}
        return _rwkvcore.Sampler(vocab_size, **numbers, top_k=int(self.top_k), seed=seed, bias_tokens=ids, bias=bias, prompt=penalised)


def token_id(name, value, vocab_size=2**31):
    """One id of an argument called `name`.  Raises ValueError where it is no integer in [0, vocab_size)."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or not 0 <= value < vocab_size:
        raise ValueError(f"{name} holds {value!r}; token ids are integers in [0, {vocab_size})")
    return int(value)
