"""Drawn SentencePiece models give the ids and texts of the sentencepiece library."""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.errors import FormatError
from pyllm2.formats.protobuf import BYTES, fields
from pyllm2.formats.sentencepiece_proto import parse_model
from pyllm2.tokenizers.bpe import SPACE
from pyllm2.tokenizers.charsmap import CharsMap
from pyllm2.tokenizers.sentencepiece_model import from_model
from tests.support.profiles import at_least
from tests.support.protobuf import (
    BYTE,
    CONTROL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    sentencepiece_model,
)

library = pytest.importorskip("sentencepiece")

texts = st.lists(
    st.sampled_from([*"abé  z", "  ", "abab", "<s>", "ﬁ", "Ａ", "e\u0301", "①", "\n"]), max_size=14
).map("".join)


@cache
def normalizer(rule: str) -> Any:
    """The library's, without what it does to spaces."""
    options = {"add_dummy_prefix": False, "remove_extra_whitespaces": False}
    return library.SentencePieceNormalizer(rule_name=rule, escape_whitespaces=False, **options)


@cache
def charsmap(rule: str) -> bytes:
    """The table of a rule of the library: normalizer_spec (3) . precompiled_charsmap (2)"""
    proto = normalizer(rule).serialized_model_proto()

    def inside(number: int, begin: int, end: int) -> tuple[int, int]:
        found = fields(memoryview(proto), begin, end)
        return next((a, b) for n, wire, a, b in found if (n, wire) == (number, BYTES))

    begin, end = inside(2, *inside(3, 0, len(proto)))
    return bytes(proto[begin:end])


@st.composite
def models(draw: Any) -> bytes:
    """Pieces of what is there already, in any order of scores; of every kind and normalizer."""
    known = [SPACE, "a", "b", "é", "A"]
    for _ in range(draw(st.integers(0, 10))):
        whole = draw(st.sampled_from(known)) + draw(st.sampled_from(known))
        if len(whole) < 8 and whole not in known:
            known.append(whole)
    kinds = st.sampled_from([1, 1, 1, USER_DEFINED, UNUSED])
    pieces = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    fallback = draw(st.booleans())
    pieces += [(f"<0x{i:02X}>", 0.0, BYTE) for i in range(256 if fallback else 0)]
    pieces += [(piece, -9.0, 1) for piece in known[:5]]
    pieces += [(piece, -float(draw(st.integers(1, 8))), draw(kinds)) for piece in known[5:]]
    rule = draw(st.sampled_from([None, None, "nfkc", "nmt_nfkc_cf"]))
    normalizer: dict[int, Any] = {number: int(draw(st.booleans())) for number in (3, 4)}
    normalizer |= {1: rule.encode(), 2: charsmap(rule)} if rule else {1: b"identity"}
    return sentencepiece_model(pieces, {35: int(fallback)}, {**normalizer, 5: 1})


def opened(data: bytes) -> tuple[Any, Any]:
    """Ours and theirs."""
    theirs = library.SentencePieceProcessor()
    theirs.LoadFromSerializedProto(data)
    return from_model(parse_model(data, "m"), "m"), theirs


@at_least(100)
@given(models(), texts)
def test_a_text_has_the_ids_of_the_library(data: bytes, text: str) -> None:
    ours, theirs = opened(data)
    ids = theirs.encode(text)
    assert ours.encode(text) == ids
    assert ours.encode_prompt(text) == [1, *ids]
    assert ours.decode(ids).decode() == theirs.decode(ids)


@pytest.mark.parametrize("rule", ["nfkc", "nfkc_cf", "nmt_nfkc", "nmt_nfkc_cf"])
@at_least(50)
@given(text=st.one_of(texts, st.text(max_size=12)))
def test_characters_are_replaced_as_the_library_does(rule: str, text: str) -> None:
    """By its own tables."""
    text = text.replace("\0", "").encode("utf-8", "ignore").decode()
    theirs = normalizer(rule).normalize(text)
    assert CharsMap(charsmap(rule), "m").normalize(text) == theirs


def test_the_smallest_table_replaces_nothing() -> None:
    """A trie of one node; a size that is not its own is refused."""
    assert CharsMap(struct.pack("<II", 4, 0) + b"\0", "m").normalize("aé\n") == "aé\n"
    for data in (b"", b"\4\0\0", *(struct.pack("<II", n, 0) for n in (0, 2, 6, 8, 2**32 - 4))):
        with pytest.raises(FormatError, match="precompiled_charsmap: a trie of"):
            CharsMap(data, "m")


def test_a_training_document_begins_or_ends_with_a_special_token() -> None:
    """BOS in front where there is one, else EOS behind; a special token in the text is text."""
    pieces = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    pieces += [(SPACE, 0.0, 1), ("a", 0.0, 1)]
    for bos, expected in ((1, [1, 3, 4]), (-1, [3, 4, 2])):
        ours = opened(sentencepiece_model(pieces, {41: bos}))[0]
        assert ours.encode_document(b"a") == expected
        assert ours.encode_document(b"<s>")[:2] != [1, 1]
