"""Opening a file that may be anything.

The order of work is the same for every format: open, check that it is a regular file, read a
small head, let the format compute with Python integers what the whole must measure, compare,
and only then read (or map) the rest.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FileError

HEAD_BYTES = 4096

_KINDS_OF_NON_FILES = [
    (stat.S_ISDIR, "is a folder"),
    (stat.S_ISFIFO, "is a FIFO (named pipe)"),
    (stat.S_ISSOCK, "is a socket"),
    (stat.S_ISCHR, "is a character device"),
    (stat.S_ISBLK, "is a block device"),
]


class Source:
    """An open regular file: its path, its size, its first bytes; the rest on demand."""

    def __init__(self, path: str, file: FileIO, size: int, head: bytes) -> None:
        self.path, self.file, self.size, self.head = path, file, size, head

    def read_all(self, memory_map: bool = False, aligned_byte: int = 0) -> NDArray[np.uint8]:
        """The whole file as one read-only array of bytes.

        The byte `aligned_byte` comes to lie at a multiple of 64, so that what begins there can be
        read a whole vector register or cache line at a time.

        By default a copy in memory, which later changes to the file cannot touch. With
        `memory_map` the operating system pages it in as it is used: quicker to start and shared
        between processes, but a file truncated meanwhile kills the process (SIGBUS).
        """
        if memory_map and self.size:
            view = mmap.mmap(self.file.fileno(), self.size, access=mmap.ACCESS_READ)
            return np.frombuffer(view, dtype=np.uint8)
        data = self.read_range(0, self.size, aligned_byte)
        data.flags.writeable = False
        return data

    def read_range(self, start: int, n: int, aligned_byte: int = 0) -> NDArray[np.uint8]:
        """The bytes start … start + n - 1, (n,), the caller's to write into.

        The byte `aligned_byte` of them comes to lie at a multiple of 64.
        """
        try:
            room = np.empty(n + 64, dtype=np.uint8)
        except MemoryError:
            raise FileError(
                self.path, f"{n} bytes do not fit in memory: map the file instead"
            ) from None
        address = room.__array_interface__["data"][0]
        data = room[-(address + aligned_byte) % 64 :][:n]
        self.file.seek(start)
        done = 0
        while done < n:  # one call reads 2 GiB at most
            got = self.file.readinto(data[done:].data)
            if not got:
                raise FileError(
                    self.path, f"{self.size} bytes when opened, {start + done} when read"
                )
            done += got
        return data


@contextmanager
def open_source(path: str | os.PathLike[str]) -> Iterator[Source]:
    """Open a regular file for reading.

    Raises FileError with the operating system's reason, or with what the path is instead of a file.
    """
    name = os.fspath(path)
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes to would otherwise wait for ever.
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise FileError(name or "''", (error.strerror or str(error)).lower()) from None
    except ValueError:
        raise FileError(name, "not a path: it contains a zero byte") from None
    status = os.fstat(descriptor)
    for is_kind, words in _KINDS_OF_NON_FILES:
        if is_kind(status.st_mode):
            os.close(descriptor)  # fdopen would refuse a folder in its own words
            raise FileError(name, f"{words}, expected a regular file")
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        try:
            head = file.read(HEAD_BYTES)
        except OSError as error:
            raise FileError(name, (error.strerror or str(error)).lower()) from None
        yield Source(name, file, status.st_size, head)
