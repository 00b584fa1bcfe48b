"""Run folder: lock, log and checkpoints; temporary files of a killed run are removed."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress

from pyllm2.errors import FileError, os_errors
from pyllm2.formats.safetensors_file import Blocks
from pyllm2.formats.writer import remove_temporaries
from pyllm2.training.checkpoint import Checkpoint
from pyllm2.training.log import Log, NoLog, regular_file, require_regular

_CHECKPOINT = re.compile(r"step_(\d{8,})\.safetensors")
LOCK, PID, LOG = ".lock", ".pid", "main.log"
HAS_RUN = "already contains a run: --resume continues it, --force begins a new one"


class RunFolder:
    """A locked folder, written by this process only; see `open_folder`."""

    def __init__(self, path: str, log: Log) -> None:
        self.path, self.log = path, log

    def newest(self) -> str | None:
        """Path of the checkpoint with the highest step."""
        found = checkpoints(self.path)
        return found[-1][1] if found else None

    def save(self, checkpoint: Checkpoint, keep: int) -> str:
        """Write a checkpoint; once it is on disk, delete all but the newest `keep`."""
        path = os.path.join(self.path, f"step_{checkpoint.step:08d}.safetensors")
        checkpoint.write(path)
        self.prune(keep)
        return path

    def prune(self, keep: int) -> None:
        """Delete all checkpoints but the newest `keep`."""
        for _, old in checkpoints(self.path)[: -max(keep, 1)]:
            with suppress(OSError):  # an extra checkpoint does no harm
                os.unlink(old)


class NoFolder:
    """The folder of a rank that writes nothing: rank 0 does."""

    def __init__(self) -> None:
        self.log = NoLog()

    def newest(self) -> str | None:
        return None

    def prune(self, keep: int) -> None: ...

    def save(self, checkpoint: Checkpoint, keep: int) -> str:
        """Send this rank's shares to rank 0, in the order in which it writes them."""
        for vector in (checkpoint.m, checkpoint.v):
            if isinstance(vector, Blocks):
                for _ in vector:
                    pass
        return ""


def checkpoints(folder: str) -> list[tuple[int, str]]:
    """(step, path) of every checkpoint in a folder, sorted by step."""
    matches = [(name, _CHECKPOINT.fullmatch(name)) for name in _names(folder)]
    return sorted((int(m[1]), os.path.join(folder, name)) for name, m in matches if m)


@contextmanager
def open_folder(
    path: str | os.PathLike[str],
    resume: bool,
    anew: Collection[str] | None = None,
    is_locked: bool = False,
) -> Iterator[RunFolder]:
    """Create the folder if necessary, lock it, and remove temporary files.

    anew: replace a run that the folder holds: delete its checkpoints, and the files of these names
    is_locked: the caller holds the lock already

    Raises FileError if it cannot be written, another process is training into it, it already
    holds a run and `resume` is false, or it holds none and `resume` is true.
    """
    folder = os.fspath(path)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise FileError(folder, "is a file, expected a folder")
    if resume and not (os.path.isdir(folder) and checkpoints(folder)):
        raise FileError(folder, "has no checkpoint to resume from")
    with os_errors(folder):
        os.makedirs(folder, exist_ok=True)
    for name in [LOCK, PID, *(os.path.basename(path) for _, path in checkpoints(folder))]:
        with os_errors(os.path.join(folder, name)):
            require_regular(os.path.join(folder, name))
    with nullcontext() if is_locked else locked(folder):
        remove_temporaries(folder)
        if anew is not None:
            _delete(folder, anew)
        if checkpoints(folder) and not resume:
            raise FileError(folder, HAS_RUN)
        yield RunFolder(folder, Log(os.path.join(folder, LOG), resume))


def _delete(folder: str, names: Collection[str]) -> None:
    """Delete the checkpoints and the files of these names."""
    for path in [old for _, old in checkpoints(folder)] + [os.path.join(folder, n) for n in names]:
        if os.path.lexists(path):
            with os_errors(path):
                os.unlink(path)


@contextmanager
def locked(folder: str) -> Iterator[None]:
    """Hold the folder's lock; the system releases it when the process ends, even when killed.

    The pid is in a separate file: some versions of filelock truncate the lock file.
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
        with os_errors(pid_file), open(pid_file, "w", opener=regular_file) as file:
            file.write(str(os.getpid()))
        yield
    finally:
        with suppress(OSError):
            os.unlink(pid_file)
        with suppress(OSError):  # the end of the process releases it, too
            lock.release()


def _read(path: str) -> str:
    try:
        with open(path, opener=regular_file) as file:
            return file.read(20).strip() or "?"
    except (OSError, UnicodeDecodeError):
        return "?"


def _names(folder: str) -> list[str]:
    with os_errors(folder):
        return sorted(os.listdir(folder))
