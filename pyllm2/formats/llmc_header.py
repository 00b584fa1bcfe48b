"""The header of llm.c's files: 256 little-endian int32, of which the first is a magic number."""

from __future__ import annotations

import struct

from pyllm2.errors import FileError, FormatError
from pyllm2.formats.kinds import kind_of
from pyllm2.formats.reader import Source

HEADER_BYTES = 1024


def read_fields(source: Source, magics: tuple[int, ...], what: str) -> tuple[int, ...]:
    """The 256 numbers of the header. `what` names the expected file, for errors.

    Raises FileError for another kind of file that is recognised, FormatError for a truncated header
    or another magic number.
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
    """Raises FormatError for an unsupported version; `words` says which ones are supported."""
    if found not in supported:
        raise FormatError.field(source.path, "version", found, 4, f"{words} supported")


def header_bytes(*fields: int) -> bytes:
    """A header of these fields, padded with zeros."""
    return struct.pack(f"<{len(fields)}i", *fields).ljust(HEADER_BYTES, b"\0")
