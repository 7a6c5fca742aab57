"""From data to a trained model inside one directory.

work_dir/
  configs/config.json     the configuration and what was prepared; read again when the directory is opened
  data/                   train.jsonl, train.bin, train.idx, vocab.txt (val.* with DataConfig.val_fraction)
  out/                    rwkv-init.pth, rwkv-N.pth per epoch, rwkv-final.pth, train_log.txt, loss.csv, loss.png,
                          trainer_state.pth (everything a resume needs)
  run.lock                held while a run writes here
"""

import contextlib
import json
import os
import tempfile
from datetime import datetime
from pathlib import Path

from .atomic import AtomicFiles, make_directory, reading
from .config import DataConfig, ModelConfig, TrainingConfig, whole_number
from .errors import FormatError
from .lock import RunLock
from .loop import STATE_NAME, BinIdxBatches, RunPlan, TrainingRun, resume_or_none
from .model import RWKV, UNTOLD, check_runnable, config_of, full_device
from .prepared_data import (SCRATCH, check_ids, check_name, check_values, copy_file, remove_left_overs, split_lines,
                            text_documents)  # fmt: skip
from .run_files import INIT_NAME, numbered_weights, weights_by_age
from .schedule import Schedule
from .stored_config import StoredConfig, describe_tokenizer, same_tokenizer, tokenizer_from_spec
from .trainer import Trainer, check_same_run, read_position, trained_in

__all__ = ["RWKVTrainingPipeline", "text_documents", "tokenizer_from_spec"]


def _sizes(config):
    """dict: what a `ModelConfig` says that weights tell as well; a size that differs by layer is a list."""
    layers = config.layer_list()

    def of_layers(name, rows):
        values = list(dict.fromkeys(row[name] for row in rows))
        return values[0] if len(values) == 1 else values

    told = [layer for layer in layers if layer["time_mix"] != "attention"]  # whose head size its weights do not tell
    return {"model_type": "+".join(config.kinds), "n_layer": config.n_layer, "n_embd": config.n_embd, "vocab_size": config.vocab_size,
            "head_size_a": of_layers("head_size", told), "dim_ffn": of_layers("dim_ffn", layers)}  # fmt: skip


def _differences(sizes, others):
    """str: the sizes that differ, "" for none."""
    return ", ".join(f"{name} is {value}, there {others[name]}" for name, value in sizes.items() if value != others[name])


class RWKVTrainingPipeline:
    """Prepares data, initialises a model, trains it and takes a run up again, all inside `work_dir`.

    work_dir: directory, made if need be; what was prepared and configured there before is read again.
    model_config, training_config, data_config: default: what the directory holds, else all defaults; they are copied,
    never changed, and what they change of the directory's is printed.  tokenizer: default: the directory's, else
    IntegerTokenizer(359).  The vocabulary size of the model is the tokenizer's unless the given one is larger.
    wandb_project: name of a Weights & Biases project to log to.  device: what trains, as in `RWKV`: "cpu" (default), "cuda", "cuda:N"
    or "auto"; it is not stored: a run may go on elsewhere than it began.  On a CUDA device training_config.precision is computed in.
    Attributes: work_dir, device, data_dir, output_dir, config_dir, model_config, training_config, data_config, tokenizer,
    data_prepared, model_initialized, magic_prime, my_exit_tokens, data_prefix, model (after training).
    Raises ValueError (an argument, one that does not fit what is in the directory), FormatError (a damaged config.json),
    RuntimeError (another process works here), DeviceError, OSError.
    """

    def __init__(
        self, work_dir, model_config=None, training_config=None, data_config=None, tokenizer=None, wandb_project=None, device="cpu"
    ):
        self.device = full_device(device)
        given = {"model": (model_config, ModelConfig), "training": (training_config, TrainingConfig), "data": (data_config, DataConfig)}
        for key, (value, kind) in given.items():
            if value is not None and not isinstance(value, kind):
                raise ValueError(f"{key}_config is a {type(value).__name__}; it must be a {kind.__name__}")
        self.work_dir = Path(work_dir).expanduser().resolve()
        self.data_dir, self.output_dir, self.config_dir = (self.work_dir / name for name in ("data", "out", "configs"))
        for directory in (self.data_dir, self.output_dir, self.config_dir):
            make_directory(directory)
        stored = StoredConfig.read(self.config_path)
        self._state, self.model, changes = stored.data_state, None, []
        self.model_config = self._choose(stored.model, *given["model"], changes)
        self.training_config = self._choose(stored.training, *given["training"], changes)
        self.data_config = self._choose(stored.data, *given["data"], changes)
        self.wandb_project = wandb_project if wandb_project is not None else stored.wandb_project
        self._set_tokenizer(tokenizer, model_config is None)
        if self.training_config.random_seed < 0:
            import secrets

            self.training_config = self.training_config.replace(random_seed=secrets.randbits(31))
        self._check_against_run()
        self._save_config()
        print(*changes, sep="\n", end="\n" if changes else "")

    # ---- configuration ----

    @property
    def config_path(self):
        """Path of config.json."""
        return self.config_dir / "config.json"

    @staticmethod
    def _choose(before, given, kind, changes):
        """The given configuration (copied), or the stored one, or the default; what a given one changes goes to `changes`."""
        if given is None:
            return before or kind()
        now = given.replace()
        old = before.to_dict() if before else {}
        for name, value in now.to_dict().items():
            if before and old[name] != value and name not in ("vocab_size", "config_dict"):
                changes.append(f"    {name}: {old[name]} -> {value}")
        return now

    def _set_tokenizer(self, tokenizer, free):
        """free: no model configuration was given, so the vocabulary follows the tokenizer whatever it was."""
        from .data.tokenizers import IntegerTokenizer

        if isinstance(tokenizer, type):
            raise ValueError(f"tokenizer is the class {tokenizer.__name__}; give one of its objects, {tokenizer.__name__}(...)")
        missing = [n for n in ("encode", "decode", "vocab_size", "save_vocab") if tokenizer is not None and not hasattr(tokenizer, n)]
        if missing:
            raise ValueError(f"tokenizer, of class {type(tokenizer).__name__}, has no {missing[0]}; derive it from rwkvtune.BaseTokenizer")
        spec = self._state.get("tokenizer")
        if spec and (self.data_prepared or tokenizer is None and (self.data_dir / "vocab.txt").exists()):
            tokenizer = self._tokenizer_of_data(spec, tokenizer)
        self.tokenizer = tokenizer if tokenizer is not None else IntegerTokenizer(359)
        size = int(self.tokenizer.vocab_size)
        default = ModelConfig.__dataclass_fields__["vocab_size"].default
        if self.model_config.vocab_size < size or self.model_config.vocab_size == default or free and not self._state:
            self.model_config = self.model_config.replace(vocab_size=size)

    def _tokenizer_of_data(self, spec, given):
        """The given tokenizer, which must be the one the data were made with, or that one."""
        if given is None:
            if spec["class"] not in ("IntegerTokenizer", "AngleTokenizer", "GenericTokenizer"):
                print(f"    The tokenizer {spec['class']} is your own: give it again to prepare or to read text; for training it is not needed.")
            return tokenizer_from_spec(spec, self.data_dir / "vocab.txt")
        if not same_tokenizer(spec, given):
            raise ValueError(
                f"the data in {self.work_dir} were prepared with {spec['class']} of {spec.get('vocab_size', 'other')} ids and the"
                f" tokenizer given, {type(given).__name__} of {given.vocab_size}, is another; leave it out to use that of the data, or"
                f" delete {self.data_dir} to prepare them anew"
            )
        return given

    def _check_against_run(self):
        """Raises ValueError where the configuration is not that of the run that is already here."""
        path = self.output_dir / STATE_NAME
        if not path.exists():
            return
        try:
            position = read_position(path)
            run, training = ModelConfig.from_dict(position["model"]), TrainingConfig.from_dict(position["training"])
        except (ValueError, TypeError) as error:
            raise FormatError(f"{error}; delete it to start this run afresh") from error
        here, there = (_sizes(config) | {"ctx_len": config.ctx_len} for config in (self.model_config, run))
        wrong = _differences(here, there)
        if not wrong and self.model_config.to_core_dict() != run.to_core_dict():
            wrong = "its layers, widths or head_size_divisor"
        if wrong:
            raise ValueError(f"{self.work_dir} holds a run of another model ({wrong}); use its sizes, or another work_dir")
        check_same_run(training, self.training_config)

    def _stored_config(self):
        return StoredConfig(self.model_config, self.training_config, self.data_config, self.wandb_project, self._state)

    def _save_config(self):
        stored, size = self._stored_config(), self.tokenizer.vocab_size
        if not stored.is_in(self.config_path, size):
            with RunLock(self.work_dir):
                stored.write(self.config_path, size)

    # ---- data ----

    @property
    def data_prepared(self):
        """bool: the files that training reads are there."""
        return bool(self._state) and all(Path(f"{self.data_prefix}.{end}").exists() for end in ("bin", "idx"))

    def _data_missing(self):
        """str: which file of the data that were prepared is gone; "" where none is."""
        missing = [f"{self.data_prefix}.{end}" for end in ("bin", "idx") if self._state and not Path(f"{self.data_prefix}.{end}").exists()]
        return f"{' and '.join(missing)}: not there any more; put the file back, or prepare the data anew" if missing else ""

    @property
    def data_prefix(self):
        """Path of the training data without .bin and .idx, or None."""
        if "prefix" in self._state:
            return Path(self._state["prefix"])
        return self.data_dir / self._state["name"] if self._state else None

    @property
    def magic_prime(self):
        """int: samples of one pass at the model's ctx_len; None without data or with too little."""
        from .data.binidx import compute_magic_prime

        total = self._state.get("total_tokens")
        return self._state.get("magic_prime") or (None if total is None else compute_magic_prime(total, self.model_config.ctx_len))

    @property
    def my_exit_tokens(self):
        """int: tokens of the prepared data, or the exit_tokens given for existing data; None without data."""
        return self._state.get("exit_tokens") or self._state.get("total_tokens")

    def prepare_data(self, data, data_name="train"):
        """Prepare numbers.  data: integers (n_sequences, length), or one row, cut into data_config.sequence_length.

        data_name: of the files in data/.
        Returns dict: jsonl_path, binidx_prefix, vocab_path, num_sequences, total_tokens, magic_prime.
        Raises ValueError (a value the tokenizer has no id for, with its place), RuntimeError (no data; a run is here).
        After an error or Ctrl-C, here and in the other prepare methods, what was prepared before is as it was.
        """
        from .arrays import to_array
        from .data.converters import NumpyToJsonlConverter

        data = to_array(data, "data")
        if data.size == 0:
            raise RuntimeError("Prepared dataset is empty. Please provide non-empty training data.")
        if data.dtype.kind not in "iuf":
            raise ValueError(f"data: dtype {data.dtype} does not hold numbers; give an array of integers")
        check_values(data, self.tokenizer)
        print(f"### Preparing data: {data_name}\n    Input shape: {data.shape}\n    Value range: [{data.min()}, {data.max()}]\n"
              f"    Vocab size: {self.tokenizer.vocab_size}")  # fmt: skip
        with self._preparation(data_name) as (files, scratch):
            lines = NumpyToJsonlConverter().convert(data, scratch / "lines", self.data_config.sequence_length)
            self._stage(files, [lines], "data, sequence", data_name)
        return self._prepared(data_name)

    def prepare_data_from_file(self, npy_path, data_name="train"):
        """Prepare numbers from a .npy file; otherwise as `prepare_data`.  Raises FileNotFoundError, FormatError too."""
        import numpy as np

        try:
            with reading(npy_path):
                data = np.load(npy_path, allow_pickle=False)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"array file not found: {npy_path}") from error
        except (ValueError, EOFError) as error:
            raise FormatError(f"{npy_path}: not an array file without objects ({error})") from error
        if not isinstance(data, np.ndarray):
            raise FormatError(f"{npy_path}: an .npz archive; save the one array with np.save")
        return self.prepare_data(data, data_name)

    def prepare_data_from_jsonl(self, jsonl_path, data_name="train", n_epochs=None):
        """Prepare a file of lines {"text": "..."}; it is copied.  n_epochs: default data_config.n_epochs_duplication.

        Returns as `prepare_data`.  Raises FileNotFoundError, FormatError (a line, with its number), ValueError.
        """
        source, path = Path(jsonl_path), self.data_dir / f"{data_name}.jsonl"
        if not source.exists():
            raise FileNotFoundError(f"JSONL file not found: {source}")
        if n_epochs is not None:
            n_epochs = whole_number("n_epochs", n_epochs)
        print(f"### Preparing data: {data_name}\n    Source: {source}\n    Vocab size: {self.tokenizer.vocab_size}")
        parts = [source]
        if self._state.get("validation") and path.exists() and source.samefile(path):
            parts.append(self.data_dir / "val.jsonl")  # what was held out of these lines comes back to them
        with reading(source), self._preparation(data_name) as (files, _):
            self._stage(files, parts, source, data_name, n_epochs)
        return self._prepared(data_name)

    def prepare_text(self, text, data_name="train", document_chars=0):
        """Prepare a text.  text: str, or the `pathlib.Path` of a UTF-8 file.

        document_chars: 0 = each paragraph is a document; otherwise paragraphs go together up to so many characters.
        The end-of-document token then stands for the blank line between documents.
        Returns as `prepare_data`.  Raises OSError, ValueError (no text; a character the tokenizer has no token for).
        """
        if isinstance(text, str) and "\n" not in text and len(text) < 4096 and os.path.isfile(text):
            raise ValueError(f"text is {text!r}, the name of a file; give pathlib.Path({text!r}) to read it")
        if isinstance(text, Path):
            try:
                with reading(text):
                    text = text.read_text(encoding="utf-8-sig")
            except UnicodeDecodeError as error:
                raise FormatError(f"{text}: not UTF-8 text ({error})") from error
        if not isinstance(text, str):
            raise ValueError(f"text is a {type(text).__name__}; it must be a str, or the pathlib.Path of a file")
        documents = text_documents(text, document_chars)
        if not documents:
            raise ValueError("the text holds no paragraph")
        kind = f"up to {document_chars} characters of whole paragraphs" if document_chars else "a paragraph"
        print(f"### Preparing data: {data_name}\n    {len(documents)} documents, each {kind}")
        with self._preparation(data_name) as (files, scratch):
            with open(scratch / "lines", "w", encoding="utf-8", newline="\n") as file:
                file.writelines(json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in documents)
            self._stage(files, [scratch / "lines"], "text, document", data_name)
        return self._prepared(data_name)

    def use_existing_data(self, binidx_prefix, magic_prime=None, exit_tokens=None):
        """Train on bin/idx files that are there already; they stay where they are.

        binidx_prefix: the path without .bin and .idx.  The tokenizer, or a larger vocab_size in the model configuration,
        must have room for their ids.  magic_prime: samples of a pass, default by rule.  exit_tokens: a run ends after
        so many tokens even where num_epochs is more; default: num_epochs alone decides.
        Returns dict: jsonl_path (None), binidx_prefix, vocab_path, num_sequences, total_tokens, magic_prime.
        Raises FileNotFoundError, FormatError (the files; an id beyond the vocabulary), ValueError, RuntimeError.
        """
        from .data.binidx import BinIdxDataset, MagicPrimeSampler

        prefix = os.path.abspath(os.path.expanduser(binidx_prefix))
        root, ending = os.path.splitext(prefix)
        if ending in (".bin", ".idx") and not os.path.exists(prefix + ".bin"):  # the name of one of the two files
            prefix = root
        for kind in ("bin", "idx"):
            if not os.path.exists(f"{prefix}.{kind}"):
                raise FileNotFoundError(f"{kind.capitalize()} file not found: {prefix}.{kind}")
        with BinIdxDataset(prefix) as dataset:
            if not dataset.total_tokens:
                raise RuntimeError("Prepared dataset is empty. Please provide non-empty training data.")
            check_ids(dataset, self.model_config.vocab_size, prefix)
            state = self._description(dataset.num_items, dataset.total_tokens, dataset.dtype, False)
        state |= {"name": os.path.basename(prefix)} if Path(prefix).parent == self.data_dir else {"prefix": prefix}
        if magic_prime is not None:
            state["magic_prime"] = whole_number("magic_prime", magic_prime)
            MagicPrimeSampler(state["total_tokens"], self.model_config.ctx_len, state["magic_prime"])
        if exit_tokens is not None:
            state["exit_tokens"] = whole_number("exit_tokens", exit_tokens)
        with self._preparation() as (files, _):
            self._write_description(files.stage(self.config_path), files.stage(self.data_dir / "vocab.txt"), state)
        return self._prepared(None)

    @contextlib.contextmanager
    def _preparation(self, *names):
        """(AtomicFiles, a directory for what is needed until then); the old data stay until all of the new are there."""
        for name in names:
            check_name(name, self.data_config.val_fraction)
        with RunLock(self.work_dir):
            if (self.output_dir / STATE_NAME).exists():
                raise RuntimeError(
                    f"{self.output_dir} holds a run on the data that are prepared; leave data out to go on with it, or use another work_dir"
                )
            remove_left_overs(self.data_dir)
            try:
                with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=self.data_dir) as scratch, AtomicFiles() as files:
                    yield files, Path(scratch)
            except BaseException:  # which can come behind the moment in which the new files took their names
                self._state = StoredConfig.read(self.config_path).data_state
                raise

    def _stage(self, files, parts, source, name, n_epochs=None):
        """Lines to bin/idx, the vocabulary, and their description in config.json.

        parts: files of the lines.  source: of the lines, for messages.
        """
        from .data.converters import JsonlToBinIdxConverter

        config, converter = self.data_config, JsonlToBinIdxConverter(self.tokenizer, verbose=False)
        copies = n_epochs or config.n_epochs_duplication
        lines, held = self._stage_lines(files, parts, self.data_dir / f"{name}.jsonl")
        if held:
            converter.stage(files, held, self.data_dir / "val", n_epochs=1, shuffle=False, name=f"{source} (the held-out end of it)")
        description, vocab = files.stage(self.config_path), files.stage(self.data_dir / "vocab.txt")
        items, total = converter.stage(files, lines, self.data_dir / name, n_epochs=copies, shuffle=config.shuffle,
                                       random_seed=config.random_seed, name=source)  # fmt: skip
        dtype = "uint16" if self.tokenizer.vocab_size <= 65536 else "int32"
        state = self._description(items, total, dtype, bool(held)) | {"name": name, "documents": items // copies, "copies": copies}
        self._write_description(description, vocab, state)

    def _stage_lines(self, files, parts, path):
        """(training lines, held-out lines or None), the first staged as `path`."""
        if self.data_config.val_fraction:
            with files.write(path) as train, files.write(self.data_dir / "val.jsonl") as val:
                split_lines(parts, train, val, self.data_config.val_fraction)
            return train.name, val.name
        if len(parts) == 1 and path.exists() and path.samefile(parts[0]):
            return path, None
        with files.write(path) as copy:
            for part in parts:
                copy_file(part, copy)
        return copy.name, None

    def _description(self, items, total, dtype, validation):
        return {"total_tokens": int(total), "num_items": int(items), "dtype": str(dtype), "validation": validation,
                "tokenizer": describe_tokenizer(self.tokenizer)}  # fmt: skip

    def _write_description(self, config_path, vocab_path, state):
        self.tokenizer.save_vocab(vocab_path)
        self._state = state
        self._stored_config().write(config_path, self.tokenizer.vocab_size)

    def _prepared(self, name):
        """Tells what was prepared; the dict that the prepare methods return."""
        total, prefix, vocab = self._state["total_tokens"], self.data_prefix, self.data_dir / "vocab.txt"
        print(f"### Data preparation complete:\n    Total tokens: {total:,}\n    Magic prime: {self.magic_prime}\n"
              f"    Data prefix: {prefix}\n    Vocab file: {vocab}")  # fmt: skip
        return {"jsonl_path": name and self.data_dir / f"{name}.jsonl", "binidx_prefix": prefix, "vocab_path": vocab,
                "num_sequences": self._state["num_items"], "total_tokens": total, "magic_prime": self.magic_prime}  # fmt: skip

    # ---- model and training ----

    @property
    def model_initialized(self):
        """bool: out/rwkv-init.pth exists."""
        return (self.output_dir / INIT_NAME).exists()

    def initialize_model(self, force=False):
        """Write out/rwkv-init.pth by the reference initialisation.  force: replace an existing one.

        Returns its path.  Raises RuntimeError (no data yet), NotImplementedError (a version this build lacks),
        ValueError (existing weights of another size).
        """
        if not self.data_prepared:
            raise RuntimeError("Data must be prepared before model initialization")
        path = self.output_dir / INIT_NAME
        with RunLock(self.work_dir):
            if path.exists() and not force:
                self._check_weights(path)
                print(f"### Init model already exists: {path}")
                return path
            RWKV(self.model_config, seed=self.training_config.random_seed).save(path)
        return path

    def _check_weights(self, path):
        """Raises ValueError where a weight file of this directory is not of the configured size."""
        from .checkpoint import read_checkpoint

        wrong = _differences(_sizes(self.model_config), _sizes(config_of(read_checkpoint(path), path)))
        if wrong:
            advice = "initialize_model(force=True) replaces it" if path.name == INIT_NAME else "use its sizes"
            raise ValueError(f"{path} holds another model ({wrong}); {advice}, another work_dir keeps it")

    def train(self, data=None, num_epochs=100, continue_training=False, max_steps=0, how_to_resume="", callbacks=()):
        """Train for `num_epochs` passes over the prepared data, in this process.

        data: numbers to prepare first.  num_epochs: passes; the learning rate goes from lr_init to lr_final over all of
        them.  continue_training: go on from where the directory's run is; num_epochs is the total then.  Without it a
        directory that holds a run is refused.  max_steps: > 0 = so many steps, not passes.
        how_to_resume: the advice that is printed after an interruption.  callbacks: `rwkvtune.Callback`s; with a
        wandb_project, Weights & Biases is one more.
        Returns dict: status ("finished" or "interrupted"), steps, checkpoint (path).
        Raises RuntimeError (no data, a run is there already, another process trains here), ValueError, OSError,
        FloatingPointError.
        """
        num_epochs, max_steps = whole_number("num_epochs", num_epochs), whole_number("max_steps", max_steps, 0)
        check_runnable(self.model_config)
        with RunLock(self.work_dir):
            self._check_run(continue_training)
            if data is not None:
                self.prepare_data(data)
            if not self.data_prepared:
                raise RuntimeError(self._data_missing() or "Either provide data or call prepare_data() first")
            return self._train(num_epochs, continue_training, max_steps, how_to_resume, callbacks)

    def train_from_checkpoint(self, checkpoint_path, num_epochs=100, auto_detect=True, override_config=None, callbacks=()):
        """Train `num_epochs` passes over the prepared data, starting from the weights in any file.

        checkpoint_path: a .pth or .safetensors; it is copied to out/rwkv-init.pth.  auto_detect: take the model's sizes
        from it; otherwise it must fit model_config.  override_config: dict of fields of ModelConfig (those that weights do
        not tell, such as ctx_len), TrainingConfig or DataConfig; random_seed means that of TrainingConfig.
        Returns as `train`.  Raises RuntimeError (no data; the vocabulary is too large), FileNotFoundError, ValueError
        (an unknown field, one that contradicts the weights), and as `train`; nothing is changed then.
        """
        num_epochs = whole_number("num_epochs", num_epochs)
        if not self.data_prepared:
            raise RuntimeError("Data must be prepared before training")
        if not Path(checkpoint_path).exists():
            raise FileNotFoundError(f"Checkpoint not found: {checkpoint_path}")
        with RunLock(self.work_dir):
            self._check_run(False)
            configs = self._from_checkpoint(checkpoint_path, auto_detect, dict(override_config or {}))
            self._check_start(*configs[:2])
            RWKV.load(checkpoint_path, config=configs[0]).save(self.output_dir / INIT_NAME)
            self.model_config, self.training_config, self.data_config = configs
            self._save_config()
            return self._train(num_epochs, False, callbacks=callbacks)

    def _from_checkpoint(self, path, auto_detect, overrides):
        """[ModelConfig, TrainingConfig, DataConfig] for weights in a file."""
        configs = [self.model_config, self.training_config, self.data_config]
        untold = {name: value for name, value in overrides.items() if auto_detect and name in UNTOLD}
        if auto_detect:
            configs[0] = self._detected(path, {"ctx_len": self.model_config.ctx_len, **untold})
        told = configs[0].to_core_dict()
        for name, value in overrides.items():
            owner = next((i for i, c in enumerate(configs) if name in c.to_dict()), None)
            if owner is None:
                raise ValueError(
                    f"override_config has an unknown key {name!r}; it takes fields of ModelConfig, TrainingConfig and DataConfig"
                )
            before = getattr(self.model_config if name in untold else configs[owner], name)
            configs[owner] = configs[owner].replace(**{name: value})
            if auto_detect and configs[0].to_core_dict() != told:
                raise ValueError(f"override_config: {name} is {value!r}, but the weights in {path} say {before!r}; leave it out")
            later = " (for data that are prepared from now on)" if owner == 2 else ""
            print(f"    {name}: {before} -> {value}{later}")
        return configs

    @staticmethod
    def _detected(path, untold):
        """The `ModelConfig` of a weight file, which is told about.  untold: fields that weights do not tell."""
        from .checkpoint import inspect_checkpoint, read_checkpoint

        facts = inspect_checkpoint(path)
        print(f"### Checkpoint info:\n    File size: {facts['file_size_mb']:.1f} MB\n    Parameters: {facts['num_parameters']:,}")
        found = config_of(read_checkpoint(path), path, **untold)
        print("### Auto-detected architecture:")
        for name in ("n_layer", "n_embd", "vocab_size", "model_type"):
            print(f"    {name}: {facts['detected_config'][name]}")
        return found

    def _check_start(self, model_config, training_config):
        """Raises RuntimeError, ValueError where these cannot train on the prepared data."""
        from .data.binidx import BinIdxDataset

        if int(self.tokenizer.vocab_size) > model_config.vocab_size:
            raise RuntimeError(
                f"Vocab size mismatch: the tokenizer has {self.tokenizer.vocab_size} ids and the checkpoint {model_config.vocab_size};"
                " use the checkpoint's tokenizer, or train a new model"
            )
        check_runnable(model_config)
        with BinIdxDataset(str(self.data_prefix)) as dataset:
            self._batches(dataset, model_config.ctx_len, training_config.batch_size)

    def inspect_checkpoint(self, checkpoint_path):
        """What a weight file holds, from its header alone; see `rwkvtune.inspect_checkpoint`."""
        from .checkpoint import inspect_checkpoint

        return inspect_checkpoint(checkpoint_path)

    def list_checkpoints(self):
        """list of paths, oldest first: init, then by epoch, then final (older than the last epochs: before them)."""
        return weights_by_age(self.output_dir)

    def get_latest_checkpoint(self):
        """Path of the newest checkpoint, or None."""
        paths = self.list_checkpoints()
        return paths[-1] if paths else None

    def _check_run(self, continue_training):
        held, numbered = self.output_dir / STATE_NAME, numbered_weights(self.output_dir)
        if not continue_training and (held.exists() or numbered):
            what = f"a run at step {read_position(held)['steps']}" if held.exists() else numbered[-1][1].name
            raise RuntimeError(
                f"{self.output_dir} holds {what}; continue_training=True goes on with it, another work_dir starts anew"
            )

    def _start(self, continue_training, batches):
        """The trainer to go on with: the directory's run, its numbered weights, or the initial weights."""
        config = self.training_config
        trainer = resume_or_none(self.output_dir, self.device, config.precision) if continue_training else None
        if trainer is not None:
            trainer.adopt(config)
            return trainer
        numbered = numbered_weights(self.output_dir) if continue_training else []
        if not numbered:
            path = self.output_dir / INIT_NAME
            if path.exists():
                self._check_weights(path)
            else:
                self.initialize_model()
            return self._trainer_from(path)
        epoch, path = numbered[-1]
        self._check_weights(path)
        print(f"### No {STATE_NAME}: going on after epoch {epoch} with the weights of {path.name} and a fresh optimizer")
        trainer = self._trainer_from(path)
        trainer.steps = -(-(epoch + 1) * batches.samples // config.batch_size)
        trainer.tokens = trainer.steps * config.batch_size * self.model_config.ctx_len
        return trainer

    def _trainer_from(self, path):
        config = self.training_config
        return Trainer(RWKV.load(path, self.device, trained_in(config.precision, self.device), config=self.model_config), config)

    def _batches(self, dataset, ctx_len, batch_size):
        """`BinIdxBatches` of the prepared data.  Raises FormatError where they are not what was prepared."""
        if dataset.total_tokens != self._state["total_tokens"]:
            raise FormatError(
                f"{self.data_prefix}.bin holds {dataset.total_tokens} tokens, but {self._state['total_tokens']} were prepared;"
                " put the file back or prepare the data anew"
            )
        return BinIdxBatches(dataset, ctx_len, batch_size, self._state.get("magic_prime"))

    def _train(self, num_epochs, continue_training, max_steps=0, how_to_resume="", callbacks=()):
        from .callbacks import WandbCallback
        from .data.binidx import BinIdxDataset

        callbacks = [*callbacks, *([WandbCallback(self.wandb_project)] if self.wandb_project else [])]
        config = self.training_config
        with BinIdxDataset(str(self.data_prefix)) as dataset:
            batches = self._batches(dataset, self.model_config.ctx_len, config.batch_size)
            trainer = self._start(continue_training, batches)
            steps = max_steps or self._steps(num_epochs, batches)
            plan = RunPlan(self._schedule(steps), steps, batches.samples, config.batch_size, config.epoch_save)
            self._announce(trainer, plan)
            run = TrainingRun(
                trainer, batches, plan, self.output_dir, validation=self._validation(), arguments=self._arguments(num_epochs),
                how_to_resume=how_to_resume or "To go on: the same script with train(..., continue_training=True).",
                callbacks=callbacks,
            )  # fmt: skip
            status = run.run()
        self.model = trainer.model
        return {"status": status, "steps": trainer.steps, "checkpoint": self.get_latest_checkpoint()}

    def _steps(self, num_epochs, batches):
        """Steps of so many passes; fewer where exit_tokens were given."""
        steps = -(-num_epochs * batches.samples // batches.batch_size)
        exit_tokens = self._state.get("exit_tokens")
        return min(steps, -(-exit_tokens // (batches.batch_size * batches.ctx_len))) if exit_tokens else steps

    def _schedule(self, steps):
        c, ctx = self.training_config, self.model_config.ctx_len
        return Schedule(lr_init=c.lr_init, lr_final=c.lr_final, warmup_steps=c.warmup_steps, exit_tokens=steps * ctx * c.batch_size, ctx_len=ctx,
                        real_bsz=c.batch_size, weight_decay=c.weight_decay, weight_decay_final=c.weight_decay_final)  # fmt: skip

    def _announce(self, trainer, plan):
        c, ctx_len = self.training_config, self.model_config.ctx_len
        passes = plan.total_steps * plan.batch_size / plan.epoch_samples
        print(f"### Training {trainer.model!r}\n    {plan.total_steps} steps of {plan.batch_size} x {ctx_len} tokens, {passes:.4g} passes"
              f" over the data, lr {c.lr_init:g} -> {c.lr_final:g}")  # fmt: skip
        documents, copies = self._state.get("documents"), self._state.get("copies", 1)
        if copies > 1:
            print(f"    a pass sees each of the {documents:,} documents {copies} times (n_epochs_duplication={copies})")
        if trainer.steps:
            print(f"    continuing after step {trainer.steps}")
        if trainer.steps >= plan.total_steps:
            print("    nothing is left to do: num_epochs counts from the beginning of the run")

    def _arguments(self, num_epochs):
        return {"num_epochs": num_epochs, "time": f"{datetime.now():%Y-%m-%d %H:%M:%S}", "data_prefix": str(self.data_prefix),
                **self.model_config.to_train_config_dict(), "ctx_len": self.model_config.ctx_len, **self.training_config.to_dict()}  # fmt: skip

    def _validation(self):
        from .data.binidx import BinIdxDataset

        if not self._state.get("validation"):
            return None
        try:
            with BinIdxDataset(str(self.data_dir / "val")) as dataset:
                return dataset.stream().copy()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error.filename}, the held-out data, is not there any more; put the file back") from error
