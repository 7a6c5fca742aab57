"""The machine's own limits, measured with NumPy: matrix products, reading and copying memory."""

import os
import platform
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .timing import best

_BYTES = 256 << 20  # of a pass over memory: more than any cache holds
_memory = []


def describe():
    """dict: processor, count, instruction set in use, threads, versions."""
    from .. import __version__, info

    facts = info()
    return {"processor": _processor(), "processors": os.cpu_count(), "instruction_set": facts["isa"], "threads": facts["threads"],
            "rwkvtune": __version__, "numpy": np.__version__, "python": platform.python_version()}  # fmt: skip


def _processor():
    try:
        return re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def sgemm_gflops(seconds=1.0):
    """GFLOP/s of NumPy's float32 product with the threads its BLAS takes: the best over shapes of the kind training uses."""
    rates = []
    for m, k, n in ((1024, 768, 3072), (2048, 768, 3072), (1024, 1024, 1024)):
        a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
        out = np.empty((m, n), np.float32)
        rates.append(2e-9 * m * k * n / best(lambda a=a, b=b, out=out: np.matmul(a, b, out=out), seconds / 3))
    return max(rates)


def _two_arrays():
    if not _memory:
        _memory.extend(np.ones(_BYTES // 8, np.int64) for _ in range(2))
    return _memory


def _over_parts(work, threads, seconds):
    """Seconds of work(slice) over all of an array, cut among threads; NumPy gives up its lock meanwhile."""
    step = -(-(_BYTES // 8) // threads)
    parts = [slice(at, at + step) for at in range(0, _BYTES // 8, step)]
    with ThreadPoolExecutor(threads) as pool:
        return best(lambda: list(pool.map(work, parts)), seconds)


def read_gbs(threads, seconds=0.5):
    """GB/s of reading memory that no cache holds, with some threads."""
    array = _two_arrays()[0]
    return 1e-9 * _BYTES / _over_parts(lambda part: np.bitwise_xor.reduce(array[part]), threads, seconds)


def copy_gbs(threads, seconds=0.5):
    """GB/s of copying memory that no cache holds, bytes read and bytes written counted."""
    source, target = _two_arrays()
    return 2e-9 * _BYTES / _over_parts(lambda part: np.copyto(target[part], source[part]), threads, seconds)


def limits(threads, seconds=0.5):
    """dict: all of these, for a line at the head of a report."""
    counts = sorted({1, threads})
    return {"sgemm_gflops": sgemm_gflops(2 * seconds), "read_gbs": {n: read_gbs(n, seconds) for n in counts},
            "copy_gbs": {n: copy_gbs(n, seconds) for n in counts}}  # fmt: skip


def in_words(found):
    """Two lines for `describe()` with "limits" added."""
    least = found["limits"]
    per_thread = ", ".join(
        f"{name} {' / '.join(f'{rate:.1f}' for rate in least[key].values())} GB/s" for name, key in (("reading", "read_gbs"), ("copying", "copy_gbs"))
    )
    counts = " / ".join(f"{n}" for n in least["read_gbs"])
    return (f"{found['processor']}, {found['processors']} processors, {found['instruction_set']}, {found['threads']} threads; NumPy {found['numpy']}\n"
            f"limits measured now: sgemm {least['sgemm_gflops']:.0f} GFLOP/s; memory by {counts} threads: {per_thread}")  # fmt: skip
