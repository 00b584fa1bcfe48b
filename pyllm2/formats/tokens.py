"""llm.c's token shards: a header of 1024 bytes, then ids of 16 bits (GPT-2) or 32 (Llama-3).

    int32 magic, version, number of tokens; 253 more that are 0; little-endian ids

A shard may be larger than memory: it is checked and read in pieces.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FormatError
from pyllm2.formats.header import HEADER_BYTES, header_bytes, read_fields, require_version
from pyllm2.formats.reader import Source, open_source
from pyllm2.formats.writer import atomic_write

MOST_TOKENS = 2**31 - 1  # what the header can count
_CHUNK = 2**20  # ids looked at in one go

# magic -> version, type of an id
_VARIANTS: dict[int, tuple[int, np.dtype[Any]]] = {
    20240520: (1, np.dtype("<u2")),
    20240801: (7, np.dtype("<u4")),
}
_MAGIC_OF = {dtype.itemsize: magic for magic, (_, dtype) in _VARIANTS.items()}


@dataclass(frozen=True)
class Shard:
    """A shard that has been found good: `count` ids of type `dtype`."""

    path: str
    count: int
    dtype: np.dtype[Any]

    def read(self, start: int, n: int) -> NDArray[np.int32]:
        """The ids start … start + n - 1, (n,).

        Raises FileError if they are not there: then the file has changed since it was opened.
        """
        size = self.dtype.itemsize
        with open_source(self.path) as source:
            data = source.read_range(HEADER_BYTES + start * size, n * size)
        return data.view(self.dtype).astype(np.int32)


def read_shard(path: str | os.PathLike[str], vocab_size: int | None = None) -> Shard:
    """Check a shard: header, size, and that every id is below vocab_size (None: below 2³¹).

    Raises FormatError naming the field, or the first id that is too large and its index.
    """
    with open_source(path) as source:
        shard = _read_header(source)
        most = 2**31 if vocab_size is None else vocab_size
        if most < 2 ** (8 * shard.dtype.itemsize):
            _check_ids(source, shard, most)
    return shard


def _read_header(source: Source) -> Shard:
    path = source.path
    magic, version, count, *_ = read_fields(source, tuple(_VARIANTS), "a token shard")
    wanted, dtype = _VARIANTS[magic]
    require_version(source, version, (wanted,), f"{wanted} is")
    if count < 1:
        raise FormatError.field(path, "count", count, 8, "must be at least 1")
    end = HEADER_BYTES + count * dtype.itemsize
    if source.size != end:
        raise FormatError.field(
            path, "count", count, 8, f"needs {end} bytes, the file has {source.size}"
        )
    return Shard(path, count, dtype)


def _check_ids(source: Source, shard: Shard, most: int) -> None:
    for start in range(0, shard.count, _CHUNK):
        n = min(_CHUNK, shard.count - start)
        size = shard.dtype.itemsize
        ids = source.read_range(HEADER_BYTES + start * size, n * size).view(shard.dtype)
        if ids.max() >= most:
            i = int(np.argmax(ids >= most))
            raise FormatError(
                source.path, f"token {ids[i]} at index {start + i}: vocabulary is {most}"
            )


def write_shard(
    path: str | os.PathLike[str], ids: NDArray[np.integer], bytes_per_id: int = 2
) -> None:
    """Write a shard, atomically; ids of 2 bytes (GPT-2's variant) or 4 (Llama-3's).

    Raises ValueError (a mistake of the caller) for an id that does not fit, no ids, or too many.
    """
    magic = _MAGIC_OF[bytes_per_id]
    version, dtype = _VARIANTS[magic]
    if not 1 <= len(ids) <= MOST_TOKENS:
        raise ValueError(f"{len(ids)} ids: a shard has 1 to {MOST_TOKENS}")
    if ids.min() < 0 or ids.max() > np.iinfo(dtype).max:
        raise ValueError(f"ids from {ids.min()} to {ids.max()} do not fit in {bytes_per_id} bytes")
    with atomic_write(path) as file:
        file.write(header_bytes(magic, version, len(ids)))
        for start in range(0, len(ids), _CHUNK):
            file.write(ids[start : start + _CHUNK].astype(dtype).tobytes())
