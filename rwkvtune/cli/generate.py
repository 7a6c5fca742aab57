"""rwkvtune generate: sample a continuation of a prompt."""

import sys

from . import run_command
from .common import TextStream, load_model, model_options

SUMMARY = "Continue a prompt with a trained model."


def add_arguments(parser):
    model_options(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", default="", help="text (or integers, for an integer tokenizer) to continue; '' = begin a document")
    prompt.add_argument("--prompt_ids", default="", help="token ids separated by spaces, instead of --prompt")
    parser.add_argument("--max_new_tokens", type=int, default=200, help="tokens to sample")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 = always the likeliest token")
    parser.add_argument("--top_p", type=float, default=0.9, help="sample among the likeliest tokens of this total probability")
    parser.add_argument("--top_k", type=int, default=0, help="sample among so many tokens, 0 = all")
    parser.add_argument("--presence_penalty", type=float, default=0.0, help="taken off the logits of tokens already generated")
    parser.add_argument("--frequency_penalty", type=float, default=0.0, help="taken off once per occurrence")
    parser.add_argument("--penalty_decay", type=float, default=0.996, help="what is left of a penalty after each token")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text")
    parser.add_argument("--stop_tokens", default="", help="token ids separated by spaces; the text ends before the first of them")
    parser.add_argument("--stop_at_end", action="store_true", help="end before the end-of-document token; --stop_tokens 0")


def _ids(flag, text):
    """The ids in the value of a flag.  Raises ValueError."""
    try:
        return [int(word) for word in text.split()]
    except ValueError:
        raise ValueError(f"{flag} {text!r}: ids are integers separated by spaces") from None


def prompt_ids(args, tokenizer):
    """The ids to continue; the end-of-document token where there is no prompt."""
    if args.prompt_ids:
        return _ids("--prompt_ids", args.prompt_ids)
    if args.prompt and tokenizer is None:
        raise ValueError("a text prompt needs the model's vocabulary: give --vocab FILE, or ids with --prompt_ids")
    return list(tokenizer.encode(args.prompt)) if args.prompt else [0]


def run(args):
    stop = {*_ids("--stop_tokens", args.stop_tokens), *((0,) if args.stop_at_end else ())}
    model, tokenizer = load_model(args)
    ids = prompt_ids(args, tokenizer)
    with TextStream(tokenizer, args.prompt) as stream:
        model.generate(
            ids, args.max_new_tokens, temperature=args.temperature, top_p=args.top_p, top_k=args.top_k, seed=args.seed,
            presence_penalty=args.presence_penalty, frequency_penalty=args.frequency_penalty, penalty_decay=args.penalty_decay,
            stop_tokens=sorted(stop), stream=stream,
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_command("generate", sys.argv[1:]))
