"""A JSON object read from a file, whose fields are asked for by name and type and know the line they stand in.

Strict JSON (RFC 8259) in UTF-8: no comments, no NaN, no field twice.
"""

import json
import re
from json.decoder import scanstring
from pathlib import Path

from rwkvtune.errors import FormatError

_SPACE = re.compile(r"[ \t\n\r]*")
_KINDS = {int: "an integer", float: "a number", str: "a string", dict: "an object"}
REQUIRED = object()


def _field_lines(text):
    """dict: path of a field such as ("architecture", "n_layer") -> its line; () is the object.  text: valid JSON."""
    lines, decoder = {(): 1}, json.JSONDecoder()

    def skip(at):
        return _SPACE.match(text, at).end()

    def walk(at, path):
        if text[at] != "{":
            return decoder.raw_decode(text, at)[1]
        at = skip(at + 1)
        while text[at] != "}":
            key, end = scanstring(text, at + 1)
            lines[(*path, key)] = text.count("\n", 0, at) + 1
            at = skip(walk(skip(skip(end) + 1), (*path, key)))
            at = skip(at + 1) if text[at] == "," else at
        return at + 1

    walk(skip(0), ())
    return lines


def _refuse_constant(name):
    raise ValueError(f"{name} is not a JSON number")


def _object(pairs):
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} is there twice")
    return values


class JsonObject:
    """The object of a JSON file.  values: the object as a dict, unknown fields included.

    path: of the file.  Raises OSError, FormatError with file, line and column or field.
    """

    def __init__(self, path):
        self.path = str(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise FormatError(f"{path}:{line}: not UTF-8 text: byte 0x{error.object[error.start]:02x}") from error
        try:
            self.values = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            raise FormatError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path}: not valid JSON: {error}") from error
        if not isinstance(self.values, dict):
            raise FormatError(f"{path}:1: the file must hold one JSON object, {{...}}")
        self._lines = _field_lines(text)

    def error(self, field, reason):
        """FormatError about a field, "section.name" or "name", in the line where it stands or should stand."""
        path = tuple(field.split("."))
        line = self._lines.get(path) or self._lines.get(path[:-1]) or 1
        return FormatError(f"{self.path}:{line}: {reason}")

    def get(self, field, kind, default=REQUIRED, low=None):
        """The value of a field.

        field: "name" or "section.name".  kind: int, float (any number), str or dict.  default: of a field that is
        missing; without it the field is required.  low: least value.  Raises FormatError naming file, line and field.
        """
        section, name = self.values, field
        if "." in field:
            parent, name = field.split(".")
            section = self.values.get(parent, {})
        if name not in section:
            if default is REQUIRED:
                raise self.error(field, f"the field {field!r} is missing; it must be {_KINDS[kind]}")
            return default
        value = section[name]
        allowed = (int, float) if kind is float else kind
        if isinstance(value, bool) or not isinstance(value, allowed):
            raise self.error(field, f"the field {field!r} is {json.dumps(value)[:60]}; it must be {_KINDS[kind]}")
        if low is not None and value < low:
            raise self.error(field, f"the field {field!r} is {value}; it must be at least {low}")
        return value
