"""The environment variables of RWKV trainers, read when asked for and never at import."""

import os

from ..config import VERSIONS

_NUMBERS = {"RWKV_HEAD_SIZE": "head_size_a", "RWKV_HEAD_SIZE_A": "head_size_a", "RWKV_CTXLEN": "ctx_len"}
_WORDS = {
    "RWKV_MY_TESTING": ("model_type", VERSIONS),
    "RWKV_TRAIN_TYPE": ("train_type", ("", "normal", "none", "state", "states", "infctx")),
    "RWKV_FLOAT_MODE": ("precision", ("fp32", "tf32", "bf16", "fp16")),
    "RWKV_JIT_ON": (None, ("0", "1", "")),  # nothing here is compiled at run time
}


def read_environment(environ=None):
    """dict setting -> value of the variables that are set: head_size_a, ctx_len (int), model_type, train_type, precision.

    environ: mapping (default: os.environ).  RWKV_HEAD_SIZE_A wins over RWKV_HEAD_SIZE; RWKV_JIT_ON is accepted and changes
    nothing.  Raises ValueError naming the variable, its value and what is allowed.
    """
    environ, settings = os.environ if environ is None else environ, {}
    for name, target in _NUMBERS.items():
        if environ.get(name):
            if not environ[name].isdecimal() or int(environ[name]) < 1:
                raise ValueError(f"environment variable {name} is {environ[name]!r}; it must be a number of at least 1")
            settings[target] = int(environ[name])
    for name, (target, allowed) in _WORDS.items():
        value = environ.get(name)
        if value is None:
            continue
        if value not in allowed:
            raise ValueError(
                f"environment variable {name} is {value!r}; allowed are {', '.join(word for word in allowed if word)}"
            )
        if target and value:
            settings[target] = value
    return settings


def environment_report(environ=None):
    """list of lines "  NAME=value" for the variables of `read_environment` that are set."""
    environ = os.environ if environ is None else environ
    return [f"  {name}={environ[name]}" for name in (*_NUMBERS, *_WORDS) if name in environ]
