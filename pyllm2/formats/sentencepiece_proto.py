"""SentencePiece's `tokenizer.model`, without the sentencepiece library: pieces, scores, settings.

    ModelProto       1 pieces, 2 trainer_spec, 3 normalizer_spec
    piece            1 text, 2 score (float32), 3 kind (default NORMAL)
    trainer_spec     3 model_type, 35 byte_fallback, 40 unk_id, 41 bos_id, 42 eos_id, 43 pad_id,
                     44 unk_surface
    normalizer_spec  2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces,
                     5 escape_whitespaces

Other fields are skipped.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

from pyllm2.errors import FileError, FormatError, shown
from pyllm2.formats.protobuf import BYTES, FOUR, VARINT, WireError, fields
from pyllm2.formats.reader import Source

MAX_BYTES = 2**28
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BPE = 2
_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass
class SentencePieceModel:
    """What a model says. Ids of -1 do not exist."""

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    model_type: int = 1
    byte_fallback: bool = False
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    unk_surface: str = " \u2047 "
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    raw: bytes = b""  # the file


def read_model(source: Source) -> SentencePieceModel:
    """Read and check a model.

    Raises FileError for a model that is not BPE, FormatError for one that is damaged: bytes that
    are no message, a piece that is empty, not UTF-8 or there twice, a score that is no number.
    """
    if source.size > MAX_BYTES:
        raise FileError(source.path, f"{source.size} bytes: a vocabulary has at most {MAX_BYTES}")
    return parse_model(source.read_all().tobytes(), source.path)


def parse_model(data: bytes, path: str) -> SentencePieceModel:
    """The model in these bytes; see `read_model`."""
    view = memoryview(data)
    model = SentencePieceModel(raw=data)
    try:
        for number, wire, begin, end in fields(view, 0, len(view)):
            if number == 1 and wire == BYTES:
                _read_piece(view, begin, end, model, path)
            elif number == 2 and wire == BYTES:
                _read_trainer(view, begin, end, model, path)
            elif number == 3 and wire == BYTES:
                _read_normalizer(view, begin, end, model)
    except WireError as error:
        at, what = error.args
        raise FormatError(path, f"not a SentencePiece model (byte {at}): {what}") from None
    if not model.pieces:
        raise FormatError(path, "not a SentencePiece model: 0 pieces")
    _check_pieces(model, path)
    if model.model_type != BPE:
        found = _TYPES.get(model.model_type, model.model_type)
        raise FileError(path, f"model_type = {found}: not a BPE model, not supported")
    return model


def _read_piece(
    data: memoryview, start: int, stop: int, model: SentencePieceModel, path: str
) -> None:
    text, score, kind = b"", 0.0, NORMAL
    i = len(model.pieces)
    for number, wire, begin, end in fields(data, start, stop):
        if number == 1 and wire == BYTES:
            text = bytes(data[begin:end])
        elif number == 2 and wire == FOUR:
            (score,) = struct.unpack_from("<f", data, begin)
            if math.isnan(score):
                raise FormatError.field(
                    path, f"score of piece {i}", score, begin, "must be a number"
                )
        elif number == 3 and wire == VARINT:
            kind = begin
            if not NORMAL <= kind <= BYTE:
                raise FormatError.field(path, f"type of piece {i}", kind, end, "expected 1 to 6")
    try:
        model.pieces.append(text.decode())
    except UnicodeDecodeError:
        raise FormatError(path, f"piece {i} is not UTF-8") from None
    model.scores.append(score)
    model.kinds.append(kind)


def _read_trainer(
    data: memoryview, start: int, stop: int, model: SentencePieceModel, path: str
) -> None:
    names = {3: "model_type", 40: "unk_id", 41: "bos_id", 42: "eos_id", 43: "pad_id"}
    for number, wire, begin, end in fields(data, start, stop):
        if wire == VARINT and number in names:
            setattr(model, names[number], begin - 2**64 if begin >= 2**63 else begin)
        elif wire == VARINT and number == 35:
            model.byte_fallback = bool(begin)
        elif wire == BYTES and number == 44:
            try:
                model.unk_surface = bytes(data[begin:end]).decode()
            except UnicodeDecodeError:
                raise FormatError(path, f"unk_surface (byte {begin}): is not UTF-8") from None


def _read_normalizer(data: memoryview, start: int, stop: int, model: SentencePieceModel) -> None:
    names = {3: "add_dummy_prefix", 4: "remove_extra_whitespaces", 5: "escape_whitespaces"}
    for number, wire, begin, end in fields(data, start, stop):
        if wire == VARINT and number in names:
            setattr(model, names[number], bool(begin))
        elif wire == BYTES and number == 2:
            model.charsmap = bytes(data[begin:end])


def _check_pieces(model: SentencePieceModel, path: str) -> None:
    first: dict[str, int] = {}
    for i, piece in enumerate(model.pieces):
        if not piece:
            raise FormatError(path, f"not a SentencePiece model: piece {i} is empty")
        if first.setdefault(piece, i) != i:
            raise FormatError(
                path,
                f"not a SentencePiece model: piece {i}, {shown(piece)}, is piece {first[piece]}",
            )
    for name in ("unk_id", "bos_id", "eos_id", "pad_id"):
        found, most = getattr(model, name), len(model.pieces) - 1
        if not -1 <= found <= most:
            raise FormatError(path, f"{name} = {found}: expected -1 to {most}")
    unknown = [i for i, kind in enumerate(model.kinds) if kind == UNKNOWN]
    if len(unknown) != 1:
        raise FormatError(path, f"{len(unknown)} pieces of type unknown: expected 1")
    for i, (piece, kind) in enumerate(zip(model.pieces, model.kinds, strict=True)):
        if kind == BYTE and byte_of(piece) < 0:
            raise FormatError(path, f"piece {i}: {shown(piece)} is not the name of a byte")


def byte_of(piece: str) -> int:
    """The byte that a piece `<0x00>` … `<0xFF>` names, or -1."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        digits = piece[3:5]
        if all(c in "0123456789ABCDEFabcdef" for c in digits):
            return int(digits, 16)
    return -1
