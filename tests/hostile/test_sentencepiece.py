"""A SentencePiece model that is damaged, or not BPE."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.case import GENERATE, TOKENIZE
from tests.support.command import Outcome, in_process
from tests.support.llama2_files import lay_out

FIRST_PIECE = b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02"
NOT_A_MODEL = "not a SentencePiece model"
DAMAGED = {
    "no-more-pieces": (FIRST_PIECE, "bos_id = 1: expected -1 to 0"),
    "not-protobuf": (
        FIRST_PIECE + b"\xff" * 50,
        f"{NOT_A_MODEL} (byte 16): a number of more than ten bytes",
    ),
    "cut": (FIRST_PIECE[:-2], f"{NOT_A_MODEL} (byte 0): 14 bytes, but 12 are left"),
    "piece-twice": (FIRST_PIECE * 2, f"{NOT_A_MODEL}: piece 1, '<unk>', is piece 0"),
    "nan": (
        FIRST_PIECE.replace(b"\0\0\0\0", b"\0\0\xc0\x7f"),
        "score of piece 0 = nan (byte 10): must be a number",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_sentencepiece_model_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    """With the byte, where there is one."""
    data, error = DAMAGED[name]
    lay_out(tmp_path, {"t.bin": data})
    outcome = in_process(GENERATE, tmp_path)
    assert outcome == Outcome(1, b"", f"pyllm2: error: t.bin: {error}\n".encode())


def _piece(text: bytes, kind: int) -> bytes:
    body = b"\n" + bytes([len(text)]) + text + b"\x15\0\0\0\0\x18" + bytes([kind])
    return b"\n" + bytes([len(body)]) + body


@pytest.mark.parametrize("bad", [b"\xff", b"a\xe2\x82", b"\xed\xa0\x80", b"\xc0\x80"])
def test_a_piece_that_is_not_utf8_is_refused(bad: bytes, tmp_path: Path) -> None:
    """By its number."""
    pieces = [(b"<unk>", 2), (b"<s>", 3), (b"</s>", 3), (b"a", 1), (bad, 1)]
    model = b"".join(_piece(*piece) for piece in pieces) + b"\x12\x02\x18\x02"  # BPE
    lay_out(tmp_path, {"t.bin": model})
    outcome = in_process(TOKENIZE, tmp_path)
    assert (outcome.code, outcome.out) == (1, b"")
    assert outcome.err == b"pyllm2: error: t.bin: piece 4 is not UTF-8\n"
