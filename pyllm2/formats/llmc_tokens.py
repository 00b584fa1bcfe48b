"""llm.c's token shards: a header of 1024 bytes, then ids of 16 bits (GPT-2) or 32 (Llama-3).

    int32 magic number, version, number of tokens, 253 zeros; then little-endian ids

A shard may be larger than memory: it is checked and read in chunks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FormatError
from pyllm2.formats.llmc_header import HEADER_BYTES, header_bytes, read_fields, require_version
from pyllm2.formats.reader import Source, open_source
from pyllm2.formats.writer import atomic_write

MAX_TOKENS = 2**31 - 1  # the count is an int32
_CHUNK = 2**20  # ids per chunk

# magic number -> version, dtype of the ids
_VARIANTS: dict[int, tuple[int, np.dtype[Any]]] = {
    20240520: (1, np.dtype("<u2")),
    20240801: (7, np.dtype("<u4")),
}
_MAGICS = [magic.to_bytes(4, "little") for magic in _VARIANTS]
_NO_HEADER = (
    "if these are ids without a header, as nanoGPT and llama2.c store them: "
    "write shards from the text with pyllm2 data prepare"
)
_MAGIC_OF = {dtype.itemsize: magic for magic, (_, dtype) in _VARIANTS.items()}


@dataclass(frozen=True)
class Shard:
    """A shard that has been checked: `count` ids of type `dtype`."""

    path: str
    count: int
    dtype: np.dtype[Any]

    def read(self, start: int, n: int) -> NDArray[np.int32]:
        """The ids start … start + n - 1, (n,).

        Raises FileError if the file has become shorter.
        """
        size = self.dtype.itemsize
        with open_source(self.path) as source:
            data = source.read_range(HEADER_BYTES + start * size, n * size)
        return data.view(self.dtype).astype(np.int32)


def read_shard(path: str | os.PathLike[str], vocab_size: int | None = None) -> Shard:
    """Check the header and size of a shard, and that every id is < vocab_size (None: < 2³¹).

    Raises FormatError naming the field, or the first id that is too large and its index.
    """
    with open_source(path) as source:
        shard = _read_header(source)
        limit = 2**31 if vocab_size is None else vocab_size
        if limit < 2 ** (8 * shard.dtype.itemsize):
            _check_ids(source, shard, limit)
    return shard


def _read_header(source: Source) -> Shard:
    path = source.path
    try:
        magic, version, count, *_ = read_fields(source, tuple(_VARIANTS), "a token shard")
    except FormatError as error:
        if source.size % 2 or source.size == 0 or source.head[:4] in _MAGICS:
            raise
        raise FormatError(path, f"{error.reason}; {_NO_HEADER}") from None
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


def _check_ids(source: Source, shard: Shard, limit: int) -> None:
    for start in range(0, shard.count, _CHUNK):
        n = min(_CHUNK, shard.count - start)
        size = shard.dtype.itemsize
        ids = source.read_range(HEADER_BYTES + start * size, n * size).view(shard.dtype)
        if ids.max() >= limit:
            i = int(np.argmax(ids >= limit))
            raise FormatError(
                source.path, f"token {ids[i]} at index {start + i}: vocabulary is {limit}"
            )


def write_shard(
    path: str | os.PathLike[str], ids: NDArray[np.integer], bytes_per_id: int = 2
) -> None:
    """Write a shard, atomically, with ids of 2 bytes (as for GPT-2) or 4 (as for Llama-3).

    Raises ValueError (a mistake of the caller) for an id that does not fit, no ids, or too many.
    """
    magic = _MAGIC_OF[bytes_per_id]
    version, dtype = _VARIANTS[magic]
    if not 1 <= len(ids) <= MAX_TOKENS:
        raise ValueError(f"{len(ids)} ids: a shard has 1 to {MAX_TOKENS}")
    if ids.min() < 0 or ids.max() > np.iinfo(dtype).max:
        raise ValueError(f"ids from {ids.min()} to {ids.max()} do not fit in {bytes_per_id} bytes")
    with atomic_write(path) as file:
        file.write(header_bytes(magic, version, len(ids)))
        for start in range(0, len(ids), _CHUNK):
            file.write(ids[start : start + _CHUNK].astype(dtype).tobytes())
