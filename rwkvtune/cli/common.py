"""What several commands share: finding a model, its tokenizer and data, text that arrives token by token."""

import json
import sys
from pathlib import Path


def model_options(parser):
    """The arguments of every command that loads a model."""
    parser.add_argument("model", help="a .pth or .safetensors file, or a work directory (its newest checkpoint)")
    parser.add_argument(
        "--time_state", default="", help="file of trained initial states (blocks.N.att.time_state) that texts begin from"
    )
    parser.add_argument("--vocab", default="", help="vocabulary file; a work directory brings its own")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N, or auto: a CUDA device where there is one")
    parser.add_argument(
        "--precision", default=None, choices=("file", "fp32", "tf32", "bf16", "fp16", "int8", "int4"),
        help="on the CPU: format the weights are held in, file = as they are stored (default file); on cuda: type of weights and "
        "activations, one of fp32, tf32, bf16, fp16 (default bf16)"
    )  # fmt: skip
    parser.add_argument(
        "--backend", default="cpu", choices=("cpu", "ref"), help="ref is the slow textbook implementation"
    )


def work_dir_of(path):
    """The work directory a path is, or lies in the out/ of; None otherwise."""
    path = Path(path)
    candidates = [path, path.parent] if path.is_dir() else [path.parent.parent, path.parent]
    return next((directory for directory in candidates if (directory / "configs" / "config.json").exists()), None)


def load_model(args):
    """(model, tokenizer or None) for the arguments of `model_options`.  Raises FileNotFoundError, FormatError, ValueError."""
    from ..model import RWKV, full_device

    directory, path = work_dir_of(args.model), Path(args.model)
    stored = _stored_config(directory / "configs" / "config.json") if directory else {}
    if path.is_dir():
        path = newest_checkpoint(directory / "out" if directory else path)
    open_weights(path)
    ctx_len = stored["model"].get("ctx_len") if stored else None
    tokenizer = _tokenizer(args.vocab, stored, directory)
    if args.time_state:
        open_weights(args.time_state)
    device = full_device(args.device)
    precision = args.precision or ("file" if device == "cpu" else None)
    model = RWKV.load(path, device=device, precision=precision, backend=args.backend, time_state=args.time_state or None,
                      **({"ctx_len": ctx_len} if ctx_len else {}))  # fmt: skip
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the vocabulary {args.vocab or directory} has {tokenizer.vocab_size} ids, but {path} knows {model.config.vocab_size}:"
            " give --vocab the file the model was trained with"
        )
    return model, tokenizer


def open_weights(path):
    """The `Checkpoint` of a weight file.  Raises FileNotFoundError, FormatError (also for the state of a run)."""
    from ..checkpoint import read_checkpoint
    from ..errors import FormatError

    if not Path(path).exists():
        raise FileNotFoundError(f"weights not found: {path}")
    tensors = read_checkpoint(path)
    if "about" in tensors:
        raise FormatError(f"{path} is the state of a training run, not weights; use rwkv-final.pth or rwkv-N.pth beside it")
    return tensors


def open_data(prefix):
    """`BinIdxDataset` of --data_file.  Raises FileNotFoundError with what makes the data, FormatError, OSError."""
    from ..data.binidx import BinIdxDataset

    missing = [end for end in (".bin", ".idx") if not Path(f"{prefix}{end}").is_file()]
    if missing:
        bare = str(prefix).removesuffix(".bin").removesuffix(".idx")
        advice = "`rwkvtune prepare INPUT OUTPUT` makes both" if bare == str(prefix) else f"give it without the ending: {bare}"
        raise FileNotFoundError(f"--data_file {prefix}: there is no file {prefix}{missing[0]}; {advice}")
    return BinIdxDataset(prefix)


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
    """Writes text as it comes, or tokens as text (`rwkvtune.text_stream.TextDecoder`).

    A context manager.  tokenizer: None = tokens are ids between spaces.  lead: text in front of what comes first, apart from it
    by a space where tokens are no bytes.  Where the block fails before that, nothing is written.
    """

    def __init__(self, tokenizer, lead="", file=None):
        from ..data.tokenizers import GenericTokenizer
        from ..text_stream import TextDecoder

        self._decoder, self._file = TextDecoder(tokenizer), file or sys.stdout
        self._lead, self._began = lead + (" " if lead and not isinstance(tokenizer, GenericTokenizer) else ""), False

    def __enter__(self):
        return self

    def __call__(self, token):
        self.write(self._decoder.push(token))

    def write(self, text):
        """Writes text, behind the lead if it is the first."""
        self._file.write(text if self._began else self._lead + text)
        self._file.flush()
        self._began = True

    def __exit__(self, kind, *error):
        if kind is None or self._began:
            self.write(self._decoder.finish() + "\n")
