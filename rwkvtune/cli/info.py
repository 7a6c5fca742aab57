"""rwkvtune info: what this build is and what it found on this machine."""

import json
import sys

from . import run_command

SUMMARY = "Show the version, the instruction set in use, threads and CUDA."


def add_arguments(parser):
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args):
    from .. import info

    facts = info()
    if args.json:
        print(json.dumps(facts, default=str))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}")


if __name__ == "__main__":
    sys.exit(run_command("info", sys.argv[1:]))
