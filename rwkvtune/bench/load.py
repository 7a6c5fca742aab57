"""Starting: import, loading a weight file of each format, the first token, and the memory held then."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import Table
from .inference import _ABSENT, load
from .shapes import random_model, split
from .timing import in_a_process, resident_mib, seconds_of

_COLUMNS = {
    "what": "", "file_mib": "file MiB", "load_ms": "load ms", "token_ms": "first token ms", "whole_ms": "process, start to token ms", "resident_mib": "memory MiB",
    "over_file": "grown, of file + state", "note": "",
}  # fmt: skip


def start_and_load(path, precision):
    """Loads a file and generates one token in this process, which has imported nothing else."""
    before, began = resident_mib(), time.perf_counter()
    model = load(path, precision)
    if model is None:
        return {"note": _ABSENT}
    loaded = time.perf_counter()
    model.generate([1], 1)
    after = time.perf_counter()
    return {"load_ms": 1000 * (loaded - began), "token_ms": 1000 * (after - loaded), "resident_mib": resident_mib(),
            "grown_mib": resident_mib() - before, "state": model.plan(1, 1, False)["state"]}  # fmt: skip


def _python(code):
    """Shortest of five times of a Python that runs some code, in milliseconds."""
    return 1000 * min(seconds_of(lambda: subprocess.run([sys.executable, "-c", code], check=True)) for _ in range(5))


def _file_row(name, path, precision):
    """The better of three starts, by the time of the whole process; the file is in the system's cache."""
    rows = []
    for _ in range(3):
        began = time.perf_counter()
        found = in_a_process("load:start_and_load", path=path, precision=precision)
        if "note" in found:
            return {"what": name, **found}
        rows.append(found | {"whole_ms": 1000 * (time.perf_counter() - began)})
    row, size = min(rows, key=lambda row: row["whole_ms"]), os.path.getsize(path)
    return {"what": name, "file_mib": size / 2**20, **row, "over_file": row["grown_mib"] / ((size + row["state"]) / 2**20)}


def measure_load(options):
    """A row for the imports, and one for each shape, format and kind of file."""
    bare, numpy, package = (_python(code) for code in ("pass", "import numpy", "import rwkvtune.model"))
    rows = [{"what": "Python by itself", "whole_ms": bare}, {"what": "  import numpy", "whole_ms": numpy}, {"what": "  import rwkvtune.model", "whole_ms": package}]
    for name, sizes in options.shapes.items():
        model = random_model(split(sizes)[0])
        for precision in options.precisions:
            for ending in (".safetensors", ".pth") if precision in ("fp32", "bf16", "fp16") else (".safetensors",):
                with tempfile.TemporaryDirectory() as directory:
                    path, what = str(Path(directory) / f"model{ending}"), f"{name} {precision} {ending}"
                    try:
                        model.save(path, dtype=precision)
                    except ValueError:
                        rows.append({"what": what, "note": _ABSENT})
                        continue
                    rows.append(_file_row(what, path, precision))
    notes = ("the best of three starts each, files in the system's cache; memory: of the process after its first token, mapped files included; grown: since before loading",)
    return [Table("load: from nothing to the first token", _COLUMNS, rows, notes=notes)]
