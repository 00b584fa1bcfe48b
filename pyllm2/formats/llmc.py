"""llm.c's GPT-2 checkpoints, and the debug states that come with them.

A checkpoint is a header — magic, version, six sizes — and 16 arrays without a gap, each with all
layers of its kind: float32 in version 3, bfloat16 in version 5. A debug state is one batch, and
what a reference made of it: logits, loss, gradients.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FormatError
from pyllm2.formats.header import HEADER_BYTES, header_bytes, read_fields, require_version
from pyllm2.formats.reader import Source, open_source
from pyllm2.formats.writer import atomic_write

Array = NDArray[np.float32]

MAGIC = 20240326
DEBUG_MAGIC, DEBUG_VERSION = 20240327, 2
FLOAT32, BFLOAT16 = 3, 5  # versions
FIELDS = (
    "max_seq_len", "vocab_size", "num_layers", "num_heads", "channels", "padded_vocab_size",
)  # fmt: skip
BYTE_OF = {name: 8 + 4 * i for i, name in enumerate(FIELDS)}


@dataclass(frozen=True)
class Header:
    """What a checkpoint says of itself; `values` has FIELDS."""

    version: int
    values: dict[str, int]

    @property
    def bytes_per_number(self) -> int:
        return 4 if self.version == FLOAT32 else 2


def read_header(source: Source) -> Header:
    """Version and sizes; whether a model can have these sizes is not judged here, but signs are.

    Raises FormatError for another magic or version, or a size below 1; FileError naming the kind
    of file, where that can be told.
    """
    fields = read_fields(source, (MAGIC,), "a GPT-2 checkpoint")
    require_version(source, fields[1], (FLOAT32, BFLOAT16), "3 (float32) and 5 (bfloat16) are")
    values = dict(zip(FIELDS, fields[2:8], strict=True))
    for name, value in values.items():
        if value < 1:
            raise FormatError.field(source.path, name, value, BYTE_OF[name], "must be at least 1")
    return Header(fields[1], values)


def layout(values: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the 16 arrays, in the order of the file. Matrices are (out, in)."""
    S, _, L, _, C, Vp = (values[name] for name in FIELDS)
    return {
        "wte": (Vp, C),
        "wpe": (S, C),
        "ln1w": (L, C),
        "ln1b": (L, C),
        "qkvw": (L, 3 * C, C),
        "qkvb": (L, 3 * C),
        "attprojw": (L, C, C),
        "attprojb": (L, C),
        "ln2w": (L, C),
        "ln2b": (L, C),
        "fcw": (L, 4 * C, C),
        "fcb": (L, 4 * C),
        "fcprojw": (L, C, 4 * C),
        "fcprojb": (L, C),
        "lnfw": (C,),
        "lnfb": (C,),
    }


def check_size(source: Source, header: Header) -> int:
    """How many numbers the file holds, after comparing its size with the header.

    Raises FormatError with the bytes found and needed, and the array in which the file ends.
    """
    sizes = {
        name: header.bytes_per_number * math.prod(shape)
        for name, shape in layout(header.values).items()
    }
    require_size(source, {"header": HEADER_BYTES, **sizes})
    return sum(sizes.values()) // header.bytes_per_number


def require_size(source: Source, sizes: Mapping[str, int]) -> None:
    """Compare the file with the bytes of its parts, in order, as Python integers: none wraps.

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


def read_numbers(source: Source, header: Header) -> Array:
    """All 16 arrays as one long vector of float32, the caller's to write into.

    Raises FormatError if the size of the file is not what the header says.
    """
    n = check_size(source, header)
    body = source.read_range(HEADER_BYTES, n * header.bytes_per_number)
    return body.view("<f4") if header.version == FLOAT32 else from_bfloat16(body.view("<u2"))


def from_bfloat16(bits: NDArray[np.uint16]) -> Array:
    """bfloat16 is the upper half of a float32: exact."""
    out = np.empty(len(bits), np.float32)
    words = out.view(np.uint32)
    words[:] = bits
    words <<= np.uint32(16)
    return out


def arrays_of(values: Mapping[str, int], numbers: Array) -> dict[str, Array]:
    """The 16 arrays by name, as views of the long vector."""
    arrays, start = {}, 0
    for name, shape in layout(values).items():
        end = start + math.prod(shape)
        arrays[name] = numbers[start:end].reshape(shape)
        start = end
    return arrays


def write_checkpoint(
    path: str | os.PathLike[str], values: Mapping[str, int], arrays: Mapping[str, Array]
) -> None:
    """Write a float32 checkpoint, atomically, from arrays of any memory layout.

    Raises ValueError (a mistake of the caller) for an array of the wrong shape.
    """
    with atomic_write(path) as file:
        file.write(header_bytes(MAGIC, FLOAT32, *(values[name] for name in FIELDS)))
        for name, shape in layout(values).items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name} has shape {arrays[name].shape}, expected {shape}")
            file.write(np.ascontiguousarray(arrays[name], dtype="<f4").data)


@dataclass(frozen=True)
class DebugState:
    """One batch and what a reference computed from it."""

    tokens: NDArray[np.int32]  # (B, T)
    targets: NDArray[np.int32]  # (B, T)
    logits: Array  # (B, T, V)
    loss: float  # the mean
    gradients: dict[str, Array]  # of that mean, by the names of the checkpoint


def read_debug_state(path: str | os.PathLike[str], values: Mapping[str, int]) -> DebugState:
    """Read the state that belongs to a checkpoint with these sizes.

    Raises FormatError.
    """
    with open_source(path) as source:
        _, version, B, T, *_ = read_fields(source, (DEBUG_MAGIC,), "a debug state")
        require_version(source, version, (DEBUG_VERSION,), f"{DEBUG_VERSION} is")
        for name, value, byte in (("B", B, 8), ("T", T, 12)):
            if value < 1:
                raise FormatError.field(source.path, name, value, byte, "must be at least 1")
        V = values["vocab_size"]
        gradients = {name: 4 * math.prod(shape) for name, shape in layout(values).items()}
        sizes = {"tokens": 4 * B * T, "targets": 4 * B * T, "logits": 4 * B * T * V, "loss": 4}
        require_size(source, {"header": HEADER_BYTES, **sizes, **gradients})
        body = source.read_range(HEADER_BYTES, source.size - HEADER_BYTES)
    tokens, targets, logits, loss, rest = np.split(body, np.cumsum(list(sizes.values())))
    return DebugState(
        tokens.view("<i4").reshape(B, T),
        targets.view("<i4").reshape(B, T),
        logits.view("<f4").reshape(B, T, V),
        float(loss.view("<f4")[0]),
        arrays_of(values, rest.view("<f4")),
    )
