"""SentencePiece's `precompiled_charsmap`: replacements of characters, such as those of NFKC.

    uint32 n | n / 4 units of uint32: a double-array trie over UTF-8 | replacements that end in NUL

A unit: label in bits 0 to 7 (with bit 31 clear), a match ends here in bit 8, offset in the rest.
The unit that a match leads to holds the place of the replacement.
"""

from __future__ import annotations

from array import array

from pyllm2.errors import FormatError

_LABEL = 1 << 31 | 0xFF


class CharsMap:
    """Replacements, the longest match first. Raises FormatError for a table that is damaged."""

    def __init__(self, data: bytes, path: str) -> None:
        size = int.from_bytes(data[:4], "little")
        if len(data) < 4 or size % 4 or size < 4 or size > len(data) - 4:
            raise FormatError(
                path, f"precompiled_charsmap: a trie of {size} bytes in {len(data)}: damaged"
            )
        self._units = array("I")
        self._units.frombytes(data[4 : 4 + size])
        if array("H", [1]).tobytes() != b"\x01\x00":
            self._units.byteswap()
        self._replacements = data[4 + size :]
        self._path = path
        self._remembered: dict[str, str] = {}

    def normalize(self, text: str) -> str:
        """The text with the longest match at each place replaced. Lone surrogates stay."""
        data = text.encode("utf-8", "surrogateescape")
        out, at = bytearray(), 0
        while at < len(data):
            length, replacement = self._match(data, at)
            if not length:
                length = max(1, _length(data[at]))
                replacement = data[at : at + length]
            out += replacement
            at += length
        return out.decode("utf-8", "surrogateescape")

    def _match(self, data: bytes, at: int) -> tuple[int, bytes]:
        """Length and replacement of the longest match at a place; length 0 without any."""
        units = self._units
        node, length, replacement = _offset(units[0]), 0, b""
        for i in range(at, len(data)):
            byte = data[i]
            node ^= byte
            if byte == 0 or node >= len(units) or units[node] & _LABEL != byte:
                break
            ends = units[node] >> 8 & 1
            node ^= _offset(units[node])
            if node >= len(units):
                raise FormatError(self._path, "precompiled_charsmap: damaged")
            if ends:
                length = i + 1 - at
                replacement = self._replacement(units[node] & 0x7FFFFFFF)
        return length, replacement

    def _replacement(self, start: int) -> bytes:
        end = self._replacements.find(b"\0", start)
        if start > len(self._replacements) or end < 0:
            raise FormatError(self._path, "precompiled_charsmap: damaged")
        return self._replacements[start:end]


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 512) >> 6)


def _length(lead: int) -> int:
    """Bytes of the UTF-8 character that begins with this one; 0 for one that begins none."""
    return 1 if lead < 0x80 else 2 if lead >> 5 == 6 else 3 if lead >> 4 == 14 else 4
