"""What llm.c's files share: a header of 256 little-endian int32, the first of them a magic."""

from __future__ import annotations

import struct

from pyllm2.errors import FileError, FormatError
from pyllm2.formats.kinds import kind_of
from pyllm2.formats.reader import Source

HEADER_BYTES = 1024


def read_fields(source: Source, magics: tuple[int, ...], what: str) -> tuple[int, ...]:
    """The 256 numbers of the header of a file that is `what`.

    Raises FormatError if it is cut or has another magic, FileError if that of something known.
    """
    head, path = source.head, source.path
    found = struct.unpack_from("<i", head)[0] if len(head) >= 4 else None
    if found not in magics:
        kind = kind_of(head)
        if kind is not None:
            raise FileError(path, f"looks like {kind}")
    if len(head) < HEADER_BYTES:
        raise FormatError(path, f"{len(head)} bytes: header needs {HEADER_BYTES}")
    if found not in magics:
        expected = " or ".join(map(str, magics))
        raise FormatError.field(path, "magic", found, 0, f"{what} has {expected}")
    return struct.unpack_from("<256i", head)


def require_version(source: Source, found: int, supported: tuple[int, ...], words: str) -> None:
    """Raises FormatError, saying in words what is supported, if the second field is another."""
    if found not in supported:
        raise FormatError.field(source.path, "version", found, 4, f"{words} supported")


def header_bytes(*fields: int) -> bytes:
    """A header to write: these fields, then zeros."""
    return struct.pack(f"<{len(fields)}i", *fields).ljust(HEADER_BYTES, b"\0")
