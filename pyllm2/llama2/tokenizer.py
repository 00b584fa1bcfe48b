"""Text to ids and back: llama2.c's greedy byte-pair encoder over SentencePiece vocabularies.

    encode: bytes -> characters -> their ids (or byte tokens) -> merge the best pair, repeatedly
    decode: ids -> the bytes of their pieces, one space dropped at the start

Everything is bytes: invalid UTF-8 goes in and comes out unchanged.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Iterable, Sequence

from pyllm2.errors import FileError, TokenizerError

UNK, BOS, EOS = 0, 1, 2
FIRST_BYTE = 3  # ids 3 … 258 are the bytes 0x00 … 0xFF
N_BYTES = 256
SCORE_FLOOR = -1e10  # a merge must score more than this

_BYTE_PIECE = re.compile(rb"<0x([0-9A-F]{2})>")
_SURROGATES = ("utf-8", "surrogateescape")


class Tokenizer:
    """A vocabulary: `pieces[id]` are bytes, `scores[id]` say which merge goes first.

    Of two equal pieces the lower id wins. The specials (0, 1, 2) and the byte tokens are never
    the result of a lookup or a merge, so a prompt that spells `<s>` is plain text.
    """

    def __init__(
        self, pieces: Sequence[bytes], scores: Sequence[float], name: str = "the vocabulary"
    ) -> None:
        self.pieces, self.scores, self.name = list(pieces), list(scores), name
        self._byte_of: dict[int, int] = {}  # id -> byte value, for the byte tokens there are
        for byte, piece in enumerate(self.pieces[FIRST_BYTE : FIRST_BYTE + N_BYTES]):
            match = _BYTE_PIECE.fullmatch(piece)
            if match and int(match[1], 16) == byte:
                self._byte_of[FIRST_BYTE + byte] = byte
        self._id_of: dict[bytes, int] = {}
        for i, piece in enumerate(self.pieces):
            if i > EOS and i not in self._byte_of:
                self._id_of.setdefault(piece, i)

    begin, end = BOS, EOS  # the id in front of a text, and the one after it
    stop = (BOS, EOS)  # the ids after which there is no more

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    def encode_prompt(self, text: str | bytes) -> list[int]:
        """The ids of a text to be continued: BOS in front."""
        return self.encode(text)

    def encode(self, text: str | bytes, bos: bool = True, eos: bool = False) -> list[int]:
        """The ids of a text; a str is taken as UTF-8 (lone surrogates as the bytes they escape).

        Example (stories260K's vocabulary): "Hello" -> [1, 346, 306, 414]
        Non-empty text gets a space in front, as SentencePiece does, so " a" and "a" at the start
        of a text are told apart by one more piece.

        Raises TokenizerError if the vocabulary has no space piece or lacks a byte that is needed.
        """
        data = text.encode(*_SURROGATES) if isinstance(text, str) else bytes(text)
        ids = [BOS] if bos else []
        if data:
            ids += self._merge(self._dummy_prefix() + self._characters(data))
        if eos:
            ids.append(EOS)
        return ids

    def encode_document(self, text: bytes) -> list[int]:
        """The ids of a text to learn from: stripped, as llama2.c prepares it; none if it is blank.

        BOS in front, no EOS: the BOS of the next one ends it.
        """
        text = text.strip()
        return self.encode(text) if text else []

    def write_tokenizer(self, path: str | os.PathLike[str]) -> None:
        """Write a `tokenizer.bin`, atomically."""
        from pyllm2.formats import vocabulary

        vocabulary.write_vocabulary(path, self.pieces, self.scores)

    def decode(self, ids: Iterable[int], at_start: bool = True) -> bytes:
        """The bytes of ids; the inverse of `encode`.

        At the start of a text, and after BOS, one leading space is dropped: the one that `encode`
        put there. BOS and EOS themselves are silent. With `at_start=False` the ids are taken as
        the middle of a text.

        Raises TokenizerError for an id outside the vocabulary.
        """
        out = []
        for i in ids:
            out.append(self.decode_one(i, at_start))
            at_start = i == BOS
        return b"".join(out)

    def decode_one(self, i: int, at_start: bool = False) -> bytes:
        """The bytes of one id; `at_start` drops a leading space."""
        if not 0 <= i < len(self.pieces):
            raise TokenizerError(f"token id {i}: {self.name} has ids 0 to {len(self.pieces) - 1}")
        if i in (BOS, EOS):
            return b""
        if i in self._byte_of:
            return bytes([self._byte_of[i]])
        piece = self.pieces[i]
        return piece[1:] if at_start and piece[:1] == b" " else piece

    def _dummy_prefix(self) -> list[int]:
        space = self._id_of.get(b" ")
        if space is None:
            raise TokenizerError(f"the prompt needs a space token and {self.name} has none")
        return [space]

    def _characters(self, data: bytes) -> list[int]:
        """One id a UTF-8 character, or one a byte where the vocabulary lacks the character."""
        ids: list[int] = []
        for unit in units(data):
            known = self._id_of.get(unit)
            if known is not None:
                ids.append(known)
                continue
            for byte in unit:
                if FIRST_BYTE + byte not in self._byte_of:
                    raise TokenizerError(f"byte 0x{byte:02X} has no token in {self.name}")
                ids.append(FIRST_BYTE + byte)
        return ids

    def _text_of_merge(self, left: int, right: int) -> int | None:
        """The id whose piece is the two pieces put together, if its score lets it count."""
        merged = self._id_of.get(self.pieces[left] + self.pieces[right])
        return merged if merged is not None and self.scores[merged] > SCORE_FLOOR else None

    def _merge_naive(self, ids: list[int]) -> list[int]:
        """The rule as llama2.c states it: merge the best pair, the leftmost of equals, and repeat.

        Quadratic; `_merge` gives the same ids.
        """
        ids = list(ids)
        while True:
            best: tuple[float, int, int] | None = None  # (score, where, id)
            for i in range(len(ids) - 1):
                merged = self._text_of_merge(ids[i], ids[i + 1])
                if merged is not None and (best is None or self.scores[merged] > best[0]):
                    best = self.scores[merged], i, merged
            if best is None:
                return ids
            _, i, merged = best
            ids[i : i + 2] = [merged]

    def _merge(self, ids: list[int]) -> list[int]:
        """`_merge_naive` in n log n: a linked list of ids and a heap of possible merges.

        A node keeps the index that it began with, so order in the list is order of index, and the
        heap's (-score, index) takes the best score and the leftmost of equals. An entry whose two
        ids have changed since it was pushed is stale and skipped.
        """
        alive = list(ids)
        n = len(ids)
        left, right = list(range(-1, n - 1)), list(range(1, n + 1))  # right == n: none
        heap: list[tuple[float, int, int, int, int, int]] = []

        def consider(i: int) -> None:
            j = right[i] if i >= 0 else n
            if j < n:
                merged = self._text_of_merge(alive[i], alive[j])
                if merged is not None:
                    heapq.heappush(heap, (-self.scores[merged], i, j, alive[i], alive[j], merged))

        for i in range(n - 1):
            consider(i)
        while heap:
            _, i, j, id_i, id_j, merged = heapq.heappop(heap)
            if right[i] != j or alive[i] != id_i or alive[j] != id_j:
                continue
            alive[i], alive[j] = merged, -1
            right[i] = right[j]
            if right[i] < n:
                left[right[i]] = i
            consider(left[i])
            consider(i)
        return [i for i in alive if i >= 0]


def units(data: bytes) -> list[bytes]:
    """Cut bytes into UTF-8 characters without validating them.

    A leading or ASCII byte takes the continuation bytes (10xxxxxx) after it, four bytes in all at
    most; stray continuation bytes form units of their own, up to four each.

    Example: "né".encode() -> [b"n", b"\\xc3\\xa9"]
    """
    out: list[bytes] = []
    start = 0
    for i in range(1, len(data) + 1):
        continues = i < len(data) and data[i] & 0xC0 == 0x80
        if not continues or i - start == 4:
            out.append(data[start:i])
            start = i
    return out


def from_vocabulary_file(
    path: str | os.PathLike[str],
    vocab_size: int | None = None,
    asked_by: str = "the model",
    lenient: bool = False,
) -> tuple[Tokenizer, list[str]]:
    """Load a `tokenizer.bin` or a SentencePiece `.model`, told apart by content; with warnings.

    `vocab_size` is what the model expects, `asked_by` its name for messages.

    Raises FileError or FormatError; FileError also for a SentencePiece model that is not BPE.
    """
    from pyllm2.formats import kinds, reader, sentencepiece_model, vocabulary

    with reader.open_source(path) as source:
        if kinds.is_sentencepiece(source.head):
            found = sentencepiece_model.read_sentencepiece(source, vocab_size, asked_by)
        else:
            found = vocabulary.read_vocabulary(source, vocab_size, asked_by, lenient)
        tokenizer = Tokenizer(found.pieces, found.scores, name=source.path)
    for text, ids in found.examples:
        if tokenizer.encode(text, bos=False) != ids:
            raise FileError(
                path, f"the sentencepiece library encodes {text!r} otherwise: not a BPE model?"
            )
    return tokenizer, found.warnings
