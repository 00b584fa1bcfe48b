"""Text files as documents: one reader for all commands that learn from text.

Line ends are normalised (CRLF and CR become LF) and a byte-order mark is dropped. Documents are
separated by blank lines, as llm.c separates those of Tiny Shakespeare, or by lines of one text,
such as `<|endoftext|>` in TinyStories. A text may be larger than memory: it is read in blocks.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

from pyllm2.errors import FileError, FormatError, UsageError, os_errors
from pyllm2.formats import standard_input
from pyllm2.formats.kinds import is_text, kind_of
from pyllm2.formats.reader import HEAD_BYTES, open_source

STDIN = "-"
BLANK_LINE, NONE, END_OF_TEXT = "blank-line", "none", "<|endoftext|>"
_BLOCK = 2**22  # bytes per read

_BOM = codecs.BOM_UTF8
_SPACES = rb"(?:[ \t\v\f]|\xc2\xa0|\xe3\x80\x80)"  # of a line that looks empty
_BLANK = re.compile(rb"(?m)^" + _SPACES + rb"+\n")
_OTHER_ENCODINGS = [  # byte-order mark, encoding; the longer marks first
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
]


class Text:
    """A text that has been checked: it is not empty, not UTF-16, not an archive.

    name: for errors and messages   separator: BLANK_LINE, NONE, or the line between documents
    """

    def __init__(
        self, name: str, path: str, spool: BinaryIO | None = None, separator: str | None = None
    ) -> None:
        self.name, self._path, self._spool = name, path, spool
        self._refuse_other_kinds()
        self.separator = self._survey(separator)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        with os_errors(self.name):
            return os.stat(self._path if self._spool is None else self._spool.fileno()).st_size

    def documents(self) -> Iterator[bytes]:
        """The documents. One that a blank line ends keeps that blank line, as in llm.c.

        Documents between lines of another separator have no line ends around them, and blank ones
        are skipped.
        """
        if self.separator == BLANK_LINE:
            yield from self._between_blank_lines()
        elif self.separator == NONE:
            yield b"".join(self._whole_lines())
        else:
            for document in _split(self._whole_lines(), _line_of(self.separator)):
                if document.strip():
                    yield document.strip(b"\n")

    def lines(self) -> Iterator[str]:
        """The lines that are not blank, without separators. Raises FormatError if not UTF-8."""
        mark = None
        if self.separator not in (BLANK_LINE, NONE):
            mark = _line_of(self.separator)
        for block in self._whole_lines():
            try:
                text = (mark.sub(b"\n", block) if mark else block).decode()
            except UnicodeDecodeError:
                raise FormatError(self.name, f"byte {self._first_bad()}: not UTF-8") from None
            yield from filter(str.strip, text.split("\n"))

    def _between_blank_lines(self) -> Iterator[bytes]:
        rest: list[bytes] = []
        for block in self._whole_lines():
            block = _BLANK.sub(b"\n", block)
            found = b"\n\n" in (rest[-1][-1:] if rest else b"") + block
            rest.append(block)
            if found:
                *whole, last = b"".join(rest).split(b"\n\n")
                yield from (document + b"\n\n" for document in whole)
                rest = [last]
        yield b"".join(rest)

    def _whole_lines(self) -> Iterator[bytes]:
        """The text in blocks of whole lines, with normalised line ends, without byte-order mark."""
        rest: list[bytes] = []
        held = b""  # a CR at the end of a block: LF may follow
        for number, raw in enumerate(self._blocks()):
            block = held + (raw.removeprefix(_BOM) if number == 0 else raw)
            held = b"\r" if block.endswith(b"\r") else b""
            block = block[: len(block) - len(held)]
            if b"\r" in block:
                block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            end = block.rfind(b"\n") + 1
            if end:
                yield b"".join([*rest, block[:end]])
                rest = []
            rest.append(block[end:])
        last = b"".join(rest) + (b"\n" if held else b"")
        if last:
            yield last

    def _blocks(self) -> Iterator[bytes]:
        """The bytes of the file. The first block has a byte-order mark as a whole, if any."""
        with ExitStack() as stack:
            if self._spool is None:
                descriptor = stack.enter_context(open_source(self._path)).file.fileno()
            else:
                descriptor = self._spool.fileno()
            at = 0
            while block := self._read(
                descriptor, at, max(_BLOCK, len(_BOM)) if at == 0 else _BLOCK
            ):
                yield block
                at += len(block)

    def _read(self, descriptor: int, at: int, n: int) -> bytes:
        with os_errors(self.name):
            return os.pread(descriptor, n, at)

    def _refuse_other_kinds(self) -> None:
        head = next(self._blocks(), b"")[:HEAD_BYTES]
        encoding = _other_encoding(head)
        if encoding is not None:
            raise FileError(
                self.name, f"is {encoding} text: convert it to UTF-8 (iconv -f {encoding} -t UTF-8)"
            )
        kind = None if is_text(head) else kind_of(head)
        if kind is not None:
            raise FileError(self.name, f"is no text: looks like {kind}")

    def _survey(self, separator: str | None) -> str:
        """Refuse a text without content; find the separator unless it is given."""
        has_text, mark = False, _line_of(END_OF_TEXT)
        for block in self._whole_lines():
            has_text = has_text or bool(block.strip())
            if separator is None and END_OF_TEXT.encode() in block and mark.search(block):
                separator = END_OF_TEXT
            if has_text and separator is not None:
                break
        if not has_text:
            raise FileError(self.name, "is blank" if self.nbytes else "is empty")
        return separator or BLANK_LINE

    def _first_bad(self) -> int:
        """Where the file is not UTF-8, in bytes from its start."""
        decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
        for block in self._blocks():
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                return done - pending + error.start
            done += len(block)
        return done - len(decoder.getstate()[0])


def _line_of(text: str) -> re.Pattern[bytes]:
    """Lines that consist of `text`, with or without spaces around it."""
    spaces = _SPACES + rb"*"
    return re.compile(rb"(?m)^" + spaces + re.escape(os.fsencode(text)) + spaces + rb"(?:\n|\Z)")


def _split(blocks: Iterator[bytes], mark: re.Pattern[bytes]) -> Iterator[bytes]:
    """The parts between the lines that `mark` finds. `blocks` are whole lines."""
    rest: list[bytes] = []
    for block in blocks:
        *whole, last = mark.split(block)
        for part in whole:
            yield b"".join([*rest, part])
            rest = []
        rest.append(last)
    yield b"".join(rest)


def _other_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, by a byte-order mark or by zeros at every other byte; else None."""
    for mark, encoding in _OTHER_ENCODINGS:
        if head.startswith(mark):
            return encoding
    even, odd = head[0::2], head[1::2]
    few, many = sorted((even.count(0), odd.count(0)))
    return "UTF-16" if len(odd) > 1 and many > len(odd) // 2 and few <= len(odd) // 16 else None


@contextmanager
def open_texts(
    paths: Sequence[str | os.PathLike[str]], separator: str | None = None
) -> Iterator[list[Text]]:
    """Check texts before anything is done with them, and give each its separator.

    paths: regular files; or FIFOs, or `-` for standard input, which are copied to a temporary file
    because a text is read more than once.
    separator: BLANK_LINE, NONE, or the text of a line (None: END_OF_TEXT if it is a line of the
    text, else BLANK_LINE).

    Raises FileError for a text that cannot be read, is empty, blank, UTF-16 or known to be of
    another kind; UsageError for a separator that cannot be a line.
    """
    if separator is not None and (not separator.strip() or set("\r\n") & set(separator)):
        raise UsageError(
            f"--separator: {separator!r}: expected {BLANK_LINE}, {NONE}, or the text of a line"
        )
    with ExitStack() as stack:
        texts = []
        for path in [os.fspath(path) for path in paths]:
            name = "standard input" if path == STDIN else path
            spool = None
            if path == STDIN or _is_fifo(path):
                spool = stack.enter_context(_spooled(path, name))
            texts.append(Text(name, path, spool, separator))
        yield texts


def describe(texts: Sequence[Text]) -> str:
    """What separates the documents of these texts, in words: one line.

    Example: "documents end at blank lines"
    """
    words = {BLANK_LINE: "documents end at blank lines", NONE: "every text is one document"}
    found = [words.get(t.separator, f"documents end at lines {t.separator}") for t in texts]
    kinds = list(dict.fromkeys(found))
    if len(kinds) == 1:
        return kinds[0]
    return ", ".join(f"{kind} in {found.count(kind)} of {len(found)} texts" for kind in kinds)


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False  # open_source says what is wrong


def _spooled(path: str, name: str) -> BinaryIO:
    """A temporary file with all that a FIFO, or standard input, has to give."""
    if path == STDIN and sys.stdin is None:
        raise FileError(name, "is closed")
    try:
        with ExitStack() as stack:
            file = stack.enter_context(tempfile.TemporaryFile(prefix="pyllm2-"))
            read: Callable[[int], bytes] = standard_input.read
            if path != STDIN:
                read = stack.enter_context(open(path, "rb")).read
            while block := read(_BLOCK):
                file.write(block)
            file.flush()
            return os.fdopen(os.dup(file.fileno()), "rb")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FileError(name, f"cannot be copied to {tempfile.gettempdir()}: {reason}") from None
