"""What several commands share: finding a model and its tokenizer, text that arrives token by token."""

import codecs
import json
import sys
from pathlib import Path


def model_options(parser):
    """The arguments of every command that loads a model."""
    parser.add_argument("model", help="a .pth or .safetensors file, or a work directory (its newest checkpoint)")
    parser.add_argument("--vocab", default="", help="vocabulary file; a work directory brings its own")
    parser.add_argument(
        "--precision", default="fp32", choices=("fp32", "bf16", "fp16"), help="type the weights are rounded to"
    )
    parser.add_argument(
        "--backend", default="cpu", choices=("cpu", "ref"), help="ref is the slow textbook implementation"
    )


def work_dir_of(path):
    """The work directory a path is, or lies in the out/ of; None otherwise."""
    path = Path(path)
    candidates = [path, path.parent] if path.is_dir() else [path.parent.parent, path.parent]
    return next((directory for directory in candidates if (directory / "configs" / "config.json").exists()), None)


def load_model(args):
    """(model, tokenizer or None) for the arguments of `model_options`.  Raises FileNotFoundError, FormatError."""
    from ..model import RWKV

    directory, path = work_dir_of(args.model), Path(args.model)
    stored = _stored_config(directory / "configs" / "config.json") if directory else {}
    if path.is_dir():
        path = newest_checkpoint(directory / "out" if directory else path)
    ctx_len = stored["model"].get("ctx_len") if stored else None
    model = RWKV.load(path, precision=args.precision, backend=args.backend, **({"ctx_len": ctx_len} if ctx_len else {}))
    return model, _tokenizer(args.vocab, stored, directory)


def _stored_config(path):
    """The dict in a work directory's config.json.  Raises FormatError naming the file."""
    from ..errors import FormatError

    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored["model"], dict):
            raise TypeError("model is no object")
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path}: not the configuration of a work directory ({error}); correct it or delete it") from error
    return stored


def newest_checkpoint(directory):
    """The file of a directory's final, else newest numbered, else initial weights.  Raises FileNotFoundError."""
    found = {path.stem[5:]: path for path in Path(directory).glob("rwkv-*.pth")}
    numbers = sorted((name for name in found if name.isdigit()), key=int)
    for name in ("final", *reversed(numbers), "init"):
        if name in found:
            return found[name]
    raise FileNotFoundError(f"no rwkv-*.pth in {directory}")


def _tokenizer(vocab, stored, directory):
    if vocab:
        from ..data.tokenizers import GenericTokenizer

        return GenericTokenizer(vocab)
    spec = (stored.get("data_state") or {}).get("tokenizer")
    if not spec:
        return None
    from ..pipeline import tokenizer_from_spec

    return tokenizer_from_spec(spec, directory / "data" / "vocab.txt")


class TextStream:
    """Writes tokens as text as they come; a character is written once all of its bytes are there.

    tokenizer: its tokens are bytes (GenericTokenizer: by_bytes is True) or words put apart by spaces; None = ids.
    """

    def __init__(self, tokenizer, file=None):
        from ..data.tokenizers import GenericTokenizer

        self._tokenizer, self._file = tokenizer, file or sys.stdout
        self.by_bytes = isinstance(tokenizer, GenericTokenizer)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._first = True

    def __call__(self, token):
        if self.by_bytes:
            text = self._decoder.decode(self._tokenizer.decodeBytes([token]))
        else:
            text = ("" if self._first else " ") + (self._tokenizer.decode([token]) if self._tokenizer else str(token))
        self._first = False
        self._file.write(text)
        self._file.flush()

    def close(self):
        self._file.write(self._decoder.decode(b"", True) + "\n")
        self._file.flush()
