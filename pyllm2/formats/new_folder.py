"""A new folder with all of its files, or none."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pyllm2.errors import FileError, os_errors
from pyllm2.formats.writer import remove_temporaries, sync_folder, temporary_beside, umask

IGNORED = {"lost+found"}  # in the topmost folder of a file system


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder for files that appear as `path` when the block ends without an exception.

    Until then they are in a temporary folder, which is deleted on any exception. It is beside
    `path` and then renamed; or inside, if `path` exists and is empty: it may be a mount point, or
    the folder above it read-only. Then the files are moved one by one.

    Raises FileError before the block if `path` cannot be made, or is not empty.
    """
    name = os.fspath(path)
    if not name:
        raise FileError("''", "no such file or directory")
    with ExitStack() as stack:
        with os_errors(name):
            exists = os.path.lexists(name)
            if exists:
                _require_empty(name)
            target = os.path.join(name, "files") if exists else name.rstrip("/") or name
            made, _ = stack.enter_context(temporary_beside(target, folder=True))
        folder = Path(made)
        try:
            yield folder
        except FileError as error:  # by the name that it was to get
            file = Path(error.path)
            if not file.is_relative_to(folder):
                raise
            place = os.path.join(name, file.relative_to(folder))
            raise type(error)(place, error.reason) from None
        with os_errors(name):
            if exists:
                _move_files(made, name)
            else:
                os.chmod(made, 0o777 & ~umask())
                os.rename(made, target)
            sync_folder(name if exists else os.path.dirname(target))


def _require_empty(name: str) -> None:
    if not os.path.isdir(name):
        raise FileError(name, "already exists: choose a new folder")
    remove_temporaries(name)
    if set(os.listdir(name)) - IGNORED:
        raise FileError(name, "already exists: choose a new folder")


def _move_files(made: str, name: str) -> None:
    """Move all files of `made` to the folder `name`; none, if one cannot be moved."""
    moved: list[str] = []
    try:
        for file in sorted(os.listdir(made)):
            target = os.path.join(name, file)
            if os.path.lexists(target):  # made meanwhile by another process
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            moved.append(target)
            os.rename(os.path.join(made, file), target)
    except BaseException:
        for target in moved:
            with suppress(OSError):
                os.unlink(target)
        raise
