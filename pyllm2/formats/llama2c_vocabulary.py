"""llama2.c's `tokenizer.bin`: the bytes and score of every token, without a magic number.

    uint32     length of the longest piece in bytes
    records    float32 score, int32 length, the bytes of the piece

The number of records is that of the model's vocabulary. Ids 0, 1 and 2 are unknown, BOS and EOS;
ids 3 to 258 are the bytes, written as the six characters <0x00> to <0xFF>.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyllm2.errors import FileError, FormatError
from pyllm2.formats.kinds import kind_of
from pyllm2.formats.reader import Source
from pyllm2.formats.writer import atomic_write

MAX_BYTES = 2**28
_RECORD = struct.Struct("<fi")


@dataclass(frozen=True)
class Vocabulary:
    """Piece and score of every id."""

    pieces: list[bytes]
    scores: list[float]
    warnings: list[str]
    examples: list[tuple[str, list[int]]] = field(default_factory=list)  # texts and their ids

    def cut_to(self, vocab_size: int | None, path: str, asked_by: str) -> Vocabulary:
        """The first `vocab_size` entries (None: all), with a warning if there are more."""
        n = len(self.pieces)
        if vocab_size is None or n == vocab_size:
            return self
        warning = (
            f"{path}: has {n} tokens, {asked_by} expects {vocab_size}: "
            f"the first {vocab_size} are used, is it the right tokenizer?"
        )
        return Vocabulary(
            self.pieces[:vocab_size], self.scores[:vocab_size], [*self.warnings, warning]
        )


def read_vocabulary(
    source: Source, vocab_size: int | None = None, asked_by: str = "", lenient: bool = False
) -> Vocabulary:
    """Read every record; keep the first `vocab_size` (None: all).

    asked_by: the model's name, for errors. lenient: ignore what follows the last needed record.

    Raises FormatError naming the token and what is wrong with it; FileError for too few tokens or
    another kind of file that is recognised.
    """
    path = source.path
    if source.size > MAX_BYTES:
        raise FileError(path, f"{source.size} bytes: a vocabulary has at most {MAX_BYTES}")
    data = source.read_all().tobytes()
    if len(data) < 4:
        _refuse_another_kind(source)
        raise FormatError(path, f"{len(data)} bytes: header needs 4, max_token_length is missing")
    (declared_longest,) = struct.unpack_from("<I", data)
    pieces: list[bytes] = []
    scores: list[float] = []
    at = 4
    of = "" if vocab_size is None else f" of {vocab_size}"
    while at < len(data) and not (lenient and len(pieces) == vocab_size):
        i = len(pieces)
        if i == vocab_size and len(data) - at < _RECORD.size:
            left = len(data) - at
            raise FormatError(path, f"{left} bytes (byte {at}) after the last of {i} tokens")
        if len(data) - at < _RECORD.size:
            if i == 0:
                _refuse_another_kind(source)
            left, needed = len(data) - at, f"score and length need {_RECORD.size}"
            raise FormatError(path, f"token {i}{of} (byte {at}): {left} bytes left, {needed}")
        score, length = _RECORD.unpack_from(data, at)
        left = len(data) - at - _RECORD.size
        if i == 0 and not 0 < length <= left:
            _refuse_another_kind(source)
        if math.isnan(score):
            raise FormatError(path, f"token {i}{of}: score = nan (byte {at}): must be a number")
        if length == 0:
            raise FormatError(path, f"token {i}{of}: length = 0 (byte {at + 4}): at least 1")
        if not 0 < length <= left:
            found = f"length {length % 2**32} (byte {at + 4})"
            raise FormatError(path, f"token {i}{of}: {found} exceeds the {left} bytes left")
        at += _RECORD.size + length
        pieces.append(data[at - length : at])
        scores.append(score)

    if vocab_size is not None and len(pieces) < vocab_size:
        raise FileError(path, f"has {len(pieces)} tokens, {asked_by} expects {vocab_size}")
    warnings = []
    longest = max(map(len, pieces), default=0)
    if declared_longest != longest and not lenient:
        warnings.append(f"{path}: max_token_length = {declared_longest} (byte 0): it is {longest}")
    return Vocabulary(pieces, scores, warnings).cut_to(vocab_size, path, asked_by)


def _refuse_another_kind(source: Source) -> None:
    """Raise FileError if the file looks like another kind: there is no magic number."""
    kind = kind_of(source.head)
    if kind is not None and source.head[12:17] != b"<unk>":
        raise FileError(source.path, f"looks like {kind}")


def write_vocabulary(
    path: str | os.PathLike[str], pieces: Sequence[bytes], scores: Sequence[float]
) -> None:
    """Write a `tokenizer.bin`, atomically."""
    with atomic_write(path) as file:
        file.write(struct.pack("<I", max(map(len, pieces))))
        for piece, score in zip(pieces, scores, strict=True):
            file.write(_RECORD.pack(score, len(piece)) + piece)
