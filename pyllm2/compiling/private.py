"""Folders and files of which nobody else can have made what is in them.

A cache holds code that is run. It is used only if it belongs to the user, or to root, and nobody
else can write it; symbolic links in it are not followed.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
MODE = 0o644  # of a new file: only the user can write it, whatever the umask


def make(folder: Path) -> None:
    """Make a folder, and those above it, which only the user can write. Raises OSError."""
    for missing in reversed([f for f in (folder, *folder.parents) if not os.path.lexists(f)]):
        missing.mkdir(mode=0o755, exist_ok=True)


def why_not_private(folder: Path) -> str | None:
    """Why others could put files into an existing folder, in words that follow its name."""
    try:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode):
            return "is not a folder"
        if not _ours(found):
            return "belongs to somebody else, or others can write it"
        for parent in folder.resolve().parents:
            above = parent.stat()
            sticky = above.st_mode & stat.S_ISVTX  # as /tmp: others cannot rename what is ours
            if not (_ours(above) or (sticky and above.st_uid in (0, _user()))):
                return f"is below {parent}, which others can write"
    except OSError as error:
        return f"cannot be read: {(error.strerror or str(error)).lower()}"
    return None


def no_wider_than(folder: Path, other: Path) -> bool:
    """Whether nobody can write a folder who cannot write another one."""
    try:
        found, wider = folder.lstat(), other.stat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid in (0, _user(), wider.st_uid)
        and not found.st_mode & OTHERS_WRITE & ~wider.st_mode
        and (found.st_gid == wider.st_gid or not found.st_mode & stat.S_IWGRP)
    )


def read(path: Path) -> bytes:
    """A regular file of the user. Raises OSError if it is anything else."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not (stat.S_ISREG(found.st_mode) and _ours(found)):
            raise PermissionError(f"{path}: not a regular file that only the user can write")
        return file.read()


def _ours(found: os.stat_result) -> bool:
    return found.st_uid in (0, _user()) and not found.st_mode & OTHERS_WRITE


def _user() -> int:
    return os.geteuid()
