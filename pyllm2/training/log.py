"""main.log, in llm.c's format: a line an event, readable while the run goes on.

    s:<step> tel:<loss>                                  validation
    s:<step> trl:<loss> lr:<rate> norm:<gradient norm>   training

A resumed run repeats steps; the last line of a step counts.
"""

from __future__ import annotations

import os
import re

from pyllm2.errors import FileError

_LINE = re.compile(rb"s:(\d+) (tel|trl|eval):(\S+)( .*)?")


def validation_line(step: int, loss: float) -> str:
    return f"s:{step} tel:{loss:.4f}"


def training_line(step: int, loss: float, rate: float, norm: float) -> str:
    return f"s:{step} trl:{loss:.4f} lr:{rate:.6f} norm:{norm:.2f}"


class Log:
    """Appends lines to a file. A run that is not resumed begins with an empty one.

    Each line is opened for, written and closed, so that a killed run loses at most half a line;
    that half is ended here and skipped by `read_log`. Raises FileError.
    """

    def __init__(self, path: str | os.PathLike[str], resume: bool = False) -> None:
        self.path = os.fspath(path)
        self._write("ab" if resume else "wb", b"")
        if self._ends_within_a_line():
            self._write("ab", b"\n")

    def add(self, line: str) -> None:
        self._write("ab", line.encode() + b"\n")

    def _ends_within_a_line(self) -> bool:
        with open(self.path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            return file.read(1) not in (b"", b"\n")

    def _write(self, mode: str, data: bytes) -> None:
        try:
            with open(self.path, mode) as file:
                file.write(data)
        except OSError as error:
            raise FileError(self.path, (error.strerror or str(error)).lower()) from None


def read_log(path: str | os.PathLike[str]) -> dict[str, dict[int, float]]:
    """{"tel": {step: loss}, "trl": …, "eval": …}, steps ascending; other lines are skipped."""
    streams: dict[str, dict[int, float]] = {"tel": {}, "trl": {}, "eval": {}}
    try:
        with open(path, "rb") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise FileError(path, (error.strerror or str(error)).lower()) from None
    for line in lines:
        match = _LINE.fullmatch(line)
        if match:
            try:
                streams[match[2].decode()][int(match[1])] = float(match[3])
            except ValueError:
                continue
    return {name: dict(sorted(values.items())) for name, values in streams.items()}
