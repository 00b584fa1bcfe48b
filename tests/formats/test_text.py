"""Text files: the same documents however lines end, whatever separates them, however it is read."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.errors import FileError, FormatError, UsageError
from pyllm2.formats import text as module
from pyllm2.formats.text import BLANK_LINE, END_OF_TEXT, NONE, describe, open_texts

word = st.text("abé<| ", min_size=1, max_size=6).filter(str.strip)
line = st.lists(word, min_size=1, max_size=3).map(" ".join)
story = st.lists(line, min_size=1, max_size=4).map("\n".join)
line_end = st.sampled_from(["\n", "\r\n", "\r"])
spaces = st.text(" \t\u00a0\u3000", max_size=3)
block = st.integers(1, 40)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a text is written."""
    return tmp_path_factory.mktemp("text") / "t.txt"


def read(
    path: Path, data: bytes, separator: str | None = None, block: int = 2**20
) -> tuple[str, list[bytes], list[str]]:
    """The separator, the documents and the lines of a text, read in small blocks."""
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch, open_texts([path], separator) as (text,):
        patch.setattr(module, "_BLOCK", block)
        return text.separator, list(text.documents()), list(text.lines())


@given(st.lists(story, min_size=1, max_size=4), line_end, spaces, st.booleans(), block)
def test_a_blank_line_ends_a_document(
    path: Path, stories: list[str], end: str, spaces: str, bom: bool, block: int
) -> None:
    """With any line end, with spaces in it, after a byte-order mark, across blocks."""
    text = ("\ufeff" if bom else "") + f"\n{spaces}\n".join(stories).replace("\n", end)
    separator, documents, lines = read(path, text.encode(), None, block)
    assert separator == BLANK_LINE
    assert documents == [s.encode() + b"\n\n" for s in stories[:-1]] + [stories[-1].encode()]
    assert lines == [line for s in stories for line in s.split("\n")]


@given(
    st.lists(story, min_size=2, max_size=4),
    line_end,
    spaces,
    st.booleans(),
    block,
    st.sampled_from([END_OF_TEXT, "---", "* *"]),
    st.sampled_from(["", "\n"]),
)
def test_a_line_of_its_own_separates_documents(
    path: Path,
    stories: list[str],
    end: str,
    spaces: str,
    last: bool,
    block: int,
    mark: str,
    nl: str,
) -> None:
    """END_OF_TEXT is found without being named. A blank line then stays within its document."""
    stories = [f"{s}\n\n{s}" for s in stories]
    text = f"\n{nl}{spaces}{mark}{spaces}\n{nl}".join(stories) + f"\n{mark}" * last
    named = None if mark == END_OF_TEXT else mark
    separator, documents, lines = read(path, text.replace("\n", end).encode(), named, block)
    assert separator == mark
    assert documents == [s.encode() for s in stories]
    assert lines == [line for s in stories for line in s.split("\n") if line]


@given(st.lists(story, min_size=1, max_size=4).map("\n\n".join), line_end)
def test_a_text_may_be_one_document(path: Path, text: str, end: str) -> None:
    """With the separator `none`, nothing but the line ends changes."""
    assert read(path, text.replace("\n", end).encode(), NONE)[1] == [text.encode()]


def test_runs_of_blank_lines_are_cut_as_llmc_cuts_them(path: Path) -> None:
    """Every two newlines end a document, wherever a text is cut for reading."""
    for block in range(1, 12):
        _, documents, _ = read(path, b"a\n\n\nb\n\n\n\n", None, block)
        assert documents == [b"a\n\n", b"\nb\n\n", b"\n\n", b""]


def test_a_mark_within_a_line_is_text(path: Path) -> None:
    """It does not separate, and it is not found."""
    expected = [b"a <|endoftext|> b\n\n", b"c<|endoftext|>\nd"]
    assert read(path, b"".join(expected))[:2] == (BLANK_LINE, expected)


UTF16 = "is UTF-16 text: convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"
REFUSED = [
    (b"", "is empty"),
    (b"\n \r\n\t\n", "is blank"),
    (b"\xef\xbb\xbf", "is blank"),
    ("Once".encode("utf-16"), UTF16),
    ("Once".encode("utf-16-le"), UTF16),
    ("Once".encode("utf-16-be"), UTF16),
    (b"\xfe\xff" + "Once".encode("utf-16-be"), UTF16),
    ("Once".encode("utf-32"), UTF16.replace("16", "32")),
    (b"\x1f\x8b\x08\0\0\0\0\0", "is no text: looks like gzip data: unpack it first"),
]


@pytest.mark.parametrize(("data", "error"), REFUSED)
def test_what_is_no_text_is_refused(data: bytes, error: str, path: Path) -> None:
    """Before anything is done with it, or with the texts beside it."""
    with pytest.raises(FileError) as refused:
        read(path, data)
    assert str(refused.value) == f"{path}: {error}"


@pytest.mark.parametrize("separator", ["", "  ", "a\nb", "a\r"])
def test_a_separator_is_one_line(path: Path, separator: str) -> None:
    """Anything else is a usage error."""
    with pytest.raises(UsageError, match=r"^--separator: "):
        read(path, b"a", separator)


@given(
    st.lists(story, max_size=3).map("\n".join),
    st.sampled_from([b"\xff", b"\xc3", b"\xed\xa0\x80"]),
    block,
)
def test_lines_name_the_first_byte_that_is_not_utf8(
    path: Path, before: str, bad: bytes, block: int
) -> None:
    """Counted in the file, not in the normalised text; documents have all bytes."""
    data = b"\xef\xbb\xbf" + before.replace("\n", "\r\n").encode() + b"\r\n" + bad
    with pytest.raises(FormatError, match=f": byte {len(data) - len(bad)}: not UTF-8$"):
        read(path, data, None, block)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_is_read_twice(tmp_path: Path) -> None:
    """As `<(zcat text.gz)` of a shell: survey and documents have the same bytes."""
    data = b"a\n\nb\n" * 10**5
    os.mkfifo(tmp_path / "f")
    writer = threading.Thread(target=lambda: (tmp_path / "f").write_bytes(data))
    writer.start()
    with open_texts([tmp_path / "f"]) as (text,):
        assert text.nbytes == len(data)
        assert b"".join(text.documents()) == data
        assert len(list(text.lines())) == 2 * 10**5
    writer.join()


def test_separators_are_told_in_one_line(tmp_path: Path) -> None:
    """Texts may have different ones."""
    contents = {"a": b"x\n\ny", "b": b"x\n<|endoftext|>\ny", "c": b"x"}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    with open_texts([tmp_path / name for name in contents]) as texts:
        assert describe(texts[::2]) == "documents end at blank lines"
        assert describe(texts[1:2]) == "documents end at lines <|endoftext|>"
        assert describe(texts) == (
            "documents end at blank lines in 2 of 3 texts, "
            "documents end at lines <|endoftext|> in 1 of 3 texts"
        )
