"""Tensors in files of other programs: where their numbers are, and how they become float32.

A container (safetensors, PyTorch's zip) is parsed into one `Place` per tensor; nothing is read
before a tensor is asked for, and then only that tensor. The numbers are converted piece by piece,
so that reading one needs the memory of its float32 array and little more.

    F32   as it is                F16   IEEE half, widened: exact
    F64   rounded to nearest      BF16  the upper half of a float32: exact
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from pyllm2.errors import FormatError, shown
from pyllm2.formats.reader import Source, open_source

Array = NDArray[np.float32]
Shape = tuple[int, ...]

DTypes = dict[str, np.dtype[Any]]

STORED: DTypes = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
READABLE: DTypes = {**STORED, "F64": np.dtype("<f8")}
_SUPPORTED = "F32, F16, BF16 and F64 are supported"
_PIECE = 2**22  # numbers converted at a time


@dataclass(frozen=True)
class Place:
    """Where a tensor is: the file, the first byte, and the layout of its numbers.

    dtype: a name of `READABLE`, or of another type, which cannot be read
    strides: in numbers, not bytes; None: C order without gaps. The container has checked that every
    number is inside the file.
    """

    path: str
    dtype: str
    shape: Shape
    start: int
    strides: Shape | None = None

    def read(self, name: str) -> Array:
        """The numbers as float32. Raises FileError; FormatError for a type that weights have not.

        name: for errors
        """
        if self.dtype not in READABLE:
            raise FormatError(self.path, f"tensor {name!r}: dtype = {self.dtype}: {_SUPPORTED}")
        dtype, out = READABLE[self.dtype], np.empty(self.shape, np.float32)
        if not out.size:
            return out
        with open_source(self.path) as source:
            if self.strides is None:
                self._read_pieces(source, dtype, out.reshape(-1))
            else:
                last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
                data = source.read_range(self.start, (last + 1) * dtype.itemsize).view(dtype)
                steps = tuple(s * dtype.itemsize for s in self.strides)
                out[...] = widened(as_strided(data, self.shape, steps, writeable=False))
        return out

    def _read_pieces(self, source: Source, dtype: np.dtype[Any], out: Array) -> None:
        for first in range(0, len(out), _PIECE):
            n = min(_PIECE, len(out) - first)
            at = self.start + first * dtype.itemsize
            data = source.read_range(at, n * dtype.itemsize).view(dtype)
            out[first : first + n] = widened(data)


def widened(numbers: NDArray[Any]) -> NDArray[Any]:
    """Numbers of a dtype of `READABLE`; bfloat16 ones, which NumPy does not know, as float32."""
    if numbers.dtype != STORED["BF16"]:
        return numbers
    return (numbers.astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrowed(numbers: Array, dtype: str) -> NDArray[Any]:
    """float32 numbers as they are stored in a dtype of `STORED`: to nearest, ties to even.

    Too large numbers become infinite, which the caller must expect.
    """
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return numbers.astype(STORED[dtype])
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    half = (bits >> np.uint32(16)) & np.uint32(1)
    with np.errstate(over="ignore"):
        rounded = (bits + np.uint32(0x7FFF) + half) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)  # NaN stays NaN
    return np.where(np.isnan(numbers), quiet, rounded).astype(STORED["BF16"])


class Tensors(Mapping[str, Place]):
    """The tensors of a model, of one file or several, by name.

    path: of the file or the folder, for errors
    """

    def __init__(self, path: str, places: Mapping[str, Place]) -> None:
        self.path = path
        self._places = places

    def __getitem__(self, name: str) -> Place:
        return self._places[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, name: str, shape: Shape) -> Array:
        """A tensor as float32. Raises FileError; FormatError if it is missing or misshapen."""
        self.require({name: shape})
        return self[name].read(name)

    def dtype(self, name: str) -> str:
        """F32, F16 or BF16: what holds all numbers that `read` gives exactly."""
        found = self[name].dtype
        return found if found in STORED else "F32"

    def require(self, shapes: Mapping[str, Shape]) -> None:
        """Check that these tensors are here, with these shapes and a dtype that can be read.

        Raises FormatError.
        """
        for name, shape in shapes.items():
            if name not in self:
                raise FormatError(self.path, f"tensor {name!r} is missing")
            place = self[name]
            if place.shape != shape:
                found = f"shape = {words(place.shape)}: expected {words(shape)}"
                raise FormatError(place.path, f"tensor {name!r}: {found}")
            if place.dtype not in READABLE:
                found = f"dtype = {place.dtype}: {_SUPPORTED}"
                raise FormatError(place.path, f"tensor {name!r}: {found}")

    def refuse_others(self, known: Iterable[str]) -> None:
        """Raises FormatError for a tensor that is not one of these names."""
        for name in sorted(self.keys() - set(known)):
            place = self[name]
            raise FormatError(
                place.path, f"tensor {shown(name)} {words(place.shape)}: not part of this model"
            )


def words(shape: Shape) -> str:
    """Example: (2, 3) -> "(2, 3)"; (4,) -> "(4)" """
    return f"({', '.join(map(str, shape))})"


def size_of(shape: Shape) -> int:
    """Number of elements, as a Python integer, which does not overflow."""
    return math.prod(shape)
