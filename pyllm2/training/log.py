"""main.log in llm.c's format: one line per event, readable during the run.

    s:<step> tel:<loss> [bpb:<bits per byte>]            validation
    s:<step> trl:<loss> lr:<rate> norm:<gradient norm>   training

A resumed run may repeat steps: the last line of a step counts.
"""

from __future__ import annotations

import errno
import os
import re
import stat

from pyllm2.errors import os_errors

LARGEST = 3.5e38  # of a float32; a plot cannot be scaled to much larger numbers
_LINE = re.compile(rb"s:(\d{1,18}) (tel|trl|eval):(\S+)( .*)?")


def validation_line(step: int, loss: float, bits: float | None = None) -> str:
    """bits: per byte of text, appended where they are known."""
    known = "" if bits is None else f" bpb:{bits:.4f}"
    return f"s:{step} tel:{loss:.4f}{known}"


def training_line(step: int, loss: float, rate: float, norm: float) -> str:
    return f"s:{step} trl:{loss:.4f} lr:{rate:.6f} norm:{norm:.2f}"


class Log:
    """Appends lines to a file, which a run that is not resumed truncates first.

    The file is opened and closed for every line, so a killed run loses at most part of one line;
    a partial line is terminated here and skipped by `read_log`. Raises FileError.
    """

    def __init__(self, path: str | os.PathLike[str], resume: bool = False) -> None:
        self.path = os.fspath(path)
        self._write("ab" if resume else "wb", b"")
        if self._ends_within_a_line():
            self._write("ab", b"\n")

    def add(self, line: str) -> None:
        self._write("ab", line.encode() + b"\n")

    def _ends_within_a_line(self) -> bool:
        with os_errors(self.path), open(self.path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            return file.read(1) not in (b"", b"\n")

    def _write(self, mode: str, data: bytes) -> None:
        with os_errors(self.path), open(self.path, mode, opener=regular_file) as file:
            file.write(data)


class NoLog:
    """A log of nothing."""

    path = os.devnull

    def add(self, line: str) -> None: ...


def regular_file(path: str, flags: int) -> int:
    """Opener for `open`: a regular file, not through a symlink, without waiting for a FIFO.

    Raises OSError.
    """
    require_regular(path)
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file")
    return descriptor


def require_regular(path: str) -> None:
    """Raises OSError if there is something else than a regular file at `path`."""
    if os.path.islink(path):
        raise OSError(errno.ELOOP, "is a symbolic link, expected a regular file")
    if os.path.isdir(path):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if os.path.lexists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "is no regular file")


def read_log(path: str | os.PathLike[str]) -> dict[str, dict[int, float]]:
    """{"tel": {step: loss}, "trl": …, "eval": …} sorted by step; other lines are skipped.

    So are values that are not finite, and steps of more than 18 digits.
    """
    streams: dict[str, dict[int, float]] = {"tel": {}, "trl": {}, "eval": {}}
    with os_errors(path), open(path, "rb") as file:
        lines = file.read().splitlines()
    for line in lines:
        match = _LINE.fullmatch(line)
        if match:
            try:
                value = float(match[3])
            except ValueError:
                continue
            if abs(value) <= LARGEST:
                streams[match[2].decode()][int(match[1])] = value
    return {name: dict(sorted(values.items())) for name, values in streams.items()}
