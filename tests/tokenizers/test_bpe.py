"""Byte-pair encoding of words is the plain rule, for drawn vocabularies; long runs take no time."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.tokenizers import bpe
from pyllm2.tokenizers.bpe import NEVER, ListedMerges, PieceMerges, Words, merge

LETTERS = "ab\u2581é"
words = st.text(st.sampled_from(LETTERS), max_size=60)


def plain(symbols: list[str], level: Callable[[str, str], int]) -> list[str]:
    """Merge the pair of the lowest level, the leftmost of equals: quadratic."""
    while True:
        found = [(level(a, b), i) for i, (a, b) in enumerate(itertools.pairwise(symbols))]
        if not found or min(found)[0] == NEVER:
            return symbols
        _, i = min(found)
        symbols = [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]


@st.composite
def listed(draw: Any) -> ListedMerges:
    """Merges of what is there already, each of a rank of its own."""
    known = list(LETTERS)
    merges = []
    for _ in range(draw(st.integers(0, 12))):
        pair = draw(st.sampled_from(known)), draw(st.sampled_from(known))
        merges.append(pair)
        if len(pair[0] + pair[1]) < 12 and pair[0] + pair[1] not in known:
            known.append(pair[0] + pair[1])
        elif pair[0] + pair[1] not in known:
            merges.pop()
    return ListedMerges({symbol: i for i, symbol in enumerate(known)}, merges)


pieces = st.dictionaries(
    st.text(st.sampled_from(LETTERS), min_size=2, max_size=4), st.integers(0, 3), max_size=12
).map(lambda found: found | dict.fromkeys(LETTERS, 9))
piece_merges = pieces.map(lambda p: PieceMerges(p, {piece: i for i, piece in enumerate(p)}))


@given(st.one_of(listed(), piece_merges), words)
def test_merging_is_the_plain_rule(merges: Any, word: str) -> None:
    """The heap, the quadratic loop and NumPy, and cut before spaces where that is safe."""
    expected = plain(list(word), merges.level)
    assert merge(word, merges.level) == expected
    assert bpe.merge_in_numpy(list(word), *merges._table) in (expected, []) if word else True
    ids = [merges.id_of[symbol] for symbol in expected]
    assert merges.encode(word) == ids
    assert Words(merges).encode([word]) == ids


@given(listed(), st.text(st.sampled_from("abz"), max_size=30))
def test_unknown_characters_vanish_or_are_unknown(merges: ListedMerges, word: str) -> None:
    """Without a token for unknown ones they are left out; else one stands for a run, if fused."""
    id_of = {**merges.id_of, "?": 99}
    fused = ListedMerges(id_of, merges.merges, unknown="?", fuse=True).encode(word)
    each = ListedMerges(id_of, merges.merges, unknown="?").encode(word)
    assert each.count(99) == word.count("z")
    assert fused.count(99) == sum(map(bool, "".join(c if c == "z" else " " for c in word).split()))


def test_a_long_run_is_quick() -> None:
    """100,000 times the same letter; the plain rule would take hours."""
    known = ["a" * 2**i for i in range(8)]
    merges = ListedMerges({a: i for i, a in enumerate(known)}, [(a, a) for a in known[:-1]])
    assert Words(merges).encode(["a" * 100_000]) == [7] * 781 + [5]


@pytest.mark.parametrize("n", [29, 30, 31, 32, 62, 1021, 1022, 1023, 1500])
def test_the_first_and_the_last_pair_merge(n: int) -> None:
    """Around the lengths at which another way begins: 32, 64 and 1024 symbols."""
    id_of = {"a": 0, "b": 1, "ab": 2}
    for merges in (ListedMerges(id_of, [("a", "b")]), PieceMerges({"ab": 0}, id_of)):
        assert Words(merges).encode(["ab" + "a" * n + "b"]) == [2, *[0] * (n - 1), 2]
        assert Words(merges).encode(["b" * n + "ab"]) == [1] * n + [2]
        assert "".join(merge("a" * n + "b", merges.level)) == "a" * n + "b"
        assert len(merge("a" * n + "b", merges.level)) == n


def test_a_long_word_takes_little_memory() -> None:
    """Of a character beyond Latin-1 Python makes 76 bytes each time; 8 for the list, and again."""
    n, space = 300_000, bpe.SPACE
    merges = PieceMerges({space + "a": 0}, {space: 1000, "a": 1001, space + "a": 1002})
    merges.encode(space * 2000)
    tracemalloc.start()
    try:
        assert merges.encode(space * n) == [1000] * n
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60 * n


def test_a_short_word_is_encoded_once() -> None:
    """And a long one each time: it does not come again."""
    encoded = []

    class Counting(ListedMerges):
        def encode(self, word: str) -> list[int]:
            encoded.append(word)
            return super().encode(word)

    words = Words(Counting({"a": 0}, []))
    assert words.encode(["a", "aa", "a"] * 3 + ["a" * 65] * 2) == [0] * (4 * 3 + 130)
    assert encoded == ["a", "aa", "a" * 65, "a" * 65]
