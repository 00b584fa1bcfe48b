"""Atomic writing: a reader sees the old file or the new one, never a part of either."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from pyllm2.errors import FileError, os_errors

try:
    import fcntl

    HAS_LOCKS = True
except ImportError:  # Windows: nobody deletes what a killed process has left
    HAS_LOCKS = False

_TEMPORARY = ".pyllm2-"
# Neither through a link nor waiting for a FIFO.
_AS_IT_IS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_OTHER_KINDS = [
    (stat.S_ISDIR, "is a folder"),
    (stat.S_ISSOCK, "is a socket"),
    (stat.S_ISBLK, "is a block device"),
]


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends without an exception.

    The file is written beside the target, flushed, fsynced and renamed over it; then the folder is
    fsynced. (A rename without fsync can leave an empty file after a crash.) On any exception the
    temporary file is deleted and the old file is unchanged; what a killed process has left of the
    same target is deleted by the next one. A symbolic link stays: the file that it names is
    replaced. A FIFO or character device is written to.

    Raises FileError with the operating system's reason.
    """
    name = os.fspath(path)
    target = _target(name)
    with os_errors(name):
        if target is None:
            with open(name, "wb") as file:
                yield file
            return
        with temporary_beside(target) as (temporary, descriptor):
            with os.fdopen(os.dup(descriptor), "wb") as file:
                yield file
                file.flush()
                os.fsync(descriptor)
            _keep_owner(descriptor, target)
            os.chmod(temporary, _mode_of(target))
            os.replace(temporary, target)
        sync_folder(os.path.dirname(target))


def require_writable(path: str | os.PathLike[str]) -> None:
    """Refuse, before any work, a path that `atomic_write` could not write. Raises FileError."""
    name = os.fspath(path)
    target = _target(name)
    with os_errors(name):
        if target is not None:
            with temporary_beside(target):
                pass
        elif not os.access(name, os.W_OK):
            raise FileError(name, "permission denied")


def _target(name: str) -> str | None:
    """The file to replace: `name`, or where it leads as a symbolic link. None: write to `name`.

    Raises FileError for a folder, a socket and a block device.
    """
    with os_errors(name or "''"):
        try:
            status = os.stat(name)
        except FileNotFoundError:
            if not name:
                raise
            return os.path.realpath(name) if os.path.islink(name) else name
    for is_kind, words in _OTHER_KINDS:
        if is_kind(status.st_mode):
            raise FileError(name, f"{words}, expected a file to write")
    if not stat.S_ISREG(status.st_mode):
        return None
    target = os.path.realpath(name) if os.path.islink(name) else name
    # /proc/self/fd/1 may lead to a file that has been deleted: it has no name any more.
    return target if os.path.exists(target) and os.path.samefile(target, name) else None


@contextmanager
def temporary_beside(target: str, folder: bool = False) -> Iterator[tuple[str, int]]:
    """(path, descriptor) of a new file or folder in the folder of `target`, deleted at the end.

    It is locked while this process lives. Those of the same target that are not locked were left by
    processes that were killed: they are deleted first. Raises OSError.
    """
    parent = os.path.dirname(target) or "."
    prefix = f"{_TEMPORARY}{zlib.crc32(os.fsencode(os.path.basename(target))):08x}-"
    remove_temporaries(parent, prefix)
    path, descriptor = "", -1
    try:
        while True:  # until it is locked before somebody else takes it for a leftover
            if folder:
                path = tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=parent)
                descriptor = os.open(path, os.O_RDONLY) if HAS_LOCKS else -1
            else:
                descriptor, path = tempfile.mkstemp(prefix=prefix, suffix=".tmp", dir=parent)
            if _lock(descriptor) is not False and os.path.exists(path):
                break
            os.close(descriptor)
            descriptor = -1
        yield path, descriptor
    finally:
        if path:
            _remove(path)
        if descriptor >= 0:
            with suppress(OSError):  # what was written is on the disk already
                os.close(descriptor)


def remove_temporaries(folder: str, prefix: str = _TEMPORARY) -> None:
    """Delete the temporary files and folders that killed processes of this user left here."""
    if not HAS_LOCKS:
        return
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        if name.startswith(prefix) and name.endswith(".tmp"):
            path = os.path.join(folder, name)
            with suppress(OSError):
                descriptor = os.open(path, _AS_IT_IS)
                try:
                    if os.fstat(descriptor).st_uid == os.geteuid() and _lock(descriptor):
                        _remove(path)
                finally:
                    os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Lock a file until its last descriptor is closed.

    False if somebody else has locked it, None if the file system has no locks.
    """
    if not HAS_LOCKS:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
        return
    with suppress(OSError):  # its own calls of close are not ignored
        shutil.rmtree(path, ignore_errors=True)


def _keep_owner(descriptor: int, name: str) -> None:
    """Give a new file the owner and group of the old one, as far as that is allowed."""
    if not hasattr(os, "fchown"):
        return
    with suppress(OSError):
        old = os.stat(name)
        if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, old.st_uid, old.st_gid)


def _mode_of(name: str) -> int:
    """The permissions of the file, or those that open() would give a new one."""
    try:
        return os.stat(name).st_mode & 0o777
    except OSError:
        return 0o666 & ~umask()


def umask() -> int:
    """The permissions that new files of this process do not get."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sync_folder(folder: str) -> None:
    """Write the names in a folder to the disk, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder or ".", os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
