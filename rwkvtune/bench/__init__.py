"""What this package does here per second, beside what this machine could do at most: `rwkvtune bench`.

A subject is a module whose `measure(options)` returns `Table`s.  Rates of the machine (machine.py) are measured next to each
figure they are the limit of, in the same process run, and the better of before and after counts: on a shared machine only
ratios within one run mean something.
"""

from dataclasses import dataclass, field
from importlib import import_module

SUBJECTS = {
    "train": "whole optimizer steps",
    "prefill": "reading a prompt",
    "decode": "writing token by token",
    "tokenize": "text into token ids and back",
    "prepare": "JSON lines into training data",
    "wkv": "the recurrence of each version of RWKV by instruction set",
    "load": "import, loading a model, its first token",
    "scaling": "threads, length of a sequence, size of a batch",
}


@dataclass
class Options:
    """What a run of the benchmarks measures.

    seconds: time for each figure.  shapes: name -> sizes (see shapes.py).  precisions: formats of weights.
    quick: fewer and smaller cases.  threads: of the fast cases; 1 is measured beside it where that says something.
    vocab: vocabulary file of the tokenizer, "world" or "bytes".
    """

    seconds: float = 3.0
    shapes: dict = field(default_factory=dict)
    precisions: tuple = ("fp32", "bf16", "fp16", "int8", "int4")
    quick: bool = False
    threads: int = 1
    vocab: str = "world"


@dataclass
class Table:
    """Rows of one measurement.  rows: dicts with the keys of `columns` (name -> heading); the first column names the row.

    share: the column, of numbers from 0, that says how much of the machine's limit was reached; the chart draws it.
    notes: lines below the table.
    """

    title: str
    columns: dict
    rows: list
    share: str = ""
    notes: tuple = ()

    def text(self):
        """The table in columns of equal width; where a row has no value for a column there is a dash."""
        cells = [list(self.columns.values())]
        cells += [[_cell(row.get(name), name == self.share) for name in self.columns] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(row)).rstrip() for row in cells]
        return "\n".join([self.title, *(f"  {line}" for line in lines), *(f"  {note}" for note in self.notes)])


def _cell(value, is_share):
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if is_share:
        return f"{value:.0%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def measure(subject, options):
    """List of `Table`.  subject: a key of SUBJECTS.  Raises what the package raises for the options."""
    module = {"prefill": "inference", "decode": "inference", "tokenize": "text", "prepare": "text"}.get(subject, subject)
    return getattr(import_module(f"{__name__}.{module}"), f"measure_{subject}")(options)
