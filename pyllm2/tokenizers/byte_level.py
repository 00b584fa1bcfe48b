"""GPT-2's tokenizer: byte-pair encoding by the tiktoken library, with a vocabulary of any origin.

    encode: text -> words, by a regular expression -> merge the pair of lowest rank, repeatedly
    decode: ids -> the bytes of their pieces

Text is bytes; those that are not UTF-8 become one token per byte and are preserved.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pyllm2.errors import BackendError, TokenizerError
from pyllm2.formats import llmc_vocabulary, tiktoken_ranks
from pyllm2.formats.reader import Source
from pyllm2.tokenizers.arguments import described, text_bytes, token_id, token_ids

END_OF_TEXT = b"<|endoftext|>"

# The alternatives in order: English endings; a word, a number or other characters, with one space
# before; white space at the end of the text; white space without its last character; the rest.
WORDS = r"""'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s++$|\s+(?!\S)|\s+"""

# White space as Unicode defines it. The matcher of WORDS backtracks over a run of white space, one
# stack frame per character, so a long run is cut before its last character, where words end anyway.
_RUN = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]{2,}")
_LONG_RUN = 4096  # characters

_SURROGATES = ("utf-8", "surrogateescape")
_NOT_UTF8 = re.compile("([\udc80-\udcff]+)")


class ByteLevelTokenizer:
    """A vocabulary: the bytes of every id, which is also its rank, and the id of end-of-text.

    Text never encodes to end-of-text, unless `encode` is asked to: `<|endoftext|>` is plain text.
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

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.pieces, self.end_of_text, self.name)

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    @property
    def begin(self) -> int:
        """The id in front of a text: the end of the previous one."""
        return self.end_of_text

    @property
    def end(self) -> int:
        """The id after a text."""
        return self.end_of_text

    @property
    def stop(self) -> tuple[int, ...]:
        """The ids that end generation."""
        return (self.end_of_text,)

    def at_least(self, text: str | bytes) -> int:
        """A lower bound of the number of ids of a prompt, without encoding it."""
        return -(-len(text) // max(1, self._longest))

    @property
    def special_tokens(self) -> dict[str, str]:
        """End-of-text, by the names that transformers has for it."""
        text = self.pieces[self.end_of_text].decode("utf-8", "replace")
        return {"bos_token": text, "eos_token": text}

    __repr__ = described

    def encode_prompt(self, text: str | bytes, special: bool | None = None) -> list[int]:
        """The ids of a prompt: end-of-text in front."""
        return self.encode(text, bos=True, special=special)

    def encode(
        self, text: str | bytes, bos: bool = False, eos: bool = False, special: bool | None = None
    ) -> list[int]:
        """The ids of a text. bos, eos: add end-of-text in front, at the end.

        special: whether `<|endoftext|>` in the text is that token (None: no, it is plain text).

        Example (GPT-2's vocabulary): "Hello world" -> [15496, 995]
        Every byte that is not UTF-8 becomes a token (a str has such bytes as lone surrogates), and
        no word includes it.

        Raises TokenizerError if the vocabulary lacks a byte, BackendError without tiktoken, and
        what `text_bytes` raises.
        """
        data, end = text_bytes(text), self.end_of_text
        ids = [end] if bos else []
        for i, part in enumerate(data.split(self.pieces[end]) if special else [data]):
            ids += [*([end] if i else []), *self._ids(part)]
        return [*ids, *([end] if eos else [])]

    def _ids(self, data: bytes) -> list[int]:
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
        """The ids of a training document, as llm.c prepares it, with the blank line at its end."""
        return self.encode_prompt(text)

    def decode(self, ids: Iterable[int], at_start: bool = False) -> bytes:
        """The bytes of ids; the inverse of `encode`. `at_start` makes no difference."""
        return b"".join(self.decode_one(i, at_start) for i in token_ids(ids))

    def decode_one(self, i: int, at_start: bool = False) -> bytes:
        """The bytes of one id; end-of-text gives `<|endoftext|>`.

        Raises TokenizerError for an id outside the vocabulary.
        """
        i = token_id(i)
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
    """A text in parts that are encoded separately, cut before the last character of a long run."""
    start = 0
    for run in _RUN.finditer(text):
        if run.end() - run.start() >= _LONG_RUN and run.end() < len(text):
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


def byte_tokenizer() -> ByteLevelTokenizer:
    """One id per byte, and 256 for end-of-text: the smallest vocabulary, for small models."""
    return ByteLevelTokenizer([*(bytes([byte]) for byte in range(256)), END_OF_TEXT], 256, "bytes")


def from_registry() -> ByteLevelTokenizer:
    """GPT-2's own vocabulary, which tiktoken downloads once. Raises TokenizerError if it cannot."""
    tiktoken = _import_tiktoken()
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except Exception as error:  # whatever the library's downloader raises
        raise TokenizerError(
            f"tiktoken cannot download GPT-2's vocabulary ({type(error).__name__}): name a file "
            "instead of gpt2, a rank file of tiktoken (gpt2.tiktoken) or llm.c's gpt2_tokenizer.bin"
        ) from None
    pieces = [encoding.decode_single_token_bytes(i) for i in range(encoding.n_vocab)]
    return ByteLevelTokenizer(pieces, encoding.eot_token, "gpt2")


def from_llmc(source: Source) -> ByteLevelTokenizer:
    """llm.c's tokenizer file. Raises FileError or FormatError."""
    found = llmc_vocabulary.read_vocabulary(source)
    return ByteLevelTokenizer(found.pieces, found.end_of_text, source.path)


def from_ranks(source: Source) -> ByteLevelTokenizer:
    """A rank file of tiktoken, with end-of-text as the last id. Raises FormatError."""
    ranks = tiktoken_ranks.read_ranks(source)
    return ByteLevelTokenizer([*ranks, END_OF_TEXT], len(ranks), source.path)
