"""The alphabet of byte-level vocabularies: a printable character for each of the 256 bytes."""

from __future__ import annotations

_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]

CHARACTER_OF = {byte: chr(byte) for byte in _PRINTABLE}
CHARACTER_OF |= {byte: chr(256 + i) for i, byte in enumerate(_OTHERS)}
BYTE_OF = {character: byte for byte, character in CHARACTER_OF.items()}

_TO_LATIN1 = {ord(character): chr(byte) for character, byte in BYTE_OF.items()}


def to_bytes(token: str) -> bytes | None:
    """The bytes that a token stands for; None if it has a character outside the alphabet.

    Example: "Ġthe" -> b" the"
    """
    try:
        return bytes(map(BYTE_OF.__getitem__, token))
    except KeyError:
        return None


def from_bytes(data: bytes) -> str:
    """The inverse of `to_bytes`."""
    return "".join(map(CHARACTER_OF.__getitem__, data))


def to_latin1(token: str) -> str:
    """A token of the alphabet with the Latin-1 character of every byte."""
    return token.translate(_TO_LATIN1)
