"""Batches from token shards, in llm.c's order: sequential or shuffled.

A sample is what all P processes read in one step: P·B·T tokens and one more, because the targets
are the inputs shifted by one. The incomplete sample at the end of a shard is not used.
"""

from __future__ import annotations

import glob
import hashlib
import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import ConfigError, FileError, FormatError, UsageError, shown
from pyllm2.formats.llmc_tokens import Shard, read_shard
from pyllm2.formats.reader import open_source
from pyllm2.mersenne import N_WORDS, MersenneTwister

Tokens = NDArray[np.int32]

SHUFFLING_SEED = 42
DIGEST_BLOCK, DIGEST_BLOCKS = 2**16, 1024


class DataLoader:
    """Endless batches of the files that match a pattern, in byte order of their names.

    pattern: or several, as a shell makes of a pattern without quotation marks
    B, T: rows and positions of a batch
    rank, processes: this process reads the rank-th slice of each sample
    shuffle: shuffle the shards, and the samples within each, every epoch
    vocab_size: upper bound of the ids (None: not checked)
    seed: seed of the shuffling; the rank is added to it

    Raises FileError if no file matches, FormatError for a shard that is damaged, too short for
    one sample, or contains an id outside the vocabulary. Every shard is checked here.
    """

    def __init__(
        self,
        pattern: str | os.PathLike[str] | Sequence[str],
        B: int,
        T: int,
        rank: int = 0,
        processes: int = 1,
        shuffle: bool = False,
        vocab_size: int | None = None,
        seed: int = SHUFFLING_SEED,
    ) -> None:
        if B < 1 or T < 1 or not 0 <= rank < processes:
            raise UsageError(f"B={B} T={T} rank={rank} processes={processes}: impossible batch")
        self.B, self.T, self.rank, self.processes = B, T, rank, processes
        self.stride = processes * B * T  # tokens from one sample to the next
        patterns = [pattern] if isinstance(pattern, str | os.PathLike) else pattern
        paths = {path for one in patterns for path in _matches(os.fspath(one))}
        self.shards = [read_shard(path, vocab_size) for path in sorted(paths, key=os.fsencode)]
        for shard in self.shards:
            self._check_length(shard)
        self.num_tokens = sum(shard.count for shard in self.shards)
        self.num_batches = sum(map(self._samples_of, self.shards))
        self._seed = (operator.index(seed) + rank) % 2**32 if shuffle else None
        self._sample_order = np.arange(0, dtype=np.int32)
        self.go_to(0)

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

    def go_to(self, batches: int) -> None:
        """Go to where a new loader is after that many batches."""
        self._rng = None if self._seed is None else MersenneTwister(self._seed)
        self._shard_order = np.arange(len(self.shards), dtype=np.int32)
        self.reset()
        while batches > len(self._sample_order):
            batches -= len(self._sample_order)
            self._open_next()
        self._sample = batches

    def reset(self) -> None:
        """Go to the first sample of a new epoch; the previous shard order is shuffled again."""
        if self._rng is not None:
            self._rng.permute(self._shard_order)
        self._open(0)

    def _open(self, position: int) -> None:
        """Go to the first sample of the shard at this position of the shard order."""
        self._shard, self._sample = position, 0
        self._sample_order = np.arange(self._samples_of(self._current()), dtype=np.int32)
        if self._rng is not None:
            self._rng.permute(self._sample_order)

    def _open_next(self) -> None:
        if self._shard + 1 < len(self.shards):
            self._open(self._shard + 1)
        else:
            self.reset()

    def _current(self) -> Shard:
        return self.shards[self._shard_order[self._shard]]

    def next_batch(self) -> tuple[Tokens, Tokens]:
        """Inputs and targets, (B, T) each; the targets are the inputs shifted by one."""
        if self._sample >= len(self._sample_order):
            self._open_next()
        BT = self.B * self.T
        start = int(self._sample_order[self._sample]) * self.stride + self.rank * BT
        ids = self._current().read(start, BT + 1)
        self._sample += 1
        return ids[:-1].reshape(self.B, self.T).copy(), ids[1:].reshape(self.B, self.T).copy()

    def resume(self, shard: int, sample: int) -> None:
        """Continue at a sample of a shard, both counted in file order.

        A shuffled loader needs its whole state: see `restore`.
        """
        if self._rng is not None:
            raise UsageError("a shuffled loader resumes from its whole state")
        self.restore({"shard": shard, "sample": sample})

    def state(self) -> dict[str, int | NDArray[Any]]:
        """Everything that the next batches depend on, apart from files and arguments."""
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
        """Continue where `state` was called: the next batches are the same.

        Raises ConfigError for a state that does not fit these files and arguments.
        """
        wanted = set(self.state())
        if set(state) != wanted:
            raise ConfigError("data fields", len(state), f"expected {', '.join(sorted(wanted))}")
        shard, sample = (_whole(name, state[name]) for name in ("shard", "sample"))
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
            words = np.asarray(state["rng_words"])
            position = _whole("rng_position", state["rng_position"])
            if words.dtype.kind not in "iu":
                raise ConfigError("data rng_words", shown(words.dtype), "expected whole numbers")
            if words.shape != (N_WORDS,) or not 0 <= position <= N_WORDS:
                raise ConfigError("data rng_position", position, f"of {words.size} words")
            self._rng.set_state(words, position)
        self._shard, self._sample = shard, sample
        self._shard_order, self._sample_order = shard_order, sample_order

    def describe(self) -> dict[str, Any]:
        """The data as JSON: name, number of tokens and digest of each shard."""
        return {
            "shards": [
                {"name": os.path.basename(s.path), "tokens": s.count, "digest": digest(s.path)}
                for s in self.shards
            ]
        }


def _matches(pattern: str) -> list[str]:
    """The files that match a pattern, in byte order.

    An existing name matches itself only, and so does the folder of a pattern: `run[1]/train*.bin`.
    """
    if os.path.exists(pattern):
        return [pattern]
    folder, name = os.path.split(pattern)
    if os.path.isdir(folder):
        pattern_in_folder = os.path.join(glob.escape(folder), name)
    else:
        pattern_in_folder = pattern
    paths = sorted(glob.glob(pattern_in_folder), key=os.fsencode)
    if not paths:
        raise FileError(pattern or "''", "matches no file")
    return paths


def _whole(name: str, value: Any) -> int:
    """A whole number of a saved state. Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ConfigError(f"data {name}", shown(value), "expected a whole number")
    return int(value)


def _permutation(name: str, order: Any, n: int) -> NDArray[np.int32]:
    found = np.asarray(order)
    if found.dtype.kind not in "iu":
        raise ConfigError(f"data {name}", shown(found.dtype), "expected whole numbers")
    if found.shape != (n,) or not np.array_equal(np.sort(found), np.arange(n)):
        raise ConfigError(f"data {name}", found.size, f"expected an order of {n}")
    return found.astype(np.int32)


def digest(path: str) -> str:
    """SHA-256 of a file's size and of up to 1024 evenly spaced blocks of 64 KiB.

    A resumed run detects other data without reading 20 GB.
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
