"""rwkvtune generate: sample a continuation of a prompt."""

import sys

from . import run_command
from .common import TextStream, load_model, model_options

SUMMARY = "Continue a prompt with a trained model."


def add_arguments(parser):
    model_options(parser)
    parser.add_argument("--prompt", default="", help="text (or integers, for an integer tokenizer) to continue")
    parser.add_argument("--prompt_ids", default="", help="token ids separated by spaces, instead of --prompt")
    parser.add_argument("--max_new_tokens", type=int, default=200, help="tokens to sample")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 = always the likeliest token")
    parser.add_argument(
        "--top_p", type=float, default=0.9, help="sample among the likeliest tokens of this total probability"
    )
    parser.add_argument("--top_k", type=int, default=0, help="sample among so many tokens, 0 = all")
    parser.add_argument("--presence_penalty", type=float, default=0.0, help="taken off tokens already generated")
    parser.add_argument("--frequency_penalty", type=float, default=0.0, help="taken off once per occurrence")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text")
    parser.add_argument("--stop_at_end", action="store_true", help="stop at the end-of-document token, id 0")


def prompt_ids(args, tokenizer):
    """The ids to continue; the end-of-document token where there is no prompt."""
    if args.prompt_ids:
        try:
            return [int(word) for word in args.prompt_ids.split()]
        except ValueError:
            raise ValueError(f"--prompt_ids {args.prompt_ids!r}: ids are integers separated by spaces") from None
    if args.prompt and tokenizer is None:
        raise ValueError("a text prompt needs the model's vocabulary: give --vocab FILE, or ids with --prompt_ids")
    return list(tokenizer.encode(args.prompt)) if args.prompt else [0]


def run(args):
    model, tokenizer = load_model(args)
    ids = prompt_ids(args, tokenizer)
    stream = TextStream(tokenizer)
    if args.prompt:
        sys.stdout.write(args.prompt + ("" if stream.by_bytes else " "))
    try:
        model.generate(
            ids, args.max_new_tokens, temperature=args.temperature, top_p=args.top_p, top_k=args.top_k, seed=args.seed,
            presence_penalty=args.presence_penalty, frequency_penalty=args.frequency_penalty,
            stop_tokens=(0,) if args.stop_at_end else (), stream=stream,
        )  # fmt: skip
    finally:
        stream.close()


if __name__ == "__main__":
    sys.exit(run_command("generate", sys.argv[1:]))
