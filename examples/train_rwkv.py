"""Train a hybrid of RWKV and attention layers on text files.

    python examples/train_rwkv.py --train_file train.txt --val_file val.txt --output_dir outputs --experiment_name mine \
        --max_seq_length 1024 --batch_size 4 --use_rwkv_chunking --rwkv_chunk_size 256 --max_steps 200

Run the same line with --resume to go on after an interruption.  The environment variables RWKV_HEAD_SIZE, RWKV_HEAD_SIZE_A,
RWKV_MY_TESTING, RWKV_CTXLEN, RWKV_TRAIN_TYPE, RWKV_FLOAT_MODE and RWKV_JIT_ON are read; flags win over them.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from rwkvtune import (GenericTokenizer, HybridModelConfigurator, ModelConfig, RWKVIntegrator, TrainingConfig, TrainingEngine,
                      create_byte_vocab_file, evaluate_sequence_modeling)  # fmt: skip
from rwkvtune.atomic import atomic_write
from rwkvtune.checkpoint import read_checkpoint
from rwkvtune.hybrid import (ModelConfig1BRWKV, ModelConfig3BRWKV, RWKVMemoryConfig, environment_report, parameter_count,
                             read_environment, setup_model, setup_train_dataloader, setup_val_dataloader)  # fmt: skip
from rwkvtune.hybrid.configurator import PATTERNS

PRESETS = {"3b": ModelConfig3BRWKV, "1b": ModelConfig1BRWKV}


def arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    _file_flags(parser)
    _model_flags(parser)
    _training_flags(parser)
    parser.set_defaults(**_from_environment())
    return parser.parse_args(argv)


def _file_flags(parser):
    files = parser.add_argument_group("files")
    files.add_argument("--train_file", required=True, help="UTF-8 text to train on")
    files.add_argument("--val_file", help="UTF-8 text for the validation loss and the evaluation at the end")
    files.add_argument("--vocab_file", help="vocabulary; none: one token per byte")
    files.add_argument("--output_dir", default="output", help="directory of all experiments")
    files.add_argument("--experiment_name", default="rwkv_hybrid", help="directory of this one inside output_dir")
    files.add_argument("--resume", action="store_true", help="go on with the run that is there")
    files.add_argument("--load_model", help="weights to begin with (.pth, .safetensors); what they lack is fresh")


def _model_flags(parser):
    model = parser.add_argument_group("model")
    model.add_argument("--preset", choices=PRESETS, help="a large configuration instead of the sizes below")
    model.add_argument("--n_layer", type=int, default=4, help="layers")
    model.add_argument("--n_embd", type=int, default=128, help="channels")
    model.add_argument(
        "--model_type", choices=("x052", "x060", "x070"), default="x070", help="version of the RWKV layers"
    )
    model.add_argument("--head_size_a", type=int, default=64, help="channels of a head")
    model.add_argument(
        "--layers", help="numbers of the RWKV layers, separated by commas; the others are attention layers"
    )
    model.add_argument(
        "--pattern", choices=PATTERNS, help="where the RWKV layers are; default: the even layers, or the preset's"
    )
    model.add_argument("--rwkv_ratio", type=float, default=0.5, help="share of RWKV layers in a pattern")
    model.add_argument(
        "--for_sequence_length", type=int, help="choose the layers by the length of the sequences instead"
    )


def _training_flags(parser):
    train = parser.add_argument_group("training")
    train.add_argument("--max_seq_length", type=int, default=1024, help="tokens of a training window")
    train.add_argument("--stride", type=int, help="tokens from one window to the next; none: max_seq_length")
    train.add_argument("--batch_size", type=int, default=8, help="windows of a step")
    train.add_argument("--micro_bsz", type=int, default=8, help="windows run at a time without chunking")
    train.add_argument(
        "--use_rwkv_chunking",
        action="store_true",
        help="run windows in chunks: memory of one chunk, gradients cut there",
    )
    train.add_argument("--rwkv_chunk_size", type=int, default=1024, help="tokens of a chunk")
    train.add_argument("--epochs", type=int, default=1, help="passes over the training text")
    train.add_argument("--max_steps", type=int, help="end after so many steps instead")
    train.add_argument("--lr", type=float, default=1e-3, help="first learning rate")
    train.add_argument("--lr_final", type=float, default=1e-4, help="last learning rate")
    train.add_argument("--warmup_steps", type=int, default=10, help="steps of warm-up")
    train.add_argument("--weight_decay", type=float, default=0.01, help="of the matrices outside the RWKV groups")
    train.add_argument(
        "--rwkv_lr_multiplier", type=float, default=1.2, help="of the groups of time mix and channel mix"
    )
    train.add_argument("--rwkv_att_weight_decay", type=float, default=0.0, help="of the time-mix group")
    train.add_argument("--rwkv_ffn_weight_decay", type=float, default=0.01, help="of the channel-mix group")
    train.add_argument(
        "--grad_cp", type=int, choices=(0, 1), default=0, help="1: compute activations again, less memory"
    )
    train.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N, or auto: a CUDA device where there is one")
    train.add_argument(
        "--precision", choices=("fp32", "tf32", "bf16", "fp16"), default="fp32", help="the CPU trains in fp32"
    )
    train.add_argument(
        "--train_type",
        choices=("", "normal", "none", "state", "states", "infctx"),
        default="",
        help="states: the initial states alone; infctx: --use_rwkv_chunking",
    )
    train.add_argument("--seed", type=int, default=42, help="of weights and of the order of the windows")
    train.add_argument("--save_every_steps", type=int, default=0, help="steps between saved states; 0: every minute")
    train.add_argument("--eval_every_steps", type=int, default=0, help="steps between validations; 0: each epoch")
    train.add_argument("--dry_run", action="store_true", help="tell what would be trained and stop")


def _from_environment():
    """Defaults of flags from the environment; each variable that is set is shown."""
    for line in environment_report():
        print(line)
    settings = read_environment()
    if "ctx_len" in settings:
        settings["max_seq_length"] = settings.pop("ctx_len")
    return settings


def model_configuration(args, tokenizer):
    """(configuration, configurator) of the flags."""
    if args.preset:
        config = PRESETS[args.preset](rwkv_version=args.model_type)
    else:
        config = ModelConfig(model_type=args.model_type, n_layer=args.n_layer, n_embd=args.n_embd, head_size_a=args.head_size_a,
                             vocab_size=tokenizer.vocab_size, ctx_len=args.max_seq_length,
                             time_state=args.train_type in ("state", "states"))  # fmt: skip
    configurator = HybridModelConfigurator(model_config=config)
    if args.layers is not None:
        numbers = [int(number) for number in args.layers.split(",") if number.strip()]
        configurator.configure_layer_architecture(rwkv_layer_indices=numbers)
    elif args.for_sequence_length:
        configurator.optimize_for_sequence_length(args.for_sequence_length)
    elif args.pattern:
        configurator.configure_layer_architecture(pattern=args.pattern, rwkv_ratio=args.rwkv_ratio)
    return config, configurator


def training_configuration(args):
    train_type = "states" if args.train_type in ("state", "states") else ""
    return TrainingConfig(
        lr_init=args.lr, lr_final=args.lr_final, warmup_steps=args.warmup_steps, weight_decay=args.weight_decay,
        micro_bsz=min(args.micro_bsz, args.batch_size), grad_cp=args.grad_cp, precision=args.precision, random_seed=args.seed,
        train_type=train_type, save_every_steps=args.save_every_steps, eval_every_steps=args.eval_every_steps,
    )  # fmt: skip


def run(args):
    out = Path(args.output_dir) / args.experiment_name
    out.mkdir(parents=True, exist_ok=True)
    vocab_file = args.vocab_file or out / "vocab.txt"
    if not args.vocab_file and not vocab_file.exists():
        create_byte_vocab_file(str(vocab_file))
    tokenizer = GenericTokenizer(str(vocab_file))
    config, configurator = model_configuration(args, tokenizer)
    runnable = configurator.to_model_config()
    print(f"{runnable.summary()}, {parameter_count(runnable):,} parameters; {configurator!r}")
    if args.dry_run:
        return "dry run"
    chunking = args.use_rwkv_chunking or args.train_type == "infctx"
    train_loader = setup_train_dataloader(args, tokenizer, use_rwkv_chunking=chunking)
    val_loader = setup_val_dataloader(args, tokenizer) if args.val_file else None
    training = training_configuration(args)
    model = setup_model(args, config, tokenizer, training, None, configurator)
    if args.load_model:
        model.load_state_dict({**model.named_parameters(), **read_checkpoint(args.load_model)})
    model = RWKVIntegrator(
        model=model, model_config={"rwkv_chunk_size": args.rwkv_chunk_size}
    ).apply_rwkv_optimizations()
    memory = RWKVMemoryConfig(
        use_gradient_checkpointing=bool(args.grad_cp),
        activation_checkpointing=False,
        rwkv_chunk_size=args.rwkv_chunk_size,
    )
    engine = TrainingEngine(model, training, config, memory, tokenizer).optimize_rwkv_training_setup()
    engine.setup_rwkv_optimizer(rwkv_lr_multiplier=args.rwkv_lr_multiplier, att_weight_decay=args.rwkv_att_weight_decay,
                                ffn_weight_decay=args.rwkv_ffn_weight_decay)  # fmt: skip
    configurator.export_config(out / "layers.json")
    result = engine.train(train_loader, val_loader, num_epochs=args.epochs, max_steps=args.max_steps, output_dir=out, resume=args.resume,
                          how_to_resume="Add --resume to the same command to go on.")  # fmt: skip
    if result == "finished":
        finish(args, engine, val_loader, out)
    return result


def finish(args, engine, val_loader, out):
    """Evaluate, and write evaluation.json beside the checkpoints."""
    if val_loader is not None:
        print("validation:", {name: round(value, 4) for name, value in engine.validate(val_loader).items()})
    texts = None
    if args.val_file:
        texts = [Path(args.val_file).read_text(encoding="utf-8")[:20_000]]
    model = engine.prepare_for_inference(optimize_for_rwkv=True)
    results = evaluate_sequence_modeling(
        model=model, tokenizer=engine.tokenizer, chunk_size=args.rwkv_chunk_size, texts=texts
    )
    with atomic_write(out / "evaluation.json", "w") as file:
        file.write(json.dumps(results, indent=2) + "\n")
    print(f"evaluation: loss {results['loss']:.4f}, perplexity {results['perplexity']:.3f}, accuracy {results['next_token_accuracy']:.3f},"
          f" state benefit {results['state_benefit_ratio']:.3f}")  # fmt: skip


def main(argv=None):
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        return 0 if run(arguments(argv)) != "interrupted" else 130
    except (ValueError, OSError, NotImplementedError, FloatingPointError) as error:
        print(f"train_rwkv: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
