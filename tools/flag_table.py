"""Prints the table of docs/train_flags.md from the parser of `rwkvtune train`: python tools/flag_table.py"""

import argparse
import re

from rwkvtune.cli.train_flags import add_flags


def _code(value):
    """A value as it would be typed."""
    return f"`{value}`" if value != "" else '`""`'


def _row(action):
    words, default = re.fullmatch(r"(.*?)(?: \((?:RWKV-LM's )?default: (.*)\))?", action.help).groups()
    if default is None:
        default = "off" if action.default is False else _code(action.default)
    if action.choices:
        words += "; one of " + ", ".join(map(_code, action.choices))
    return f"| {', '.join(map(_code, action.option_strings))} | {default} | {words} |"


def flag_table():
    """str: Markdown, a table for each group of flags: names, default, what it does."""
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    lines = []
    for group in parser._action_groups:
        if group._group_actions:
            lines += [f"## {group.title[0].upper()}{group.title[1:]}", "", "| flag | default | what it does here |", "|---|---|---|"]
            lines += [*map(_row, group._group_actions), ""]
    return "\n".join(lines).strip() + "\n"


if __name__ == "__main__":
    print(flag_table(), end="")
