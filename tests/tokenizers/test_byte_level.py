"""GPT-2's tokenizer: text comes back, and ids are the recorded ones."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.errors import BackendError, FileError, PyLLM2Error, TokenizerError
from pyllm2.tokenizers import load_tokenizer
from pyllm2.tokenizers.byte_level import ByteLevelTokenizer, byte_tokenizer
from tests.support.profiles import writes_files

BYTES = [bytes([byte]) for byte in range(256)]
MERGED = [b" a", b"ab", b" ab", b"  ", b"'s", b"12", b"\xc3\xa9", b"ca", b" ca", b"\n\n", b"!!"]
SMALL = [*BYTES, *MERGED, b"<|endoftext|>"]
EOT = len(SMALL) - 1
# what words are made of, and what they are not: letters, numbers, signs, white space of all kinds
PARTS = [*"abc12é\u0663½!'stre \n\t\x1c\u3000\u00a0中🙂", "  ", " a", "  a", " ca", "'s", "\n\n"]
text = st.lists(st.sampled_from(PARTS), max_size=20).map("".join)
data = st.lists(text.map(str.encode) | st.binary(max_size=4), max_size=4).map(b"".join)


def small() -> ByteLevelTokenizer:
    pytest.importorskip("tiktoken")
    return ByteLevelTokenizer(SMALL, EOT)


def rank_file(pieces: Sequence[bytes]) -> bytes:
    """The bytes of a rank file of tiktoken."""
    return b"".join(base64.b64encode(p) + b" %d\n" % i for i, p in enumerate(pieces))


ENDINGS = "s t re ve m ll d".split()


def pre_split(part: str) -> list[str]:
    """Split a text into words, character by character, without a regular expression."""
    import unicodedata

    white = {*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029}
    white |= {0x202F, 0x205F, 0x3000}

    def kind(c: str) -> str:
        if ord(c) in white:
            return " "
        category = unicodedata.category(c)[0]
        return category if category in "LN" else "-"

    out, i = [], 0
    while i < len(part):
        ending = next((e for e in ENDINGS if part.startswith("'" + e, i)), None)
        start = i + (part[i] == " ")
        if ending is not None:
            end = i + 1 + len(ending)
        elif start < len(part) and kind(part[start]) != " ":
            end = start
            while end < len(part) and kind(part[end]) == kind(part[start]):
                end += 1
        else:
            end = i
            while end < len(part) and kind(part[end]) == " ":
                end += 1
            if end < len(part) and end - i > 1:
                end -= 1
        out.append(part[i:end])
        i = end
    return out


def merged(word: bytes, ids: dict[bytes, int]) -> list[int]:
    """Merge the pair of lowest rank, the leftmost of equals, until no pair can be merged."""
    parts = [bytes([byte]) for byte in word]
    while True:
        ranks = [(ids.get(a + b, 10**9), i) for i, (a, b) in enumerate(pairwise(parts))]
        best, i = min(ranks, default=(10**9, 0))
        if best == 10**9:
            return [ids[p] for p in parts]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@given(text)
def test_ids_are_those_of_the_rules(text: str) -> None:
    """Words by Unicode category, merged by rank, give the same ids."""
    ids = {piece: i for i, piece in enumerate(SMALL) if i != EOT}
    expected = [i for word in pre_split(text) for i in merged(word.encode(), ids)]
    assert small().encode(text) == expected


@given(data)
def test_decoding_undoes_encoding(data: bytes) -> None:
    """Any bytes come back; as a str with lone surrogates they have the same ids."""
    for tokenizer in (small(), byte_tokenizer()):
        ids = tokenizer.encode(data)
        assert tokenizer.decode(ids) == data
        assert tokenizer.encode(data.decode("utf-8", "surrogateescape")) == ids
        assert b"".join(map(tokenizer.decode_one, ids)) == data


@given(text, st.sampled_from([b"\xff", b"\xc3", b"\x80\x80", b"\xed\xa0\x80"]), text)
def test_bytes_that_are_not_utf8_are_a_token_each(before: str, bad: bytes, after: str) -> None:
    """The text before and after such a byte is encoded separately."""
    tokenizer = small()
    expected = [*tokenizer.encode(before), *bad, *tokenizer.encode(after)]
    assert tokenizer.encode(before.encode() + bad + after.encode()) == expected


def test_the_end_of_text_is_never_encoded() -> None:
    """A text that contains it is plain text; its id decodes to it."""
    for tokenizer in (small(), byte_tokenizer()):
        ids = tokenizer.encode("<|endoftext|>")
        assert tokenizer.end_of_text not in ids
        assert len(ids) == 13
        assert tokenizer.decode([tokenizer.end_of_text]) == b"<|endoftext|>"


@pytest.mark.parametrize(
    ("space", "n"), [(" ", 4096), (" ", 4097), ("\n", 5000), ("\u3000", 5000), (" ", 10**6)]
)
def test_a_long_run_of_white_space_is_a_text(space: str, n: int) -> None:
    """It does not overflow the stack of the matcher, and its last character joins the word."""
    tokenizer = small()
    start, end = tokenizer.encode(space * (n - 1)), tokenizer.encode(space + "b")
    assert tokenizer.encode(space * n + "b") == start + end
    assert tokenizer.decode(tokenizer.encode(space * n)) == (space * n).encode()


def test_half_a_surrogate_pair_is_one_line() -> None:
    """A surrogate that stands for no byte is refused."""
    with pytest.raises(TokenizerError, match=r"^character 1 is half of a surrogate pair$"):
        byte_tokenizer().encode("a\ud800")


@pytest.mark.parametrize("i", [-1, EOT + 1])
def test_an_id_outside_the_vocabulary_is_refused(i: int) -> None:
    """A negative id does not count from the end."""
    with pytest.raises(TokenizerError, match=f"^token id {i}: v has ids 0 to {EOT}$"):
        ByteLevelTokenizer(SMALL, EOT, "v").decode_one(i)


def test_a_vocabulary_without_all_bytes_decodes_only() -> None:
    """Encoding names the missing byte."""
    pytest.importorskip("tiktoken")
    lacking = ByteLevelTokenizer([*BYTES[:98], *BYTES[99:], b"ab", b"<|endoftext|>"], 256, "v")
    assert lacking.decode([0, 255, 97]) == b"\x00aba"
    with pytest.raises(TokenizerError, match=r"^byte 0x62 has no token in v$"):
        lacking.encode("a")
    with pytest.raises(TokenizerError, match=r"^byte 0x62 has no token in v$"):
        ByteLevelTokenizer([b"a", b"e"], 1, "v").encode("ab")


def test_of_equal_pieces_the_lowest_id_wins() -> None:
    """A repeated piece changes no id."""
    assert ByteLevelTokenizer([*BYTES, b"x", b"a"], 256).encode("a") == [97]


@writes_files
@given(st.permutations(BYTES), st.lists(st.binary(min_size=2, max_size=4), unique=True), text)
def test_files_of_both_kinds_are_the_same_vocabulary(
    tmp_path: Path, order: list[bytes], more: list[bytes], text: str
) -> None:
    """A rank file and the tokenizer.bin written from it give the same ids."""
    pytest.importorskip("tiktoken")
    pieces = [*order, *more]
    (tmp_path / "ranks").write_bytes(rank_file(pieces))
    from_ranks = load_tokenizer(tmp_path / "ranks")
    assert from_ranks.pieces == [*pieces, b"<|endoftext|>"]
    assert (from_ranks.end_of_text, from_ranks.vocab_size) == (len(pieces), len(pieces) + 1)
    from_ranks.write_tokenizer(tmp_path / "t.bin")
    from_bin = load_tokenizer(tmp_path / "t.bin")
    assert (from_bin.pieces, from_bin.end_of_text) == (from_ranks.pieces, from_ranks.end_of_text)
    assert from_bin.encode(text) == from_ranks.encode(text)


def test_bytes_need_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The byte tokenizer works without tiktoken; larger vocabularies name the package."""
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    tokenizer = load_tokenizer("bytes")
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (257, 256)
    assert tokenizer.encode("h\u00e9") == [104, 195, 169]
    tokenizer.write_tokenizer(tmp_path / "t.bin")
    assert load_tokenizer(tmp_path / "t.bin").encode(b"\x00\xff") == [0, 255]
    for needs_it in (
        lambda: ByteLevelTokenizer(SMALL, EOT).encode("a"),
        lambda: load_tokenizer("gpt2"),
    ):
        with pytest.raises(BackendError) as refused:
            needs_it()
        assert str(refused.value) == (
            "encoding text needs the tiktoken package: pip install 'pyllm2[train]'"
        )


def test_the_registry_may_be_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed download is one line; otherwise the pieces are those of the library."""
    tiktoken = pytest.importorskip("tiktoken")

    def unreachable(name: str) -> object:
        raise OSError(f"no {name}\nfor many reasons")

    monkeypatch.setattr(tiktoken, "get_encoding", unreachable)
    with pytest.raises(TokenizerError) as refused:
        load_tokenizer("gpt2")
    assert str(refused.value) == (
        "tiktoken cannot download GPT-2's vocabulary (OSError): name a file instead of gpt2, "
        "a rank file of tiktoken (gpt2.tiktoken) or llm.c's gpt2_tokenizer.bin"
    )
    ranks = dict(zip(BYTES, range(256), strict=True))
    special = {"<|endoftext|>": 256}
    encoding = tiktoken.Encoding("x", pat_str=".", mergeable_ranks=ranks, special_tokens=special)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoding)
    found = load_tokenizer("gpt2")
    assert (found.pieces, found.end_of_text) == ([*BYTES, b"<|endoftext|>"], 256)


A, B = b"YQ== ", b"Yg== "
NO_RANK = "expected base64, a space and a rank"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "0 bytes: header needs 4, max_token_length is missing"),
        (b"\n\n", "looks like plain text"),
        (b"hello\n", "looks like plain text"),
        (A + b"0\n" + B + b"1 2\n", f"line 2: {NO_RANK}"),
        (A + b"0\n\n" + B + b"x\n", f"line 3: {NO_RANK}"),
        (A + b"-1\n", f"line 1: {NO_RANK}"),
        (A + b"9999999999\n", f"line 1: {NO_RANK}"),
        (b"YQ= 0\n", f"line 1: {NO_RANK}"),
        (b"Y*== 0\n", f"line 1: {NO_RANK}"),
        (A + b"0\n" + A + b"1\n", "line 2: the bytes of line 1 again"),
        (A + b"0\n" + B + b"0\n", "line 2: rank 0 again"),
        (A + b"0\n" + B + b"2\n", "2 tokens, but rank 1 is missing"),
        (b"= 0\n", f"line 1: {NO_RANK}"),
        (base64.b64encode(bytes(256)) + b" 0\n", "line 1: 256 bytes: expected 1 to 255"),
        (b"<html>\n", "looks like a web page: was the download link right?"),
        (b"\x1f\x8b\x08", "looks like gzip data: unpack it first"),
    ],
)
def test_a_bad_rank_file_is_one_line(content: bytes, error: str, tmp_path: Path) -> None:
    """The error names the line."""
    (tmp_path / "r").write_bytes(content)
    with pytest.raises(FileError) as refused:
        load_tokenizer(tmp_path / "r")
    assert str(refused.value) == f"{tmp_path}/r: {error}"


@writes_files
@given(st.integers(0, 400), st.binary(max_size=9))
def test_a_damaged_rank_file_works_or_is_refused(tmp_path: Path, at: int, new: bytes) -> None:
    """It raises no exception but PyLLM2Error."""
    good = rank_file([*BYTES[:40], b"ab"])
    (tmp_path / "r").write_bytes(good[:at] + new + good[at + len(new) :])
    try:
        load_tokenizer(tmp_path / "r")
    except PyLLM2Error as error:
        one_line(error)


def one_line(error: PyLLM2Error) -> None:
    assert "\n" not in str(error)


# ---- recorded ids ---------------------------------------------------------------------------


def test_ids_are_the_recorded_ones(shared: Path) -> None:
    """72 texts have the recorded ids."""
    pytest.importorskip("tiktoken")
    tokenizer = load_tokenizer(shared / "data/gpt2.tiktoken")
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (50257, 50256)
    rows = json.loads((shared / "golden/llmc/bpe/encodings.json").read_text())
    for row in rows:
        data = bytes.fromhex(row["utf8_hex"])
        assert tokenizer.encode(data) == tokenizer.encode(data.decode()) == row["ids"]
        assert tokenizer.decode(row["ids"]) == data


def test_the_tokenizer_file_is_the_recorded_one(shared: Path, tmp_path: Path) -> None:
    """It has the recorded size and hash."""
    load_tokenizer(shared / "data/gpt2.tiktoken").write_tokenizer(tmp_path / "t.bin")
    recorded = json.loads((shared / "golden/llmc/tokenizer/tokenizer.json").read_text())
    found = (tmp_path / "t.bin").read_bytes()
    assert len(found) == recorded["full_gpt2"]["size"]
    assert hashlib.sha256(found).hexdigest() == recorded["full_gpt2"]["sha256"]
