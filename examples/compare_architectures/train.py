"""Train RWKV, a transformer like GPT-2, or a hybrid of both, with everything but the model the same.

    python train.py --model rwkv --preset small --text reference     # a few minutes on two processor cores
    python train.py --model gpt2 --preset small --text reference
    python compare.py log                                            # the figure and the table of what was trained

Into --log_dir/MODEL go log.txt ("STEP train LOSS", "STEP val LOSS"), loss.csv, results.json and the checkpoints
model_STEP.pth, which hold everything: the same command goes on with the newest, bit for bit, after Ctrl-C too.  --text makes the
shards in --data_root once.  RWKV_HEAD_SIZE, RWKV_CTXLEN and RWKV_MY_TESTING are read as defaults of --head_size, --ctx_len and
--version; RWKV_JIT_ON changes nothing, as nothing is compiled at run time.
"""

import argparse
import json
import os
import re
import resource
import signal
import sys
import time
from pathlib import Path

from choices import accuracy, read_questions
from config import MODEL_TYPES, PRESETS, Config
from dataloader import ShardLoader, write_shards
from models import create_model
from optimization import configure_optimizers, get_lr, set_groups

from rwkvtune import FormatError, Trainer
from rwkvtune.atomic import atomic_write, make_directory
from rwkvtune.callbacks import CsvLog
from rwkvtune.cli.quickstart import source_text
from rwkvtune.hybrid import environment_report, read_environment
from rwkvtune.lock import RunLock
from rwkvtune.loop import LOSS_COLUMNS
from rwkvtune.trainer import read_position

_FROM_ENVIRONMENT = {"head_size_a": "head_size", "ctx_len": "ctx_len", "model_type": "version"}
_NUMBERS = {
    int: ("n_layer", "n_embd", "head_size", "ctx_len", "vocab_size", "max_steps", "warmup_steps", "total_batch_size", "micro_batch_size",
          "eval_interval", "checkpoint_interval", "val_loss_steps", "eot_token", "seed"),
    float: ("learning_rate", "min_lr_ratio", "weight_decay", "grad_clip"),
}  # fmt: skip


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODEL_TYPES, required=True, help="what to train")
    parser.add_argument("--preset", choices=PRESETS, default="equal", help="sizes and training: see config.py; default: equal")
    parser.add_argument("--text", help='UTF-8 text to make shards of, or "reference": Python\'s own language reference')
    parser.add_argument("--data_root", help="directory of .npy token shards, with train or val in their names")
    parser.add_argument("--questions", help="JSON lines as HellaSwag's, asked at each validation; see choices.py")
    parser.add_argument("--log_dir", help="directory of the logs and checkpoints; default: log")
    parser.add_argument("--version", choices=("x052", "x060", "x070"), help="of the RWKV layers; default: x070")
    parser.add_argument("--init", choices=("rwkv_lm", "uniform"), help="of RWKV layers; default: rwkv_lm")
    parser.add_argument("--use_grad_checkpointing", action="store_true", default=None, help="less memory for more time")
    parser.add_argument("--fresh", action="store_true", help="delete the checkpoints and logs of this model and start again")
    for kind, names in _NUMBERS.items():
        for name in names:
            parser.add_argument(f"--{name}", type=kind, help="default: of the preset")
    return parser.parse_args(arguments)


def configuration(args):
    """The `Config` of a command line: arguments win over environment variables, those over the preset."""
    if args.model == "gpt2" and (args.version or args.init):
        raise ValueError("--version and --init say what RWKV layers are, and gpt2 has none; leave them out")
    known = ("ctx_len",) if args.model == "gpt2" else _FROM_ENVIRONMENT
    settings = {_FROM_ENVIRONMENT[name]: value for name, value in read_environment().items() if name in known}
    given = {name: value for name, value in vars(args).items() if name not in ("model", "preset", "text", "questions", "fresh")}
    settings |= {name: value for name, value in given.items() if value is not None}
    if args.fresh:
        settings["resume_training"] = False
    if settings.get("use_grad_checkpointing"):
        settings["grad_cp"] = 1
    return Config.of(args.model, args.preset).with_settings(settings)


def show_environment(config):
    """Sets and prints the variables that say what RWKV layers are used; for a model without any, prints those that are set."""
    wanted = config.model_specific
    if wanted.model_type == "gpt2":
        return print(*environment_report(), sep="\n", end="\n" if environment_report() else "")
    values = {"RWKV_HEAD_SIZE": str(wanted.head_size), "RWKV_MY_TESTING": wanted.version, "RWKV_CTXLEN": str(wanted.ctx_len),
              "RWKV_JIT_ON": os.environ.get("RWKV_JIT_ON", "1")}  # fmt: skip
    print("Setting environment variables for RWKV...")
    os.environ.update(values)
    for name, value in values.items():
        print(f"  {name}={value}")


# ---- checkpoints ----


def newest_checkpoint(out):
    """Path of the checkpoint of most steps, or None."""
    found = [(int(match[1]), path) for path in out.glob("model_*.pth") if (match := re.fullmatch(r"model_(\d+)\.pth", path.name))]
    return max(found)[1] if found else None


def _differences(old, new):
    return [f"{name} {old.get(name)!r} (now {value!r})" for name, value in new.items() if old.get(name) != value]


def resume(path, config, loader):
    """The trainer of a checkpoint, on this configuration.

    The model must be of the configuration's sizes and the data the same: otherwise ValueError names what differs.  How to
    train may change; what does is printed, and holds from the next step on.
    """
    position = read_position(path)["position"]
    if "config" not in position:
        raise FormatError(f"{path} is no checkpoint of this script; choose another --log_dir")
    old, new = position["config"], json.loads(json.dumps(config.to_dict()))
    differ = _differences(old["model_specific"] | {"seed": old["system"]["seed"]}, new["model_specific"] | {"seed": new["system"]["seed"]})
    differ = [text for text in differ if not text.startswith("grad_cp ")] + _differences(position["data"], loader.identity())
    if differ:
        raise ValueError(f"{path} was made with {', '.join(differ)}; restore that, choose another --log_dir, or start again with --fresh")
    changed = _differences(old["model_training"], new["model_training"])
    if changed:
        print(f"The checkpoint was made with {', '.join(changed)}; from now on the new values hold.")
    trainer = Trainer.resume(path)
    trainer.adopt(config.model_training.core(config.model_specific.grad_cp))
    print(f"Resuming training from step {trainer.steps}")
    return trainer


# ---- logs ----


class TextLog:
    """log.txt: a line "STEP KIND VALUE" for each measurement; lines behind the step a run goes on from are dropped."""

    def __init__(self, path, after_step):
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.split(" ")[0].isdigit() and int(line.split(" ")[0]) <= after_step]
        with atomic_write(path, "w") as file:
            file.writelines(f"{line}\n" for line in kept)
        self._file = open(path, "a", encoding="utf-8")

    def write(self, text):
        self._file.write(text + "\n")
        self._file.flush()

    def close(self):
        self._file.close()


def peak_gigabytes():
    """Most memory this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 30 if sys.platform == "darwin" else 1 << 20)


def validate(model, loader, batches):
    """Mean loss over the first batches of the held-out data, each sequence read from its beginning by an empty state."""
    batches = max(1, min(batches, loader.tokens // (loader.batch[0] * loader.batch[1])))
    return sum(model.loss(*loader(number)) for number in range(batches)) / batches


# ---- the run ----


class Run:
    """One model's training from where it stands to max_steps."""

    def __init__(self, config, out, questions=()):
        training, data, vocab_size = config.model_training, config.data, config.model_specific.vocab_size
        self.config, self.training, self.out, self.stop = config, training, out, False
        self.questions = questions
        rows = training.accumulation_steps() * training.micro_batch_size
        shards = (data.data_root, vocab_size, data.eot_token)
        self.loader = ShardLoader(shards[0], "train", (rows, training.sequence_length), *shards[1:], seed=config.system.seed)
        self.held_out = ShardLoader(shards[0], "val", (training.micro_batch_size, training.sequence_length), *shards[1:])
        self.trainer = self._trainer()
        self.place = self.trainer.position
        self.place.setdefault("data", self.loader.identity())
        self.place.setdefault("seconds", [0.0, 0.0])  # of the steps so far, by the clock and of processor cores

    def _trainer(self):
        wanted = self.config.model_specific
        path = newest_checkpoint(self.out)
        trainer = resume(path, self.config, self.loader) if path else None
        model = trainer.model if trainer else create_model(self.config)
        print(f"--- {'Resumed' if trainer else 'Fresh'} Model '{wanted.model_type}' ---")
        print(f"--- Trainable Parameters: {model.num_parameters:,} --- ({wanted.num_parameters()[1]:,} of them in the layers)")
        memory = model.plan(self.training.micro_batch_size, self.training.sequence_length, grad_cp=wanted.grad_cp)["total"]
        print(f"--- Memory of a step: {memory / 2**30:.2f} GB ---")
        if trainer:
            return set_groups(trainer, self.training, wanted.model_type)
        return configure_optimizers(model, self.training, wanted.model_type, wanted.grad_cp)

    def __call__(self):
        """Trains; Ctrl-C and SIGTERM end it after a whole step.  Returns whether it came to the end."""
        self.log, self.curve = TextLog(self.out / "log.txt", self.trainer.steps), CsvLog(self.out / "loss.csv", LOSS_COLUMNS, self.trainer.steps)
        old = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while self.trainer.steps < self.training.max_steps and not self.stop:
                self._step(self.trainer.steps)
                self._after_step(self.trainer.steps)
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            self.log.close()
            self.curve.close()
        return self.trainer.steps >= self.training.max_steps

    def _stop(self, number, frame):
        if self.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop = True
        print("\nStopping after this step and saving; Ctrl-C again stops at once.", file=sys.stderr)

    def _step(self, number):
        ids, targets = self.loader(number)
        lr, began, busy = get_lr(number, self.training), time.monotonic(), time.process_time()
        loss, norm = self.trainer.step(ids, targets, lr=lr)
        seconds = time.monotonic() - began
        self.place["seconds"] = [self.place["seconds"][0] + seconds, self.place["seconds"][1] + time.process_time() - busy]
        print(f"step: {number:5d} | loss: {loss:.6f} | lr: {lr:.4e} | norm: {norm:.4f} | dt: {1000 * seconds:.2f}ms"
              f" | tok/sec: {ids.size / seconds:.2f} | mem: {peak_gigabytes():.2f}GB", flush=True)  # fmt: skip
        self.log.write(f"{number + 1} train {loss:.6f}")
        self.curve.write(self.trainer.steps, self.trainer.tokens, loss, lr, norm, round(ids.size / seconds, 1))

    def _after_step(self, done):
        training = self.training
        last = done == training.max_steps
        if last or done % training.eval_interval == 0:
            self.place["val_loss"] = validate(self.trainer.model, self.held_out, self.config.data.val_loss_steps)
            print(f"validation loss: {self.place['val_loss']:.4f}")
            self.log.write(f"{done} val {self.place['val_loss']:.4f}")
            if self.questions:
                share = accuracy(self.trainer.model, self.questions)
                print(f"questions answered: {share:.4f}")
                self.log.write(f"{done} hella {share:.4f}")
        if last:
            self._write_results()
        if last or self.stop or done % training.checkpoint_interval == 0:
            self.place |= {"config": self.config.to_dict(), "step": done, "train_loader": self.loader.position(done)}
            self.trainer.save(self.out / f"model_{done:05d}.pth")

    def _write_results(self):
        by_clock, of_cores = self.place["seconds"]
        results = {
            "model": self.config.model_specific.model_type, "parameters": self.trainer.model.num_parameters,
            "val_loss": self.place["val_loss"], "tokens": self.trainer.tokens, "seconds": by_clock,
            "tokens_per_second": self.trainer.tokens / by_clock, "tokens_per_core_second": self.trainer.tokens / of_cores,
            "memory_gb": peak_gigabytes(), "config": self.config.to_dict(),
        }  # fmt: skip
        with atomic_write(self.out / "results.json", "w") as file:
            json.dump(results, file, indent=1)


def delete_run(out):
    """Deletes what a run writes, and nothing else."""
    for pattern in ("model_*.pth", "log.txt", "loss.csv", "results.json"):
        for path in out.glob(pattern):
            path.unlink()


def train(args):
    config = configuration(args)
    show_environment(config)
    if args.text and not list(Path(config.data.data_root).glob("*train*.npy")):
        text, what = source_text("" if args.text == "reference" else args.text)
        write_shards(text, config.data.data_root)
        print(f"Text: {what}, now shards in {config.data.data_root}")
    questions = read_questions(args.questions, config.model_specific.vocab_size) if args.questions else ()
    out = Path(config.system.log_dir) / args.model
    make_directory(out)
    with RunLock(out):
        if args.fresh:
            delete_run(out)
        finished = Run(config, out, questions)()
    if not finished:
        print("Stopped and saved; the same command goes on, unless it says --fresh.", file=sys.stderr)
    return 0 if finished else 130


def main(arguments=None):
    try:
        return train(parse(arguments))
    except (ValueError, OSError, RuntimeError, ArithmeticError, NotImplementedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
