"""What the documents show works: Python blocks run, commands have the flags that are written, links lead somewhere."""

import argparse
import re
from pathlib import Path

import pytest

from rwkvtune.cli import COMMANDS, _module

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ANY_COMMAND = re.compile(r"\b(?:rwkvtune|python -m rwkvtune(?:\.cli)?)[ .](?P<command>[a-z]+)(?P<rest>(?:\\\n|[^`|#\n])*)")


def by_name(path):
    return str(path.relative_to(ROOT))


def python_blocks(path):
    return [code for language, code in _BLOCK.findall(path.read_text(encoding="utf-8")) if language == "python"]


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if python_blocks(path)], ids=by_name)
def test_python_blocks_run(path, tmp_path, monkeypatch):
    """One after the other in an empty directory, each seeing the names of those before, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, code in enumerate(python_blocks(path), 1):
        exec(compile(code, f"{path.name}, block {number}", "exec"), names)


def commands(path):
    """[(command, [words])] of every `rwkvtune COMMAND ...` in a document."""
    text = path.read_text(encoding="utf-8")
    found = []
    for match in _ANY_COMMAND.finditer(text):
        if match["command"] in COMMANDS:
            found.append((match["command"], match["rest"].replace("\\\n", " ")))
    return found


def options_of(command):
    parser = argparse.ArgumentParser(add_help=False)
    _module(command).add_arguments(parser)
    return {name for action in parser._actions for name in action.option_strings} | {"--help"}


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if commands(path)], ids=by_name)
def test_flags_that_are_written_exist(path):
    for command, words in commands(path):
        for flag in re.findall(r"(?<!\S)\[?(--?[a-zA-Z]\w*)", words):
            assert flag in options_of(command), f"{command} {words}"


def test_the_search_for_commands_finds_them():
    """So that the test above cannot pass by finding nothing."""
    assert ("eval", " MODEL --text FILE") in commands(ROOT / "README.md")
    words = [words for command, words in commands(ROOT / "docs" / "training.md") if command == "train"]
    assert any("--data_file data/train" in line and "--lr_final 6e-5 --proj_dir out" in line for line in words)


def test_make_targets_that_are_written_exist():
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for path in DOCUMENTS for name in re.findall(r"(?:`|^ {4})make ([a-z]+)", path.read_text(encoding="utf-8"), re.MULTILINE)}
    assert {"quickstart", "test"} <= named <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=by_name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert re.match(r"https?://", target) or (path.parent / target).exists(), target
