"""Texts that the user gives: on the command line, in a file, or on standard input."""

from __future__ import annotations

import os

from pyllm2.errors import FileError
from pyllm2.formats import standard_input

STDIN = "-"
MAX_TEXT_BYTES = 2**26


def argument_bytes(text: str) -> bytes:
    """A command-line argument as the bytes that the user typed."""
    return os.fsencode(text)


def read_bytes(path: str) -> bytes:
    """The contents of a file, or of standard input for `-`.

    Raises FileError for more than 64 MiB.
    """
    if path == STDIN:
        return _at_most(standard_input.read(MAX_TEXT_BYTES + 1), standard_input.NAME)
    from pyllm2.formats.reader import open_source

    with open_source(path) as source:
        if source.size > MAX_TEXT_BYTES:
            raise FileError(path, f"{source.size} bytes, a text has at most {MAX_TEXT_BYTES}")
        return source.read_all().tobytes()


def read_line() -> bytes:
    """The next line of standard input, empty at its end. Raises FileError for more than 64 MiB."""
    return _at_most(standard_input.read_line(MAX_TEXT_BYTES + 1), "a line of standard input")


def _at_most(data: bytes, what: str) -> bytes:
    if len(data) > MAX_TEXT_BYTES:
        raise FileError(what, f"longer than {MAX_TEXT_BYTES} bytes, the most that a text has")
    return data
