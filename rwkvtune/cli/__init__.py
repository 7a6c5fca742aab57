"""The `rwkvtune` command: one module per subcommand, each also runnable as `python -m rwkvtune.cli.<command>`.

A module has `SUMMARY`, `add_arguments(parser)` and `run(args)`, which returns the exit code (None = 0).
"""

import argparse
import sys
import warnings
from importlib import import_module

from .messages import explain, finish_output, show_warning

COMMANDS = ("quickstart", "train", "prepare", "generate", "eval", "inspect", "convert", "bench", "info")
_WRONG_INPUT = (ValueError, OSError, RuntimeError, NotImplementedError, MemoryError, ImportError, EOFError)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults in the help, except where there is none to tell."""

    def _get_help_string(self, action):
        silent = action.default is None or action.default is False or action.default == "" or not action.option_strings
        return action.help if silent else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """Wrong words give one line, without the list of all options in front of it."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help tells the options)\n")


def _module(command):
    return import_module(f"{__name__}.{command}")


def _parser(command, program):
    module = _module(command)
    parser = _Parser(prog=program, description=module.SUMMARY, formatter_class=_Formatter, allow_abbrev=False)
    module.add_arguments(parser)
    return parser


def _guarded(program, work):
    """The exit code of work(): wrong input gives one line on stderr and 2, an interruption 130, a closed pipe 1."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning(program)
            code = work() or 0
        sys.stdout.flush()  # here, where a full disk or a closed pipe can still be told
        return code
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except FloatingPointError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        finish_output()
        return 1
    except _WRONG_INPUT as error:
        print(f"{program}: error: {explain(error)}", file=sys.stderr)
        finish_output()
        return 2


def run_command(command, argv, program=None):
    """Run one command; its exit code.  Wrong input gives one line on stderr and 2, an interruption 130."""
    program = program or f"rwkvtune {command}"
    return _guarded(program, lambda: _module(command).run(_parser(command, program).parse_args(argv)))


def _usage():
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {_module(name).SUMMARY}" for name in COMMANDS]
    return (
        "usage: rwkvtune <command> [options]\n\n"
        + "\n".join(lines)
        + "\n\nrwkvtune <command> --help tells its options and their defaults."
    )


def _overview(argv):
    """What `rwkvtune` does without a command; its exit code."""
    from .. import __version__

    if argv[:1] == ["--version"]:
        print(f"rwkvtune {__version__}")
        return 0
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if argv else 2
    raise ValueError(f"there is no command {argv[0]!r}; there are {', '.join(COMMANDS)}")


def main(argv=None):
    """The `rwkvtune` command.  argv: default sys.argv[1:].  Returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in COMMANDS:
        return run_command(argv[0], argv[1:])
    return _guarded("rwkvtune", lambda: _overview(argv))
