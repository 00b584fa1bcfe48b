"""llama2.c's tokenizer: greedy byte-pair encoding with a SentencePiece vocabulary.

    encode: bytes -> characters -> their ids (or byte tokens) -> merge the best pair, repeatedly
    decode: ids -> the bytes of their pieces, without the space at the start

Text is bytes, and invalid UTF-8 is preserved.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

from pyllm2.errors import FileError, TokenizerError
from pyllm2.formats import kinds, llama2c_vocabulary, sentencepiece_model
from pyllm2.formats.reader import Source
from pyllm2.tokenizers.arguments import described, text_bytes, token_id, token_ids

UNK, BOS, EOS = 0, 1, 2
FIRST_BYTE = 3  # ids 3 … 258 are the bytes 0x00 … 0xFF
N_BYTES = 256
SCORE_FLOOR = -1e10  # the score of a merge must be greater

_BYTE_PIECE = re.compile(rb"<0x([0-9A-F]{2})>")
_SPECIAL = re.compile(rb"(</?s>)")
_IDS = {b"<s>": BOS, b"</s>": EOS}

# Texts longer than SHORT are encoded word by word, and words of at most LONGEST_WORD bytes are
# remembered. New words of more than SHORT bytes in all, and longer words, are merged in NumPy.
SHORT, LONGEST_WORD, MOST_WORDS = 2**8, 64, 2**16
_BLOCK = 2**18  # bytes; a multiple of 4, the longest character
_CONTINUATION = bytes(range(0x80, 0xC0))  # of UTF-8


class SentencePieceTokenizer:
    """A vocabulary: the bytes of every id, and the scores that order the merges.

    Of two equal pieces the lower id is used. The special ids (0, 1, 2) and the byte tokens are
    never found by their text: a prompt that contains `<s>` is plain text, unless `encode` is asked
    to parse it.
    """

    def __init__(
        self, pieces: Sequence[bytes], scores: Sequence[float], name: str = "the vocabulary"
    ) -> None:
        self.pieces, self.scores, self.name = list(pieces), list(scores), name
        self._byte_of: dict[int, int] = {}  # id of a byte token -> byte
        for byte, piece in enumerate(self.pieces[FIRST_BYTE : FIRST_BYTE + N_BYTES]):
            match = _BYTE_PIECE.fullmatch(piece)
            if match and int(match[1], 16) == byte:
                self._byte_of[FIRST_BYTE + byte] = byte
        self._id_of: dict[bytes, int] = {}
        for i, piece in enumerate(self.pieces):
            if i > EOS and i not in self._byte_of:
                self._id_of.setdefault(piece, i)
        self._remembered: dict[bytes, list[int]] = {}  # word -> its ids

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.pieces, self.scores, self.name)

    begin, end = BOS, EOS  # the ids in front of a text and after it
    stop = (BOS, EOS)  # the ids that end generation

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    def at_least(self, text: str | bytes) -> int:
        """A lower bound of the number of ids of a prompt, without encoding it."""
        return -(-len(text) // max(map(len, self._id_of), default=1))

    @property
    def special_tokens(self) -> dict[str, str]:
        """The texts of BOS, EOS and unknown, by the names that transformers has for them."""
        return {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

    __repr__ = described

    def encode_prompt(self, text: str | bytes, special: bool | None = None) -> list[int]:
        """The ids of a prompt: BOS in front."""
        return self.encode(text, special=special)

    def encode(
        self, text: str | bytes, bos: bool = True, eos: bool = False, special: bool | None = None
    ) -> list[int]:
        """The ids of a text; a str becomes UTF-8 (lone surrogates become the bytes they escape).

        Example (stories260K's vocabulary): "Hello" -> [1, 346, 306, 414]
        A space is put in front of a non-empty text, as SentencePiece does.
        special: whether `<s>` and `</s>` in the text are BOS and EOS (None: no, they are plain
        text). What follows one begins like a text, as in llama.cpp.

        Raises TokenizerError if the vocabulary lacks the space or a byte that is needed, and what
        `text_bytes` raises.
        """
        data = text_bytes(text)
        ids = [BOS] if bos else []
        for part in _SPECIAL.split(data) if special else [data]:
            ids += [_IDS[part]] if part in _IDS and special else self._ids(part)
        if eos:
            ids.append(EOS)
        return ids

    def _ids(self, data: bytes) -> list[int]:
        """The ids of plain text."""
        if len(data) <= SHORT:
            return self._merge(self._dummy_prefix() + self._characters(data)) if data else []
        self._dummy_prefix()
        return [i for part in self._encode_words(data) for i in part]

    def encode_document(self, text: bytes) -> list[int]:
        """The ids of a training document, stripped, as llama2.c prepares it; none if it is blank.

        BOS is in front; there is no EOS, because the BOS of the next document follows.
        """
        text = text.strip()
        return self.encode(text) if text else []

    def write_tokenizer(self, path: str | os.PathLike[str]) -> None:
        """Write a `tokenizer.bin`, atomically."""
        llama2c_vocabulary.write_vocabulary(path, self.pieces, self.scores)

    def decode(self, ids: Iterable[int], at_start: bool = True) -> bytes:
        """The bytes of ids; the inverse of `encode`.

        At the start of a text and after BOS the space that `encode` put there is dropped. BOS and
        EOS have no bytes. at_start: whether the ids are the start of a text.

        Raises TokenizerError for an id outside the vocabulary.
        """
        out = []
        for i in token_ids(ids):
            out.append(self.decode_one(i, at_start))
            at_start = i == BOS
        return b"".join(out)

    def decode_one(self, i: int, at_start: bool = False) -> bytes:
        """The bytes of one id; at_start: without a leading space."""
        i = token_id(i)
        if not 0 <= i < len(self.pieces):
            raise TokenizerError(f"token id {i}: {self.name} has ids 0 to {len(self.pieces) - 1}")
        if i in (BOS, EOS):
            return b""
        if i in self._byte_of:
            return bytes([self._byte_of[i]])
        piece = self.pieces[i]
        return piece[1:] if at_start and piece[:1] == b" " else piece

    def is_byte(self, i: int) -> bool:
        """Whether an id is a byte token."""
        return i in self._byte_of

    def _dummy_prefix(self) -> list[int]:
        space = self._id_of.get(b" ")
        if space is None:
            raise TokenizerError(f"the prompt needs a space token and {self.name} has none")
        return [space]

    def _characters(self, data: bytes) -> list[int]:
        """One id per UTF-8 character, or one per byte if the vocabulary lacks the character."""
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

    def _merged_id(self, left: int, right: int) -> int | None:
        """The id of the two pieces together; None if there is none, or its score is too low."""
        merged = self._id_of.get(self.pieces[left] + self.pieces[right])
        return merged if merged is not None and self.scores[merged] > SCORE_FLOOR else None

    def _merge_naive(self, ids: list[int]) -> list[int]:
        """The algorithm of llama2.c: merge the pair of highest score (the leftmost of equals).

        Repeat while any pair can be merged. Quadratic time; `_merge` gives the same ids.
        """
        ids = list(ids)
        while True:
            best: tuple[float, int, int] | None = None  # (score, where, id)
            for i in range(len(ids) - 1):
                merged = self._merged_id(ids[i], ids[i + 1])
                if merged is not None and (best is None or self.scores[merged] > best[0]):
                    best = self.scores[merged], i, merged
            if best is None:
                return ids
            _, i, merged = best
            ids[i : i + 2] = [merged]

    def _merge(self, ids: list[int]) -> list[int]:
        """`_merge_naive` in O(n log n): a linked list of ids and a heap of possible merges.

        A node keeps its first index, so the heap's (-score, index) gives the highest score, the
        leftmost of equals. A heap entry is skipped if its ids have changed.
        """
        alive = list(ids)
        n = len(ids)
        left, right = list(range(-1, n - 1)), list(range(1, n + 1))  # n: no neighbour
        heap: list[tuple[float, int, int, int, int, int]] = []

        def consider(i: int) -> None:
            j = right[i] if i >= 0 else n
            if j < n:
                merged = self._merged_id(alive[i], alive[j])
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

    # ---- long texts -------------------------------------------------------------------------

    @cached_property
    def _words(self) -> re.Pattern[bytes]:
        """Words: no merge joins two of them.

        A word begins with spaces, if no piece has a space after another character; and a byte that
        is in no longer piece is a word. Continuation bytes stay with the byte before them.
        """
        longer = [piece for piece in self._id_of if len(piece) > 1]
        inside = b"\xff".join(longer)
        if _BYTE_PIECE.search(inside) or re.search(rb"[^ \xff] ", inside):
            return re.compile(rb"(?s).+")
        used = set(inside)
        alone = bytes(byte for byte in range(0x80) if byte not in used and byte != 0x20)
        if not alone:
            return re.compile(rb" +[^ ]*|[^ ]+")
        alone = re.escape(alone)
        return re.compile(rb"[%b][\x80-\xbf]*| +[^ %b]*|[^ %b]+" % (alone, alone, alone))

    @cached_property
    def _merges(self) -> Any:
        from pyllm2.tokenizers.merging import Merges

        table = self.pieces, self._id_of, self.scores, SCORE_FLOOR, list(self._byte_of)
        return Merges.of_pieces(*table)

    def _encode_words(self, data: bytes) -> Iterator[list[int]]:
        """The ids of a text with a space in front, in parts: those of `_merge`."""
        data, at, size = b" " + data, 0, _BLOCK
        if data[1] & 0xC0 == 0x80:  # would be taken for a part of the space
            word = self._words.match(data)
            assert word is not None
            yield self._merge(self._dummy_prefix() + self._characters(word[0][1:]))
            at = word.end()
        while at < len(data):
            words = self._words.findall(data, at, at + size)
            at += size
            if at < len(data):
                if len(words) == 1:  # perhaps not all of it
                    at, size = at - size, 2 * size
                    continue
                at -= len(words.pop())
            size = _BLOCK
            known = self._ids_of_words(words)
            ids: list[int] = []
            for word in words:
                ids += known[word]
            yield ids

    def _ids_of_words(self, words: list[bytes]) -> dict[bytes, list[int]]:
        """The ids of every word; those of short words are remembered."""
        remembered = self._remembered
        new = [word for word in dict.fromkeys(words) if word not in remembered]
        short = [word for word in new if len(word) <= LONGEST_WORD]
        if sum(map(len, short)) <= SHORT:
            found = {word: self._merge(self._characters(word)) for word in short}
        else:
            found = dict(zip(short, self._merge_words(short, long=False) or [], strict=True))
        if len(remembered) + len(found) > MOST_WORDS:
            known = {word: remembered[word] for word in dict.fromkeys(words) if word in remembered}
            known |= found
            self._remembered = {}  # and not cleared: another thread may be reading the old one
        else:
            remembered.update(found)
            known = remembered
        if len(short) == len(new):
            return known
        return known | self._ids_of_long_words([word for word in new if len(word) > LONGEST_WORD])

    def _ids_of_long_words(self, words: list[bytes]) -> dict[bytes, list[int]]:
        """The ids of every word: all at once, else one by one, else by the slow merge."""
        found = self._merge_words(words, long=True)
        if found is not None:
            return dict(zip(words, found, strict=True))
        if len(words) == 1:
            return {words[0]: self._merge(self._characters(words[0]))}
        return {word: self._ids_of_long_words([word])[word] for word in words}

    def _units_of(self, words: list[bytes]) -> tuple[Any, Any]:
        """As arrays: the ids of `_characters` of all words, and the index of the word of each."""
        import numpy as np

        from pyllm2.tokenizers.merging import unit_ids

        data = b"".join(words)
        first = np.zeros(len(data), dtype=np.bool_)
        first[np.cumsum([0, *(len(word) for word in words[:-1])])] = True
        byte_ids = np.full(256, -1, dtype=np.int32)
        byte_ids[list(self._byte_of.values())] = list(self._byte_of)
        of_words: list[Any] = []
        of_ids: list[Any] = []
        start, seen = 0, -1
        while start < len(data):
            part = data[start : start + _BLOCK]
            if start + _BLOCK < len(data):  # up to the last character that begins in it
                part = part[: max(0, len(part.rstrip(_CONTINUATION)) - 1)] or part
            begins = first[start : start + len(part)]
            array = np.frombuffer(part, dtype=np.uint8)
            ids, counts = unit_ids(array, begins, self._id_of.get, byte_ids)
            if lacking := np.flatnonzero(counts & (ids < 0)).tolist():
                raise TokenizerError(f"byte 0x{part[lacking[0]]:02X} has no token in {self.name}")
            word = seen + np.cumsum(begins, dtype=np.int32)
            of_ids.append(ids[counts])
            of_words.append(word[counts])
            start, seen = start + len(part), int(word[-1])
        return np.concatenate(of_ids), np.concatenate(of_words)

    def _merge_words(self, words: list[bytes], long: bool) -> list[list[int]] | None:
        """The ids of each word, by `merge_words` or `merge_long`; None if that cannot do it."""
        import numpy as np

        from pyllm2.tokenizers import merging

        ids, word = self._units_of(words)
        merged = (merging.merge_long if long else merging.merge_words)(ids, word, self._merges)
        if merged is None:
            return None
        flat = self._shared(merged[0])
        if len(words) == 1:
            return [flat]
        ends = np.cumsum(np.bincount(merged[1], minlength=len(words))).tolist()
        return [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def _shared(self, ids: Any) -> list[int]:
        """An array of ids as a list whose equal ids are one object: 8 bytes per id."""
        out: list[int] = []
        for start in range(0, len(ids), _BLOCK):
            out += map(self._objects.__getitem__, ids[start : start + _BLOCK].tolist())
        return out

    @cached_property
    def _objects(self) -> list[int]:
        return list(range(len(self.pieces)))


def units(data: bytes) -> list[bytes]:
    """Split bytes into UTF-8 characters without validating them.

    A unit is at most four bytes: a leading or ASCII byte with the continuation bytes (10xxxxxx)
    after it, or continuation bytes alone.

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


def from_source(
    source: Source,
    vocab_size: int | None = None,
    asked_by: str = "the model",
    lenient: bool = False,
) -> tuple[SentencePieceTokenizer, list[str]]:
    """The tokenizer in a `tokenizer.bin` or a SentencePiece `.model`, and warnings.

    vocab_size: of the model. asked_by: the model's name, for errors.

    Raises FileError or FormatError; FileError also for a SentencePiece model that is not BPE.
    """
    if kinds.is_sentencepiece(source.head):
        found = sentencepiece_model.read_sentencepiece(source, vocab_size, asked_by)
    else:
        found = llama2c_vocabulary.read_vocabulary(source, vocab_size, asked_by, lenient)
    tokenizer = SentencePieceTokenizer(found.pieces, found.scores, name=source.path)
    for text, ids in found.examples:
        if tokenizer.encode(text, bos=False) != ids:
            raise FileError(
                source.path,
                f"the sentencepiece library encodes {text!r} differently: not a BPE model?",
            )
    return tokenizer, found.warnings
