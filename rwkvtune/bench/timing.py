"""Clocks and memory: the shortest of several runs, things measured in turn, work in a process of its own."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path


def seconds_of(work):
    """What one call of work() took."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def best(work, seconds):
    """The shortest of the calls of work() that fit into some seconds, two at least; a call before them does not count."""
    return best_in_turn([work], seconds)[0]


def best_in_turn(works, seconds, warm=True):
    """The shortest time of each of several functions, called in turn, so that a slow moment of the machine meets all of them.

    seconds: for all of them together; each is called twice at least, with warm after a call that does not count.
    """
    for work in works if warm else ():
        work()
    shortest, end, rounds = [float("inf")] * len(works), time.perf_counter() + seconds, 0
    while rounds < 2 or time.perf_counter() < end:
        shortest = [min(least, seconds_of(work)) for least, work in zip(shortest, works, strict=True)]
        rounds += 1
    return shortest


def _status_mib(name):
    try:
        return int(re.search(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    except OSError:
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used / (1 << 20 if sys.platform == "darwin" else 1024)


def peak_mib():
    """Most memory this process ever held; getrusage only where there is no /proc: its figure begins with the parent's."""
    return _status_mib("VmHWM")


def resident_mib():
    """Memory this process holds now, files mapped into it included (where there is no /proc: the most it ever held)."""
    return _status_mib("VmRSS")


def in_a_process(function, environment=None, **arguments):
    """What a function of this package returns when it runs in a Python of its own; what it takes and returns is JSON.

    function: "module:name", the module within rwkvtune.bench.  Raises RuntimeError with the last line the process wrote.
    """
    command = [sys.executable, "-m", __package__, function, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}, for want of memory perhaps"]
        raise RuntimeError(f"the measurement {function} failed: {lines[-1]}")
    return json.loads(done.stdout.splitlines()[-1])
