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
import re
from datetime import datetime
from pathlib import Path

from .atomic import AtomicFiles, atomic_write
from .config import DataConfig, ModelConfig, TrainingConfig
from .errors import FormatError
from .lock import RunLock
from .loop import STATE_NAME, BinIdxBatches, RunPlan, TrainingRun, resume_or_none
from .model import RWKV, check_runnable, config_of
from .schedule import Schedule
from .trainer import Trainer, read_position

SCHEMA = 1
_NUMBERED = re.compile(r"rwkv-(\d+)\.pth")


def _tokenizer_spec(tokenizer):
    spec = {"class": type(tokenizer).__name__}
    if hasattr(tokenizer, "max_value"):
        spec["max_value"] = int(tokenizer.max_value)
    return spec


def tokenizer_from_spec(spec, vocab_path):
    """The tokenizer a directory was prepared with: from its description, or from the vocabulary file it left."""
    from .data.tokenizers import AngleTokenizer, GenericTokenizer, IntegerTokenizer

    if spec.get("class") == "IntegerTokenizer":
        return IntegerTokenizer(max_value=spec["max_value"])
    if spec.get("class") == "AngleTokenizer":
        return AngleTokenizer()
    return GenericTokenizer(str(vocab_path))


def text_documents(text, most=0):
    """Split a text into documents at its blank lines.

    text: str.  most: 0 = one document per paragraph; otherwise whole paragraphs together while they stay within so
    many characters.  Returns list of str; joined with blank lines they are the text again, outer blank lines aside.
    """
    paragraphs = [paragraph for paragraph in re.split(r"\n(?:[ \t]*\n)+", text.strip("\n")) if paragraph.strip()]
    documents = []
    for paragraph in paragraphs:
        if documents and most and len(documents[-1]) + 2 + len(paragraph) <= most:
            documents[-1] += "\n\n" + paragraph
        else:
            documents.append(paragraph)
    return documents


class RWKVTrainingPipeline:
    """Prepares data, initialises a model, trains it and takes a run up again, all inside `work_dir`.

    work_dir: directory, made if need be; what was prepared and configured there before is read again.
    model_config, training_config, data_config: default: what the directory holds, else all defaults; they are copied,
    never changed.  tokenizer: default: the directory's, else IntegerTokenizer(359).  The vocabulary size of the model is
    the tokenizer's unless the given one is larger.  wandb_project: kept in the configuration.
    Attributes: work_dir, data_dir, output_dir, config_dir, model_config, training_config, data_config, tokenizer,
    data_prepared, model_initialized, magic_prime, my_exit_tokens, data_prefix, model (after training).
    Raises ValueError (an argument), FormatError (a damaged config.json), OSError.
    """

    def __init__(
        self, work_dir, model_config=None, training_config=None, data_config=None, tokenizer=None, wandb_project=None
    ):
        self.work_dir = Path(work_dir).expanduser().resolve()
        self.data_dir, self.output_dir, self.config_dir = (self.work_dir / name for name in ("data", "out", "configs"))
        for directory in (self.data_dir, self.output_dir, self.config_dir):
            directory.mkdir(parents=True, exist_ok=True)
        stored = self._stored()
        self.model_config = self._choose(ModelConfig, "model", model_config, stored)
        self.training_config = self._choose(TrainingConfig, "training", training_config, stored)
        self.data_config = self._choose(DataConfig, "data", data_config, stored)
        self.wandb_project = wandb_project if wandb_project is not None else stored.get("wandb_project")
        self._state = stored.get("data_state") or {}
        self._set_tokenizer(tokenizer, model_config is None)
        if self.training_config.random_seed < 0:
            import secrets

            self.training_config = self.training_config.replace(random_seed=secrets.randbits(31))
        self.model = None
        self._check_against_run()
        self._save_config()

    # ---- configuration ----

    @property
    def config_path(self):
        """Path of config.json."""
        return self.config_dir / "config.json"

    def _stored(self):
        if not self.config_path.exists():
            return {}
        try:
            stored = json.loads(self.config_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FormatError(f"{self.config_path}: not valid JSON ({error}); correct it or delete it") from error
        if not isinstance(stored, dict) or stored.get("schema", 0) > SCHEMA:
            raise FormatError(f"{self.config_path}: not a configuration this version reads; correct it or delete it")
        return stored

    def _choose(self, cls, key, given, stored):
        """The given configuration (copied), or the stored one, or the default; says what a given one changes."""
        if given is not None and not isinstance(given, cls):
            raise ValueError(f"{key}_config is a {type(given).__name__}; it must be a {cls.__name__}")
        try:
            before = cls.from_dict(stored[key]) if key in stored else None
        except (ValueError, TypeError) as error:
            raise FormatError(f"{self.config_path}: {key}: {error}") from error
        if given is None:
            return before or cls()
        now = given.replace()
        old = before.to_dict() if before else {}
        for name, value in now.to_dict().items():
            if before and old[name] != value and name != "vocab_size":
                print(f"    {name}: {old[name]} -> {value}")
        return now

    def _set_tokenizer(self, tokenizer, free):
        """free: no model configuration was given, so the vocabulary follows the tokenizer whatever it was."""
        from .data.tokenizers import IntegerTokenizer

        if tokenizer is None and self._state.get("tokenizer"):
            tokenizer = tokenizer_from_spec(self._state["tokenizer"], self.data_dir / "vocab.txt")
        self.tokenizer = tokenizer if tokenizer is not None else IntegerTokenizer(359)
        size = int(self.tokenizer.vocab_size)
        default = ModelConfig.__dataclass_fields__["vocab_size"].default
        if self.model_config.vocab_size < size or self.model_config.vocab_size == default or free and not self._state:
            self.model_config = self.model_config.replace(vocab_size=size)

    def _check_against_run(self):
        """Raises ValueError where the configuration is not that of the run that is already here."""
        path = self.output_dir / STATE_NAME
        if not path.exists():
            return
        try:
            run = ModelConfig.from_dict(read_position(path)["model"])
        except (FormatError, TypeError) as error:
            raise FormatError(f"{error}; delete it to start this run afresh") from error
        sizes = ("ctx_len", "vocab_size", "n_layer", "n_embd", "dim_ffn", "head_size_a")
        wrong = [f"{n} is {getattr(self.model_config, n)}, the run's {getattr(run, n)}" for n in sizes
                 if getattr(self.model_config, n) != getattr(run, n)]  # fmt: skip
        if wrong:
            raise ValueError(f"{self.work_dir} holds a run of another model ({'; '.join(wrong)}); use its sizes, or another work_dir")

    def _config_text(self):
        model = {name: value for name, value in self.model_config.to_dict().items() if name != "config_dict"}
        stored = {
            "schema": SCHEMA, "model": model, "training": self.training_config.to_dict(), "data": self.data_config.to_dict(),
            "wandb_project": self.wandb_project, "vocab_size": int(self.tokenizer.vocab_size), "data_state": self._state or None,
        }  # fmt: skip
        return json.dumps(stored, indent=2, ensure_ascii=False) + "\n"

    def _save_config(self):
        text = self._config_text()
        if self.config_path.exists() and self.config_path.read_text(encoding="utf-8") == text:
            return
        with RunLock(self.work_dir), atomic_write(self.config_path, "w") as file:
            file.write(text)

    # ---- data ----

    @property
    def data_prepared(self):
        """bool: the files that training reads are there."""
        return bool(self._state) and all(Path(f"{self.data_prefix}.{end}").exists() for end in ("bin", "idx"))

    @property
    def data_prefix(self):
        """Path of the training data without .bin and .idx, or None."""
        name = self._state.get("name")
        return None if name is None else self.data_dir / name

    @property
    def magic_prime(self):
        """int: samples of one pass at the model's ctx_len; None without data or with too little."""
        from .data.binidx import compute_magic_prime

        total = self._state.get("total_tokens")
        return None if total is None else compute_magic_prime(total, self.model_config.ctx_len)

    @property
    def my_exit_tokens(self):
        """int: tokens of the prepared data, or None."""
        return self._state.get("total_tokens")

    def prepare_data(self, data, data_name="train"):
        """Prepare numbers.  data: integers (n_sequences, length), or one row, cut into data_config.sequence_length.

        Returns dict: jsonl_path, binidx_prefix, vocab_path, num_sequences, total_tokens, magic_prime.
        Raises ValueError (a value the tokenizer has no id for, with its place).
        """
        import numpy as np

        from .data.converters import NumpyToJsonlConverter

        data = np.asarray(data)
        if data.size == 0:
            raise RuntimeError("Prepared dataset is empty. Please provide non-empty training data.")
        print(
            f"### Preparing data: {data_name}\n    Input shape: {data.shape}\n    Value range: [{data.min()}, {data.max()}]"
        )
        path = self.data_dir / f"{data_name}.jsonl"
        with self._preparation(data_name) as files:
            lines = NumpyToJsonlConverter().stage(data, files, path, self.data_config.sequence_length)
            self._stage(files, lines, "data, sequence", data_name)
        return self._result(path)

    def prepare_data_from_file(self, npy_path, data_name="train"):
        """Prepare numbers from a .npy file; otherwise as `prepare_data`.  Raises FileNotFoundError, FormatError too."""
        import numpy as np

        try:
            data = np.load(npy_path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise FormatError(f"{npy_path}: not an array file without objects ({error})") from error
        return self.prepare_data(data, data_name)

    def prepare_data_from_jsonl(self, jsonl_path, data_name="train", n_epochs=None):
        """Prepare a file of lines {"text": "..."}; it is copied.  n_epochs: default data_config.n_epochs_duplication.

        Returns as `prepare_data`.  Raises FileNotFoundError, FormatError (a line, with its number), ValueError.
        """
        from .data.converters import stage_copy

        source, path = Path(jsonl_path), self.data_dir / f"{data_name}.jsonl"
        if not source.exists():
            raise FileNotFoundError(f"JSONL file not found: {source}")
        print(f"### Preparing data: {data_name}\n    Source: {source}")
        with self._preparation(data_name) as files:
            self._stage(files, stage_copy(files, source, path), source, data_name, n_epochs)
        return self._result(path)

    def prepare_text(self, text, data_name="train", document_chars=0):
        """Prepare a text.  text: str, or the `pathlib.Path` of a UTF-8 file.

        document_chars: 0 = each paragraph is a document; otherwise paragraphs go together up to so many characters.
        The end-of-document token then stands for the blank line between documents.
        Returns as `prepare_data`.  Raises OSError, ValueError (no text; a character the tokenizer has no token for).
        """
        text = text.read_text(encoding="utf-8") if isinstance(text, Path) else text
        documents = text_documents(text, document_chars)
        if not documents:
            raise ValueError("the text holds no paragraph")
        kind = f"up to {document_chars} characters of whole paragraphs" if document_chars else "a paragraph"
        print(f"### Preparing data: {data_name}\n    {len(documents)} documents, each {kind}")
        path = self.data_dir / f"{data_name}.jsonl"
        with self._preparation(data_name) as files:
            with files.write(path, "w") as file:
                file.writelines(json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in documents)
            self._stage(files, file.name, "text, document", data_name)
        return self._result(path)

    @contextlib.contextmanager
    def _preparation(self, name):
        """The lock of the directory and an AtomicFiles; the old data stay as they are until all of the new are there."""
        old = self._state
        with RunLock(self.work_dir):
            if (self.output_dir / STATE_NAME).exists():
                raise RuntimeError(
                    f"{self.output_dir} holds a run on the data that are prepared; leave data out to go on with it, or use another work_dir"
                )
            try:
                with AtomicFiles() as files:
                    yield files
            except BaseException:
                self._state = old
                raise

    def _stage(self, files, lines, source, name, n_epochs=None):
        """Lines to bin/idx, the vocabulary, and their description in config.json; source: of the lines, for messages."""
        from .data.converters import JsonlToBinIdxConverter, tokens_dtype

        lines, held = self._hold_out(files, lines, name)
        config, prefix = self.data_config, self.data_dir / name
        if hasattr(self.tokenizer, "save_vocab"):
            self.tokenizer.save_vocab(files.stage(self.data_dir / "vocab.txt"))
        stage = JsonlToBinIdxConverter(self.tokenizer).stage
        if held:
            stage(files, held, self.data_dir / "val", n_epochs=1, shuffle=False, name=self.data_dir / "val.jsonl")
        with files.write(self.config_path, "w") as file:
            items, total = stage(
                files,
                lines,
                prefix,
                n_epochs=config.n_epochs_duplication if n_epochs is None else n_epochs,
                shuffle=config.shuffle,
                random_seed=config.random_seed,
                name=source,
            )
            self._state = {"name": name, "total_tokens": total, "num_items": items, "dtype": str(tokens_dtype(self.tokenizer)),
                           "validation": bool(held), "tokenizer": _tokenizer_spec(self.tokenizer)}  # fmt: skip
            file.write(self._config_text())

    def _result(self, jsonl):
        total, prefix, vocab = self._state["total_tokens"], self.data_prefix, self.data_dir / "vocab.txt"
        print(f"### Data preparation complete:\n    Total tokens: {total:,}\n    Magic prime: {self.magic_prime}\n"
              f"    Data prefix: {prefix}\n    Vocab file: {vocab}")  # fmt: skip
        return {"jsonl_path": jsonl, "binidx_prefix": prefix, "vocab_path": vocab, "num_sequences": self._state["num_items"],
                "total_tokens": total, "magic_prime": self.magic_prime}  # fmt: skip

    def _hold_out(self, files, lines, name):
        """(training lines, the last val_fraction of the lines, staged as val.jsonl, or None)."""
        if not self.data_config.val_fraction:
            return lines, None
        every = Path(lines).read_bytes().split(b"\n")
        documents = [number for number, line in enumerate(every) if line.strip()]
        n = max(1, round(len(documents) * self.data_config.val_fraction))
        if n >= len(documents):
            raise ValueError(
                f"val_fraction {self.data_config.val_fraction:g} of {len(documents)} documents leaves none for training"
            )
        for_training = documents[-n]
        with files.write(self.data_dir / "val.jsonl") as held:
            held.writelines(line + b"\n" for line in every[for_training:] if line.strip())
        with files.write(self.data_dir / f"{name}.jsonl") as kept:
            kept.writelines(line + b"\n" for line in every[:for_training])
        return kept.name, held.name

    # ---- model and training ----

    @property
    def model_initialized(self):
        """bool: out/rwkv-init.pth exists."""
        return (self.output_dir / "rwkv-init.pth").exists()

    def initialize_model(self, force=False):
        """Write out/rwkv-init.pth by the reference initialisation.  force: replace an existing one.

        Returns its path.  Raises RuntimeError (no data yet), NotImplementedError (a version this build lacks).
        """
        if not self.data_prepared:
            raise RuntimeError("Data must be prepared before model initialization")
        path = self.output_dir / "rwkv-init.pth"
        if path.exists() and not force:
            print(f"### Init model already exists: {path}")
            return path
        RWKV(self.model_config, seed=self.training_config.random_seed).save(path)
        return path

    def train(self, data=None, num_epochs=100, continue_training=False, max_steps=0, how_to_resume="", callbacks=()):
        """Train for `num_epochs` passes over the prepared data, in this process.

        data: numbers to prepare first.  continue_training: go on from where the directory's run is; num_epochs is the
        total then.  Without it a directory that holds a run is refused.  max_steps: > 0 = so many steps, not passes.
        how_to_resume: the advice that is printed after an interruption.  callbacks: `rwkvtune.Callback`s; with a
        wandb_project, Weights & Biases is one more.
        Returns dict: status ("finished" or "interrupted"), steps, checkpoint (path).
        Raises RuntimeError (no data, a run is there already, another process trains here), ValueError, OSError,
        FloatingPointError.
        """
        if not isinstance(num_epochs, int) or num_epochs < 1:
            raise ValueError(f"num_epochs is {num_epochs!r}; it must be an integer of at least 1")
        check_runnable(self.model_config)
        with RunLock(self.work_dir):
            self._check_run(continue_training)
            if data is not None:
                self.prepare_data(data)
            if not self.data_prepared:
                raise RuntimeError("Either provide data or call prepare_data() first")
            return self._train(num_epochs, continue_training, max_steps, how_to_resume, callbacks)

    def train_from_checkpoint(self, checkpoint_path, num_epochs=100, auto_detect=True, override_config=None):
        """Train `num_epochs` passes over the prepared data, starting from the weights in any file.

        checkpoint_path: a .pth or .safetensors.  auto_detect: take the model's sizes from it; otherwise it must fit
        model_config.  override_config: dict of fields of ModelConfig, TrainingConfig or DataConfig.
        Returns as `train`.  Raises RuntimeError (no data; the vocabulary is too large), FileNotFoundError, ValueError
        (an unknown field), and as `train`.
        """
        if not self.data_prepared:
            raise RuntimeError("Data must be prepared before training")
        if not Path(checkpoint_path).exists():
            raise FileNotFoundError(f"Checkpoint not found: {checkpoint_path}")
        with RunLock(self.work_dir):
            self._check_run(False)
            model_config, others = self._from_checkpoint(checkpoint_path, auto_detect, dict(override_config or {}))
            if int(self.tokenizer.vocab_size) > model_config.vocab_size:
                raise RuntimeError(
                    f"Vocab size mismatch: the tokenizer has {self.tokenizer.vocab_size} ids and the checkpoint {model_config.vocab_size};"
                    " use the checkpoint's tokenizer, or train a new model"
                )
            RWKV.load(checkpoint_path, config=model_config).save(self.output_dir / "rwkv-init.pth")
            self.model_config = model_config
            self.training_config, self.data_config = others
            self._save_config()
            return self._train(num_epochs, False)

    def _from_checkpoint(self, path, auto_detect, overrides):
        """(ModelConfig, (TrainingConfig, DataConfig)) for weights in a file."""
        from .checkpoint import read_checkpoint

        configs = [self.model_config, self.training_config, self.data_config]
        if auto_detect:
            configs[0] = config_of(read_checkpoint(path), path, ctx_len=self.model_config.ctx_len)
            print(f"### Auto-detected architecture: {configs[0].summary()}")
        for name, value in overrides.items():
            owner = next((i for i, c in enumerate(configs) if name in c.to_dict()), None)
            if owner is None:
                raise ValueError(
                    f"override_config has an unknown key {name!r}; it takes fields of ModelConfig, TrainingConfig and DataConfig"
                )
            print(f"    {name}: {getattr(configs[owner], name)} -> {value}")
            configs[owner] = configs[owner].replace(**{name: value})
        return configs[0], tuple(configs[1:])

    def _check_run(self, continue_training):
        held = self.output_dir / STATE_NAME
        if not continue_training and (held.exists() or self._numbered()):
            what = f"a run at step {read_position(held)['steps']}" if held.exists() else self._numbered()[-1].name
            raise RuntimeError(
                f"{self.output_dir} holds {what}; continue_training=True goes on with it, another work_dir starts anew"
            )

    def _numbered(self):
        found = [
            (int(match[1]), path)
            for path in self.output_dir.glob("rwkv-*.pth")
            if (match := _NUMBERED.fullmatch(path.name))
        ]
        return [path for _, path in sorted(found)]

    def list_checkpoints(self):
        """list of paths: init, then by epoch, then final (where it is older than the last epoch: before that)."""
        known = {name: self.output_dir / f"rwkv-{name}.pth" for name in ("init", "final")}
        init, final = ([path] if path.exists() else [] for path in known.values())
        numbered = self._numbered()
        if final and numbered and final[0].stat().st_mtime_ns < numbered[-1].stat().st_mtime_ns:
            return init + numbered[:-1] + final + numbered[-1:]
        return init + numbered + final

    def get_latest_checkpoint(self):
        """Path of the newest checkpoint, or None."""
        paths = self.list_checkpoints()
        return paths[-1] if paths else None

    def _start(self, continue_training):
        """The trainer to go on with: the directory's run, its numbered weights, or the initial weights."""
        trainer = resume_or_none(self.output_dir) if continue_training else None
        if trainer is not None:
            trainer.adopt(self.training_config)
            return trainer
        if not continue_training or not self._numbered():
            self.initialize_model()
            path = self.output_dir / "rwkv-init.pth"
        else:
            path = self._numbered()[-1]
            print(
                f"### No {STATE_NAME}: continuing from the weights of {path.name}, with a fresh optimizer and from the first sample"
            )
        return Trainer(RWKV.load(path, config=self.model_config), self.training_config)

    def _train(self, num_epochs, continue_training, max_steps=0, how_to_resume="", callbacks=()):
        from .callbacks import WandbCallback
        from .data.binidx import BinIdxDataset

        callbacks = [*callbacks, *([WandbCallback(self.wandb_project)] if self.wandb_project else [])]
        trainer = self._start(continue_training)
        config = self.training_config
        with BinIdxDataset(str(self.data_prefix)) as dataset:
            batches = BinIdxBatches(dataset, self.model_config.ctx_len, config.batch_size)
            steps = max_steps or -(-num_epochs * batches.samples // config.batch_size)
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

    def _schedule(self, steps):
        c, ctx = self.training_config, self.model_config.ctx_len
        return Schedule(lr_init=c.lr_init, lr_final=c.lr_final, warmup_steps=c.warmup_steps, exit_tokens=steps * ctx * c.batch_size, ctx_len=ctx,
                        real_bsz=c.batch_size, weight_decay=c.weight_decay, weight_decay_final=c.weight_decay_final)  # fmt: skip

    def _announce(self, trainer, plan):
        passes, ctx_len, c = (
            plan.total_steps * plan.batch_size / plan.epoch_samples,
            self.model_config.ctx_len,
            self.training_config,
        )
        print(f"### Training {trainer.model!r}\n    {plan.total_steps} steps of {plan.batch_size} x {ctx_len} tokens, {passes:.4g} passes"
              f" over the data, lr {c.lr_init:g} -> {c.lr_final:g}")  # fmt: skip
        if trainer.steps:
            print(f"    continuing after step {trainer.steps}")

    def _arguments(self, num_epochs):
        return {"num_epochs": num_epochs, "time": f"{datetime.now():%Y-%m-%d %H:%M:%S}", "data_prefix": str(self.data_prefix),
                **self.model_config.to_train_config_dict(), "ctx_len": self.model_config.ctx_len, **self.training_config.to_dict()}  # fmt: skip

    def _validation(self):
        from .data.binidx import BinIdxDataset

        if not self._state.get("validation"):
            return None
        with BinIdxDataset(str(self.data_dir / "val")) as dataset:
            return dataset.stream().copy()
