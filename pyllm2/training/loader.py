"""Batches out of token shards, in llm.c's order: shard after shard, or shuffled.

A sample is what all processes together read in one step: P·B·T tokens and one more, because the
targets are the inputs one place on. What is left at the end of a shard is never seen.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import ConfigError, FileError, FormatError, UsageError
from pyllm2.formats.reader import open_source
from pyllm2.formats.tokens import Shard, read_shard
from pyllm2.mersenne import N_WORDS, MersenneTwister

Tokens = NDArray[np.int32]

SHUFFLING_SEED = 42
DIGEST_BLOCK, DIGEST_BLOCKS = 2**16, 1024


class DataLoader:
    """Endless batches of the files that match `pattern`, which is sorted by bytes.

    B, T: rows and positions of a batch   rank, processes: whose slice of each sample this is
    shuffle: draw the order of shards, and of the samples in each, anew every epoch
    vocab_size: every id must be below it (None: nothing is known)
    seed: of the shuffling; the rank is added to it

    Raises FileError if no file matches, FormatError for a shard that is damaged, too short for
    one sample, or holds an id outside the vocabulary: all of them are looked through here.
    """

    def __init__(
        self, pattern: str | os.PathLike[str], B: int, T: int, rank: int = 0, processes: int = 1,
        shuffle: bool = False, vocab_size: int | None = None, seed: int = SHUFFLING_SEED,
    ) -> None:  # fmt: skip
        if B < 1 or T < 1 or not 0 <= rank < processes:
            raise UsageError(f"B={B} T={T} rank={rank} processes={processes}: no such batch")
        self.B, self.T, self.rank, self.processes = B, T, rank, processes
        self.stride = processes * B * T  # from one sample to the next
        self.shards = [read_shard(path, vocab_size) for path in _matches(os.fspath(pattern))]
        for shard in self.shards:
            self._check_length(shard)
        self.num_tokens = sum(shard.count for shard in self.shards)
        self.num_batches = sum(map(self._samples_of, self.shards))
        self._rng = MersenneTwister((seed + rank) % 2**32) if shuffle else None
        self._shard_order = np.arange(len(self.shards), dtype=np.int32)
        self.reset()

    def _check_length(self, shard: Shard) -> None:
        if shard.count <= self.stride:
            among = f" processes={self.processes}" if self.processes > 1 else ""
            raise FormatError(
                shard.path,
                f"needs {self.stride + 1} tokens for B={self.B} T={self.T}{among}, "
                f"has {shard.count}",
            )

    def _samples_of(self, shard: Shard) -> int:
        return (shard.count - 1) // self.stride

    def reset(self) -> None:
        """To the first sample of a new epoch; the order of shards is shuffled on top of the old."""
        if self._rng is not None:
            self._rng.permute(self._shard_order)
        self._open(0)

    def _open(self, position: int) -> None:
        """To the first sample of the shard at this position of the order."""
        self._shard, self._sample = position, 0
        self._sample_order = np.arange(self._samples_of(self._current()), dtype=np.int32)
        if self._rng is not None:
            self._rng.permute(self._sample_order)

    def _current(self) -> Shard:
        return self.shards[self._shard_order[self._shard]]

    def next_batch(self) -> tuple[Tokens, Tokens]:
        """Inputs and targets, (B, T) each: the targets are the inputs one place on."""
        if self._sample >= len(self._sample_order):
            if self._shard + 1 < len(self.shards):
                self._open(self._shard + 1)
            else:
                self.reset()
        BT = self.B * self.T
        start = int(self._sample_order[self._sample]) * self.stride + self.rank * BT
        ids = self._current().read(start, BT + 1)
        self._sample += 1
        return ids[:-1].reshape(self.B, self.T).copy(), ids[1:].reshape(self.B, self.T).copy()

    def resume(self, shard: int, sample: int) -> None:
        """Go on at a sample of the shard at this position of the order, in file order.

        A shuffled loader has more to it than two numbers: see `state`.
        """
        if self._rng is not None:
            raise UsageError("a shuffled loader resumes from its whole state")
        self.restore({"shard": shard, "sample": sample})

    def state(self) -> dict[str, int | NDArray[Any]]:
        """All that the batches to come depend on, besides the files and the arguments."""
        state: dict[str, int | NDArray[Any]] = {"shard": self._shard, "sample": self._sample}
        if self._rng is not None:
            words, position = self._rng.state()
            state |= {
                "shard_order": self._shard_order.copy(),
                "sample_order": self._sample_order.copy(),
                "rng_words": words,
                "rng_position": position,
            }
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was asked for: the batches to come are the same.

        Raises ConfigError for a state that is not one of these files and arguments.
        """
        wanted = set(self.state())
        if set(state) != wanted:
            raise ConfigError("data fields", len(state), f"expected {', '.join(sorted(wanted))}")
        shard, sample = int(state["shard"]), int(state["sample"])
        shard_order = np.arange(len(self.shards), dtype=np.int32)
        if self._rng is not None:
            shard_order = _permutation("shard_order", state["shard_order"], len(self.shards))
        if not 0 <= shard < len(self.shards):
            raise ConfigError("data shard", shard, f"there are {len(self.shards)}")
        n = self._samples_of(self.shards[shard_order[shard]])
        if not 0 <= sample <= n:
            raise ConfigError("data sample", sample, f"this shard has {n}")
        sample_order = np.arange(n, dtype=np.int32)
        if self._rng is not None:
            sample_order = _permutation("sample_order", state["sample_order"], n)
            words, position = np.asarray(state["rng_words"]), int(state["rng_position"])
            if words.shape != (N_WORDS,) or not 0 <= position <= N_WORDS:
                raise ConfigError("data rng_position", position, f"of {words.size} words")
            self._rng.set_state(words, position)
        self._shard, self._sample = shard, sample
        self._shard_order, self._sample_order = shard_order, sample_order

    def describe(self) -> dict[str, Any]:
        """What the data is, as JSON: the name, number of tokens and digest of each shard."""
        return {
            "shards": [
                {"name": os.path.basename(s.path), "tokens": s.count, "digest": digest(s.path)}
                for s in self.shards
            ]
        }


def _matches(pattern: str) -> list[str]:
    """The files of a pattern, in the order of their bytes; a name that exists is itself."""
    if os.path.exists(pattern):
        return [pattern]
    paths = sorted(glob.glob(pattern), key=os.fsencode)
    if not paths:
        raise FileError(pattern or "''", "matches no file")
    return paths


def _permutation(name: str, order: Any, n: int) -> NDArray[np.int32]:
    found = np.array(order, dtype=np.int32)
    if found.shape != (n,) or not np.array_equal(np.sort(found), np.arange(n)):
        raise ConfigError(f"data {name}", found.size, f"expected an order of {n}")
    return found


def digest(path: str) -> str:
    """SHA-256 of a file's size and of blocks of 64 KiB: all, or of a large file 1024 evenly spaced.

    So that a resumed run notices other data without reading 20 GB.
    """
    with open_source(path) as source:
        total = -(-source.size // DIGEST_BLOCK)
        chosen: Sequence[int] = range(total)
        if total > DIGEST_BLOCKS:
            chosen = [i * (total - 1) // (DIGEST_BLOCKS - 1) for i in range(DIGEST_BLOCKS)]
        found = hashlib.sha256(source.size.to_bytes(8, "little"))
        for i in chosen:
            start = i * DIGEST_BLOCK
            found.update(source.read_range(start, min(DIGEST_BLOCK, source.size - start)).data)
    return found.hexdigest()
