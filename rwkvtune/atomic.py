"""Writing a file so that its name never stands for half of it.

The data goes to a hidden temporary file in the same directory, is flushed to the disk, and takes the final
name in one step (rename).  A crash or an error at any moment leaves the previous file as it was; after an
error the temporary file is removed as well.  `AtomicFiles` does the same for several files that belong together.
"""

import contextlib
import errno
import os
import signal
import stat
import threading

_ADVICE = {
    errno.ENOSPC: "no space left on the disk; free some or choose another directory",
    errno.EROFS: "the file system is read-only; choose another directory",
    errno.EACCES: "no permission; check the owner and the mode of the file and its directory, or choose another",
    errno.EPERM: "not permitted; check the owner and the attributes of the file and its directory, or choose another",
    errno.ENOENT: "the directory does not exist; create it first",
    errno.ENOTDIR: "a part of the path is not a directory; check the path",
    errno.EEXIST: "a file of this name is there already; choose another name",
    errno.EISDIR: "this is a directory; give the name of a file in it",
    errno.EFBIG: "the file is too large for this file system or process limit; choose another directory",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EIO: "the disk reported an input/output error; check it, or choose another directory",
}
if hasattr(errno, "EDQUOT"):
    _ADVICE[errno.EDQUOT] = "the disk quota is used up; free some space or choose another directory"


def _explain(error, path, what="write"):
    """The same OSError (errno decides the subclass), its text naming the file and what to do."""
    advice = _ADVICE.get(error.errno, error.strerror or str(error))
    return OSError(error.errno, f"cannot {what} {path}: {advice}")


@contextlib.contextmanager
def reading(path):
    """Context manager: an OSError of opening `path` in the block names it and says what to do; a missing file aside."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.filename is None or os.fspath(error.filename) != os.fspath(path):
            raise
        raise _explain(error, path, "read") from error


def make_directory(path):
    """Create a directory and those above it; one that is there is fine.  Raises OSError (path and what to do)."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise _explain(error, path) from error


def open_shared(path):
    """A text file open for reading and appending, created if need be.  Raises OSError (path and what to do)."""
    try:
        return open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise _explain(error, path) from error


def _target(path):
    """The file behind `path` (links followed) and the mode to give it, None for the usual one."""
    target = os.path.realpath(path)
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return target, None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file (renaming would replace the device or pipe)")
    return target, stat.S_IMODE(mode)


def _hidden_name(target, ending):
    """A new name beside a file."""
    directory, name = os.path.split(target)
    return os.path.join(directory, f".{name[:48]}.{os.urandom(6).hex()}.{ending}")


def _sync_directory(directory):
    """Make the rename itself durable where directories can be synchronised (not on Windows)."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _commit(file, temporary, target, mode):
    """Bring the finished temporary file to the disk and under its final name."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
    if mode is not None:
        os.chmod(temporary, mode)
    os.replace(temporary, target)
    _sync_directory(os.path.dirname(target))


@contextlib.contextmanager
def atomic_write(path, mode="wb"):
    """Context manager: a writable file that becomes `path` when the block ends without an exception.

    path: file name; a symbolic link is followed, the mode of an existing file is kept.
    mode: "wb" (default) for bytes, or "w" for UTF-8 text with line ends as written.
    Yields an open seekable file.  When the block raises, or the write fails, `path` is as it was before.
    Raises ValueError (mode), OSError (the message names the path and what to do).
    """
    if mode not in ("wb", "w"):
        raise ValueError(f'mode is {mode!r}; allowed are "wb" and "w"')
    path = os.fspath(path)
    text = {} if mode == "wb" else {"encoding": "utf-8", "newline": ""}
    try:
        target, old_mode = _target(path)
        temporary = _hidden_name(target, "tmp")
        file = open(temporary, "x" + mode[1:], **text)
    except OSError as error:
        raise _explain(error, path) from error
    try:
        yield file
        _commit(file, temporary, target, old_mode)
    except BaseException as error:
        # Closing flushes, which on a full disk fails a second time; the first error is the one to report.
        with contextlib.suppress(OSError):
            file.close()
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename in (None, temporary):
            raise _explain(error, path) from error
        raise


@contextlib.contextmanager
def interrupts_wait():
    """Ctrl-C during the block takes effect after it."""
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    waiting = []
    before = signal.signal(signal.SIGINT, lambda *arguments: waiting.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)
        if waiting and callable(before):
            before(*waiting[0])


class AtomicFiles:
    """Context manager: several files that take their names together, when the block ends without an exception.

    After an error or Ctrl-C, at whatever moment, every file is as it was before.  A kill in the short time in which the
    names change leaves the file that was staged last missing, so a set whose last file is there is whole.
    """

    def __init__(self):
        self._staged = []  # (temporary, target, mode, path as the caller knows it)

    def stage(self, path, temporary=None):
        """The name of a file to write now, which becomes `path` in the end; or of a written one that is handed over.

        path: as for `atomic_write`; what was staged for it before is dropped.  Raises OSError (the message names the path and what to do).
        """
        path = os.fspath(path)
        try:
            target, mode = _target(path)
        except OSError as error:
            raise _explain(error, path) from error
        for earlier in [staged for staged in self._staged if staged[1] == target]:
            self._staged.remove(earlier)
            os.unlink(earlier[0])
        if temporary is None:
            temporary = _hidden_name(target, "tmp")
        self._staged.append((temporary, target, mode, path))
        return temporary

    @contextlib.contextmanager
    def write(self, path, mode="wb"):
        """As `atomic_write`, but the file takes its name together with the others.  `file.name` is where it is until then."""
        temporary = self.stage(path)
        text = {} if mode == "wb" else {"encoding": "utf-8", "newline": ""}
        try:
            with open(temporary, "x" + mode[1:], **text) as file:
                yield file
        except OSError as error:
            if error.filename is None:
                raise _explain(error, path) from error
            raise

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        try:
            if kind is None:
                self._commit()
        except OSError as failure:
            raise self._about_target(failure) from failure
        finally:
            with interrupts_wait():
                for temporary, *_ in self._staged:
                    with contextlib.suppress(OSError):
                        os.unlink(temporary)
        if isinstance(error, OSError) and self._about_target(error) is not error:
            raise self._about_target(error) from error

    def _about_target(self, error):
        """An OSError that speaks of a temporary name as one that speaks of the file it is for."""
        for temporary, _, _, path in self._staged:
            if temporary in str(error):
                return _explain(error, path)
        return error

    def _commit(self):
        for temporary, _, mode, _ in self._staged:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            if mode is not None:
                os.chmod(temporary, mode)
        with interrupts_wait():
            self._rename_all()
        for directory in {os.path.dirname(target) for _, target, _, _ in self._staged}:
            _sync_directory(directory)

    @staticmethod
    def _keep(target, old, move):
        """Gives a file the name `old` as well, or only that where `move` says so or the file system cannot do both."""
        if not move:
            try:
                return os.link(target, old)
            except FileNotFoundError:
                raise
            except OSError:
                pass
        os.rename(target, old)

    def _rename_all(self):
        """The last one is moved away first; what has been renamed is taken back where a later one fails."""
        kept = [_hidden_name(target, "old") for _, target, _, _ in self._staged]
        try:
            for i in reversed(range(len(kept))):
                with contextlib.suppress(FileNotFoundError):
                    self._keep(self._staged[i][1], kept[i], move=i == len(kept) - 1)
            for temporary, target, _, _ in self._staged:
                os.replace(temporary, target)
        except BaseException:
            for old, (temporary, target, _, _) in zip(kept, self._staged, strict=True):
                if os.path.lexists(old):
                    os.replace(old, target)
                elif not os.path.lexists(temporary):  # there was no such file before
                    os.unlink(target)
            raise
        finally:
            for old in kept:
                with contextlib.suppress(OSError):
                    os.unlink(old)
