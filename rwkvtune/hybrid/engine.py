"""Training, validating and finishing a model of RWKV and attention layers."""

import logging
import warnings
from pathlib import Path

import numpy as np

from ..arrays import token_ids
from ..config import TrainingConfig, whole_number
from ..loop import RunPlan, TrainingRun
from ..model import RWKV
from ..schedule import Schedule
from ..trainer import Trainer, read_position
from .chunking import ChunkedLoader, targets_of
from .evaluation import evaluate_sequence_modeling, score
from .groups import ENGINE, setup_groups
from .integrator import compress_states, rwkv_layers
from .model_3b_rwkv import RWKVMemoryConfig
from .runnable import check_settings
from .settings import setting
from .setup import release_training_memory

log = logging.getLogger(__name__)
_CHUNK_BY_MEMORY = ((8000, 512), (16000, 1024), (32000, 2048))  # below so many MB -> tokens of a chunk
_LARGEST_CHUNK = 4096


def training_config_of(source, model_config=None):
    """`TrainingConfig` of whatever says how to train.

    source: a `TrainingConfig` (taken as it is), None (float32, all else at its default), or an object or dict with
    use_mixed_precision, mixed_precision_dtype, activation_checkpointing, gradient_accumulation_steps, learning_rate,
    weight_decay.  model_config: says mixed_precision_dtype where source does not.  Raises ValueError.
    """
    if isinstance(source, TrainingConfig):
        return source
    precisions = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
    dtype = setting(source, "mixed_precision_dtype") or setting(model_config, "mixed_precision_dtype", "bfloat16")
    if dtype not in (*precisions, *precisions.values()):
        raise ValueError(f"mixed_precision_dtype is {dtype!r}; allowed are {', '.join(precisions)}")
    changes = {"lr_init": setting(source, "learning_rate"), "weight_decay": setting(source, "weight_decay"),
               "micro_bsz": setting(source, "batch_size")}  # fmt: skip
    return TrainingConfig(
        precision=precisions.get(dtype, dtype) if setting(source, "use_mixed_precision", False) else "fp32",
        grad_cp=int(bool(setting(source, "activation_checkpointing", False))),
        accumulate_grad_batches=setting(source, "gradient_accumulation_steps", 1),
        **{name: value for name, value in changes.items() if value is not None},
    )


def chunk_size_for(max_memory_MB):
    """Tokens of a chunk for so much memory: 512 below 8000 MB, 1024 below 16000, 2048 below 32000, else 4096."""
    for limit, size in _CHUNK_BY_MEMORY:
        if max_memory_MB < limit:
            return size
    return _LARGEST_CHUNK


class TrainingEngine:
    """Trains a model on loaders of batches.

    model: `rwkvtune.RWKV`.  training_config: see `training_config_of`.  model_config, memory_config: settings of the model
    and of memory use (`RWKVMemoryConfig`).  tokenizer: for `evaluate_sequence_modeling`.  optimizer: a `rwkvtune.Trainer`
    on the model; default: a new one when it is first needed.
    Raises ValueError (also a setting that cannot be had, compile_model or cpu_offload for example).
    """

    def __init__(
        self, model=None, training_config=None, model_config=None, memory_config=None, tokenizer=None, optimizer=None
    ):
        if not isinstance(model, RWKV):
            raise ValueError(f"model is a {type(model).__name__}; it must be a rwkvtune.RWKV")
        check_settings(training_config, memory_config)
        self.model, self.tokenizer, self.logger = model, tokenizer, log
        self.model_config = model.config if model_config is None else model_config
        self.memory_config = RWKVMemoryConfig() if memory_config is None else memory_config
        self.training_config = training_config_of(training_config, self.model_config)
        self._backward_length = setting(training_config, "rwkv_backward_pass_length")
        self._optimizer = self._state = None
        self._recompute = False  # set by optimize_rwkv_training_setup
        if optimizer is not None:
            self.optimizer = optimizer

    @property
    def optimizer(self):
        """The `rwkvtune.Trainer`: AdamW with its moments, groups and step count."""
        if self._optimizer is None:
            self._optimizer = Trainer(self.model, self.training_config)
        return self._optimizer

    @optimizer.setter
    def optimizer(self, value):
        if not isinstance(value, Trainer) or value.model is not self.model:
            raise ValueError("optimizer must be a rwkvtune.Trainer on this engine's model")
        self._optimizer, self.training_config = value, value.config
        if self._recompute:
            self._compute_activations_again()

    # ---- setting up ----

    def setup_rwkv_optimizer(self, optimizer=None, rwkv_lr_multiplier=1.0, att_weight_decay=0.0, ffn_weight_decay=0.0):
        """Give each part of the model its learning rate and weight decay, see the table in `rwkvtune.hybrid.groups`.

        optimizer: `rwkvtune.Trainer` on this model, which becomes the engine's (default: the engine's own); moments stay.
        Returns it.  Raises ValueError.
        """
        if optimizer is not None:
            self.optimizer = optimizer
        return setup_groups(self.optimizer, ENGINE, rwkv_lr_multiplier, att_weight_decay, ffn_weight_decay)

    def optimize_rwkv_training_setup(self):
        """Fit training to the memory there is; results of a step do not change.

        use_gradient_checkpointing or activation_checkpointing of memory_config or model_config: activations are computed
        again in the backward (grad_cp=1).  max_memory_MB: the model's chunk size by `chunk_size_for`; without it rwkv_chunk_size.
        rwkv_state_compression of the model's configuration: state compression is turned on, unless memory_config's is
        False.  optimize_memory_use False: nothing of this.  A model without RWKV layers is left as it is, with a warning.
        Returns self.
        """
        memory = self.memory_config
        if not rwkv_layers(self.model):
            warnings.warn("the model has no RWKV layer; its training setup is left as it is", stacklevel=2)
            return self
        if not setting(memory, "optimize_memory_use", True):
            return self
        names = ("use_gradient_checkpointing", "activation_checkpointing")
        if any(setting(source, name, False) for source in (memory, self.model_config) for name in names):
            self._recompute = True
            self._compute_activations_again()
        self.model.set_chunk_size(self._chunk_size())
        if setting(memory, "rwkv_state_compression", True):
            compress_states(self.model, self.model_config)
        return self

    def _compute_activations_again(self):
        self.training_config = self.training_config.replace(grad_cp=1)
        if self._optimizer is not None:
            self._optimizer.adopt(self.training_config)

    def _chunk_size(self):
        limit = setting(self.memory_config, "max_memory_MB")
        if limit is not None:
            return chunk_size_for(whole_number("max_memory_MB", limit))
        return whole_number("rwkv_chunk_size", setting(self.memory_config, "rwkv_chunk_size", 1024))

    def prepare_for_inference(self, optimize_for_rwkv=False):
        """Release gradients, activation buffers and the optimizer.  optimize_for_rwkv: also set the chunk size and begin with
        a fresh state.  Returns the model."""
        self._optimizer = self._state = None
        release_training_memory(self.model)
        if optimize_for_rwkv:
            self.model.set_chunk_size(self._chunk_size())
            self.model.reset_state(batch_size=1)
        return self.model

    # ---- training ----

    def train_step_rwkv(self, batch, use_mixed_precision=False, lr=None, weight_decay=None):
        """One optimizer step in chunks of `model.chunk_size` tokens, or of the training configuration's
        rwkv_backward_pass_length where that is less; memory is that of one chunk.

        batch: see `targets_of`; or a chunk of a `ChunkedLoader`, which goes on from the state of the chunk before unless
        "reset_state" is set.  Gradients are cut where chunks begin.  use_mixed_precision: accepted; a model of float32 computes
        in that and says so.  lr, weight_decay: default: the training configuration's.
        Returns the loss before the step (float), 0.0 for a chunk without targets, which is only read.
        Raises ValueError, FloatingPointError as `Trainer.step`.
        """
        if use_mixed_precision and self.model.precision == "fp32" and (self.model.device != "cpu" or self.training_config.precision == "fp32"):
            warnings.warn(f"use_mixed_precision: this model trains in float32 on {self.model.device}", stacklevel=2)
        ids, targets = targets_of(batch)
        goes_on = isinstance(batch, dict) and not batch.get("reset_state", True)
        of_more = isinstance(batch, dict) and not batch.get("last_chunk", True)
        if (targets == -100).all() and (goes_on or of_more):  # nothing to learn here, but to read
            _, self._state = self.model.process_with_state(ids, self._state if goes_on else None)
            return 0.0
        size = min(self.model.chunk_size, self._backward_length or self.model.chunk_size)
        state = self._state if goes_on else None
        loss, _, self._state = self.optimizer.step_chunked(ids, targets, size, state, lr=lr, weight_decay=weight_decay)
        return loss

    def train(self, train_loader, val_loader=None, num_epochs=1, max_steps=None, output_dir="output", resume=False, progress=True,
              how_to_resume=""):  # fmt: skip
        """Train with learning rates from lr_init to lr_final, logs, checkpoints and resume, as `rwkvtune.TrainingRun` does.

        train_loader: a `DataLoader`, one optimizer step per accumulate_grad_batches batches; in a `ChunkedLoader`, or over a
        dataset with use_rwkv_chunking, each step runs in chunks, in memory of one (see `Trainer.step_chunked`).
        val_loader: over a `TextDataset`; its text gives the validation loss.  num_epochs: passes over the data.
        max_steps: end there instead.  output_dir: made; receives rwkv-N.pth per epoch, rwkv-final.pth, loss.csv, val.csv,
        train_log.txt, trainer_state.pth.
        resume: go on with the run in output_dir where there is one; False: ValueError where there is one.
        Returns "finished" or "interrupted".  Raises ValueError, OSError, FloatingPointError.
        """
        loader, chunk = _loader_and_chunk(train_loader)
        c, n = self.training_config, self.training_config.accumulate_grad_batches
        steps = (
            whole_number("max_steps", max_steps)
            if max_steps
            else -(-whole_number("num_epochs", num_epochs) * len(loader) // n)
        )
        validation, out = self._held_out(val_loader), Path(output_dir)
        out.mkdir(parents=True, exist_ok=True)
        self._take_up(out, resume)
        schedule = Schedule(c.lr_init, c.lr_final, c.warmup_steps, exit_tokens=steps, weight_decay=c.weight_decay,
                            weight_decay_final=c.weight_decay_final)  # fmt: skip
        plan = RunPlan(schedule, steps, epoch_samples=len(loader), batch_size=n, epoch_save=c.epoch_save)
        run = TrainingRun(
            self.optimizer if chunk is None else _Chunked(self.optimizer, chunk), _Accumulated(loader, n), plan, out,
            progress=progress, validation=validation, how_to_resume=how_to_resume,
            arguments={**c.to_dict(), "chunk_size": chunk, "model": self.model.config.summary()},
        )  # fmt: skip
        return run.run()

    def _held_out(self, val_loader):
        if val_loader is None:
            return None
        tokens = getattr(getattr(val_loader, "dataset", None), "tokens", None)
        if tokens is None:
            raise ValueError("val_loader must be over a dataset with `tokens`, such as TextDataset")
        return token_ids(tokens, self.model.config.vocab_size, "validation tokens")[0]

    def _take_up(self, out, resume):
        """Continue the run in `out`, if there is one and that is wanted: its weights, moments and step count become ours."""
        from ..loop import STATE_NAME

        path = out / STATE_NAME
        if not path.exists():
            return
        if not resume:
            raise ValueError(f"{out} holds a run; go on with it (resume=True), or choose another output_dir")
        if self.optimizer.steps == 0 and not self.optimizer.position:
            before, own = Trainer.resume(path, self.model.device, self.model.precision), self.optimizer._own_rules
            if before.model.config.to_dict() != self.model.config.to_dict():
                raise ValueError(
                    f"{out} holds a run of another model ({before.model.config.summary()}); use its sizes, or another output_dir"
                )
            before.adopt(self.training_config)
            before.set_parameter_groups(
                {"params": [name], "lr_scale": rule[0], "weight_decay": rule[1]} for name, rule in own.items()
            )
            self.model._core, self._optimizer = before.model._core, before
            before.model = self.model
        elif read_position(path)["steps"] != self.optimizer.steps:
            raise ValueError(f"{out} holds another run than the one this engine is in; choose another output_dir")

    def validate(self, val_loader, chunk_size=None):
        """dict: loss, perplexity, next_token_accuracy, tokens over all batches of a loader; each token counts the same."""
        return score(self.model, val_loader, chunk_size)

    def evaluate_sequence_modeling(self, test_dataloader=None, max_seq_len=None, chunk_size=None, **options):
        """`validate` on a loader, with batches cut to max_seq_len tokens; without one, the module's
        `evaluate_sequence_modeling` with this engine's tokenizer and its options."""
        if test_dataloader is None:
            if self.tokenizer is None:
                raise ValueError("give test_dataloader, or make the engine with a tokenizer")
            return evaluate_sequence_modeling(
                self.model, self.tokenizer, chunk_size or self.model.chunk_size, **options
            )
        if max_seq_len is None:
            return self.validate(test_dataloader, chunk_size)
        most = whole_number("max_seq_len", max_seq_len)
        pairs = (targets_of(batch) for batch in getattr(test_dataloader, "loader", test_dataloader))
        return score(self.model, [(ids[:, :most], targets[:, :most]) for ids, targets in pairs], chunk_size)


def _loader_and_chunk(train_loader):
    """(`DataLoader`, tokens of a chunk or None) of what `TrainingEngine.train` is given."""
    loader, chunk = train_loader, None
    if isinstance(train_loader, ChunkedLoader):
        loader, chunk = train_loader.loader, train_loader.chunk_size
    if not callable(loader) or not hasattr(loader, "identity"):
        raise ValueError("train_loader must be a rwkvtune.hybrid.DataLoader or a ChunkedLoader over one")
    if chunk is None and getattr(loader.dataset, "use_rwkv_chunking", False):
        chunk = loader.dataset.chunk_size
    return loader, chunk


class _Accumulated:
    """Several batches of a loader as those of one step, as a function of the step."""

    def __init__(self, loader, batches):
        self._loader, self._batches = loader, batches

    def __call__(self, step):
        parts = [self._loader(step * self._batches + i) for i in range(self._batches)]
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    def identity(self):
        return {**self._loader.identity(), "accumulated": self._batches}


class _Chunked:
    """A trainer whose steps run in chunks; everything else is the trainer's."""

    def __init__(self, trainer, chunk_size):
        self._trainer, self._chunk_size = trainer, chunk_size

    def step(self, ids, targets, lr=None, weight_decay=None):
        return self._trainer.step_chunked(ids, targets, self._chunk_size, lr=lr, weight_decay=weight_decay)[:2]

    def __getattr__(self, name):
        return getattr(self._trainer, name)
