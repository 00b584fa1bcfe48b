"""The wire format of Protocol Buffers, as much of it as a SentencePiece model uses.

message    fields: varint (number << 3 | wire type), value
wire type  0 varint · 1 eight bytes · 2 length (varint) and bytes · 5 four bytes
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5


class WireError(Exception):
    """Bytes that are no message. `args`: where, what is wrong."""


def fields(data: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a message: number, wire type, and the value of a varint or two offsets.

    Yields (number, VARINT, value, offset of the field) or (number, wire type, begin, end) for the
    bytes of any other value.

    Raises WireError for a value that does not end before `end`, and for another wire type.
    """
    at = start
    while at < end:
        field = at
        key, at = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = _varint(data, at, end)
            yield number, wire, value, field
            continue
        if wire == BYTES:
            length, at = _varint(data, at, end)
        elif wire in (EIGHT, FOUR):
            length = 8 if wire == EIGHT else 4
        else:
            raise WireError(field, f"wire type {wire}")
        if length > end - at:
            raise WireError(field, f"{length} bytes, but {end - at} are left")
        yield number, wire, at, at + length
        at += length


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """A number of 7 bits per byte, the lowest first, and the offset behind it."""
    value = 0
    for i in range(10):
        if at + i >= end:
            raise WireError(at, "a number that is cut off")
        byte = data[at + i]
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value & (2**64 - 1), at + i + 1
    raise WireError(at, "a number of more than ten bytes")
