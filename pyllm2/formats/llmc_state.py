"""The optimizer and loader state of one process of llm.c's CUDA trainer: `state_STEP_RANK.bin`.

A header of 256 int32, some of which are halves of a uint64; the moments m and v of the parameters
that the process keeps, in float32; its float32 master weights, if it has them; and, if it shuffles,
the order of shards and samples with the state of the Mersenne Twister that made them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FormatError
from pyllm2.formats.llmc_header import HEADER_BYTES, read_fields, require_version
from pyllm2.formats.reader import Source, open_source

Array = NDArray[np.float32]

MAGIC, VERSION = 20240527, 1
PROCESSES, RANK, MASTER, SHUFFLES, STEP, SHARD, SAMPLE = 2, 3, 4, 5, 10, 30, 32  # fields
RNG_BYTES, RNG_WORDS = 2520, 624
MOST = 2**31  # shards or samples


@dataclass(frozen=True)
class State:
    """What a file holds.

    n: number of parameters that the process keeps   master: their weights, or None
    loader: as `training.loader.DataLoader.restore` takes it
    """

    path: str
    processes: int
    rank: int
    step: int
    shuffles: bool
    n: int
    m: Array
    v: Array
    master: Array | None
    loader: dict[str, Any]


def read_state(path: str | os.PathLike[str], n: int) -> State:
    """Read the state of a model of n parameters, of which the process keeps all or its part.

    Raises FileError; FormatError for another kind of file or size, or a field out of range.
    """
    with open_source(path) as source:
        fields = read_fields(source, (MAGIC,), "a state of llm.c's trainer")
        require_version(source, fields[1], (VERSION,), "1 is")
        processes = _in_range(source, fields, PROCESSES, 1, 2**16, "processes")
        rank = _in_range(source, fields, RANK, 0, processes - 1, "rank")
        has_master, shuffles = (
            bool(_in_range(source, fields, field, 0, 1, name))
            for field, name in ((MASTER, "master weights"), (SHUFFLES, "shuffles"))
        )
        step = _in_range(source, fields, STEP, 0, 2**31 - 1, "step")
        loader = {"shard": _u64(source, SHARD), "sample": _u64(source, SAMPLE)}
        kept = _kept(source, n, processes, 2 + has_master, shuffles)
        arrays = [
            source.read_range(HEADER_BYTES + 4 * kept * i, 4 * kept).view("<f4")
            for i in range(2 + has_master)
        ]
        if shuffles:
            loader |= _shuffling(source, HEADER_BYTES + 4 * kept * (2 + has_master))
        m, v = arrays[:2]
        master = arrays[2] if has_master else None
        return State(source.path, processes, rank, step, shuffles, kept, m, v, master, loader)


def is_shuffled(path: str | os.PathLike[str]) -> bool:
    """Whether the run that wrote a state shuffles its data. Raises FileError, FormatError."""
    with open_source(path) as source:
        fields = read_fields(source, (MAGIC,), "a state of llm.c's trainer")
        return bool(_in_range(source, fields, SHUFFLES, 0, 1, "shuffles"))


def _in_range(source: Source, fields: Any, i: int, low: int, high: int, name: str) -> int:
    if not low <= fields[i] <= high:
        raise FormatError.field(source.path, name, fields[i], 4 * i, f"expected {low} to {high}")
    return int(fields[i])


def _u64(source: Source, i: int) -> int:
    found = int.from_bytes(source.head[4 * i : 4 * i + 8], "little")
    if found >= MOST:
        name = "shard" if i == SHARD else "sample"
        raise FormatError.field(source.path, name, found, 4 * i, f"expected less than {MOST}")
    return found


def _kept(source: Source, n: int, processes: int, arrays: int, shuffles: bool) -> int:
    """The parameters that the process keeps: the number with which the file has its size."""
    choices = [n, *([n // processes] if processes > 1 and n % processes == 0 else [])]
    sizes = []
    for kept in choices:
        end = HEADER_BYTES + 4 * kept * arrays
        if shuffles:
            end = _end_of_shuffling(source, end)
        if end == source.size:
            return kept
        sizes.append(end)
    words = " or ".join(map(str, sizes))
    raise FormatError(source.path, f"{source.size} bytes: a state of {n} parameters has {words}")


def _end_of_shuffling(source: Source, start: int) -> int:
    """The byte behind the shuffling state; that of its shortest if the file is too short."""
    at = start
    for _ in range(2):
        count = _count(source, at) if at + 8 <= source.size else 0
        at += 8 + 4 * min(count, MOST)
    return at + RNG_BYTES


def _count(source: Source, at: int) -> int:
    return int(source.read_range(at, 8).view("<u8")[0])


def _shuffling(source: Source, at: int) -> dict[str, Any]:
    """The fields of a shuffled loader; the file's size has been checked."""
    found: dict[str, Any] = {}
    for name in ("shard_order", "sample_order"):
        count = _count(source, at)
        found[name] = source.read_range(at + 8, 4 * count).view("<i4")
        at += 8 + 4 * count
    left = int(source.read_range(at + 8, 4).view("<i4")[0])
    if not 1 <= left <= RNG_WORDS:
        expected = f"expected 1 to {RNG_WORDS}"
        raise FormatError.field(source.path, "generator's left", left, at + 8, expected)
    words = source.read_range(at + 16, 4 * RNG_WORDS).view("<u4")
    return found | {"rng_words": words, "rng_position": RNG_WORDS + 1 - left}
