"""Bytes to stdout as they come: raw into a pipe or file, harmless on a terminal."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

from pyllm2.errors import FileError


class Output:
    """Writes bytes and flushes each time; holds back a character that is not complete yet.

    On a terminal control characters other than newline and tab are shown escaped, so that a
    model cannot move the cursor or retitle the window. Invalid UTF-8 passes as it is into a pipe.

    Raises BrokenPipeError if stdout is closed, FileError if it cannot be written.
    """

    def __init__(self) -> None:
        if sys.stdout is None:  # `>&-`: the interpreter found descriptor 1 closed
            raise BrokenPipeError
        self._raw: BinaryIO = sys.stdout.buffer
        self._show: Callable[[str], str] = escaped if sys.stdout.isatty() else str
        self._characters = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def write(self, data: bytes, end: bool = False) -> None:
        """Write all complete characters of what has come so far; with `end`, all that is left."""
        text = self._characters.decode(data, final=end)
        self.write_raw(self._show(text).encode("utf-8", "surrogateescape"))

    def write_raw(self, data: bytes) -> None:
        """Write these bytes, now."""
        try:
            self._raw.write(data)
            self._raw.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise FileError("standard output", (error.strerror or str(error)).lower()) from None


def tell(line: str) -> None:
    """A line on stderr; where nobody can read it, it is lost."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(line, file=sys.stderr, flush=True)


def escaped(text: str) -> str:
    """Control characters made visible, but newline and tab.

    Example: "a\\x1b[2J" -> "a\\\\x1b[2J"
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" or (c.isspace() and ord(c) > 0x9F)
        else c.encode("unicode_escape").decode()
        for c in text
    )  # fmt: skip
