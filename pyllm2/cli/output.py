"""stdout: bytes, written at once, escaped on a terminal. stderr: lines."""

from __future__ import annotations

import codecs
import sys
from contextlib import suppress
from typing import Any

from pyllm2.errors import FileError, printable

_silent = False


class Output:
    """Standard output: writes bytes and flushes, but never splits a UTF-8 character.

    On a terminal control characters other than newline and tab are escaped, so that a model cannot
    move the cursor or change the title of the window, and bytes that are not UTF-8 become U+FFFD.
    Into a pipe or file all bytes go unchanged.

    A stdout that takes only text, such as a notebook's or an io.StringIO, gets the characters;
    bytes that are not UTF-8 become U+FFFD.

    Raises BrokenPipeError if stdout is closed, FileError if it cannot be written.
    """

    def __init__(self) -> None:
        if sys.stdout is None:  # the process was started with `>&-`
            raise BrokenPipeError
        self._raw: Any = getattr(sys.stdout, "buffer", None) or _TextOnly(sys.stdout)
        self._is_terminal = is_terminal(sys.stdout)
        errors = "replace" if self._is_terminal else "surrogateescape"
        self._characters = codecs.getincrementaldecoder("utf-8")(errors)

    def write(self, data: bytes, end: bool = False) -> None:
        """Write the characters that are complete; with `end`, also the bytes that are left over."""
        text = self._characters.decode(data, final=end)
        shown = escaped(text) if self._is_terminal else text
        self.write_raw(shown.encode("utf-8", "surrogateescape"))

    def write_piece(self, data: bytes) -> None:
        """Like `write` on a terminal; elsewhere all bytes at once, even half a character."""
        if self._is_terminal:
            self.write(data)
        else:
            self.write_raw(data)

    def write_raw(self, data: bytes) -> None:
        """Write these bytes as they are."""
        try:
            self._raw.write(data)
            self._raw.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise FileError("standard output", (error.strerror or str(error)).lower()) from None


class TextOutput:
    """`Output` as a stream of text, for a library: colours pass, and no locale refuses a letter."""

    def __init__(self) -> None:
        self._output = Output()

    def write(self, text: str) -> None:
        self._output.write_raw(text.encode("utf-8", "surrogateescape"))

    def flush(self) -> None:
        """`write` has done it."""


class _TextOnly:
    """Bytes for a stream of text: a character is written once all of its bytes are there."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, data: bytes) -> None:
        self._stream.write(self._characters.decode(data))

    def flush(self) -> None:
        if hasattr(self._stream, "flush"):
            self._stream.flush()


def is_terminal(stream: Any) -> bool:
    """Whether a stream, which may have no such method, is a terminal."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def tell(line: str) -> None:
    """Print a line on stderr; errors of writing are ignored."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):  # ValueError: it is closed
            sys.stderr.write(f"{line}\n")
            if hasattr(sys.stderr, "flush"):
                sys.stderr.flush()


def say(line: str) -> None:
    """Print a line on stderr, after the name of the program."""
    if not _silent:
        tell(f"pyllm2: {printable(line)}")


def be_silent() -> None:
    """Print no more lines than errors from now on: another process of the same run speaks."""
    global _silent
    _silent = True


def escaped(text: str) -> str:
    """`text` with its control characters, except newline and tab, as escape sequences.

    Example: "a\\x1b[2J" -> "a\\\\x1b[2J"
    """
    if text.isprintable():
        return text
    return "".join(c if _harmless(c) else c.encode("unicode_escape").decode() for c in text)


def _harmless(c: str) -> bool:
    """Whether a character cannot control a terminal: printable, or some kind of space."""
    return c.isprintable() or c in "\n\t" or (c.isspace() and ord(c) > 0x9F)
