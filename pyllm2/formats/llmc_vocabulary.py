"""llm.c's `gpt2_tokenizer.bin`: the bytes of every token, and the id of end-of-text.

After the header, for each id: one byte, the length (1 to 255), and that many bytes. Version 1 has
no field for end-of-text; it is the last id, as in GPT-2's vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from pyllm2.errors import FormatError
from pyllm2.formats.llmc_header import HEADER_BYTES, header_bytes, read_fields, require_version
from pyllm2.formats.reader import Source
from pyllm2.formats.writer import atomic_write

MAGIC = 20240328
GPT2_TOKENS = 50257
MAX_LENGTH = 255  # bytes of a token
MAX_TOKENS = 2**24


@dataclass(frozen=True)
class LLMCVocabulary:
    """The bytes of every id, and the id of end-of-text."""

    pieces: list[bytes]
    end_of_text: int


def read_vocabulary(source: Source) -> LLMCVocabulary:
    """Read every token.

    Raises FormatError naming the field, or the token and what is wrong with it.
    """
    path = source.path
    _, version, n, end_of_text, *_ = read_fields(source, (MAGIC,), "a GPT-2 tokenizer file")
    require_version(source, version, (1, 2), "1 and 2 are")
    if not 1 <= n <= MAX_TOKENS:
        raise FormatError.field(path, "tokens", n, 8, f"expected 1 to {MAX_TOKENS}")
    if version == 1:
        end_of_text = n - 1
        if n != GPT2_TOKENS:
            raise FormatError.field(path, "tokens", n, 8, f"version 1 has {GPT2_TOKENS}")
    if not 0 <= end_of_text < n:
        raise FormatError.field(path, "end_of_text", end_of_text, 12, f"expected 0 to {n - 1}")
    most = HEADER_BYTES + n * (1 + MAX_LENGTH)
    if source.size > most:
        raise FormatError(path, f"{source.size} bytes: {n} tokens have at most {most}")

    data = source.read_all().tobytes()
    pieces, at = [], HEADER_BYTES
    for i in range(n):
        if at >= len(data):
            raise FormatError(path, f"token {i} of {n} (byte {at}): missing")
        length, left = data[at], len(data) - at - 1
        if length == 0:
            raise FormatError(path, f"token {i} of {n}: length = 0 (byte {at}): at least 1")
        if length > left:
            raise FormatError(
                path, f"token {i} of {n}: length {length} (byte {at}) exceeds the {left} bytes left"
            )
        pieces.append(data[at + 1 : at + 1 + length])
        at += 1 + length
    if at < len(data):
        raise FormatError(path, f"{len(data) - at} bytes (byte {at}) after the last of {n} tokens")
    return LLMCVocabulary(pieces, end_of_text)


def write_vocabulary(
    path: str | os.PathLike[str], pieces: Sequence[bytes], end_of_text: int
) -> None:
    """Write version 2, atomically.

    Raises ValueError (a mistake of the caller) for a token of 0 or of more than 255 bytes.
    """
    for i, piece in enumerate(pieces):
        if not 1 <= len(piece) <= MAX_LENGTH:
            raise ValueError(f"token {i} has {len(piece)} bytes")
    with atomic_write(path) as file:
        file.write(header_bytes(MAGIC, 2, len(pieces), end_of_text))
        file.write(b"".join(bytes([len(piece)]) + piece for piece in pieces))
