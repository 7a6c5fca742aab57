"""configs/config.json of a work directory: the configuration, and what the data were made of and with.

    schema         1
    model, training, data    the fields of ModelConfig, TrainingConfig and DataConfig
    wandb_project  null or text
    vocab_size     of the tokenizer
    data_state     null, or: name or prefix (of the data), total_tokens, num_items, dtype, validation, tokenizer,
                   documents and copies (where they were made here), magic_prime and exit_tokens (where they were given)
"""

import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from .atomic import atomic_write, reading
from .config import DataConfig, ModelConfig, TrainingConfig
from .errors import FormatError

SCHEMA = 1
_PARTS = {"model": ModelConfig, "training": TrainingConfig, "data": DataConfig}
_ADVICE = "correct it, or delete it to start from the defaults"
_DATA_STATE = {"name": str, "prefix": str, "total_tokens": int, "num_items": int, "dtype": str, "validation": bool, "tokenizer": dict,
               "documents": int, "copies": int, "magic_prime": int, "exit_tokens": int}  # fmt: skip
_REQUIRED = ("total_tokens", "tokenizer")


@dataclass
class StoredConfig:
    """What a configuration file holds; a part that is not in it is None, data_state then is {}."""

    model: ModelConfig | None = None
    training: TrainingConfig | None = None
    data: DataConfig | None = None
    wandb_project: str | None = None
    data_state: dict = field(default_factory=dict)

    @classmethod
    def read(cls, path):
        """The contents of a file, empty where there is none.  Raises FormatError naming file, part and field, OSError."""
        try:
            with reading(path):
                stored = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path}: not valid JSON ({error}); {_ADVICE}") from error
        if not isinstance(stored, dict):
            raise FormatError(f"{path}: holds a {type(stored).__name__} and not an object; {_ADVICE}")
        schema = stored.get("schema", SCHEMA)
        if type(schema) is not int or schema > SCHEMA:
            raise FormatError(f"{path}: schema is {schema!r}; this version of rwkvtune reads up to {SCHEMA}")
        parts = {name: _part(path, name, kind, stored[name]) for name, kind in _PARTS.items() if name in stored}
        project, state = stored.get("wandb_project"), stored.get("data_state")
        if project is not None and not isinstance(project, str):
            raise FormatError(f"{path}: wandb_project is {project!r}; it must be text or null; {_ADVICE}")
        return cls(**parts, wandb_project=project, data_state=_checked_state(path, state))

    def is_in(self, path, vocab_size):
        """Whether a file says this already.  vocab_size: of the tokenizer."""
        try:
            return Path(path).read_text(encoding="utf-8") == self._text(vocab_size)
        except (FileNotFoundError, UnicodeDecodeError):
            return False

    def write(self, path, vocab_size):
        """Replace the file.  vocab_size: of the tokenizer.  Raises OSError with the path."""
        with atomic_write(path, "w") as file:
            file.write(self._text(vocab_size))

    def _text(self, vocab_size):
        model = {name: value for name, value in self.model.to_dict().items() if name != "config_dict"}
        stored = {
            "schema": SCHEMA, "model": model, "training": self.training.to_dict(), "data": self.data.to_dict(),
            "wandb_project": self.wandb_project, "vocab_size": int(vocab_size), "data_state": self.data_state or None,
        }  # fmt: skip
        return json.dumps(stored, indent=2, ensure_ascii=False) + "\n"


def _part(path, name, kind, values):
    if not isinstance(values, dict):
        raise FormatError(f"{path}: {name} is {values!r:.80}; it must be an object; {_ADVICE}")
    try:
        return kind.from_dict(values)
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        raise FormatError(f"{path}: {name}: {error}; {_ADVICE}") from error


def _checked_state(path, state):
    if state is None:
        return {}
    advice = "delete the field data_state and prepare the data anew"
    if not isinstance(state, dict):
        raise FormatError(f"{path}: data_state is {state!r:.80}; it must be an object or null; {advice}")
    for name, value in state.items():
        if name in _DATA_STATE and type(value) is not _DATA_STATE[name]:
            raise FormatError(f"{path}: data_state: {name} is {value!r:.80}; it must be {_kind(name)}; {advice}")
    missing = [name for name in _REQUIRED if name not in state]
    if missing or not ("name" in state or "prefix" in state):
        raise FormatError(f"{path}: data_state has no {missing[0] if missing else 'name'}; {advice}")
    if not isinstance(state["tokenizer"].get("class"), str) or type(state["tokenizer"].get("max_value", 0)) is not int:
        raise FormatError(f"{path}: data_state: tokenizer is {state['tokenizer']!r:.80}, which names none; {advice}")
    return state


def _kind(name):
    return {str: "text", int: "an integer", bool: "true or false", dict: "an object"}[_DATA_STATE[name]]


# ---- tokenizers ----


def describe_tokenizer(tokenizer):
    """dict of plain values by which a tokenizer is known again: class, vocab_size, its vocabulary's SHA-256, max_value."""
    spec = {"class": type(tokenizer).__name__, "vocab_size": int(tokenizer.vocab_size)}
    if hasattr(tokenizer, "max_value"):
        spec["max_value"] = int(tokenizer.max_value)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "vocab.txt")
        tokenizer.save_vocab(str(path))
        spec["vocab_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return spec


def tokenizer_from_spec(spec, vocab_path):
    """The tokenizer a directory was prepared with: from its description, or from the vocabulary file it left.

    Raises FormatError where that file holds another vocabulary, or is missing.
    """
    from .data.tokenizers import AngleTokenizer, GenericTokenizer, IntegerTokenizer

    if spec.get("class") == "IntegerTokenizer" and "max_value" in spec:
        return IntegerTokenizer(max_value=spec["max_value"])
    if spec.get("class") == "AngleTokenizer":
        return AngleTokenizer()
    if not Path(vocab_path).exists():
        raise FormatError(f"{vocab_path}: the vocabulary of the prepared data is missing; put it back or give the tokenizer")
    tokenizer = GenericTokenizer(str(vocab_path))
    wanted = spec.get("vocab_sha256")
    if wanted and describe_tokenizer(tokenizer)["vocab_sha256"] != wanted:
        raise FormatError(f"{vocab_path}: not the vocabulary that the data were prepared with; put that back")
    return tokenizer


def same_tokenizer(spec, tokenizer):
    """Whether a tokenizer is the one described (descriptions of earlier versions say less)."""
    now = describe_tokenizer(tokenizer)
    return all(now.get(name) == value for name, value in spec.items())
