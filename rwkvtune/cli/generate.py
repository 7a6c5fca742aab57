"""rwkvtune generate: sample a continuation of a prompt, or hold a conversation."""

import sys
from dataclasses import fields

from . import run_command
from .common import TextStream, load_model, model_options

SUMMARY = "Continue a prompt with a trained model, or chat with it."

_CACHE = 1 << 28  # bytes of states of a conversation: a turn reads only what is new


def add_arguments(parser):
    model_options(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", default="", help="text (or integers, for an integer tokenizer) to continue; '' = begin a document")
    prompt.add_argument("--prompt_ids", default="", help="token ids separated by spaces, instead of --prompt")
    prompt.add_argument("--chat", action="store_true", help="a conversation: every line of standard input gets a reply; Ctrl-D ends it")
    parser.add_argument("--system", default="", help="with --chat: text before the first turn")
    parser.add_argument("--max_new_tokens", type=int, default=200, help="tokens to sample; with --chat per reply")
    parser.add_argument("--n", type=int, default=1, help="texts to write; with several each is written when all are done")
    _add_sampling(parser)
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text; of several texts, the first one's")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help=r"the text ends before this text; \n is a new line; may be repeated")
    parser.add_argument("--stop_tokens", default="", help="token ids separated by spaces; the text ends before the first of them")
    parser.add_argument("--stop_at_end", action="store_true", help="end before the end-of-document token; --stop_tokens 0")
    parser.add_argument("--state", default="", metavar="FILE", help="begin from a state that --save_state or RWKVState.save wrote")
    parser.add_argument("--save_state", default="", metavar="FILE", help="write the state after the text, which --state continues")


def _add_sampling(parser):
    parser.add_argument("--temperature", type=float, default=1.0, help="0 = always the likeliest token")
    parser.add_argument("--top_p", type=float, default=0.9, help="sample among the likeliest tokens of this total probability")
    parser.add_argument("--top_k", type=int, default=0, help="sample among so many tokens, 0 = all")
    parser.add_argument("--min_p", type=float, default=0.0, help="sample among tokens with this share of the likeliest one's probability, 0 = all")
    parser.add_argument("--typical_p", type=float, default=1.0,
                        help="sample among the tokens nearest to the expected surprise, of this total probability, 1 = all")  # fmt: skip
    parser.add_argument("--repetition_penalty", type=float, default=1.0,
                        help="logits of tokens in the prompt or the text are divided by it (negative ones: times it), 1 = none")  # fmt: skip
    parser.add_argument("--presence_penalty", type=float, default=0.0, help="taken off the logits of tokens already generated")
    parser.add_argument("--frequency_penalty", type=float, default=0.0, help="taken off once per occurrence")
    parser.add_argument("--penalty_decay", type=float, default=0.996, help="what is left of a penalty after each token")
    parser.add_argument("--logit_bias", default="", metavar="ID=NUMBER ...", help="added to the logits of these tokens; -inf forbids one")
    parser.add_argument("--banned_tokens", default="", help="token ids separated by spaces that are never sampled")


def _ids(flag, text):
    """The ids in the value of a flag.  Raises ValueError."""
    try:
        return [int(word) for word in text.split()]
    except ValueError:
        raise ValueError(f"{flag} {text!r}: ids are integers separated by spaces") from None


def _biases(text):
    """{id: number} of --logit_bias.  Raises ValueError."""
    try:
        return {int(token): float(value) for token, value in (word.split("=") for word in text.split())}
    except ValueError:
        raise ValueError(f"--logit_bias {text!r}: write ID=NUMBER, several separated by spaces") from None


def _options(args):
    """What `Generator.generate` takes, of the flags.  Raises ValueError."""
    from ..sampling import SamplingOptions

    options = {field.name: getattr(args, field.name) for field in fields(SamplingOptions)}
    options["logit_bias"] = _biases(args.logit_bias)
    options["banned_tokens"] = _ids("--banned_tokens", args.banned_tokens)
    options["stop_tokens"] = sorted({*_ids("--stop_tokens", args.stop_tokens), *((0,) if args.stop_at_end else ())})
    options["stop"] = [text.replace("\\n", "\n") for text in args.stop]
    return {**options, "max_new_tokens": args.max_new_tokens}


def prompt_ids(args, tokenizer):
    """The ids to continue; the end-of-document token where there is no prompt."""
    if args.prompt_ids:
        return _ids("--prompt_ids", args.prompt_ids)
    if args.prompt and tokenizer is None:
        raise ValueError("a text prompt needs the model's vocabulary: give --vocab FILE, or ids with --prompt_ids")
    return list(tokenizer.encode(args.prompt)) if args.prompt else [0]


def _tell(result, file=None):
    """One line of measures on standard error."""
    parts = [f"{result.prompt_tokens} tokens read"]
    if result.cached_tokens:
        parts[0] += f", {result.cached_tokens} of them known"
    if result.time_to_first_token is not None:
        parts.append(f"first token after {result.time_to_first_token:.3f} s ({result.prefill_tokens_per_second:.0f} tokens/s)")
    parts.append(f"{len(result.ids)} written" + (f" at {result.decode_tokens_per_second:.1f} tokens/s" if result.decode_tokens_per_second else ""))
    ended = f"ended by {result.stop!r}" if result.finish_reason == "stop" else "ended by --max_new_tokens"
    print(f"rwkvtune generate: {', '.join(parts)}, {ended}, seed {result.seed}", file=file or sys.stderr)


def _continue(args, generator, options):
    ids, tokenizer = prompt_ids(args, generator.tokenizer), generator.tokenizer
    if args.state:
        from ..state import RWKVState

        options["state"] = RWKVState.load(args.state)
    options |= {"n": args.n, "seed": args.seed, "return_state": bool(args.save_state)}
    if args.n == 1:
        with TextStream(tokenizer, args.prompt) as stream:
            show = stream if tokenizer is None else stream.write
            results = [generator.generate(ids, **options, stream=lambda piece: _show(show, piece))]
    else:
        results = generator.generate(ids, **options)
        for result in results:
            print(f"--- {result.index + 1} of {args.n}")
            with TextStream(tokenizer, args.prompt) as stream:
                stream.write(" ".join(map(str, result.ids)) if tokenizer is None else result.text)
    for result in results:
        _tell(result)
    if args.save_state:
        results[0].state.save(args.save_state)


def _show(show, piece):
    what = piece.token if piece.text is None else piece.text
    if what is not None and what != "":
        show(what)


def _converse(args, generator, options):
    from ..chat import Chat

    chat = Chat(generator, args.system, seed=args.seed)
    options["stop_tokens"] = sorted({0, *options["stop_tokens"]})
    options["stop"] = [f"\n\n{chat.user}:", *options["stop"]]
    while True:
        print(f"{chat.user}: ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            print()
            return
        if not line.strip():
            continue
        print(f"\n{chat.assistant}:", end="", flush=True)
        reply = chat.say(line, **options, stream=lambda piece: print(piece.text, end="", flush=True))
        print("\n")
        _tell(reply)


def run(args):
    from ..generation import Generator

    options = _options(args)
    if args.n > 1 and (args.chat or args.save_state):
        raise ValueError(f"--n {args.n}: {'a conversation' if args.chat else '--save_state'} is of one text")
    if args.chat and (args.state or args.save_state):
        raise ValueError("--chat keeps its own state; --state and --save_state are for a prompt")
    model, tokenizer = load_model(args)
    if args.chat and tokenizer is None:
        raise ValueError("--chat needs the model's vocabulary: give --vocab FILE")
    generator = Generator(model, tokenizer, cache_bytes=_CACHE if args.chat else 0)
    (_converse if args.chat else _continue)(args, generator, options)


if __name__ == "__main__":
    sys.exit(run_command("generate", sys.argv[1:]))
