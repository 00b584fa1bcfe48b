"""GPT-2's byte-pair encoding: tiktoken's, over vocabularies from wherever they come.

    encode: text -> words, by a regular expression -> the bytes of each, merged pair by pair,
            always the pair whose bytes have the lowest rank
    decode: ids -> the bytes of their pieces

Everything is bytes: what is not UTF-8 goes in, a token a byte, and comes out unchanged.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pyllm2.errors import BackendError, FileError, TokenizerError
from pyllm2.formats import llmc_vocabulary, tiktoken_ranks
from pyllm2.formats.reader import open_source

END_OF_TEXT = b"<|endoftext|>"

# In this order at each place: English endings; a word, a number, or other signs, each with the
# blank before it; white space to the end; white space but the last of it; white space.
WORDS = r"""'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s++$|\s+(?!\S)|\s+"""

# White space by the Unicode property. The matcher of WORDS goes back a step for each character of
# a run, on its stack: a long run before a word is cut where the words are cut anyway.
_LONG_RUN = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]{4096,}")

_SURROGATES = ("utf-8", "surrogateescape")
_NOT_UTF8 = re.compile("([\udc80-\udcff]+)")


class GPT2Tokenizer:
    """A vocabulary: `pieces[id]` are bytes, an id is a rank; `end_of_text` begins every document.

    The end-of-text token is never the result of encoding: a text that spells it is plain text.
    """

    def __init__(
        self, pieces: Sequence[bytes], end_of_text: int, name: str = "the vocabulary"
    ) -> None:
        self.pieces, self.end_of_text, self.name = list(pieces), end_of_text, name
        self._id_of: dict[bytes, int] = {}
        for i, piece in enumerate(self.pieces):
            if i != end_of_text:
                self._id_of.setdefault(piece, i)
        self._longest = max(map(len, self._id_of), default=0)
        self._encoding: Any = None

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    @property
    def begin(self) -> int:
        """The id in front of a text: the end of the one before."""
        return self.end_of_text

    @property
    def end(self) -> int:
        """The id after a text."""
        return self.end_of_text

    @property
    def stop(self) -> tuple[int, ...]:
        """The ids after which there is no more."""
        return (self.end_of_text,)

    def encode_prompt(self, text: str | bytes) -> list[int]:
        """The ids of a text to be continued: end-of-text in front."""
        return [self.end_of_text, *self.encode(text)]

    def encode(self, text: str | bytes) -> list[int]:
        """The ids of a text; nothing is added, and nothing in it is special.

        Example (GPT-2's vocabulary): "Hello world" -> [15496, 995]
        Bytes that are not UTF-8 become a token each (a str may hold them as lone surrogates, as
        the command line does), and words end there.

        Raises TokenizerError if the vocabulary lacks a byte, BackendError without tiktoken.
        """
        try:
            data = text.encode(*_SURROGATES) if isinstance(text, str) else bytes(text)
        except UnicodeEncodeError as error:
            raise TokenizerError(f"character {error.start} is half of a surrogate pair") from None
        if self._longest <= 1:
            return [self._id_of_byte(byte) for byte in data]
        ids: list[int] = []
        for i, part in enumerate(_NOT_UTF8.split(data.decode(*_SURROGATES))):
            if i % 2:
                ids += [self._id_of_byte(byte) for byte in part.encode(*_SURROGATES)]
            elif part:
                for words in _cut(part):
                    ids += self._tiktoken().encode_ordinary(words)
        return ids

    def encode_document(self, text: bytes) -> list[int]:
        """The ids of a text to learn from: as llm.c prepares it, its blank line at the end kept."""
        return self.encode_prompt(text)

    def decode(self, ids: Iterable[int], at_start: bool = False) -> bytes:
        """The bytes of ids; the inverse of `encode`. The start of a text is like the middle."""
        return b"".join(self.decode_one(i, at_start) for i in ids)

    def decode_one(self, i: int, at_start: bool = False) -> bytes:
        """The bytes of one id; those of end-of-text are `<|endoftext|>`.

        Raises TokenizerError for an id outside the vocabulary.
        """
        if not 0 <= i < len(self.pieces):
            raise TokenizerError(f"token id {i}: {self.name} has ids 0 to {len(self.pieces) - 1}")
        return self.pieces[i]

    def write_tokenizer(self, path: str | os.PathLike[str]) -> None:
        """Write llm.c's tokenizer file, atomically."""
        llmc_vocabulary.write_vocabulary(path, self.pieces, self.end_of_text)

    def _id_of_byte(self, byte: int) -> int:
        found = self._id_of.get(bytes([byte]))
        if found is None:
            raise TokenizerError(f"byte 0x{byte:02X} has no token in {self.name}")
        return found

    def _tiktoken(self) -> Any:
        if self._encoding is None:
            for byte in range(256):
                self._id_of_byte(byte)
            self._encoding = _import_tiktoken().Encoding(
                "gpt2", pat_str=WORDS, mergeable_ranks=self._id_of, special_tokens={}
            )
        return self._encoding


def _cut(text: str) -> Iterator[str]:
    """A text in parts that are encoded alike: before the last white space of a long run."""
    start = 0
    for run in _LONG_RUN.finditer(text):
        if run.end() < len(text):
            yield text[start : run.end() - 1]
            start = run.end() - 1
    yield text[start:]


def _import_tiktoken() -> Any:
    try:
        import tiktoken
    except ImportError:
        raise BackendError(
            "encoding text needs the tiktoken package: pip install 'pyllm2[train]'"
        ) from None
    return tiktoken


def byte_tokenizer() -> GPT2Tokenizer:
    """An id a byte, and 256 ends a text: the smallest vocabulary, for small models."""
    return GPT2Tokenizer([*(bytes([byte]) for byte in range(256)), END_OF_TEXT], 256, "bytes")


def from_registry() -> GPT2Tokenizer:
    """GPT-2's own vocabulary, which tiktoken downloads the first time.

    Raises TokenizerError if it cannot.
    """
    tiktoken = _import_tiktoken()
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except Exception as error:  # whatever the library's downloader raises
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise TokenizerError(f"tiktoken has no 'gpt2' here: {first_line}") from None
    pieces = [encoding.decode_single_token_bytes(i) for i in range(encoding.n_vocab)]
    return GPT2Tokenizer(pieces, encoding.eot_token, "gpt2")


def load_tokenizer(which: str | os.PathLike[str]) -> GPT2Tokenizer:
    """`gpt2` (tiktoken's), `bytes`, or a file: llm.c's tokenizer.bin or a rank file of tiktoken.

    Raises FileError or FormatError; BackendError or TokenizerError for `gpt2`.
    """
    if which == "bytes":
        return byte_tokenizer()
    if which == "gpt2" and not os.path.exists(which):
        return from_registry()
    with open_source(which) as source:
        if source.head[:4] == llmc_vocabulary.MAGIC.to_bytes(4, "little"):
            found = llmc_vocabulary.read_vocabulary(source)
            return GPT2Tokenizer(found.pieces, found.end_of_text, source.path)
        if not source.size:
            raise FileError(source.path, "0 bytes: not a vocabulary")
        ranks = tiktoken_ranks.read_ranks(source)
        return GPT2Tokenizer([*ranks, END_OF_TEXT], len(ranks), source.path)
