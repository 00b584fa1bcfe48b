"""Long texts: NumPy gives the ids of the plain rule, for any vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyllm2.errors import TokenizerError
from pyllm2.formats.sentencepiece_model import to_vocabulary, train_sentencepiece
from pyllm2.testing import strategies
from pyllm2.tokenizers import merging, sentencepiece
from pyllm2.tokenizers.merging import Merges, merge_long, merge_words
from pyllm2.tokenizers.sentencepiece import BOS, SCORE_FLOOR, SentencePieceTokenizer, units

BYTE_PIECES = [b"<0x%02X>" % i for i in range(256)]
SPECIALS = [b"<unk>", b"<s>", b"</s>", *BYTE_PIECES]
LETTERS = [b" ", b"a", b"b", "é".encode(), b"\n"]


@st.composite
def dense_tokenizers(draw: Any) -> SentencePieceTokenizer:
    """Few characters and many pieces of them, with few scores: nearly everything merges."""
    two = [x + y for x in LETTERS for y in LETTERS]
    longer = draw(
        st.lists(st.sampled_from([x + y for x in LETTERS for y in two] + two), unique=True)
    )
    longer += draw(st.sampled_from([[], [b"    "], [b"<0x0A>", b"<0x0A>a"], [b"\n\x80"]]))
    scores = [draw(st.sampled_from([-1.0, -2.0, -3.0, -1e10])) for _ in longer]
    letters = LETTERS[: draw(st.integers(3, 5))]
    pieces = [*SPECIALS, *letters, *longer]
    return SentencePieceTokenizer(pieces, [0.0] * (259 + len(letters)) + scores)


@st.composite
def trained_tokenizers(draw: Any) -> SentencePieceTokenizer:
    """As training makes them: a piece is two earlier ones together, and its score is lower."""
    known = [b" ", b"a", b"b", "é".encode()]
    for _ in range(draw(st.integers(0, 12))):
        new = draw(st.sampled_from(known)) + draw(st.sampled_from(known))
        if new not in known and len(new) < 20:
            known.append(new)
    scores = [0.0] * (259 + 4) + [-float(i) for i in range(len(known) - 4)]
    return SentencePieceTokenizer([*SPECIALS, *known], scores)


@st.composite
def any_tokenizers(draw: Any) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(*draw(strategies.vocabularies()))


tokenizers = st.one_of(dense_tokenizers(), trained_tokenizers(), any_tokenizers())
parts = [
    b" ",
    b"a",
    b"b",
    b"\n",
    "é".encode(),
    "中".encode(),
    b"\x80",
    b"\xff",
    b"  ",
    b"ab",
    b"aa",
    b" a",
]
runs = st.tuples(st.sampled_from(parts), st.integers(1, 12)).map(lambda run: run[0] * run[1])
texts = st.lists(runs, max_size=8).map(b"".join) | st.binary(max_size=30)


def plain(t: SentencePieceTokenizer, data: bytes) -> list[int]:
    """The ids of the plain rule."""
    return t._merge_naive(t._dummy_prefix() + t._characters(data)) if data else []


def encode(t: SentencePieceTokenizer, data: bytes, longest: int, block: int) -> list[int]:
    """The ids by the way of long texts, with small limits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentencepiece, "SHORT", 0)
        patch.setattr(sentencepiece, "LONGEST_WORD", longest)
        patch.setattr(sentencepiece, "MOST_WORDS", 4)
        patch.setattr(sentencepiece, "_BLOCK", 4 * block)
        patch.setattr(merging, "_BLOCK", block)
        return t.encode(data, bos=False)


@given(tokenizers, texts, st.sampled_from([0, 2, 64]), st.integers(1, 5))
def test_a_long_text_has_the_ids_of_the_plain_rule(
    t: SentencePieceTokenizer, data: bytes, longest: int, block: int
) -> None:
    """However many words are merged at once, and however long they may be."""
    assert encode(t, data, longest, block) == plain(t, data)
    assert encode(t, data, longest, block) == plain(t, data), "remembered words"
    if b"<0x0A>a" not in t.pieces:  # in the original, too, a byte's name merges like any piece
        assert t.decode(encode(t, data, longest, block)) == data


def merges_of(t: SentencePieceTokenizer) -> Merges:
    return Merges.of_pieces(t.pieces, t._id_of, t.scores, SCORE_FLOOR, list(t._byte_of))


@given(tokenizers, st.lists(texts, min_size=1, max_size=4))
def test_words_are_merged_on_their_own(t: SentencePieceTokenizer, words: list[bytes]) -> None:
    """All in one call."""
    ids = [t._characters(word) for word in words]
    word = np.repeat(np.arange(len(words), dtype=np.int32), [len(i) for i in ids])
    flat = np.array([i for part in ids for i in part], dtype=np.int32)
    found, of = merge_words(flat, word, merges_of(t))
    for k in range(len(words)):
        assert found[of == k].tolist() == t._merge_naive(ids[k])


def by_levels(t: SentencePieceTokenizer, words: list[bytes]) -> list[list[int]] | None:
    """What `merge_long` gives for several words."""
    ids = [t._characters(word) for word in words]
    word = np.repeat(np.arange(len(words), dtype=np.int32), [len(i) for i in ids])
    flat = np.array([i for part in ids for i in part], dtype=np.int32)
    found = merge_long(flat, word, merges_of(t))
    return found and [found[0][found[1] == k].tolist() for k in range(len(words))]


some_words = st.lists(texts.filter(bool), min_size=1, max_size=4)


@given(st.one_of(dense_tokenizers(), trained_tokenizers()), some_words)
def test_levels_are_the_plain_rule_or_refused(
    t: SentencePieceTokenizer, words: list[bytes]
) -> None:
    """`merge_long` notices by itself where levels would give other ids."""
    found = by_levels(t, words)
    assert found is None or found == [t._merge_naive(t._characters(word)) for word in words]


@given(trained_tokenizers(), some_words)
def test_levels_do_for_trained_vocabularies_that_are_sound(
    t: SentencePieceTokenizer, words: list[bytes]
) -> None:
    """If every piece, spelled out, merges to itself, no text is refused."""
    if all(t._merge_naive(t._characters(piece)) == [i] for piece, i in t._id_of.items()):
        assert by_levels(t, words) is not None


@given(tokenizers, texts)
def test_pairs_are_found_by_their_text(t: SentencePieceTokenizer, data: bytes) -> None:
    """The table has every pair that the plain rule merges, and no other."""
    ids = np.array([*t._characters(data), *t._id_of.values()], dtype=np.int32)
    left, right = (side.ravel() for side in np.meshgrid(ids[:30], ids[-30:]))
    merges = merges_of(t)
    found = merges.merged[merges.find(left, right)].tolist()
    expected = [t._merged_id(a, b) for a, b in zip(left.tolist(), right.tolist(), strict=True)]
    assert found == [-1 if i is None else i for i in expected]


@given(st.one_of(dense_tokenizers(), any_tokenizers()), texts)
def test_no_merge_joins_two_words(t: SentencePieceTokenizer, data: bytes) -> None:
    """So that they can be merged on their own; no character is cut."""
    words = t._words.findall(data)
    assert b"".join(words) == data
    assert [unit for word in words for unit in units(word)] == units(data)
    assert [i for word in words for i in t._merge_naive(t._characters(word))] == t._merge_naive(
        t._characters(data)
    )


def test_a_byte_without_a_token_is_named_in_a_long_text() -> None:
    """As in a short one."""
    pieces = [piece for piece in SPECIALS if piece != b"<0x78>"] + [b" ", b"a"]
    t = SentencePieceTokenizer(pieces, [0.0] * len(pieces), "v")
    for text in ("a x " * 1000, "a" * 1000 + "x" + "a" * 1000):
        with pytest.raises(TokenizerError, match=r"^byte 0x7[89] has no token in v$"):
            t.encode(text)


@pytest.mark.parametrize("separator", [" ", "", "\n"])
def test_a_long_text_is_encoded_as_the_library_does(separator: str, tmp_path: Path) -> None:
    """Half a megabyte, in one word or many, with runs of spaces among the pieces."""
    pytest.importorskip("sentencepiece")
    words = "def f(x):\n        return x\n\n    if the cat sat on 12 mats: naïve 中文".split(" ")
    model = train_sentencepiece([" ".join(words), " " * 40 + "x", " ".join(words[::-1])] * 9, 400)
    vocabulary = to_vocabulary(model)
    t = SentencePieceTokenizer(vocabulary.pieces, vocabulary.scores)
    rng = np.random.default_rng(1)
    text = separator.join(rng.choice(words, 10**5)) + " " * 10**5
    assert t.encode(text) == [BOS, *model.encode(text)]


@pytest.mark.parametrize("block", [8, 2**18])
@given(data=texts.filter(bool))
@example(data=b"\x80" * 22)
def test_units_in_arrays_are_those_one_by_one(block: int, data: bytes) -> None:
    """Also of stray bytes, of which four and the two behind them are pieces."""
    t = SentencePieceTokenizer([*SPECIALS, b"a", b"\x80" * 4, b"\x80" * 2], [0.0] * 262)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentencepiece, "_BLOCK", block)
        assert t._units_of([data])[0].tolist() == t._characters(data)
