"""Messages of Protocol Buffers, and SentencePiece models made of them."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6


def varint(n: int) -> bytes:
    """Seven bits a byte, the lowest first; a negative number as one of 64 bits."""
    n %= 2**64
    out = bytearray()
    while n >= 128:
        out.append(n % 128 + 128)
        n //= 128
    return bytes([*out, n])


def field(number: int, value: int | float | bytes) -> bytes:
    """A varint, a float32, or bytes."""
    if isinstance(value, float):
        return varint(8 * number + 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(8 * number) + varint(value)
    return varint(8 * number + 2) + varint(len(value)) + value


def message(fields: dict[int, Any]) -> bytes:
    return b"".join(field(number, value) for number, value in fields.items())


def sentencepiece_model(
    pieces: Iterable[tuple[str, float, int]],
    trainer: dict[int, Any] | None = None,
    normalizer: dict[int, Any] | None = None,
) -> bytes:
    """A BPE model. pieces: text, score, type   trainer, normalizer: their fields by number"""
    listed = [message({1: text.encode(), 2: score, 3: kind}) for text, score, kind in pieces]
    whole = [field(1, piece) for piece in listed]
    whole += [field(2, message({3: 2, **(trainer or {})})), field(3, message(normalizer or {}))]
    return b"".join(whole)
