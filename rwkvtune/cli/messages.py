"""What a command says when something is wrong: one line that names the thing and what to do."""

import contextlib
import errno
import os
import sys


def explain(error):
    """One line of text for an exception that stands for wrong input or a machine that cannot."""
    text = _of_system(error) if isinstance(error, OSError) and error.filename is not None else str(error)
    if isinstance(error, OSError) and error.filename is None and error.errno is not None and error.strerror:
        text = error.strerror
    if isinstance(error, UnicodeDecodeError):
        text = f"the input is not UTF-8 text: byte {error.object[error.start]:#04x} at position {error.start:,}"
    return " ".join(text.split()) or type(error).__name__


def _of_system(error):
    """The words for an error of the operating system about a file."""
    name = os.fsdecode(error.filename)
    if error.errno == errno.EEXIST or error.errno == errno.ENOTDIR:
        return f"{name}: a directory is needed here, and a part of this path is a file; choose another"
    words = {
        errno.ENOENT: "there is no such file; check the path",
        errno.EISDIR: "this is a directory; give the name of a file",
        errno.EACCES: "no permission; check the owner and the mode of the file and its directory",
        errno.EPERM: "not permitted; check the owner and the attributes of the file and its directory",
        errno.EROFS: "the file system is read-only; choose another directory",
        errno.ENOSPC: "no space left on the disk; free some or choose another directory",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
        errno.ELOOP: "the symbolic links lead in a circle; check the path",
    }
    return f"{name}: {words.get(error.errno, error.strerror or 'cannot be used')}"


def show_warning(program):
    """A replacement for `warnings.showwarning` that prints one line and no source code."""

    def show(message, category, filename, lineno, file=None, line=None):
        print(f"{program}: {explain(message)}", file=sys.stderr)

    return show


def finish_output():
    """Writes what is in the buffer of the output; where that cannot be done (again), it goes nowhere, quietly."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):  # an output that is no file, as in a test or a notebook
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
