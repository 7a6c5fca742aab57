"""One optimizer step after another: the trainer, its state on the disk, and what happens when numbers go bad."""

import json
import math
import sys
import warnings

import numpy as np

from . import _rwkvcore
from .arrays import ids_and_targets, token_ids
from .config import ModelConfig, TrainingConfig
from .errors import FormatError
from .model import RWKV, core_backend, full_device

STATE_FORMAT = 1
BAD_STEPS_ALLOWED = 5
_KINDS = ("model", "first", "second")  # weights, first and second moments in the state file
_ADVICE = (
    "lower lr_init (halve it) or lengthen warmup_steps, check the data for damage and the vocabulary size, keep grad_clip at 1;"
    " if nothing helps, run the same steps with RWKV(..., backend='ref') to tell a wrong kernel from a wrong setting"
)
_FIXED = ("micro_bsz", "accumulate_grad_batches", "beta1", "beta2", "adam_eps", "grad_clip", "train_type")
_said = set()


def _say_once(text):
    """Information, on stderr: most people never chose the default it speaks of, so it is no warning."""
    if text not in _said:
        _said.add(text)
        print(text, file=sys.stderr)


def _rate(name, value, none=False):
    if none and value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 <= value < 1e38:
        raise ValueError(f"{name} is {value!r}; it must be a number of at least 0{' or None' if none else ''}")
    return float(value)


class Trainer:
    """A model and its optimizer: AdamW with decoupled decay, gradient clipping, RWKV-LM's parameter groups.

    model: `RWKV`, trained in place.  config: `TrainingConfig` (default: all defaults).
    steps: steps done, skipped ones included.  tokens: tokens seen.  position: dict of plain values that is saved and
    restored with the rest, for whoever feeds the trainer.

    >>> from rwkvtune import RWKV, ModelConfig, Trainer, TrainingConfig
    >>> model = RWKV(ModelConfig(model_type="x070", n_layer=1, n_embd=64, vocab_size=10))
    >>> trainer = Trainer(model, TrainingConfig(precision="fp32"))
    >>> losses = [trainer.step([[1, 2, 3, 4]], [[2, 3, 4, 5]], lr=1e-3)[0] for _ in range(20)]
    >>> losses[-1] < losses[0]
    True
    """

    def __init__(self, model, config=None):
        if not isinstance(model, RWKV):
            raise ValueError(f"model is a {type(model).__name__}; it must be an RWKV")
        if not model.trainable:
            raise ValueError(f"the weights of this model are held for inference ({model.precision}); load it with precision='fp32' to train it")
        self.model, self.config = model, config if config is not None else TrainingConfig()
        if self.config.precision not in ("fp32", "fp64") and model.device == "cpu":
            _say_once(
                f"(precision={self.config.precision!r}: the CPU computes in float32; weights can be saved as bf16)"
            )
        if model.device != "cpu" and self.config.precision != model.precision:
            _say_once(f"(precision={self.config.precision!r}: the model is {model.precision} on {model.device}, and is trained in that)")
        self._trainable = self._trained_names()
        c = self.config
        self._core = _rwkvcore.Trainer(
            model._core,
            beta1=c.beta1,
            beta2=c.beta2,
            eps=c.adam_eps,
            weight_decay=c.weight_decay,
            grad_clip=c.grad_clip,
            trainable=self._trainable,
        )
        self._built_on = model._core
        self.steps = self.tokens = self._bad_in_a_row = 0
        self.position = {}
        self._own_rules = {}  # what set_parameter_groups set

    def _trained_names(self):
        if self.config.train_type not in ("state", "states"):
            return None
        names = [name for name in self.model.named_parameters() if "time_sta" in name]
        if not names:
            raise ValueError(
                "train_type 'states' trains the initial states, and this model has none; use ModelConfig(time_state=True)"
            )
        return names

    def adopt(self, config):
        """Use other settings from the next step on.

        config: `TrainingConfig`.  Raises ValueError where it changes what the moments and the order of samples rest on.
        """
        check_same_run(self.config, config)
        self.config = config

    @property
    def applied_steps(self):
        """int: steps that changed the weights, Adam's t."""
        return self._core.step_count

    # ---- parameter groups ----

    @property
    def parameter_rules(self):
        """dict: parameter name -> (multiple of the learning rate, its weight decay), None being the weight decay of the step."""
        return self._core.rules()

    def set_parameter_groups(self, groups):
        """Give parameters their own multiple of the learning rate and their own weight decay, from the next step on.

        groups: iterable of dicts: "params": names; "lr_scale": times the step's learning rate; "weight_decay": a number,
        or None for the step's.  A key that is missing, and parameters that no group names, keep what they have; so do the
        moments.  Raises ValueError (a name unknown or in two groups, a number) before anything changes.
        """
        now, wanted = self.parameter_rules, {}
        for group in groups:
            unknown = set(group) - {"params", "lr_scale", "weight_decay", "name"}
            if unknown or "params" not in group:
                raise ValueError(f"a group has the keys params, lr_scale, weight_decay and name, not {sorted(group)}")
            for name in group["params"]:
                if name not in now:
                    raise ValueError(f"the model has no parameter {name!r}")
                if name in wanted:
                    raise ValueError(f"parameter {name!r} is in two groups")
                wanted[name] = (
                    _rate("lr_scale", group.get("lr_scale", now[name][0])),
                    _rate("weight_decay", group.get("weight_decay", now[name][1]), none=True),
                )
        for name, rule in wanted.items():
            self._core.set_rule(name, *rule)
            self._own_rules[name] = rule

    # ---- steps ----

    def step(self, ids, targets, lr=None, weight_decay=None):
        """One optimizer step.

        ids, targets: (B,T) as in a call of the model; B rows are run in micro-batches of config.micro_bsz, the gradient
        is that of the mean over all.  With train_type "infctx" T may be as long as you like: rows are run in chunks of
        config.chunk_ctx tokens as in `step_chunked`.  lr: default config.lr_init.  weight_decay: default config.weight_decay.
        Returns (loss, gradient norm before clipping), both float.  A step whose loss or gradient is not finite changes
        nothing, warns, and names the first bad tensor; the fifth in a row raises FloatingPointError.
        Raises ValueError as a call of the model does.
        """
        self._check_model()
        ids, targets = ids_and_targets(ids, targets, self.model.config.vocab_size)
        c = self.config
        result = self._core.step(
            ids, targets, micro_bsz=min(c.micro_bsz, len(ids)), lr=float(c.lr_init if lr is None else lr),
            weight_decay=float(c.weight_decay if weight_decay is None else weight_decay), l2wrap=bool(c.l2wrap),
            grad_cp=c.grad_cp, trainable=self._trainable, chunk=c.chunk_ctx if c.train_type == "infctx" else 0,
        )  # fmt: skip
        return self._count_step(ids.size, result)

    def step_chunked(self, ids, targets, chunk_size, state=None, lr=None, weight_decay=None):
        """One optimizer step on sequences of any length, in memory of one chunk.

        The sequences are run chunk by chunk, the state carried on; no gradient flows back over a chunk's beginning
        (truncated back-propagation through time).  The gradient is that of the mean over all targets.
        ids, targets: (B,T), all rows run together.  chunk_size: tokens of a chunk.  state: where the sequences begin
        (default: their beginning).  lr, weight_decay: as in `step`.
        Returns (loss, gradient norm, state after the last token).  Errors as in `step`.
        """
        self._check_model()
        ids, targets = ids_and_targets(ids, targets, self.model.config.vocab_size)
        result, state = self._apply_chunks(ids, targets, chunk_size, state, (lr, weight_decay))
        return *self._count_step(ids.size, result), state

    def _apply_chunks(self, ids, targets, size, state, rates):
        """(the core's result, state after the last token); again with half the loss scale while a float16 gradient overflows."""
        c, (lr, weight_decay) = self.config, rates
        while True:
            loss, after = self.model._gradients_truncated(ids, targets, size, state, c.l2wrap, c.grad_cp, self._core.loss_scale)
            result = self._core.apply(
                loss, lr=float(c.lr_init if lr is None else lr),
                weight_decay=float(c.weight_decay if weight_decay is None else weight_decay), trainable=self._trainable,
            )  # fmt: skip
            if not result["again"]:
                return result, after

    def _check_model(self):
        if self.model._core is not self._built_on:
            raise RuntimeError("the model has been prepared for inference since this trainer was made; make a new Trainer on it")

    def _count_step(self, tokens, result):
        self.steps += 1
        self.tokens += tokens
        if result["bad"] is None:
            self._bad_in_a_row = 0
        else:
            self._refuse(result["bad"], result["loss"])
        return float(result["loss"]), float(result["grad_norm"])

    def _refuse(self, bad, loss):
        self._bad_in_a_row += 1
        text = f"step {self.steps} was skipped: the first number that is not finite is in {bad} (loss {loss})"
        if self._bad_in_a_row >= BAD_STEPS_ALLOWED:
            raise FloatingPointError(f"{text}; {self._bad_in_a_row} such steps in a row, so training stops: {_ADVICE}")
        warnings.warn(text, RuntimeWarning, stacklevel=4)

    # ---- state ----

    def save(self, path):
        """Write everything that training needs to go on exactly as it would have, into one file, at once or not at all.

        path: any file name.  The file is a `.pth` of weights, both moments and a JSON text; reading it runs no code.
        Raises OSError with the path; the file that was there before is then whole.
        """
        from .checkpoint import write_pth

        first, second = self._core.moments()
        about = {
            "format": STATE_FORMAT, "steps": self.steps, "tokens": self.tokens, "applied_steps": self._core.step_count,
            "bad_in_a_row": self._bad_in_a_row, "position": self.position, "training": self.config.to_dict(),
            "model": self.model.config.to_dict(), "precision": self.model.precision, "backend": self.model.backend,
            "rules": self._own_rules, "loss_scale": self._core.loss_scale, "good_steps": self._core.good_steps,
        }  # fmt: skip
        tensors = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
        for kind, values in zip(_KINDS, (self._weights(), first, second)):
            tensors.update({f"{kind}/{name}": value for name, value in values.items()})
        write_pth(path, tensors)

    def save_weights(self, path, dtype=None):
        """`RWKV.save`, of the float32 masters where the model's weights are narrower: what dtype keeps of them is written."""
        self.model._write(path, self._weights(), dtype)

    def _weights(self):
        """The weights as the optimizer has them: float32 also where the model's are narrower."""
        return self.model.named_parameters() | self._core.masters()

    @classmethod
    def resume(cls, path, device="cpu", precision=None):
        """The trainer that wrote `path`, with its model; the next step gives the bits it would have given then.

        device: as in `RWKV`; a run may go on elsewhere than it began, on the CPU in float32.  precision: to go on in on a CUDA
        device, default: that of the run.
        Raises OSError, FormatError (not a trainer's state, or of a newer version), DeviceError, ValueError (device, precision).
        """
        device = full_device(device)
        tensors, about = _read_state(path, verify=True)
        if precision is not None:
            core_backend("cpu", trained_in(precision, device), device)
        precision = trained_in(precision or about["precision"], device)
        model = RWKV.__new__(RWKV)
        try:
            model._build(ModelConfig.from_dict(about["model"]), device, precision, about["backend"])
            trainer = cls(model, TrainingConfig.from_dict(about["training"]))
            trainer.set_parameter_groups(
                {"params": [name], "lr_scale": rule[0], "weight_decay": rule[1]} for name, rule in about["rules"].items()
            )
        except (TypeError, ValueError, LookupError, OverflowError, RecursionError) as error:
            raise FormatError(f"{path}: the description in this trainer's state makes no trainer ({error})") from error
        trainer._restore(path, tensors)
        trainer._core.step_count = about["applied_steps"]
        if model.precision == about["precision"] == "fp16":
            trainer._core.loss_scale, trainer._core.good_steps = about["loss_scale"], about["good_steps"]
        trainer.steps, trainer.tokens = about["steps"], about["tokens"]
        trainer._bad_in_a_row, trainer.position = about["bad_in_a_row"], about["position"]
        return trainer

    def _restore(self, path, tensors):
        """Weights and moments from the tensors of a state file."""
        core = self.model._core
        masters = self._core.masters()
        for kind, values in zip(_KINDS, (self.model.named_parameters(), *self._core.moments())):
            for name, value in values.items():
                stored = tensors.get(f"{kind}/{name}")
                if stored is None or tuple(stored.shape) != value.shape:
                    raise FormatError(f"{path}: {kind}/{name} is missing or misshapen; the file is not whole")
                numbers = stored.numpy(core.real)
                if kind == "model":
                    core.write_parameter(name, numbers)
                else:
                    self._core.write(kind, name, numbers)
        for name in masters:
            self._core.write("master", name, tensors[f"model/{name}"].numpy(core.real))


def trained_in(precision, device):
    """The precision of a model that is to be trained in this one: on the CPU float32, of which a 16-bit run has masters."""
    return precision if device != "cpu" or precision == "fp64" else "fp32"


def _check_description(about):
    """Raises KeyError, ValueError where the JSON text of a state is not what `save` writes."""
    if not 1 <= about["loss_scale"] < 1e38:
        raise ValueError(f"loss_scale is {about['loss_scale']!r}")
    for name in ("steps", "tokens", "applied_steps", "bad_in_a_row", "good_steps"):
        if type(about[name]) is not int or about[name] < 0:
            raise ValueError(f"{name} is {about[name]!r}")
    for name, kind in (("position", dict), ("model", dict), ("training", dict), ("rules", dict), ("precision", str), ("backend", str)):
        if not isinstance(about[name], kind):
            raise ValueError(f"{name} is {about[name]!r}")


def _read_state(path, verify=False):
    """(tensors, the JSON text as a dict) of a trainer's state file; verify: check its numbers too."""
    from .checkpoint import read_pth

    tensors = read_pth(path, verify=verify)
    if "about" not in tensors:
        raise FormatError(
            f"{path} is not a trainer's state (weights alone cannot resume a run; load them with RWKV.load)"
        )
    try:
        about = json.loads(tensors["about"].numpy().tobytes())
        about = {"rules": {}, "loss_scale": 1.0, "good_steps": 0} | about  # states of earlier versions have none
        newer = about["format"] > STATE_FORMAT
        if not newer:
            _check_description(about)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{path}: the description in this trainer's state cannot be read ({error!r})") from error
    if newer:
        raise FormatError(
            f"{path} was written by a newer version of rwkvtune (format {about['format']}, this one reads {STATE_FORMAT})"
        )
    return tensors, about


def check_same_run(before, now):
    """Raises ValueError where a `TrainingConfig` changes what the moments and the order of samples of a run rest on."""
    for name in _FIXED:
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            raise ValueError(f"{name} is {new!r} but the run to continue has {old!r}; it cannot change within a run")


def read_position(path):
    """dict: what a state file tells about its run: steps, tokens, position, training, model.  Raises as `Trainer.resume`."""
    return _read_state(path)[1]


def evaluate(model, tokens, context=(), chunk=1024):
    """Mean cross-entropy, in nats, of predicting a text from its beginning, the state carried all along.

    tokens: 1-D array-like of ids, the text.  context: ids read before it that do not count.  chunk: tokens at a time.
    Returns (loss, number of predicted tokens); the very first token counts only when there is a context.
    Raises ValueError (fewer than two tokens in all).
    """
    vocab_size = model.config.vocab_size
    tokens = token_ids(tokens, vocab_size, "tokens").reshape(-1)
    context = token_ids(context, vocab_size, "context").reshape(-1) if len(context) else np.empty(0, np.int32)
    stream = np.concatenate([context, tokens])
    if len(stream) < 2:
        raise ValueError("evaluation needs at least two tokens")
    targets = stream[1:].copy()
    targets[: max(0, len(context) - 1)] = -100
    total, count, state = 0.0, 0, None
    for at in range(0, len(targets), chunk):
        part = slice(at, min(at + chunk, len(targets)))
        x, y = ids_and_targets(stream[part], targets[part], vocab_size)
        loss, n, state = model._core.loss(x, y, state)
        total, count = total + loss, count + n
    return total / max(1, count), count


def bits(nats):
    """A loss in nats as bits."""
    return nats / math.log(2)
