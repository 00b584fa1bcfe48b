"""Writing so that whoever looks sees the old file or the new one, never half of either."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from pyllm2.errors import FileError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends without an exception.

    Written beside the target, flushed, fsynced, renamed over it, and the folder fsynced: a rename
    without the fsync can leave an empty file after a crash. On any exception the temporary goes
    and the old file stays as it was.

    Raises FileError with the operating system's reason.
    """
    name = os.fspath(path)
    folder = os.path.dirname(name) or "."
    if os.path.isdir(name):
        raise FileError(name, "is a folder, expected a file to write")
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".pyllm2-", suffix=".tmp", dir=folder)
    except OSError as error:
        raise FileError(name, (error.strerror or str(error)).lower()) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode_of(name))
        os.replace(temporary, name)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise FileError(name, (error.strerror or str(error)).lower()) from None
        raise
    _sync_folder(folder)


def _mode_of(name: str) -> int:
    """The permissions that the file has, or those that a plain open() would give a new one."""
    try:
        return os.stat(name).st_mode & 0o777
    except OSError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def _sync_folder(folder: str) -> None:
    with suppress(OSError):  # not every file system lets a folder be opened; the data is safe
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
