"""One run per directory: a lock file that names its holder and that the system releases when the holder dies."""

import contextlib
import os
import threading
from pathlib import Path

from .atomic import open_shared

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class RunLock:
    """Context manager that holds `directory/run.lock`; the thread that holds it may take it again.

    Raises RuntimeError naming the process that holds it, OSError with the path.
    """

    _held = {}  # (path, process, thread) -> how often it is held

    def __init__(self, directory):
        self.path = (Path(directory) / "run.lock").resolve()
        self._file = None

    def __enter__(self):
        # A forked child has its parent's entries but not its locks, so the process is part of the key.
        self._key = (self.path, os.getpid(), threading.get_ident())
        if self._held.get(self._key):
            self._held[self._key] += 1
            return self
        self._file = open_shared(self.path)
        if not self._take():
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise RuntimeError(f"{self.path.parent} is in use by {holder}; wait for it or use another directory")
        with contextlib.suppress(OSError):  # on a full disk the lock holds, only its holder has no name
            os.ftruncate(self._file.fileno(), 0)
            os.write(self._file.fileno(), f"process {os.getpid()}\n".encode())
        self._held[self._key] = 1
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
        self._held[self._key] -= 1
        if not self._held[self._key]:
            del self._held[self._key]
        if self._file:
            self._file.close()
