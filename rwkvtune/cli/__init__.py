"""The `rwkvtune` command: one module per subcommand, each also runnable as `python -m rwkvtune.cli.<command>`.

A module has `SUMMARY`, `add_arguments(parser)` and `run(args)`, which returns the exit code (None = 0).
"""

import argparse
import re
import sys
from importlib import import_module

COMMANDS = ("quickstart", "train", "prepare", "generate", "eval", "inspect", "convert", "bench", "info")
_WRONG_INPUT = (ValueError, OSError, RuntimeError, NotImplementedError, MemoryError, ImportError)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults in the help, except where there is none to tell."""

    def _get_help_string(self, action):
        silent = action.default is None or action.default is False or action.default == "" or not action.option_strings
        return action.help if silent else super()._get_help_string(action)


def _module(command):
    return import_module(f"{__name__}.{command}")


def _parser(command, program):
    module = _module(command)
    parser = argparse.ArgumentParser(prog=program, description=module.SUMMARY, formatter_class=_Formatter)
    module.add_arguments(parser)
    return parser


def run_command(command, argv, program=None):
    """Run one command; its exit code.  Wrong input gives one line on stderr and 2, an interruption 130."""
    program = program or f"rwkvtune {command}"
    args = _parser(command, program).parse_args(argv)
    try:
        return _module(command).run(args) or 0
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except FloatingPointError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except _WRONG_INPUT as error:
        text = " ".join(re.sub(r"^\[Errno \d+\] ", "", str(error)).split()) or type(error).__name__
        print(f"{program}: error: {text}", file=sys.stderr)
        return 2


def _usage():
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {_module(name).SUMMARY}" for name in COMMANDS]
    return (
        "usage: rwkvtune <command> [options]\n\n"
        + "\n".join(lines)
        + "\n\nrwkvtune <command> --help tells its options and their defaults."
    )


def main(argv=None):
    """The `rwkvtune` command.  argv: default sys.argv[1:].  Returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from .. import __version__

        print(f"rwkvtune {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"rwkvtune: error: there is no command {argv[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return run_command(argv[0], argv[1:])
