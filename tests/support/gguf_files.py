"""GGUF files as bytes, with every field open to a lie."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

F32, F16, Q8_0 = 0, 1, 8
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_NUMBERS[12] = "d"
U16, U32, I32, FLOAT, BOOL, STRING, ARRAY = 2, 4, 5, 6, 7, 8, 9

Entry = tuple[str | bytes, int, Any]


@dataclass(frozen=True)
class Row:
    """A tensor as the header describes it; offset None: where the writer has put it."""

    name: str | bytes
    ne: Sequence[int]
    kind: int = F32
    data: bytes = b""
    offset: int | None = None
    n_dims: int | None = None


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def value(kind: int, x: Any) -> bytes:
    """A value of the metadata. An array is (type of its elements, elements)."""
    if kind == STRING:
        return string(x)
    if kind == ARRAY:
        return struct.pack("<IQ", x[0], len(x[1])) + b"".join(value(x[0], y) for y in x[1])
    return struct.pack("<" + _NUMBERS[kind], x)


def gguf(
    metadata: Sequence[Entry] = (),
    tensors: Sequence[Row] = (),
    version: int = 3,
    alignment: int = 32,
    n_tensors: int | None = None,
    n_entries: int | None = None,
) -> bytes:
    """A file; the numbers of tensors and entries are right unless given."""
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    n_entries = len(metadata) if n_entries is None else n_entries
    header = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_entries)
    for key, kind, x in metadata:
        header += string(key) + struct.pack("<I", kind) + value(kind, x)
    data = b""
    for row in tensors:
        offset = len(data) if row.offset is None else row.offset
        n_dims = len(row.ne) if row.n_dims is None else row.n_dims
        header += string(row.name) + struct.pack(f"<I{len(row.ne)}Q", n_dims, *row.ne)
        header += struct.pack("<IQ", row.kind, offset)
        data += row.data + b"\0" * (-len(row.data) % alignment)
    return header + b"\0" * (-len(header) % alignment) + data
