"""A new folder with all of its files, or none."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from pyllm2.errors import FileError, os_errors
from pyllm2.formats.writer import remove_temporaries, sync_folder, temporary_beside, umask

IGNORED = {"lost+found"}  # in the topmost folder of a file system


@contextmanager
def new_folder(path: str | os.PathLike[str], replaces: Sequence[str] = ()) -> Iterator[Path]:
    """A folder for files that appear as `path` when the block ends without an exception.

    Until then they are in a temporary folder, which is deleted on any exception. It is beside
    `path` and then renamed; or inside, if `path` exists and is empty: it may be a mount point, or
    the folder above it read-only. Then the files are moved one by one.

    replaces: patterns of names, such as "*.html". A folder with files of these names only is
    replaced as a whole when the block ends, and stays as it is on an exception.

    Raises FileError before the block if `path` cannot be made, or is not empty and not replaced.
    """
    name = os.fspath(path)
    if not name:
        raise FileError("''", "no such file or directory")
    with ExitStack() as stack:
        with os_errors(name):
            exists = os.path.lexists(name)
            old = exists and _is_old(name, replaces)
            if old:
                target = os.path.realpath(name)
            else:
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
            if old:
                _is_old(name, replaces)  # it may have got other files meanwhile
                _replace(made, target)
            elif exists:
                _move_files(made, name)
            else:
                os.chmod(made, 0o777 & ~umask())
                os.rename(made, target)
            sync_folder(name if exists and not old else os.path.dirname(target))


def content(folder: str) -> set[str]:
    """The names in a folder that count; temporary files of killed processes are deleted first."""
    remove_temporaries(folder)
    return set(os.listdir(folder)) - IGNORED


def _is_old(name: str, replaces: Sequence[str]) -> bool:
    """Whether a folder has files, all with names that may be replaced; False: it is empty.

    Raises FileError for a file, and for a folder with other files.
    """
    if not os.path.isdir(name):
        raise FileError(name, "already exists: choose a new folder")
    if not content(name):
        return False
    if not replaces:
        raise FileError(name, "already exists: choose a new folder")
    for above, folders, files in os.walk(name):
        links = [folder for folder in folders if os.path.islink(os.path.join(above, folder))]
        for file in sorted(files + links):
            place = os.path.relpath(os.path.join(above, file), name)
            if not any(fnmatch(place, pattern) for pattern in replaces):
                reason = f"is none of the files that are written here: {name} is not replaced"
                raise FileError(os.path.join(above, file), reason)
    return True


def _replace(made: str, target: str) -> None:
    """Put the folder `made` in the place of the folder `target`, which is deleted."""
    os.chmod(made, os.stat(target).st_mode & 0o7777)
    with temporary_beside(target, folder=True) as (aside, _):
        old = os.path.join(aside, "old")
        os.rename(target, old)
        try:
            os.rename(made, target)
        except BaseException:
            os.rename(old, target)
            raise


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
