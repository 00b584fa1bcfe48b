"""Open a file that is not trusted.

Every format follows the same order: open, check that it is a regular file, read the first bytes,
compute the expected size of the file in Python integers, compare, and only then read (or map) the
rest.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FileError, os_errors

HEAD_BYTES = 4096

_KINDS_OF_NON_FILES = [
    (stat.S_ISDIR, "is a folder"),
    (stat.S_ISFIFO, "is a FIFO (named pipe)"),
    (stat.S_ISSOCK, "is a socket"),
    (stat.S_ISCHR, "is a character device"),
    (stat.S_ISBLK, "is a block device"),
]


class Source:
    """An open regular file: its path, size and first bytes. The rest is read on demand."""

    def __init__(self, path: str, file: FileIO, size: int, head: bytes) -> None:
        self.path, self.file, self.size, self.head = path, file, size, head

    def read_all(
        self, memory_map: bool = False, aligned_byte: int = 0, writable: bool = False
    ) -> NDArray[np.uint8]:
        """The whole file as one array of bytes. Writing into the array never changes the file.

        By default the array is a copy in memory, which later changes to the file do not affect.
        The address of byte `aligned_byte` is a multiple of 64, the size of a cache line and of the
        largest vector register.
        With `memory_map` the operating system reads pages of the file when they are used. That
        starts faster, and processes share the pages, but the process is killed (SIGBUS) if the
        file is truncated meanwhile. The array is aligned to a page, whatever `aligned_byte` is.

        Raises FileError if the file is shorter than when it was opened, or cannot be read or
        mapped.
        """
        if memory_map and self.size:
            access = mmap.ACCESS_COPY if writable else mmap.ACCESS_READ
            with os_errors(self.path, "cannot be memory-mapped:"):
                view = mmap.mmap(self.file.fileno(), self.size, access=access)
            return np.frombuffer(view, dtype=np.uint8)
        data = self.read_range(0, self.size, aligned_byte)
        data.flags.writeable = writable
        return data

    def read_range(self, start: int, n: int, aligned_byte: int = 0) -> NDArray[np.uint8]:
        """The bytes start … start + n - 1, (n,), in a writable array.

        The address of byte `aligned_byte` of the array is a multiple of 64.
        """
        try:
            buffer = np.empty(n + 64, dtype=np.uint8)
        except MemoryError:
            raise FileError(
                self.path, f"{n} bytes do not fit in memory: use memory mapping"
            ) from None
        address = buffer.__array_interface__["data"][0]
        data = buffer[-(address + aligned_byte) % 64 :][:n]
        done = 0
        while done < n:  # one call reads at most 2 GiB
            with os_errors(self.path):
                self.file.seek(start + done)
                got = self.file.readinto(data[done:].data)
            if not got:
                end = min(os.fstat(self.file.fileno()).st_size, start + done)
                raise FileError(
                    self.path, f"size = {end} bytes: was at least {start + n} when first opened"
                )
            done += got
        return data


@contextmanager
def open_source(path: str | os.PathLike[str]) -> Iterator[Source]:
    """Open a regular file for reading.

    Raises FileError with the operating system's reason, or with what the path is if not a file.
    """
    name = os.fspath(path)
    with os_errors(name or "''"):
        # O_NONBLOCK: opening a FIFO without a writer would block.
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    status = os.fstat(descriptor)
    for is_kind, words in _KINDS_OF_NON_FILES:
        if is_kind(status.st_mode):
            os.close(descriptor)  # fdopen has its own error for a folder
            raise FileError(name, f"{words}, expected a regular file")
    file = os.fdopen(descriptor, "rb", buffering=0)
    try:
        with os_errors(name):
            head = file.read(HEAD_BYTES)
        yield Source(name, file, status.st_size, head)
    finally:
        with suppress(OSError):  # nothing was written
            file.close()
