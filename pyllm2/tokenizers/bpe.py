"""Byte-pair encoding of words, by the rules of other libraries.

    merge         the plain rule: the pair of the lowest level, the leftmost of equals, repeatedly
    ListedMerges  pairs that may merge, each with a rank: tokenizer.json, merges.txt
    PieceMerges   any two symbols that together are a piece: SentencePiece, tiktoken
    Words         words -> ids; those of short words are remembered

A symbol is a text: one character at first. Where symbols are bytes, each is the Latin-1 character
of that value: b"\\xff" is "ÿ". A byte that is not UTF-8 is a lone surrogate in other texts.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

NEVER = 2**62  # the level of a pair that does not merge
SHORT = 32  # symbols: up to here the quadratic loop is faster
LONG = 2**10  # symbols: from here on NumPy is faster
BLOCK = 2**16  # ids at a time
LONGEST_WORD, MOST_WORDS = 64, 2**16  # remembered: characters of a word, words
_ESCAPED = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8
SPACE = "\u2581"  # a space, in SentencePiece's vocabularies

Level = Callable[[str, str], int]


def merge(symbols: Iterable[str], level: Level) -> list[str]:
    """Merge the pair of the lowest level, the leftmost of equals, until every pair has NEVER.

    O(n log n): a linked list of symbols and a heap of possible merges. A node keeps its first
    index, so (level, index) is the order. An entry is skipped if its symbols have changed.
    """
    alive: list[str | None] = list(symbols)
    n = len(alive)
    if n <= SHORT:
        return _merge_few(list(symbols), level)
    left, right = list(range(-1, n - 1)), list(range(1, n + 1))  # n: no neighbour
    heap: list[tuple[int, int, str, str]] = []

    def consider(i: int) -> None:
        if i >= 0 and right[i] < n:
            a, b = alive[i], alive[right[i]]
            assert a is not None
            assert b is not None
            if (found := level(a, b)) != NEVER:
                heap.append((found, i, a, b))

    for i in range(n - 1):
        consider(i)
    heapq.heapify(heap)
    while heap:
        _, i, a, b = heapq.heappop(heap)
        j = right[i]
        if j == n or alive[i] != a or alive[j] != b:
            continue
        alive[i], alive[j] = a + b, None
        right[i] = right[j]
        if right[i] < n:
            left[right[i]] = i
        for k in (left[i], i):
            size = len(heap)
            consider(k)
            if len(heap) > size:
                heapq.heappush(heap, heap.pop())
    return [symbol for symbol in alive if symbol is not None]


def _merge_few(symbols: list[str], level: Level) -> list[str]:
    """`merge` by looking at every pair each time."""
    levels = [level(a, b) for a, b in pairwise(symbols)]
    while levels and (best := min(levels)) != NEVER:
        i = levels.index(best)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        del levels[i]
        if i > 0:
            levels[i - 1] = level(symbols[i - 1], symbols[i])
        if i < len(levels):
            levels[i] = level(symbols[i], symbols[i + 1])
    return symbols


def merge_in_numpy(symbols: list[str], table: Any, names: list[str], numbers: Any) -> list[str]:
    """`merge` in linear time where `merging.merge_long` can do it, else an empty list.

    table: a `merging.Merges` over symbols 0 … n, of which n stands for those without a number
    names: of 0 … n - 1   numbers: symbol -> number
    """
    import numpy as np

    from pyllm2.tokenizers.merging import merge_long

    unknown = len(names)
    ids = np.array([numbers.get(symbol, unknown) for symbol in symbols], dtype=np.int32)
    merged = merge_long(ids, np.zeros(len(ids), dtype=np.int32), table)
    if merged is None:
        return []
    others = (symbol for symbol in symbols if symbol not in numbers)
    out: list[str] = []
    for start in range(0, len(merged[0]), BLOCK):  # a list of all ids would be the largest of all
        block = merged[0][start : start + BLOCK].tolist()
        out += [next(others) if i == unknown else names[i] for i in block]
    return out


class ListedMerges:
    """Words -> ids with a list of merges, in order of rank.

    id_of: symbol -> id   merges: pairs of symbols, of which the last of equals counts
    byte_symbols: 256 names of bytes, for characters that are no symbol (None: not used)
    unknown: symbol for all others (None: they vanish)   fuse: one for a run of them
    whole: a word that is a symbol is not merged   as_bytes: symbols are bytes
    """

    def __init__(
        self,
        id_of: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        byte_symbols: Sequence[str] | None = None,
        unknown: str | None = None,
        fuse: bool = False,
        whole: bool = False,
        as_bytes: bool = False,
    ) -> None:
        self.id_of, self.merges = id_of, merges
        self.byte_symbols, self.unknown, self.fuse = byte_symbols, unknown, fuse
        self.whole, self.as_bytes = whole, as_bytes
        self._rank = {pair: rank for rank, pair in enumerate(merges)}

    def level(self, left: str, right: str) -> int:
        return self._rank.get((left, right), NEVER)

    def encode(self, word: str) -> list[int]:
        text = as_latin1(word) if self.as_bytes else word
        if self.whole and text in self.id_of:
            return [self.id_of[text]]
        symbols = self._symbols(text)
        merged = self._merge_long(symbols) if len(symbols) >= LONG else []
        return [self.id_of[symbol] for symbol in merged or merge(symbols, self.level)]

    def _symbols(self, text: str) -> list[str]:
        """The characters that are symbols, and what stands for the others."""
        if all(c in self.id_of for c in text):
            return _characters(text)
        out: list[str] = []
        pending = 0  # unknown characters; those whose bytes have names go in front of them
        for c in text:
            if c in self.id_of:
                out += [self.unknown or ""] * pending + [c]
                pending = 0
                continue
            names = self._names_of_bytes(c)
            if names:
                out += names
            elif self.unknown is not None:
                pending = 1 if self.fuse else pending + 1
        return out + [self.unknown or ""] * pending

    def _names_of_bytes(self, c: str) -> list[str]:
        """The symbols of the bytes of a character, if all are there."""
        if self.byte_symbols is None or self.as_bytes:
            return []
        names = [self.byte_symbols[byte] for byte in c.encode("utf-8", "surrogateescape")]
        return names if all(name in self.id_of for name in names) else []

    @cached_property
    def _table(self) -> tuple[Any, list[str], dict[str, int]]:
        from pyllm2.tokenizers.merging import Merges

        names = list(self.id_of)
        numbers = {name: i for i, name in enumerate(names)}
        pairs = list(self._rank)
        left = [numbers[a] for a, _ in pairs]
        right = [numbers[b] for _, b in pairs]
        merged = [numbers[a + b] for a, b in pairs]
        level = [len(self.merges) - 1 - rank for rank in self._rank.values()]
        return Merges(len(names) + 1, left, right, merged, level), names, numbers

    def _merge_long(self, symbols: list[str]) -> list[str]:
        return merge_in_numpy(symbols, *self._table)

    @cached_property
    def merged_texts(self) -> list[str]:
        """What merges give."""
        return [a + b for a, b in self.merges]


class PieceMerges:
    """Words -> ids where any two symbols merge that together are a piece.

    level_of: piece -> level, the lowest first   id_of: pieces that may be the result -> id
    unused: pieces that merge, but are taken apart again at the end
    byte_ids: id of each byte or -1, for symbols without an id   unknown: id for others; a run of
    them is one   whole, as_bytes: as in `ListedMerges`
    by_lead: a byte that is not UTF-8 takes as many with it as its first bits say, as in llama.cpp
    """

    def __init__(
        self,
        level_of: Mapping[str, int],
        id_of: Mapping[str, int],
        byte_ids: Sequence[int] | None = None,
        unknown: int | None = None,
        unused: frozenset[str] = frozenset(),
        whole: bool = False,
        as_bytes: bool = False,
        by_lead: bool = False,
    ) -> None:
        self.level_of, self.id_of, self.unused = level_of, id_of, unused
        self.byte_ids, self.unknown = byte_ids, unknown
        self.whole, self.as_bytes, self.by_lead = whole, as_bytes, by_lead

    def level(self, left: str, right: str) -> int:
        return self.level_of.get(left + right, NEVER)

    def encode(self, word: str) -> list[int]:
        text = as_latin1(word) if self.as_bytes else word
        if self.whole and text in self.id_of:
            return [self.id_of[text]]
        symbols = _by_lead(text) if self.by_lead else _characters(text)
        if self.unused:
            symbols = self._without_unused(symbols)
        else:
            merged = merge_in_numpy(symbols, *self._table) if len(text) >= LONG else []
            symbols = merged or merge(symbols, self.level)
        if all(symbol in self.id_of for symbol in symbols):
            return [self.id_of[symbol] for symbol in symbols]
        return self._ids(symbols)

    def _ids(self, symbols: list[str]) -> list[int]:
        ids: list[int] = []
        is_unknown = False
        for symbol in symbols:
            found = self.id_of.get(symbol)
            if found is not None:
                ids.append(found)
            elif (of_bytes := self._ids_of_bytes(symbol)) is not None:
                ids += of_bytes
            elif self.unknown is not None:
                if not is_unknown:
                    ids.append(self.unknown)
                is_unknown = True
                continue
            is_unknown = False
        return ids

    def _ids_of_bytes(self, symbol: str) -> list[int] | None:
        if self.byte_ids is None:
            return None
        ids = [self.byte_ids[byte] for byte in symbol.encode("utf-8", "surrogateescape")]
        return ids if min(ids) >= 0 else None

    def _without_unused(self, symbols: list[str]) -> list[str]:
        """Merge, then take unused pieces apart as they were last considered."""
        made_of: dict[str, tuple[str, str]] = {}

        def level(left: str, right: str) -> int:
            if left + right in self.unused:
                made_of[left + right] = left, right
            return self.level(left, right)

        out: list[str] = []
        waiting = merge(symbols, level)[::-1]
        while waiting:
            symbol = waiting.pop()
            if symbol in made_of:
                waiting += made_of[symbol][::-1]
            else:
                out.append(symbol)
        return out

    @cached_property
    def _table(self) -> tuple[Any, list[str], dict[str, int]]:
        from pyllm2.tokenizers.merging import Merges

        characters = dict.fromkeys(c for piece in self.level_of for c in piece)
        names = list(dict.fromkeys([*self.level_of, *characters]))
        numbers = {name: i for i, name in enumerate(names)}
        scores = [-float(self.level_of.get(name, NEVER)) for name in names]
        pieces = {piece: numbers[piece] for piece in self.level_of}
        also = [numbers[c] for c in characters if c not in pieces]
        # one more id, without a name: symbols that no merge knows
        table = Merges.of_pieces([*names, ""], pieces, [*scores, 0.0], float("-inf"), also)
        return table, names, numbers

    @cached_property
    def merged_texts(self) -> list[str]:
        """What merges give."""
        return list(self.level_of)


def as_latin1(word: str) -> str:
    """The bytes of a word as Latin-1 characters; a lone surrogate is the byte it escapes."""
    if word.isascii():
        return word
    return word.encode("utf-8", "surrogateescape").decode("latin-1")


def _characters(text: str) -> list[str]:
    """The characters; equal ones are one object, so that a long word has 8 bytes for each."""
    one = {c: c for c in set(text)}
    return [one[c] for c in text]


def _by_lead(text: str) -> list[str]:
    """Characters; one that is not UTF-8 has as many bytes as the first bits of it say."""
    if text.isascii() or not _ESCAPED.search(text):
        return _characters(text)
    data = text.encode("utf-8", "surrogateescape")
    symbols, at = [], 0
    while at < len(data):
        length = (2, 2, 3, 4)[(data[at] >> 4) - 12] if data[at] >= 0xC0 else 1
        symbols.append(data[at : at + length].decode("utf-8", "surrogateescape"))
        at += length
    return symbols


class Words:
    """Words -> ids. The ids of short words are remembered.

    A word that is a whole text, because nothing cuts it, is cut before `SPACE` where no merge can
    join what is left and right of the cut.
    """

    def __init__(self, bpe: ListedMerges | PieceMerges) -> None:
        self.bpe = bpe
        self._remembered: dict[str, list[int]] = {}

    def encode(self, words: Iterable[str]) -> list[int]:
        """The ids of all words, one after the other."""
        ids: list[int] = []
        get = self._remembered.get
        for word in words:
            found = get(word)
            if found is None:
                found = self._new(word)
                get = self._remembered.get
            ids += found
        return ids

    def _new(self, word: str) -> list[int]:
        if len(word) > LONGEST_WORD:
            pattern = self._between_spaces
            parts = pattern.findall(word) if pattern else [word]
            return self.encode(parts) if len(parts) > 1 else self.bpe.encode(word)
        found = self.bpe.encode(word)
        if len(self._remembered) >= MOST_WORDS:
            self._remembered = {}  # and not cleared: another thread may be reading the old one
        self._remembered[word] = found
        return found

    @cached_property
    def _between_spaces(self) -> re.Pattern[str] | None:
        """Matches spaces and what follows them; None if a merge may join two of these."""
        joined = re.compile(f"[^{SPACE}]{SPACE}")
        if self.bpe.as_bytes or self.bpe.whole or SPACE not in self.bpe.id_of:
            return None
        if any(joined.search(text) for text in self.bpe.merged_texts):
            return None
        return re.compile(f"(?s){SPACE}+[^{SPACE}]*|[^{SPACE}]+")
