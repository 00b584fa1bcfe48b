"""Tokens that are cut out of a text, by worked examples."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.tokenizers.added_tokens import AddedToken, AddedTokens

pytest.importorskip("regex")


def parts(text: str, *tokens: AddedToken, special: bool = True) -> list[Any]:
    """Texts, and ids of tokens."""
    found = AddedTokens(tokens).cut(text, special)
    return [part if token is None else token for part, token, _ in found]


@pytest.mark.parametrize(
    ("text", "flags", "expected"),
    [
        ("a <x> b", {}, ["a ", 7, " b"]),
        ("a  <x> b", {"lstrip": True}, ["a", 7, " b"]),
        ("a <x>\n b", {"rstrip": True}, ["a ", 7, "b"]),
        (" \t<x>  ", {"lstrip": True, "rstrip": True}, [7]),
        ("<x> <x>", {"lstrip": True, "rstrip": True}, [7, 7]),
        ("a<x> <x>b", {"single_word": True}, ["a<x> <x>b"]),
        (".<x> <x>", {"single_word": True}, [".", 7, " ", 7]),
        ("é<x>", {"single_word": True}, ["é<x>"]),
        ("<x", {}, ["<x"]),
        ("", {}, []),
    ],
)
def test_flags_of_a_token(text: str, flags: dict[str, bool], expected: list[Any]) -> None:
    """White space to the left and right; a neighbour that is part of a word."""
    assert parts(text, AddedToken(7, "<x>", **flags)) == expected


def test_the_longest_of_those_that_begin_there() -> None:
    """A special token that is not wanted hides what is inside it."""
    tokens = AddedToken(1, "<x>"), AddedToken(2, "<x>y"), AddedToken(3, "y", special=False)
    assert parts("<x>y<x>zy", *tokens) == [2, 1, "z", 3]
    assert parts("<x>y<x>zy", *tokens, special=False) == ["<x>y<x>z", 3]


@given(st.text(st.sampled_from("<x> \na"), max_size=20), st.booleans(), st.booleans())
def test_parts_say_where_they_begin(text: str, lstrip: bool, rstrip: bool) -> None:
    """The texts stand there, in order; without the two flags nothing is lost."""
    tokens = AddedTokens([AddedToken(7, "<x>", lstrip=lstrip, rstrip=rstrip), AddedToken(8, "a")])
    end, whole = 0, ""
    for part, _, start in tokens.cut(text):
        assert start >= end or lstrip
        assert text.startswith(part, start) or lstrip
        end, whole = start + len(part), whole + part
    if not lstrip and not rstrip:
        assert whole == text
