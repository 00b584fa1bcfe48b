"""Text to ids and back."""

from __future__ import annotations

import io
from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pyllm2.errors import TokenizerError
from pyllm2.formats.llama2c_vocabulary import write_vocabulary
from pyllm2.formats.sentencepiece_model import to_vocabulary, train_sentencepiece
from pyllm2.testing import strategies
from pyllm2.tokenizers import load_tokenizer
from pyllm2.tokenizers.sentencepiece import BOS, EOS, SentencePieceTokenizer, units

TEXT = """Once upon a time, there was a little girl named Lily. She loved to play outside in the
park. One day, she saw a big, red ball. 日本語のテキスト、そして 12345 numbers!
Ein süßes Früchtchen. The naïve café: "Où est-il?" asked Tom. def f(x): return x ** 2  # two  spaces
"""


@st.composite
def tokenizers(draw: Any) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(*draw(strategies.vocabularies()))


anything = st.one_of(strategies.texts.map(str.encode), st.binary(max_size=60))


@given(tokenizers(), anything, st.booleans())
def test_decode_gives_back_what_encode_was_given(
    t: SentencePieceTokenizer, data: bytes, bos: bool
) -> None:
    """With byte tokens any bytes come back, invalid UTF-8 and NUL included."""
    assert t.decode(t.encode(data, bos=bos, eos=True)) == data


@given(tokenizers(), strategies.texts)
def test_decode_gives_back_text(t: SentencePieceTokenizer, text: str) -> None:
    """A str comes back through UTF-8."""
    assert t.decode(t.encode(text)).decode() == text


@given(tokenizers(), anything)
def test_the_fast_merge_is_the_plain_rule(t: SentencePieceTokenizer, data: bytes) -> None:
    """Heap and linked list give the same ids as scanning for the best pair."""
    ids = t._characters(data)
    assert t._merge(ids) == t._merge_naive(ids)


@given(tokenizers(), anything)
def test_no_pair_is_left_to_merge(t: SentencePieceTokenizer, data: bytes) -> None:
    """No two neighbours in the result are a piece together."""
    ids = t.encode(data, bos=False)
    assert all(t._merged_id(a, b) is None for a, b in pairwise(ids))


@given(tokenizers(), anything)
def test_plain_text_never_makes_a_special_token(t: SentencePieceTokenizer, data: bytes) -> None:
    """A prompt that contains <s> or <0x0A> is plain text."""
    assert not {0, BOS, EOS} & set(t.encode(data, bos=False))


@given(tokenizers(), anything)
def test_a_document_is_stripped(t: SentencePieceTokenizer, data: bytes) -> None:
    """A blank document has no ids, not even BOS."""
    text = data.strip()
    assert t.encode_document(b" \n" + data + b"\n") == (t.encode(text) if text else [])


@given(anything)
def test_units_are_the_bytes_cut(data: bytes) -> None:
    """Nothing is lost, no unit is longer than four bytes, valid text is cut into characters."""
    found = units(data)
    assert b"".join(found) == data
    assert all(1 <= len(unit) <= 4 for unit in found)


@given(st.text())
def test_units_of_valid_utf8_are_its_characters(text: str) -> None:
    """One unit a code point."""
    assert [unit.decode() for unit in units(text.encode())] == list(text)


@given(tokenizers(), st.integers())
def test_an_id_outside_the_vocabulary_is_refused(t: SentencePieceTokenizer, i: int) -> None:
    """A negative id does not count from the end."""
    assume(not 0 <= i < t.vocab_size)
    with pytest.raises(TokenizerError, match="has ids 0 to"):
        t.decode([i])


def test_the_lower_id_of_equal_pieces_wins() -> None:
    """The original leaves this to its C library."""
    bytes_ = [b"<0x%02X>" % i for i in range(256)]
    t = SentencePieceTokenizer(
        [b"<unk>", b"<s>", b"</s>", *bytes_, b" ", b"a", b"a", b" a", b" a"], [0.0] * 264
    )
    assert t.encode("a", bos=False) == [262]


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A BPE model trained here, with the settings of llama2.c, spaces kept."""
    pytest.importorskip("sentencepiece")
    model = train_sentencepiece(TEXT.splitlines() * 4, 420)
    path = tmp_path_factory.mktemp("sp") / "trained.model"
    path.write_bytes(model.serialized_model_proto())
    return path


words = st.lists(st.sampled_from(TEXT.split(" ")), max_size=20).map(" ".join)


@given(text=st.one_of(words, strategies.texts, st.text(max_size=30)))
def test_our_encoder_is_the_sentencepiece_library(sentencepiece_model: Any, text: str) -> None:
    """Any text has the same ids, except for two characters that the library replaces."""
    import sentencepiece

    # U+2581 is SentencePiece's own mark for a space, and NUL ends its strings.
    assume("\u2581" not in text and "\0" not in text)
    library = _loaded(sentencepiece, sentencepiece_model)
    ours = load_tokenizer(sentencepiece_model)
    assert ours.encode(text, bos=False) == list(library.encode(text))


def test_the_exported_bin_gives_the_same_ids_as_the_model(
    sentencepiece_model: Any, tmp_path: Any
) -> None:
    """The .model and the tokenizer.bin made from it are the same vocabulary."""
    import sentencepiece

    vocabulary = to_vocabulary(_loaded(sentencepiece, sentencepiece_model))
    write_vocabulary(tmp_path / "tok.bin", vocabulary.pieces, vocabulary.scores)
    exported = load_tokenizer(tmp_path / "tok.bin", 420)
    from_model = load_tokenizer(sentencepiece_model, 420)
    assert exported.encode(TEXT) == from_model.encode(TEXT, bos=True)
    from_model.write_tokenizer(tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "tok.bin").read_bytes()
    assert exported.decode(exported.encode(TEXT)).decode() == TEXT


def test_examples_are_the_longest_pieces_and_lines_of_them(sentencepiece_model: Any) -> None:
    """Each piece alone, then again in one of ten lines; with the library's ids."""
    import sentencepiece

    model = _loaded(sentencepiece, sentencepiece_model)
    vocabulary = to_vocabulary(model)
    found = [text for text, _ in vocabulary.examples]
    alone, lines = found[:-10], found[-10:]
    assert len(alone) > 50
    assert sorted(" ".join(lines).split(" ")) == sorted(" ".join(alone).split(" "))
    assert {len(line.split(" ")) for line in lines} <= {len(alone) // 10, -(-len(alone) // 10)}
    assert all(ids == list(model.encode(text)) for text, ids in vocabulary.examples)


def test_a_unigram_model_is_refused(tmp_path: Any) -> None:
    """Its scores do not order merges, so encoding would be wrong."""
    from pyllm2.errors import FileError

    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines() * 4),
        model_writer=model,
        model_type="unigram",
        vocab_size=420,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
    )
    (tmp_path / "unigram.model").write_bytes(model.getvalue())
    with pytest.raises(FileError, match="not a BPE model"):
        load_tokenizer(tmp_path / "unigram.model")


_cache: dict[str, Any] = {}


def _loaded(sentencepiece: Any, path: Any) -> Any:
    if str(path) not in _cache:
        _cache[str(path)] = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return _cache[str(path)]


BYTE_PIECES = [b"<0x%02X>" % i for i in range(256)]


def spelled(*pieces: bytes, floor: float = -1.0) -> SentencePieceTokenizer:
    """A vocabulary of specials, bytes, a space, the printable characters, and `pieces`."""
    letters = [bytes([i]) for i in range(0x20, 0x7F)]
    every = [b"<unk>", b"<s>", b"</s>", *BYTE_PIECES, *letters, *pieces]
    return SentencePieceTokenizer(every, [0.0] * (len(every) - len(pieces)) + [floor] * len(pieces))


@given(tokenizers(), anything, st.booleans(), st.booleans())
def test_bos_comes_first_and_eos_last(
    t: SentencePieceTokenizer, data: bytes, bos: bool, eos: bool
) -> None:
    """Around whatever the text is, and no id for an empty text."""
    text = t.encode(data, bos=False)
    assert t.encode(data, bos, eos) == [BOS] * bos + text + [EOS] * eos
    assert bool(text) == bool(data)


@pytest.mark.parametrize("text", ["<s>", "</s>", "<unk>", "<0x41>"])
def test_a_special_cannot_be_spelled(text: str) -> None:
    """Though merges lead to its very bytes."""
    t = spelled(*(text[:n].encode() for n in range(2, len(text))))
    assert t.encode(text, bos=False)[-2:] == [t.pieces.index(text[:-1].encode()), 259 + 30]


def test_a_merge_must_score_more_than_the_floor() -> None:
    """-1e10 itself, which float32 holds exactly, is too little."""
    ids = {s: spelled(b"ab", floor=s).encode("ab", bos=False) for s in (-1e10, -9.9e9)}
    assert [len(found) for found in ids.values()] == [3, 2]


def test_a_byte_token_counts_in_its_own_place_and_spelling_only() -> None:
    """Two of them exchanged, or in lower case, are pieces like any other."""
    for wrong in ({0x41: b"<0x42>", 0x42: b"<0x41>"}, {0xAB: b"<0xab>"}):
        pieces = [wrong.get(i, piece) for i, piece in enumerate(BYTE_PIECES)]
        t = SentencePieceTokenizer([b"<unk>", b"<s>", b"</s>", *pieces, b" "], [0.0] * 260)
        for byte, piece in wrong.items():
            assert t.decode([3 + byte]) == piece


@given(tokenizers(), anything)
def test_a_character_in_the_vocabulary_is_one_id(t: SentencePieceTokenizer, data: bytes) -> None:
    """Bytes are only for those that it lacks, in their order."""
    expected = []
    for unit in units(data):
        known = [i for i in range(259, t.vocab_size) if t.pieces[i] == unit]
        expected += known[:1] or [3 + byte for byte in unit]
    assert t._characters(data) == expected


def test_lone_surrogates_are_the_bytes_that_they_escape() -> None:
    """As in a prompt from the command line that is not UTF-8."""
    t = spelled()
    assert t.encode("a\udcff", bos=False) == t.encode(b"a\xff", bos=False)


# Few characters and many pieces of them, with few scores: nearly everything merges, with ties.
@st.composite
def dense_tokenizers(draw: Any) -> SentencePieceTokenizer:
    letters = [b" ", b"a", b"b"]
    two = [x + y for x in letters for y in letters]
    three = [x + y for x in letters for y in two]
    longer = draw(st.lists(st.sampled_from(two + three), unique=True, min_size=4))
    scores = [draw(st.sampled_from([-1.0, -2.0])) for _ in longer]
    pieces = [b"<unk>", b"<s>", b"</s>", *BYTE_PIECES, *letters, *longer]
    return SentencePieceTokenizer(pieces, [0.0] * (259 + len(letters)) + scores)


@given(dense_tokenizers(), st.text(" ab", max_size=20).map(str.encode))
def test_where_much_can_merge_the_same_holds(t: SentencePieceTokenizer, data: bytes) -> None:
    """Ties go to the left, as in the plain rule, and every space but the first comes back."""
    ids = t._dummy_prefix() + t._characters(data)
    assert t._merge(ids) == t._merge_naive(ids)
    assert t.decode(t.encode(data)) == data


def test_of_equal_merges_the_leftmost_goes_first() -> None:
    """Three letters, two equal pairs."""
    t = spelled(b"aa")
    assert [t.pieces[i] for i in t.encode("aaa", bos=False)] == [b" ", b"aa", b"a"]


def test_one_space_is_dropped_at_the_start_and_no_more() -> None:
    """Though the first piece begins with two."""
    t = spelled(b"  ")
    assert t.decode(t.encode(" a")) == b" a"


def test_stray_continuation_bytes_are_cut_after_four() -> None:
    """Every short string of an ASCII, a leading and a continuation byte."""
    for n in range(7):
        for data in map(bytes, product(b"a\xc3\x80", repeat=n)):
            found = units(data)
            assert b"".join(found) == data
            assert all(len(unit) <= 4 and not unit[1:].strip(b"\x80") for unit in found)
            assert all(len(a) == 4 or b[:1] != b"\x80" for a, b in pairwise(found))
