"""An engine to be measured runs in a process of its own; it does a piece of work when asked and says how long that took.

So several engines, also of different Python environments, can be timed in turn on one machine, each while the others sleep.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Missing(Exception):
    """The engine is not installed, or cannot do this; the text says which."""


class Engine:
    """The asking side.  program: a file of this directory that calls `serve`.  settings: what its engine is made with."""

    def __init__(self, name, python, program, **settings):
        self.name = name
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(HERE.parents[1])]))}
        self._process = subprocess.Popen([python, str(HERE / program), json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.DEVNULL, text=True, env=environment)  # fmt: skip
        self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        found = json.loads(line) if line else {"error": f"it ended with {self._process.wait()}"}
        if "error" in found:
            self.close()
            raise Missing(found["error"])
        return found["value"]

    def ask(self, what, *arguments):
        """The value of a method of the engine."""
        try:
            self._process.stdin.write(json.dumps([what, *arguments]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: there will be no answer
        return self._answer()

    def seconds(self, what, *arguments):
        """How long a method took, by the engine's own clock."""
        return self.ask("timed", what, *arguments)

    def close(self):
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended by itself
        self._process.stdout.close()
        self._process.wait()


def started(name, *arguments, **settings):
    """(the engine, None) or (None, why there is none)."""
    try:
        return Engine(name, *arguments, **settings), None
    except Missing as reason:
        return None, str(reason)


def in_turn(engines, rounds, what, *arguments):
    """name -> shortest time of several rounds in which each engine works once, after one round that does not count."""
    best = dict.fromkeys((engine.name for engine in engines), float("inf"))
    for number in range(rounds + 1):
        for engine in engines:
            took = engine.seconds(what, *arguments)
            if number:
                best[engine.name] = min(best[engine.name], took)
    return best


def serve(make):
    """The answering side: make(settings) is the engine; what it prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**found):
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    try:
        engine = make(json.loads(sys.argv[1]))
    except ImportError as error:
        return answer(error=f"not installed ({error})")
    except Exception as error:  # told to the asking side, whatever it is
        return answer(error=f"{type(error).__name__}: {error}")
    answer(value=None)
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        began = time.perf_counter()
        try:
            if what == "timed":
                getattr(engine, arguments[0])(*arguments[1:])
                answer(value=time.perf_counter() - began)
            else:
                answer(value=getattr(engine, what)(*arguments))
        except Exception as error:  # told to the asking side, whatever it is
            answer(error=f"{type(error).__name__}: {error}")


def peak_mib():
    """Most memory this process ever held (Linux)."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
