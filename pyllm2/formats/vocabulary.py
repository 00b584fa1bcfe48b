"""llama2.c's `tokenizer.bin`: pieces and scores, without a count and without a magic.

    uint32 longest piece in bytes, then records: float32 score, int32 length, that many bytes

How many records there are follows from the model. Byte pieces are the six characters <0x00> to
<0xFF>, ids 3 to 258; 0, 1, 2 are unknown, BOS and EOS.
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

MOST_BYTES = 2**28
_RECORD = struct.Struct("<fi")


@dataclass(frozen=True)
class Vocabulary:
    """Piece and score of every id, and what there is to warn about."""

    pieces: list[bytes]
    scores: list[float]
    warnings: list[str]
    examples: list[tuple[str, list[int]]] = field(default_factory=list)  # from the library

    def cut_to(self, vocab_size: int | None, path: str, asked_by: str) -> Vocabulary:
        """The first `vocab_size` entries (all, if None), with a warning if that cuts any."""
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
    """Read every record; keep the first `vocab_size` (all, if None).

    `asked_by` is the path of the model, for the message when there are too few. `lenient` never
    looks past the last record that is needed, as the original.

    Raises FormatError naming the token and what is wrong with it.
    """
    path = source.path
    if source.size > MOST_BYTES:
        raise FileError(path, f"{source.size} bytes: a vocabulary has at most {MOST_BYTES}")
    data = source.read_all().tobytes()
    if len(data) < 4:
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
            raise FormatError(
                path, f"token {i}{of} (byte {at}): {len(data) - at} bytes left, "
                f"score and length need {_RECORD.size}"
            )  # fmt: skip
        score, length = _RECORD.unpack_from(data, at)
        left = len(data) - at - _RECORD.size
        if i == 0 and not 0 < length <= left:  # the first record makes no sense: another file?
            kind = kind_of(source.head)
            if kind is not None and source.head[12:17] != b"<unk>":
                raise FileError(path, f"looks like {kind}")
        if math.isnan(score):
            raise FormatError(path, f"token {i}{of}: score = nan (byte {at}): must be a number")
        if length == 0:
            raise FormatError(path, f"token {i}{of}: length = 0 (byte {at + 4}): at least 1")
        if not 0 < length <= left:
            raise FormatError(
                path, f"token {i}{of}: length {length % 2**32} (byte {at + 4}) exceeds "
                f"the {left} bytes left"
            )  # fmt: skip
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


def write_vocabulary(
    path: str | os.PathLike[str], pieces: Sequence[bytes], scores: Sequence[float]
) -> None:
    """Write a `tokenizer.bin`, atomically."""
    with atomic_write(path) as file:
        file.write(struct.pack("<I", max(map(len, pieces))))
        for piece, score in zip(pieces, scores, strict=True):
            file.write(_RECORD.pack(score, len(piece)) + piece)
