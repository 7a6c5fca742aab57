"""rwkvtune quickstart: from a text to a trained model in under two minutes on two processor cores.

The text is Python's own language reference (module pydoc_data.topics), or any UTF-8 file.  Its last 5 %, in whole
paragraphs, are held out; afterwards the model's bits per byte on them stand beside those of gzip and xz, which are
given the training text first and then asked what the held-out text costs on top.
"""

import gzip
import json
import lzma
import math
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from . import run_command
from .common import TextStream, newest_checkpoint

SUMMARY = "Train a small model on a text, measure it, and let it write."
DOCUMENT_CHARS = 2000
HELD_OUT, HELD_OUT_CHARS = 0.05, 100_000  # of the text, but not more than so many characters
CONTEXT = 4096  # tokens of the training text read before the held-out text is scored
_OWN_FILES = ("out/rwkv-*.pth", "out/trainer_state.pth", "out/*.csv", "out/loss.png", "out/train_log.txt", "data/train.*", "data/val.*",
              "data/vocab.txt", "configs/config.json")  # fmt: skip


def add_arguments(parser):
    parser.add_argument(
        "text_file", nargs="?", default="", metavar="TEXT", help="UTF-8 text file; default: Python's language reference"
    )
    parser.add_argument("--text", default="", help="the same as TEXT")
    parser.add_argument(
        "--work_dir", default="", help="directory of everything that is written; default: rwkv-quickstart, or rwkv-quickstart-NAME for a text file NAME"
    )
    parser.add_argument("--steps", type=int, default=1500, help="optimizer steps")
    parser.add_argument("--n_layer", type=int, default=3, help="layers")
    parser.add_argument("--n_embd", type=int, default=128, help="channels")
    parser.add_argument("--ctx_len", type=int, default=128, help="tokens of a sample")
    parser.add_argument("--micro_bsz", type=int, default=8, help="samples of a step")
    parser.add_argument("--lr_init", type=float, default=4e-3, help="first learning rate; the last is a tenth")
    parser.add_argument("--max_new_tokens", type=int, default=400, help="bytes of text to let the model write")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N, or auto: a CUDA device where there is one")
    parser.add_argument("--seed", type=int, default=0, help="of the initialisation and of the writing")
    parser.add_argument(
        "--fresh", action="store_true", help="delete what an earlier quickstart left in --work_dir and start again"
    )


def source_text(path):
    """(text, what it is).  Raises FileNotFoundError, ValueError (no UTF-8, no built-in text)."""
    if path:
        if not Path(path).exists():
            raise FileNotFoundError(f"text not found: {path}")
        try:
            return Path(path).read_text(encoding="utf-8-sig"), str(path)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error})") from None
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ValueError("this Python comes without its language reference; name a text file instead") from None
    return "\n\n".join(topics[name] for name in sorted(topics)), "Python's language reference (pydoc_data.topics)"


def _documents(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file if line.strip()]


def _make_pipeline(args, text):
    """The pipeline of --work_dir with `text` prepared.  Raises ValueError where the directory belongs to another text."""
    from ..config import DataConfig, ModelConfig, TrainingConfig
    from ..data.tokenizers import GenericTokenizer, create_byte_vocab_file
    from ..model import default_precision
    from ..pipeline import RWKVTrainingPipeline, text_documents

    directory = Path(args.work_dir)
    data = directory / "data"
    documents = text_documents(text, DOCUMENT_CHARS)
    if len(documents) < 20:
        raise ValueError(
            f"the text gives {len(documents)} documents of up to {DOCUMENT_CHARS} characters; at least 20 are needed"
        )
    data.mkdir(parents=True, exist_ok=True)
    create_byte_vocab_file(str(data / "vocab.txt"))
    tokenizer = GenericTokenizer(str(data / "vocab.txt"))
    model = ModelConfig(
        model_type="x070",
        n_layer=args.n_layer,
        n_embd=args.n_embd,
        ctx_len=args.ctx_len,
        vocab_size=tokenizer.vocab_size,
        head_size_a=math.gcd(64, args.n_embd),
    )
    training = TrainingConfig(
        lr_init=args.lr_init, lr_final=args.lr_init / 10, micro_bsz=args.micro_bsz, warmup_steps=30, weight_decay=0.1, grad_cp=0,
        precision=default_precision(args.device), random_seed=args.seed, save_every_seconds=20.0, eval_every_steps=max(1, args.steps // 5), epoch_save=0,
    )  # fmt: skip
    data_config = DataConfig(n_epochs_duplication=1, shuffle=False, val_fraction=min(HELD_OUT, HELD_OUT_CHARS / len(text)))
    pipeline = RWKVTrainingPipeline(directory, model, training, data_config, tokenizer, device=args.device)
    if not (pipeline.data_prepared and (data / "val.idx").exists()):
        pipeline.prepare_text(text, document_chars=DOCUMENT_CHARS)
    elif _documents(data / "train.jsonl") + _documents(data / "val.jsonl") != documents:
        raise ValueError(
            f"{directory} holds a run on another text; add --fresh (with make: FRESH=1) to delete it, or choose another --work_dir (WORK_DIR=)"
        )
    return pipeline


def _delete(directory):
    """Deletes what a quickstart writes, and nothing else."""
    if not (directory / "configs" / "config.json").exists():
        return
    for pattern in _OWN_FILES:
        for path in directory.glob(pattern):
            path.unlink()


def _train(args, pipeline):
    """Trains, goes on, or says that it is done.  Returns "finished" or "interrupted"."""
    from ..loop import STATE_NAME
    from ..trainer import read_position

    state = pipeline.output_dir / STATE_NAME
    done = read_position(state)["steps"] if state.exists() else 0
    if done > args.steps:
        raise ValueError(
            f"{pipeline.work_dir} holds a run of {done} steps, more than --steps {args.steps}; give --steps {done} or more to go on with it, or"
            " --fresh (with make: FRESH=1) to start again"
        )
    if done == args.steps and (pipeline.output_dir / "rwkv-final.pth").exists():
        print(
            f"### {pipeline.work_dir} holds a finished run of {done} steps; it is used as it is; --fresh (with make: FRESH=1) starts again."
        )
        return "finished"
    if state.exists():
        print(f"### Going on after step {done} of {args.steps}.")
    advice = "To go on: the same command. To start again: the same command with --fresh (with make: FRESH=1)."
    return pipeline.train(max_steps=args.steps, continue_training=state.exists(), how_to_resume=advice)["status"]


def compressed_bits(train, held):
    """dict: compressor -> bits per byte of `held` after `train`, both bytes."""
    tools = {
        "gzip -9 (looks back 32 KiB)": lambda data: len(gzip.compress(data, 9)),
        "xz -9 (looks back over everything)": lambda data: len(lzma.compress(data, preset=9)),
    }
    return {name: 8 * (size(train + held) - size(train)) / len(held) for name, size in tools.items()}


def model_bits(model, pipeline):
    """(bits of the held-out text per byte, its bytes); its end-of-document tokens stand for the blank lines."""
    from ..data.binidx import BinIdxDataset
    from ..trainer import bits, evaluate

    streams = []
    for name, most in (("train", CONTEXT), ("val", math.inf)):
        with BinIdxDataset(str(pipeline.data_dir / name)) as data:
            length = int(min(most, data.total_tokens))
            streams.append(data.stream(int(data.total_tokens) - length, length).copy())
    loss, count = evaluate(model, streams[1], context=streams[0])
    size = len("\n\n".join(_documents(pipeline.data_dir / "val.jsonl")).encode())
    return bits(loss) * count / size, size


def _opening(text):
    """The first words of the first paragraph of a text that looks like prose, at most 60 characters."""
    paragraphs = text.split("\n\n")
    prose = next((p for p in paragraphs if re.match(r"[A-Z][a-z]+ [a-z]+ [a-z]+ ", p)), paragraphs[0])
    return prose[:60].rsplit(" ", 1)[0]


def _report(args, pipeline):
    from ..model import RWKV

    model = RWKV.load(newest_checkpoint(pipeline.output_dir), device=args.device, ctx_len=args.ctx_len)
    train, held = ("\n\n".join(_documents(pipeline.data_dir / f"{name}.jsonl")).encode() for name in ("train", "val"))
    ours, size = model_bits(model, pipeline)
    rows = {
        f"this model ({model.num_parameters:,} parameters)": ours,
        **compressed_bits(train + b"\n\n", held),
    }
    print(
        f"\nThe held-out last {size:,} bytes of the text cost, after {len(train):,} bytes of training text,"
        " in bits per byte:"
    )
    for name, value in rows.items():
        print(f"  {name:40} {value:.3f}")
    prompt = _opening(held.decode())
    print(f"\nIt continues {prompt!r}:\n")
    with TextStream(pipeline.tokenizer) as stream:
        model.generate(
            pipeline.tokenizer.encode(prompt), args.max_new_tokens, temperature=0.8, top_p=0.9, seed=args.seed, stream=stream
        )
    return prompt


def _next_commands(pipeline, prompt):
    out = pipeline.output_dir
    command = "rwkvtune" if shutil.which("rwkvtune") else f"{shlex.quote(os.path.relpath(sys.executable))} -m rwkvtune"
    picture = out / "loss.png"
    print(f"\nLoss curve: {picture if picture.exists() else out / 'loss.csv'}   weights: {out / 'rwkv-final.pth'}")
    print(
        f"Next:  {command} generate {shlex.quote(os.path.relpath(pipeline.work_dir))} --prompt {shlex.quote(prompt)}\n"
        f"       {command} quickstart my_text.txt"
    )
    if not picture.exists():
        print("       pip install matplotlib   (then the loss curve is drawn as well)")


def _check(args):
    """Refuses before the first second of work what would fail after the last."""
    if args.text and args.text_file:
        raise ValueError("give the text once: as TEXT or as --text")
    for name, least in (("steps", 1), ("n_layer", 1), ("n_embd", 16), ("ctx_len", 1), ("micro_bsz", 1), ("max_new_tokens", 0), ("seed", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least {least}")
    if args.n_embd % 16:
        raise ValueError(f"--n_embd is {args.n_embd}; it must be a multiple of 16, better of 64, the channels of a head")


def run(args):
    from ..lock import RunLock
    from ..model import full_device

    _check(args)
    args.device = full_device(args.device)
    source = args.text or args.text_file
    args.work_dir = args.work_dir or (f"rwkv-quickstart-{Path(source).stem}" if source else "rwkv-quickstart")
    text, what = source_text(source)
    print(f"### Text: {what}, {len(text.encode()):,} bytes")
    directory = Path(args.work_dir)
    directory.mkdir(parents=True, exist_ok=True)
    with RunLock(directory):
        if args.fresh:
            _delete(directory)
        pipeline = _make_pipeline(args, text)
        if _train(args, pipeline) == "interrupted":
            return 130
        _next_commands(pipeline, _report(args, pipeline))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("quickstart", sys.argv[1:]))
