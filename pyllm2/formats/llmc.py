"""llm.c's GPT-2 checkpoints, and the debug states that belong to them.

A checkpoint is a header (magic number, version, six sizes) and 16 arrays without gaps, each with
all layers: float32 in version 3, bfloat16 in version 5. A debug state is a batch with the logits,
loss and gradients of a reference implementation.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FormatError
from pyllm2.formats.llmc_header import HEADER_BYTES, header_bytes, read_fields, require_version
from pyllm2.formats.reader import Source, open_source
from pyllm2.formats.tensors import narrowed
from pyllm2.formats.writer import atomic_write

Array = NDArray[np.float32]
Shape = tuple[int, ...]

MAGIC = 20240326
DEBUG_MAGIC, DEBUG_VERSION = 20240327, 2
FLOAT32, BFLOAT16 = 3, 5  # versions
FIELDS = tuple("max_seq_len vocab_size num_layers num_heads channels padded_vocab_size".split())
BYTE_OF = {name: 8 + 4 * i for i, name in enumerate(FIELDS)}


@dataclass(frozen=True)
class Header:
    """The header of a checkpoint; `values` has FIELDS."""

    version: int
    values: dict[str, int]

    @property
    def bytes_per_number(self) -> int:
        return 4 if self.version == FLOAT32 else 2


def read_header(source: Source) -> Header:
    """Version and sizes; whether the sizes fit together is not checked here.

    Raises FormatError for another magic number or version, FileError for another kind of file that
    is recognised.
    """
    fields = read_fields(source, (MAGIC,), "a GPT-2 checkpoint")
    require_version(source, fields[1], (FLOAT32, BFLOAT16), "3 (float32) and 5 (bfloat16) are")
    values = dict(zip(FIELDS, fields[2:8], strict=True))
    return Header(fields[1], values)


def check_size(source: Source, header: Header, shapes: Mapping[str, Shape]) -> None:
    """Compare the file's size with the shapes of its arrays, given in the order of the file.

    Raises FormatError with the bytes found and needed, and the array in which the file ends.
    """
    sizes = {name: header.bytes_per_number * math.prod(shape) for name, shape in shapes.items()}
    require_size(source, {"header": HEADER_BYTES, **sizes})


def require_size(source: Source, sizes: Mapping[str, int]) -> None:
    """Compare the file's size with the bytes of its parts, in order.

    Raises FormatError.
    """
    end, ends_in = 0, ""
    for name, nbytes in sizes.items():
        end += nbytes
        if end > source.size and not ends_in:
            ends_in = name
    if ends_in:
        raise FormatError(
            source.path,
            f"{source.size} bytes, but its header needs {end} ({end - source.size} missing, "
            f"from {ends_in} on): download incomplete?",
        )
    if source.size > end:
        raise FormatError(
            source.path,
            f"{source.size - end} bytes after the last array (which ends at byte {end}): "
            "not a file of this shape",
        )


def read_numbers(source: Source, header: Header, memory_map: bool = False) -> Array:
    """All arrays as one writable float32 vector, of a file whose size has been checked.

    memory_map: see `Source.read_all`; bfloat16 numbers are copied in any case.
    """
    body = source.read_all(memory_map, HEADER_BYTES, writable=True)[HEADER_BYTES:]
    return body.view("<f4") if header.version == FLOAT32 else from_bfloat16(body.view("<u2"))


def from_bfloat16(bits: NDArray[np.uint16]) -> Array:
    """bfloat16 as float32, of which it is the upper half: exact."""
    out = np.empty(len(bits), np.float32)
    words = out.view(np.uint32)
    words[:] = bits
    words <<= np.uint32(16)
    return out


def arrays_of(shapes: Mapping[str, Shape], numbers: Array) -> dict[str, Array]:
    """The arrays by name, as views of the vector."""
    arrays, start = {}, 0
    for name, shape in shapes.items():
        end = start + math.prod(shape)
        arrays[name] = numbers[start:end].reshape(shape)
        start = end
    return arrays


def write_checkpoint(
    path: str | os.PathLike[str],
    values: Mapping[str, int],
    parts: Iterable[Array],
    version: int = FLOAT32,
) -> None:
    """Write a checkpoint, atomically, in float32 or bfloat16 (to nearest, ties to even).

    parts: the numbers of all arrays in the order of the file, whose turn comes one by one

    Raises FileError from the operating system, and what `parts` raises.
    """
    dtype = "F32" if version == FLOAT32 else "BF16"
    with atomic_write(path) as file:
        file.write(header_bytes(MAGIC, version, *(values[name] for name in FIELDS)))
        for part in parts:
            file.write(np.ascontiguousarray(narrowed(part, dtype)).data)


@dataclass(frozen=True)
class DebugState:
    """A batch, and what a reference implementation computed from it."""

    tokens: NDArray[np.int32]  # (B, T)
    targets: NDArray[np.int32]  # (B, T)
    logits: Array  # (B, T, V)
    loss: float  # the mean
    gradients: dict[str, Array]  # of the mean loss


def read_debug_state(
    path: str | os.PathLike[str], V: int, shapes: Mapping[str, Shape]
) -> DebugState:
    """Read the state that belongs to a checkpoint with vocabulary size V and these shapes.

    Raises FormatError.
    """
    with open_source(path) as source:
        _, version, B, T, *_ = read_fields(source, (DEBUG_MAGIC,), "a debug state")
        require_version(source, version, (DEBUG_VERSION,), f"{DEBUG_VERSION} is")
        for name, value, byte in (("B", B, 8), ("T", T, 12)):
            if value < 1:
                raise FormatError.field(source.path, name, value, byte, "must be at least 1")
        gradients = {name: 4 * math.prod(shape) for name, shape in shapes.items()}
        sizes = {"tokens": 4 * B * T, "targets": 4 * B * T, "logits": 4 * B * T * V, "loss": 4}
        require_size(source, {"header": HEADER_BYTES, **sizes, **gradients})
        body = source.read_range(HEADER_BYTES, source.size - HEADER_BYTES)
    tokens, targets, logits, loss, rest = np.split(body, np.cumsum(list(sizes.values())))
    return DebugState(
        tokens.view("<i4").reshape(B, T),
        targets.view("<i4").reshape(B, T),
        logits.view("<f4").reshape(B, T, V),
        float(loss.view("<f4")[0]),
        arrays_of(shapes, rest.view("<f4")),
    )
