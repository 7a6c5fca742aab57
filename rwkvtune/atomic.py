"""Writing a file so that its name never stands for half of it.

The data goes to a hidden temporary file in the same directory, is flushed to the disk, and takes the final
name in one step (rename).  A crash or an error at any moment leaves the previous file as it was; after an
error the temporary file is removed as well.
"""

import contextlib
import errno
import os
import stat

_ADVICE = {
    errno.ENOSPC: "no space left on the disk; free some or choose another directory",
    errno.EROFS: "the file system is read-only; choose another directory",
    errno.EACCES: "no permission; check the owner and the mode of the file and its directory, or choose another",
    errno.EPERM: "not permitted; check the owner and the attributes of the file and its directory, or choose another",
    errno.ENOENT: "the directory does not exist; create it first",
    errno.ENOTDIR: "a part of the path is not a directory; check the path",
    errno.EISDIR: "this is a directory; give the name of a file in it",
    errno.EFBIG: "the file is too large for this file system or process limit; choose another directory",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EIO: "the disk reported an input/output error; check it, or choose another directory",
}
if hasattr(errno, "EDQUOT"):
    _ADVICE[errno.EDQUOT] = "the disk quota is used up; free some space or choose another directory"


def _explain(error, path):
    """The same OSError (errno decides the subclass), its text naming the file and what to do."""
    advice = _ADVICE.get(error.errno, error.strerror or str(error))
    return OSError(error.errno, f"cannot write {path}: {advice}")


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
        directory, name = os.path.split(target)
        temporary = os.path.join(directory, f".{name[:48]}.{os.urandom(6).hex()}.tmp")
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
