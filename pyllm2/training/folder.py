"""The folder of a run: its lock, its log, its checkpoints; leftovers of a killed run go."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pyllm2.errors import FileError
from pyllm2.training.checkpoint import Checkpoint
from pyllm2.training.log import Log

_CHECKPOINT = re.compile(r"step_(\d{8,})\.safetensors")
_TEMPORARY = re.compile(r"\.pyllm2-.*\.tmp")
LOCK, PID = ".lock", ".pid"


class RunFolder:
    """A folder that this process alone writes to; made by `open_folder`."""

    def __init__(self, path: str, log: Log) -> None:
        self.path, self.log = path, log

    def newest(self) -> str | None:
        """The checkpoint of the highest step."""
        found = checkpoints(self.path)
        return found[-1][1] if found else None

    def save(self, checkpoint: Checkpoint, keep: int) -> str:
        """Write it, and only when it is on the disk delete all but the newest `keep`."""
        path = os.path.join(self.path, f"step_{checkpoint.step:08d}.safetensors")
        checkpoint.write(path)
        for _, old in checkpoints(self.path)[: -max(keep, 1)]:
            with suppress(OSError):  # too many is no harm
                os.unlink(old)
        return path


def checkpoints(folder: str) -> list[tuple[int, str]]:
    """Step and path of every checkpoint in a folder, by step."""
    matches = [(name, _CHECKPOINT.fullmatch(name)) for name in _names(folder)]
    return sorted((int(m[1]), os.path.join(folder, name)) for name, m in matches if m)


@contextmanager
def open_folder(path: str | os.PathLike[str], resume: bool) -> Iterator[RunFolder]:
    """Make the folder if need be, lock it, clean it up.

    Raises FileError: it cannot be written; another process is training into it; there is a run in
    it that is not resumed, or none that could be.
    """
    folder = os.fspath(path)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise FileError(folder, "is a file, expected a folder")
    if resume and not (os.path.isdir(folder) and checkpoints(folder)):
        raise FileError(folder, "has no checkpoint to resume from")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise FileError(folder, (error.strerror or str(error)).lower()) from None
    with _locked(folder):
        for name in filter(_TEMPORARY.fullmatch, _names(folder)):
            with suppress(OSError):
                os.unlink(os.path.join(folder, name))
        if checkpoints(folder) and not resume:
            raise FileError(folder, "has a run already: --resume goes on with it")
        yield RunFolder(folder, Log(os.path.join(folder, "main.log"), resume))


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Hold the folder's lock, which the system lets go of when the process ends, however it ends.

    The pid stands in a file of its own: some versions of filelock empty the one that they lock.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(os.path.join(folder, LOCK), timeout=0)
    pid_file = os.path.join(folder, PID)
    try:
        lock.acquire()
    except Timeout:
        owner = _read(pid_file)
        raise FileError(folder, f"process {owner} is training into it") from None
    except OSError as error:
        raise FileError(folder, (error.strerror or str(error)).lower()) from None
    try:
        try:
            with open(pid_file, "w") as file:
                file.write(str(os.getpid()))
        except OSError as error:
            raise FileError(pid_file, (error.strerror or str(error)).lower()) from None
        yield
    finally:
        with suppress(OSError):
            os.unlink(pid_file)
        lock.release()


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read(20).strip() or "?"
    except (OSError, UnicodeDecodeError):
        return "?"


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise FileError(folder, (error.strerror or str(error)).lower()) from None
