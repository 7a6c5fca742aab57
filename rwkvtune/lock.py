"""One run per directory: a lock file that names its holder and that the system releases when the holder dies."""

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class RunLock:
    """Context manager that holds `directory/run.lock`; a process that holds it may take it again.

    Raises RuntimeError naming the process that holds it, OSError with the path.
    """

    _held = {}  # path -> how often this process holds it

    def __init__(self, directory):
        self.path = (Path(directory) / "run.lock").resolve()
        self._file = None

    def __enter__(self):
        if self._held.get(self.path):
            self._held[self.path] += 1
            return self
        self._file = open(self.path, "a+", encoding="utf-8")
        if not self._take():
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise RuntimeError(f"{self.path.parent} is in use by {holder}; wait for it or use another directory")
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"process {os.getpid()}\n")
        self._file.flush()
        self._held[self.path] = 1
        return self

    def _take(self):
        try:
            if fcntl:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                import msvcrt

                # One byte far behind the text, so that the holder's name stays readable.
                self._file.seek(1 << 20)
                msvcrt.locking(self._file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def __exit__(self, *error):
        self._held[self.path] -= 1
        if self._file:
            self._file.close()
