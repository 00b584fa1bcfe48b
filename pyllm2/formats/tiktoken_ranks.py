"""tiktoken's rank files (`gpt2.tiktoken`): a line a token, its bytes in base64, a blank, its rank.

The rank is the id, and says which merge goes first. The token that ends a text is not among them.
"""

from __future__ import annotations

import base64
import binascii

from pyllm2.errors import FileError, FormatError
from pyllm2.formats.kinds import kind_of
from pyllm2.formats.reader import Source

MOST_BYTES = 2**28
LONGEST = 255  # bytes of a token: what llm.c's tokenizer file can hold


def read_ranks(source: Source) -> list[bytes]:
    """The bytes of each token, by rank.

    Raises FormatError naming the line and what is wrong with it, or the rank that is missing.
    """
    path = source.path
    if source.size > MOST_BYTES:
        raise FileError(path, f"{source.size} bytes: a vocabulary has at most {MOST_BYTES}")
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
            raise FormatError(path, f"line {number}: expected base64, a blank and a rank")
        piece, rank = found
        if not 1 <= len(piece) <= LONGEST:
            raise FormatError(path, f"line {number}: {len(piece)} bytes: expected 1 to {LONGEST}")
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
