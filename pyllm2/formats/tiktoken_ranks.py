"""tiktoken's rank files (`gpt2.tiktoken`): one line per token, its bytes in base64 and its rank.

The rank is the id; merges of lower rank come first. End-of-text is not in the file.
"""

from __future__ import annotations

import base64
import binascii

from pyllm2.errors import FileError, FormatError
from pyllm2.formats.kinds import is_text, kind_of
from pyllm2.formats.reader import Source

MAX_BYTES = 2**28
MAX_LENGTH = 255  # bytes of a token, as in llm.c's tokenizer file


def looks_like_ranks(head: bytes) -> bool:
    """Whether this is the beginning of text whose first line has two words."""
    return is_text(head) and len(head.split(b"\n", 1)[0].split()) == 2


def read_ranks(source: Source) -> list[bytes]:
    """The bytes of every token, by rank.

    Raises FormatError naming the line and what is wrong with it, or the rank that is missing.
    """
    path = source.path
    if source.size > MAX_BYTES:
        raise FileError(path, f"{source.size} bytes: a vocabulary has at most {MAX_BYTES}")
    of_rank: dict[int, bytes] = {}
    lines: dict[bytes, int] = {}
    for number, line in enumerate(source.read_all().tobytes().splitlines(), 1):
        if not line.strip():
            continue
        found = _token(line)
        if found is None:
            kind = kind_of(source.head)
            if number == 1 and kind not in (None, "plain text"):
                raise FileError(path, f"looks like {kind}")
            raise FormatError(path, f"line {number}: expected base64, a space and a rank")
        piece, rank = found
        if not 1 <= len(piece) <= MAX_LENGTH:
            raise FormatError(
                path, f"line {number}: {len(piece)} bytes: expected 1 to {MAX_LENGTH}"
            )
        if piece in lines:
            raise FormatError(path, f"line {number}: the bytes of line {lines[piece]} again")
        if rank in of_rank:
            raise FormatError(path, f"line {number}: rank {rank} again")
        of_rank[rank], lines[piece] = piece, number
    for rank in range(len(of_rank)):
        if rank not in of_rank:
            raise FormatError(path, f"{len(of_rank)} tokens, but rank {rank} is missing")
    if not of_rank:
        raise FormatError(path, "0 tokens: not a file of ranks")
    return [of_rank[rank] for rank in range(len(of_rank))]


def _token(line: bytes) -> tuple[bytes, int] | None:
    words = line.split()
    if len(words) != 2 or not words[1].isdigit() or len(words[1]) > 9:
        return None
    try:
        return base64.b64decode(words[0], validate=True), int(words[1])
    except binascii.Error:
        return None
