"""A vocabulary learns from the whole text, or says in one line why there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2 import memory
from pyllm2.errors import FileError, NotEnoughMemoryError
from pyllm2.formats import sentencepiece_model
from pyllm2.formats.sentencepiece_model import train_sentencepiece
from pyllm2.formats.text import open_texts
from pyllm2.training.vocabulary import train_vocabulary

pytest.importorskip("sentencepiece")
WORDS = "the cat sat on a mat and ran to the barn where hens sing".split() * 200


@given(st.lists(st.text("ab \u2585é", max_size=30)), st.integers(1, 9))
def test_no_character_of_a_long_line_is_lost(lines: list[str], longest: int) -> None:
    """But for a blank at each cut, which the library adds again, and its reserved character."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentencepiece_model, "MAX_LINE", longest)
        found = list(sentencepiece_model._sentences(lines))
    assert all(0 < len(part) <= longest for part in found)
    kept = "".join(lines).replace("\u2585", "")
    assert "".join(found).replace(" ", "") == kept.replace(" ", "")
    words = {word for line in lines for part in line.split("\u2585") for word in part.split(" ")}
    assert {w for w in words if 0 < len(w) < longest} <= {
        w for part in found for w in part.split(" ")
    }


@pytest.mark.parametrize("separator", [" ", "\n"])
@pytest.mark.parametrize("copies", [1, 150])  # 150: 1.1 million bytes
def test_long_lines_are_learned(separator: str, copies: int) -> None:
    """A text has the same vocabulary in one line as in many."""
    lines = [" ".join(WORDS)] * copies
    model = train_sentencepiece(separator.join(lines).split("\n"), 320)
    short = train_sentencepiece(" ".join(lines[:1]).split(), 320)
    assert [model.id_to_piece(i) for i in range(320)] == [short.id_to_piece(i) for i in range(320)]


@pytest.mark.parametrize(
    "line", ["ab" * 10**5, "ab" * 10**6, "\u4e2d\u6587" * 10**5, " " * 10**5 + "a", "a\u2585b c"]
)
def test_a_text_without_newlines_or_blanks_is_learned(line: str) -> None:
    """Words are longer than the library can count."""
    model = train_sentencepiece([line], 300)
    assert set(line) - set(" \u2585") <= {model.id_to_piece(i) for i in range(model.vocab_size())}


def test_memory_is_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would end the process."""
    (tmp_path / "t").write_text(" ".join(f"word{i}" for i in range(20000)))
    monkeypatch.setattr(memory, "limit", lambda: 10**7)
    with open_texts([tmp_path / "t"]) as texts, pytest.raises(NotEnoughMemoryError) as refused:
        train_vocabulary(texts, 300)
    assert str(refused.value).endswith("MB: use less text")


@pytest.mark.parametrize(
    ("lines", "size", "words"),
    [
        ([chr(0x4E00 + i) for i in range(300)], 400, "need a vocabulary of more than 560, not 400"),
        ([], 300, ""),
    ],
)
def test_a_refusal_shows_no_source_line_of_the_library(
    lines: list[str], size: int, words: str
) -> None:
    """Its own words, or ours for the commonest fault."""
    with pytest.raises(FileError) as refused:
        train_sentencepiece(lines, size)
    message = str(refused.value)
    assert words in message
    assert ".cc" not in message
    assert "[" not in message
    assert "\n" not in message
