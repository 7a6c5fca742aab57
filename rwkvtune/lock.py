"""One run per directory: a lock file that names its holder and that the system releases when the holder dies."""

import contextlib
import errno
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

    # (path, process, thread) -> [how often it is held, the file].  A forked child has its parent's entries but not its
    # locks, so the process is part of the key.  The file belongs to the table: where Ctrl-C hits between two lines here,
    # the entry still says what is held, and the next use in the thread goes on from there.
    _held = {}

    def __init__(self, directory):
        self.path = (Path(directory) / "run.lock").resolve()

    def __enter__(self):
        self._key = (self.path, os.getpid(), threading.get_ident())
        held = self._held.get(self._key)
        if held and not held[1].closed:
            held[0] += 1
            return self
        file = open_shared(self.path)
        try:
            self._take(file)
            with contextlib.suppress(OSError):  # on a full disk the lock holds, only its holder has no name
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), f"process {os.getpid()}\n".encode())
            self._held[self._key] = [1, file]
        except BaseException:
            file.close()
            raise
        return self

    def _take(self, file):
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                import msvcrt

                # One byte far behind the text, so that the holder's name stays readable.
                file.seek(1 << 20)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                raise
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise RuntimeError(f"{self.path.parent} is in use by {holder}; wait for it or use another directory") from None

    def __exit__(self, *error):
        held = self._held[self._key]
        held[0] -= 1
        if held[0] <= 0:
            held[1].close()
            self._held.pop(self._key, None)
