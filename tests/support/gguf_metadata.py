"""The metadata of a valid GGUF file."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_NUMBERS[12] = "d"


def metadata(path: Path) -> dict[str, Any]:
    """Key -> value; arrays are lists."""
    data, at = path.read_bytes(), 24

    def number(letter: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from("<" + letter, data, at)
        at += struct.calcsize(letter)
        return value

    def value(kind: int) -> Any:
        nonlocal at
        if kind == 8:
            length = number("Q")
            at += length
            return data[at - length : at].decode()
        if kind == 9:
            inner, n = number("I"), number("Q")
            return [value(inner) for _ in range(n)]
        return number(_NUMBERS[kind])

    (count,) = struct.unpack_from("<Q", data, 16)
    found = {}
    for _ in range(count):
        key = value(8)
        found[key] = value(number("I"))
    return found
