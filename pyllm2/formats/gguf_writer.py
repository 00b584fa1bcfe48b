"""Write GGUF, version 3, one tensor at a time.

Metadata values are written by their Python type: bool, int (u32), float (f32), str, a list of str,
of int (i32) or of float (f32), a NumPy scalar or array of any number type. `gguf` has the layout.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FileError
from pyllm2.formats.gguf import ALIGNMENT, ARRAY, MAGIC, MAX_NAME, NUMBERS, STRING
from pyllm2.formats.gguf_blocks import BY_NAME, CHUNK, BlockType
from pyllm2.formats.writer import atomic_write

Array = NDArray[np.float32]

VERSION = 3
DTYPES = tuple(kind.name.lower() for kind in BY_NAME.values() if kind.quantize)  # f32, f16, …
FILE_TYPE = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}  # general.file_type, a label
_TYPE_OF = {np.dtype(text).str: number for number, text in NUMBERS.items()}


@dataclass(frozen=True)
class NewTensor:
    """A tensor to write. `read` returns its numbers, float32, when their turn comes."""

    name: str
    shape: tuple[int, ...]
    kind: BlockType
    read: Callable[[], Array]

    @property
    def nbytes(self) -> int:
        return self.kind.size(math.prod(self.shape))


def kind_for(dtype: str, shape: tuple[int, ...]) -> BlockType:
    """The format of a tensor in a file of this dtype.

    Vectors are always F32, and a matrix whose rows are no whole blocks is F16, as in llama.cpp.
    """
    kind = BY_NAME[dtype.upper()]
    if len(shape) < 2:
        return BY_NAME["F32"]
    return BY_NAME["F16"] if shape[-1] % kind.numbers else kind


def write_model(
    path: str | os.PathLike[str],
    arch: str,
    sizes: Mapping[str, Any],
    tensors: Sequence[NewTensor],
    dtype: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the tensors of an architecture, with what every model's metadata say.

    sizes: metadata whose keys are without the architecture   more: with whole keys
    dtype: what `general.file_type` says of the matrices (None: what most of them are)

    Raises what `write_gguf` raises.
    """
    kinds = [tensor.kind.name.lower() for tensor in tensors if len(tensor.shape) > 1]
    label = dtype or max(kinds, key=kinds.count)
    values = {"general.architecture": arch, **(more or {})}
    values |= {f"{arch}.{key}": value for key, value in sizes.items()}
    values |= {"general.file_type": FILE_TYPE[label], "general.quantization_version": 2}
    write_gguf(path, values, tensors)


def write_gguf(
    path: str | os.PathLike[str], metadata: Mapping[str, Any], tensors: Sequence[NewTensor]
) -> None:
    """Write a file, atomically. Needs the memory of the largest tensor.

    Raises FileError from the operating system, or naming a tensor that its format cannot hold
    (more than 65504 in F16); whatever `read` raises.
    """
    header = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        header += _string(key) + _entry(value)
    offset = 0
    for tensor in tensors:
        name, ne = _string(tensor.name), tensor.shape[::-1]
        if len(name) - 8 > MAX_NAME:
            raise ValueError(f"tensor {tensor.name!r}: its name exceeds {MAX_NAME} bytes")
        header += name + struct.pack(f"<I{len(ne)}Q", len(ne), *ne)
        header += struct.pack("<IQ", tensor.kind.id, offset)
        offset += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    with atomic_write(path) as file:
        file.write(header + _padding(len(header)))
        for tensor in tensors:
            for piece in _pieces(path, tensor):
                file.write(piece)
            file.write(_padding(tensor.nbytes))


def _pieces(path: str | os.PathLike[str], tensor: NewTensor) -> Any:
    """The data of a tensor, piece by piece."""
    numbers, quantize = tensor.read(), tensor.kind.quantize
    if numbers.shape != tensor.shape or quantize is None:
        raise ValueError(f"{tensor.name} has shape {numbers.shape}, expected {tensor.shape}")
    flat = np.ascontiguousarray(numbers, np.float32).reshape(-1, tensor.kind.numbers)
    step = CHUNK // tensor.kind.numbers
    for start in range(0, len(flat), step):
        piece = flat[start : start + step]
        with np.errstate(all="ignore"):
            data = quantize(piece)
        if tensor.kind.name != "F32":
            _require_finite(path, tensor, piece, data)
        yield data.data


def _require_finite(
    path: str | os.PathLike[str], tensor: NewTensor, piece: Array, data: NDArray[Any]
) -> None:
    """Raises FileError if numbers are infinite or NaN: blocks share a scale, half has a limit."""
    with np.errstate(all="ignore"):
        written = tensor.kind.dequantize(data)
    if not np.isfinite(written).all():
        largest = np.abs(piece).max()
        problem = f"has numbers up to {largest:g}: too large for {tensor.kind.name}"
        if not np.isfinite(largest):
            problem = f"has a number that is {largest:g}: {tensor.kind.name} is for finite ones"
        raise FileError(path, f"tensor {tensor.name!r} {problem}, write f32")


def _padding(n: int) -> bytes:
    return b"\0" * (-n % ALIGNMENT)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _entry(value: Any) -> bytes:
    """Type and value of a metadata entry."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, list) and value and not isinstance(value[0], str):
        value = np.array(value, np.int32 if isinstance(value[0], int) else np.float32)
    if isinstance(value, list):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
    by_type = {bool: np.bool_, int: np.uint32, float: np.float32}
    array = np.asarray(value, by_type.get(type(value)))
    little = array.astype(array.dtype.newbyteorder("<"))
    type_id = struct.pack("<I", _TYPE_OF[little.dtype.str])
    if array.ndim == 0:
        return type_id + little.tobytes()
    return struct.pack("<I", ARRAY) + type_id + struct.pack("<Q", len(array)) + little.tobytes()
