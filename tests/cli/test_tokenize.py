"""`pyllm2 tokenize`: the ids of a text, the text of ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.command import in_process
from tests.support.llama2_files import BOS, EOS, PIECES, lay_out
from tests.support.profiles import few

TOKENIZE = ("tokenize", "--tokenizer", "t.bin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and a text."""
    path = tmp_path_factory.mktemp("tokenize")
    lay_out(path, {"text.txt": b"a cab"})
    return path


def ids(folder: Path, *argv: str, stdin: bytes = b"") -> list[int]:
    """The ids that it prints on one line."""
    outcome = in_process((*TOKENIZE, *argv), folder, stdin)
    assert (outcome.code, outcome.err, outcome.out.count(b"\n")) == (0, b"", 1)
    return [int(word) for word in outcome.out.split()]


def test_a_text_is_its_pieces_after_bos(folder: Path) -> None:
    """A space is put in front, and the best merges are taken."""
    expected = [BOS, *map(PIECES.index, (b" ", b"a", b" cab"))]
    assert ids(folder, "a cab") == expected


def test_flag_file_and_stdin_are_the_same_text(folder: Path) -> None:
    """The ids do not depend on the source of the text."""
    from_file = ids(folder, "--text-file", "text.txt")
    assert from_file == ids(folder, "a cab") == ids(folder, "--text-file", "-", stdin=b"a cab")


def test_bos_and_eos_are_as_asked_for(folder: Path) -> None:
    """By default there is a BOS and no EOS."""
    plain = ids(folder, "a")
    assert ids(folder, "a", "--no-bos") == plain[1:]
    assert ids(folder, "a", "--eos") == [*plain, EOS]


@few()
@given(st.binary(max_size=40))
def test_decoding_undoes_encoding(folder: Path, text: bytes) -> None:
    """Encoding and decoding gives the same bytes, also NUL and invalid UTF-8."""
    encoded = in_process((*TOKENIZE, "--text-file", "-"), folder, text)
    decoded = in_process((*TOKENIZE, "--decode", "--text-file", "-"), folder, encoded.out)
    assert (decoded.code, decoded.out) == (0, text)


def test_pieces_are_one_line_a_token(folder: Path) -> None:
    """A newline in a piece is printed as \\n."""
    out = in_process((*TOKENIZE, "--pieces", "a\n"), folder).out.decode().split("\n")
    pieces = [line.split(maxsplit=1)[-1] for line in out if line.strip()]
    assert pieces == ["\\n<s>\\n", "259", "a", "<0x0A>"]


@pytest.mark.parametrize(
    ("argv", "code", "error"),
    [
        (("a", "--text-file", "b"), 2, "tokenize: expected either TEXT or --text-file"),
        (("a", "b'c"), 2, "tokenize: expected one TEXT, found 2: quote it: 'a b'\"'\"'c'"),
        (("--decode", "1", "--eos"), 2, "tokenize: --eos: not with --decode"),
        (("--pieces", "--count", "a"), 2, "tokenize: --pieces: not with --count"),
        (("--decode", "1 x"), 2, "tokenize --decode: 'x' is not an id"),
        (("--decode", "-- -1"), 2, "tokenize --decode: '--' is not an id"),
        (("--decode", "272"), 1, "token id 272: t.bin has ids 0 to 271"),
    ],
)
def test_a_misuse_is_one_line(argv: tuple[str, ...], code: int, error: str, folder: Path) -> None:
    """The error names what was found."""
    outcome = in_process((*TOKENIZE, *argv), folder)
    assert (outcome.code, outcome.out) == (code, b"")
    assert outcome.err.decode() == f"pyllm2: error: {error}\n"


def test_ids_are_words_or_one_text(folder: Path) -> None:
    numbers = [str(PIECES.index(piece)) for piece in (b"a", b" cab")]
    for argv in (numbers, [" ".join(numbers)], [",".join(numbers)]):
        outcome = in_process((*TOKENIZE, "--decode", *argv), folder)
        assert (outcome.code, outcome.out) == (0, b"a cab")


def test_without_a_text_it_is_read_from_stdin(folder: Path) -> None:
    """As the same text is."""
    assert ids(folder, stdin=b"a cab") == ids(folder, "a cab")


def test_count_and_json(folder: Path) -> None:
    """The number of tokens; and an object with ids, pieces, count, bytes."""
    expected = ids(folder, "a cab")
    assert in_process((*TOKENIZE, "a cab", "--count"), folder).out == b"%d\n" % len(expected)
    found = json.loads(in_process((*TOKENIZE, "a cab", "--json"), folder).out)
    assert found == {
        "ids": expected,
        "pieces": [PIECES[i].decode() for i in expected],
        "count": len(expected),
        "bytes": 5,
    }


def test_the_tokenizer_in_the_box_is_the_default(folder: Path) -> None:
    """It encodes and decodes."""
    out = in_process(["tokenize", "Once upon"], folder).out
    assert in_process(["tokenize", "--decode"], folder, out).out == b"Once upon"
