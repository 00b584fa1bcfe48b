"""Byte-pair encoding of long texts in NumPy: the ids of the plain rule, in linear time.

    Merges       every pair of ids that has an id together, with its level
    merge_words  many short words at once: in each round, every word merges its best pair
    merge_long   long words at once: in each round, all pairs of the best level are merged

The plain rule merges the pair of the highest level, the leftmost of equals, until none is left.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Positions = NDArray[np.int64]
Piece = TypeVar("Piece", bytes, str)

_BLOCK = 2**16  # pairs per lookup: the temporaries are small
_NONE = -1  # no merge, no level, no id


class Merges:
    """Every pair of ids that has an id together, with its level: pairs of a higher one go first.

    n_ids: number of ids   left, right, merged, level: (n_pairs,), a pair is there once
    """

    def __init__(
        self,
        n_ids: int,
        left: Sequence[int] | Ids,
        right: Sequence[int] | Ids,
        merged: Sequence[int] | Ids,
        level: Sequence[int] | Ids,
    ) -> None:
        self.n_ids = n_ids
        pairs = np.asarray(left, dtype=np.int64) * n_ids + np.asarray(right, dtype=np.int64)
        order = np.argsort(pairs, kind="stable")
        self._pairs = pairs[order]
        # Both end in the answer for pair -1, which is none.
        self.merged = np.append(np.asarray(merged, dtype=np.int32)[order], np.int32(_NONE))
        self.level = np.append(np.asarray(level, dtype=np.int32)[order], np.int32(_NONE))

    @classmethod
    def of_pieces(
        cls,
        pieces: Sequence[Piece],
        id_of: Mapping[Piece, int],
        scores: Sequence[float],
        floor: float,
        also: Sequence[int] = (),
    ) -> Merges:
        """All pairs whose pieces together are a piece; the level is that of its score.

        pieces: bytes or text of every id   id_of: the id that a merge gives for a piece
        scores: of every id   floor: a score must be greater
        also: ids that are not in `id_of` and take part in merges: the byte tokens
        """
        same: dict[Piece, list[int]] = {piece: [i] for piece, i in id_of.items()}
        for i in also:
            same.setdefault(pieces[i], []).append(i)
        lengths = sorted({len(piece) for piece in same})
        _, levels = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)
        lefts: list[int] = []
        rights: list[int] = []
        merged: list[int] = []
        for piece, i in id_of.items():
            if not scores[i] > floor:
                continue
            n = len(piece)
            for cut in lengths if n > len(lengths) else range(1, n):
                if cut >= n:
                    break
                for left in same.get(piece[:cut], ()):
                    for right in same.get(piece[cut:], ()):
                        lefts.append(left)
                        rights.append(right)
                        merged.append(i)
        level = levels[np.array(merged, dtype=np.int64)].astype(np.int32)
        return cls(len(pieces), lefts, rights, merged, level)

    def find(self, left: Ids, right: Ids) -> Ids:
        """The index of each pair in `merged` and `level`, or -1."""
        found = np.full(len(left), _NONE, dtype=np.int32)
        if len(self._pairs) == 0:
            return found
        for start in range(0, len(left), _BLOCK):
            part = slice(start, start + _BLOCK)
            pairs = left[part].astype(np.int64) * self.n_ids + right[part]
            at = np.minimum(np.searchsorted(self._pairs, pairs), len(self._pairs) - 1)
            found[part] = np.where(self._pairs[at] == pairs, at, _NONE)
        return found


def unit_ids(
    data: NDArray[np.uint8],
    first: NDArray[np.bool_],
    id_of: Callable[[bytes], int | None],
    byte_ids: Ids,
) -> tuple[Ids, NDArray[np.bool_]]:
    """One id per UTF-8 character that is a piece, else one per byte, as `sentencepiece.units`.

    first: whether a byte begins a word   byte_ids: (256,), -1 for a byte without a token
    Returns ids, one for each byte of data, and which of them count.
    """
    n = len(data)
    index = np.arange(n, dtype=np.int32)
    begins = first | (data & 0xC0 != 0x80)
    begins[:1] = True
    last = np.maximum.accumulate(np.where(begins, index, np.int32(0)))
    starts = np.flatnonzero((index - last) % 4 == 0)
    lengths = np.diff(starts, append=n)
    ids = byte_ids[data]
    counts = np.ones(n, dtype=np.bool_)

    single = np.array(
        [_NONE if (i := id_of(bytes([byte]))) is None else i for byte in range(256)], np.int32
    )
    alone = starts[lengths == 1]
    known = single[data[alone]]
    ids[alone] = np.where(known == _NONE, ids[alone], known)

    for length in (2, 3, 4):
        at = starts[lengths == length]
        if len(at) == 0:
            continue
        code = np.zeros(len(at), dtype=np.int64)
        for k in range(length):
            code = code << 8 | data[at + k]
        distinct, which = np.unique(code, return_inverse=True)
        found = [id_of(int(c).to_bytes(length, "big")) for c in distinct]
        known = np.array([_NONE if i is None else i for i in found], dtype=np.int32)[which]
        at, known = at[known != _NONE], known[known != _NONE]
        ids[at] = known
        for k in range(1, length):
            counts[at + k] = False
    return ids, counts


def merge_words(ids: Ids, word: Ids, merges: Merges) -> tuple[Ids, Ids]:
    """Merge every word on its own, as the plain rule. word: (n,), the word of each id, ascending.

    Returns ids and their words. Takes as many rounds as a word has merges: for short words.
    """
    n = len(ids)
    done: list[tuple[Ids, Ids]] = []
    pair = np.full(n, _NONE, dtype=np.int32)
    pair[:-1] = merges.find(ids[:-1], ids[1:])
    pair[:-1][word[:-1] != word[1:]] = _NONE
    level = merges.level[pair]
    while len(ids):
        heads = np.flatnonzero(np.diff(word, prepend=_NONE))
        sizes = np.diff(heads, append=len(word))
        best = np.repeat(np.maximum.reduceat(level, heads), sizes)
        active = best != _NONE
        if not active.all():
            done.append((ids[~active], word[~active]))
            ids, word, pair = ids[active], word[active], pair[active]
            level, best = level[active], best[active]
            if len(ids) == 0:
                break
        at = np.flatnonzero(level == best)
        at = at[np.diff(word[at], prepend=_NONE) != 0]  # the leftmost of each word
        ids[at] = merges.merged[pair[at]]
        keep = np.ones(len(ids), dtype=np.bool_)
        keep[at + 1] = False
        at -= np.arange(len(at))  # where they are without the pieces on their right
        ids, word, pair, level = ids[keep], word[keep], pair[keep], level[keep]
        _refresh(np.concatenate([at - 1, at]), ids, word, pair, level, merges)
    if not done:
        return ids, word
    ids, word = (np.concatenate(parts) for parts in zip(*done, strict=True))
    order = np.argsort(word, kind="stable")
    return ids[order], word[order]


def _refresh(at: Positions, ids: Ids, word: Ids, pair: Ids, level: Ids, merges: Merges) -> None:
    """Look up the pairs that begin at these places again."""
    at = at[at >= 0]
    right = np.minimum(at + 1, len(ids) - 1)
    found = merges.find(ids[at], ids[right])
    found[(right == at) | (word[at] != word[right])] = _NONE
    pair[at] = found
    level[at] = merges.level[found]


def merge_long(ids: Ids, word: Ids, merges: Merges) -> tuple[Ids, Ids] | None:
    """As `merge_words`, for long words, in place; None if this would not be the plain rule.

    All pairs of one level are merged before any pair of a lower one. The plain rule does so too,
    unless a merge makes a pair of the same level or a higher one. The vocabularies that training
    gives have no such pair: a longer piece has a lower score than the pieces that it is made of.

    Takes about 30 bytes per id: ids, words, merges, two links, and the places of a round.
    """
    n = len(ids)
    right = np.arange(1, n + 1, dtype=np.int32)
    left = np.arange(-1, n - 1, dtype=np.int32)
    pair = np.full(n, _NONE, dtype=np.int32)
    pair[:-1] = merges.find(ids[:-1], ids[1:])
    ends = np.append(np.flatnonzero(word[1:] != word[:-1]), n - 1)
    right[ends], left[ends[:-1] + 1] = n, -1  # no neighbour
    pair[ends] = _NONE
    waiting: dict[int, list[Ids]] = {}
    heap: list[int] = []

    def add(at: Ids) -> None:
        """Let these pairs wait for the round of their level."""
        levels = merges.level[pair[at]]
        order = np.argsort(levels, kind="stable")
        at, levels = at[order], levels[order]
        cuts = [*np.flatnonzero(np.diff(levels, prepend=np.int32(_NONE))).tolist(), len(at)]
        for start, end in pairwise(cuts):
            key = int(levels[start])
            if key not in waiting:
                waiting[key] = []
                heapq.heappush(heap, -key)
            waiting[key].append(at[start:end])

    def merge(at: Ids, now: int) -> bool:
        """Merge pairs of the level `now`, in order; False if a pair of that level appears."""
        at = at[merges.level[pair[at]] == now]
        if len(at) == 0:
            return True
        # of pairs that overlap, the first, third, fifth, ... are merged
        index = np.arange(len(at))
        follows = np.zeros(len(at), dtype=np.bool_)
        follows[1:] = right[at[:-1]] == at[1:]
        at = at[(index - np.maximum.accumulate(np.where(follows, 0, index))) % 2 == 0]
        gone = right[at]
        after = right[gone]
        inside = after < n
        # the plain rule sees what is there before the next pair is merged, too
        seen = merges.level[merges.find(merges.merged[pair[at[inside]]], ids[after[inside]])]
        ids[at], right[at] = merges.merged[pair[at]], after
        left[after[inside]] = at[inside]
        ids[gone] = pair[gone] = _NONE
        before = left[at]
        changed = _sorted(np.concatenate([before[before >= 0], at]))
        beyond = right[changed]
        found = merges.find(ids[changed], ids[np.minimum(beyond, n - 1)])
        found[beyond == n] = _NONE
        pair[changed] = found
        changed = changed[found != _NONE]
        add(changed)
        levels = merges.level[pair[changed]]
        return max(seen.max(initial=_NONE), levels.max(initial=_NONE)) < now

    for start in range(0, n, _BLOCK):
        known = np.flatnonzero(pair[start : start + _BLOCK] != _NONE)
        add((known + start).astype(np.int32))
    while heap:
        now = -heapq.heappop(heap)
        places = _sorted(np.concatenate(waiting.pop(now)))
        for start in range(0, len(places), _BLOCK):
            if not merge(places[start : start + _BLOCK], now):
                return None
    kept = ids != _NONE
    return ids[kept], word[kept]


def _sorted(at: Ids) -> Ids:
    """Distinct places in order, sorted in place. They are a few sorted runs: a stable sort merges.

    (np.unique hashes them, which takes quadratic time for such places.)
    """
    at.sort(kind="stable")
    return at[np.diff(at, prepend=np.int32(_NONE)) != 0]
