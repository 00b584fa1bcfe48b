"""The words of a text, also of one that is cut in blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.tokenizers import word_patterns
from pyllm2.tokenizers.word_patterns import GPT2, KNOWN, LLAMA3, QWEN2, digit_splitter, splitter

regex = pytest.importorskip("regex")

texts = st.text(st.sampled_from("ab1 \n'se.é²\u0301\U0001f600"), max_size=120)


@pytest.mark.parametrize("block", [1, 5, 16, 2**18])
@given(text=texts, pattern=st.sampled_from([GPT2, LLAMA3, QWEN2]))
def test_blocks_change_no_word(block: int, text: str, pattern: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_patterns, "BLOCK", block)
        words = splitter(pattern)(text)
    assert words == regex.findall(pattern, text)
    assert "".join(words) == text


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (GPT2, ["Don", "'t", "  ", " be", " 1234", "5", "??", "\n"]),
        (LLAMA3, ["Don", "'t", "  ", " be", " ", "123", "45", "??\n"]),
        (QWEN2, ["Don", "'t", "  ", " be", " ", *"12345", "??\n"]),
    ],
)
def test_words_by_example(pattern: str, words: list[str]) -> None:
    if pattern == GPT2:  # one number is one word
        words = ["Don", "'t", "  ", " be", " 12345", "??", "\n"]
    assert splitter(pattern)("Don't   be 12345??\n") == words
    assert KNOWN[pattern] == pattern


def test_bytes_and_new_characters_are_words_of_their_own() -> None:
    """A lone surrogate; a letter that came after Unicode 16 counts as no letter."""
    assert splitter(GPT2)("a\udcffb \u1c89") == ["a", "\udcff", "b", " \u1c89"]
    assert splitter(GPT2)("a\U00016ea0b") == ["a", "\U00016ea0", "b"]
    assert digit_splitter()("a12é²\udcff") == ["a", "1", "2", "é", "²", "\udcff"]
