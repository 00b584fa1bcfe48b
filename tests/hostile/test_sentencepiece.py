"""A SentencePiece model that is damaged, or that nothing here can read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ..cli.program import as_process, in_process
from ..cli.tiny import lay_out
from .case import GENERATE, TOKENIZE

FIRST_PIECE = b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02"
DAMAGED = {
    "no-more-pieces": FIRST_PIECE,
    "not-protobuf": FIRST_PIECE + b"\xff" * 50,
    "piece-twice": FIRST_PIECE * 2,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_sentencepiece_model_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    """Whatever the library says of it, and on whichever stream."""
    pytest.importorskip("sentencepiece")
    lay_out(tmp_path, {"t.bin": DAMAGED[name]})
    outcome = as_process(GENERATE, tmp_path)
    assert (outcome.code, outcome.out) == (1, b"")
    assert outcome.err.startswith(b"pyllm2: error: t.bin: not a SentencePiece model: ")
    assert outcome.err.count(b"\n") == 1


def test_without_the_library_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is recognised, the package that reads it is named."""
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    lay_out(tmp_path, {"t.bin": FIRST_PIECE})
    outcome = in_process(TOKENIZE, tmp_path)
    assert (outcome.code, outcome.out) == (1, b"")
    assert outcome.err == (
        b"pyllm2: error: t.bin: a SentencePiece model needs the sentencepiece package: "
        b"pip install 'pyllm2[sentencepiece]'\n"
    )
