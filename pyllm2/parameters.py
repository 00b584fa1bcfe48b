"""Containers of weights: one flat buffer, arrays still in a file, matrices in int8 or in blocks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]


class Parameters(Mapping[str, Array]):
    """Named arrays that are views into one vector `flat`, in the order given.

        p = Parameters({"w": (2, 3), "b": (2,)})
        p["w"] or p.w     (2, 3), a view: writing into it writes into p.flat
        p.flat            (8,)

    Gradients are Parameters of the same shapes. An optimizer works on `flat`.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], flat: Array | None = None) -> None:
        sizes = {name: int(np.prod(shape, dtype=np.int64)) for name, shape in shapes.items()}
        self.flat = np.zeros(sum(sizes.values()), np.float32) if flat is None else flat
        self._views: dict[str, Array] = {}
        start = 0
        for name, shape in shapes.items():
            self._views[name] = self.flat[start : start + sizes[name]].reshape(shape)
            start += sizes[name]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: view.shape for name, view in self._views.items()}

    def zeros_like(self) -> Parameters:
        """The same names and shapes, all zero."""
        return Parameters(self.shapes, np.zeros_like(self.flat))

    def __getattr__(self, name: str) -> Array:
        try:
            return self.__dict__["_views"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, name: str) -> Array:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)


def check_shapes(arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check the shape of each array. Raises ValueError: the caller is wrong, not a file."""
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}, expected {shape}")


@dataclass(frozen=True)
class Quantized:
    """A matrix in int8, or a stack of one per layer, with one scale per group of elements.

    values: (rows, cols) or (L, rows, cols)   scales: (groups,) or (L, groups) float32
    Groups of `group_size` are cut from each flattened matrix. Activations, quantised row by row,
    have scales (rows, cols // group_size).
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float32]
    group_size: int

    def __getitem__(self, layer: int) -> Quantized:
        """The matrix of one layer."""
        return Quantized(self.values[layer], self.scales[layer], self.group_size)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes


@dataclass(frozen=True)
class Packed:
    """A matrix in blocks of GGUF, as they are in a file: numbers are expanded where they are used.

    rows: (OC, bytes of a row)   kind: the id of the block type, see `formats.gguf_blocks`
    """

    rows: Bytes
    kind: int

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes


@dataclass(frozen=True)
class PackedLayers:
    """A stack of one matrix per layer, each in blocks of GGUF of its own kind, or float32.

    data: (bytes,) the matrices one after the other, each from the start of a cache line
    starts: (L,) int64, the byte of `data` where a matrix begins
    kinds: (L,) int32, as of `Packed`; 0: float32
    shape: (L, OC, C)
    """

    data: Bytes
    starts: NDArray[np.int64]
    kinds: NDArray[np.int32]
    row_bytes: tuple[int, ...]  # of each layer
    shape: tuple[int, int, int]

    @classmethod
    def empty(cls, kinds: Sequence[int], row_bytes: Sequence[int], OC: int, C: int) -> PackedLayers:
        """Memory for matrices that are written into `rows` of each layer."""
        sizes = [-(-OC * row // 64) * 64 for row in row_bytes]
        starts = np.cumsum([0, *sizes[:-1]], dtype=np.int64)
        memory = np.empty(sum(sizes) + 128, np.uint8)  # vectors may be read beyond the end
        first = -memory.__array_interface__["data"][0] % 64
        data, shape = memory[first : first + sum(sizes) + 64], (len(sizes), OC, C)
        return cls(data, starts, np.array(kinds, np.int32), tuple(row_bytes), shape)

    @classmethod
    def of(cls, matrices: Sequence[Array | Packed], C: int) -> PackedLayers:
        """A stack of copies of some matrices."""
        kinds = [m.kind if isinstance(m, Packed) else 0 for m in matrices]
        rows = [m.rows if isinstance(m, Packed) else _bytes_of(m) for m in matrices]
        stack = cls.empty(kinds, [r.shape[1] for r in rows], len(rows[0]), C)
        for layer, r in enumerate(rows):
            stack.rows(layer)[...] = r
        return stack

    def rows(self, layer: int) -> Bytes:
        """The bytes of a layer's matrix, (OC, bytes of a row), a view."""
        start, OC, row = int(self.starts[layer]), self.shape[1], self.row_bytes[layer]
        return self.data[start : start + OC * row].reshape(OC, row)

    def __getitem__(self, layer: int) -> Array | Packed:
        """The matrix of one layer."""
        kind, rows = int(self.kinds[layer]), self.rows(layer)
        return Packed(rows, kind) if kind else rows.view(np.float32)

    def part(self, first: int, end: int) -> PackedLayers:
        """The stack of some of the layers; `data` is the same."""
        starts, kinds, rows = self.starts[first:end], self.kinds[first:end], self.row_bytes
        shape = len(kinds), *self.shape[1:]
        return PackedLayers(self.data, starts, kinds, rows[first:end], shape)

    def __len__(self) -> int:
        return len(self.kinds)

    @property
    def nbytes(self) -> int:
        return self.shape[1] * sum(self.row_bytes)


def _bytes_of(matrix: Array) -> Bytes:
    return np.ascontiguousarray(matrix, np.float32).view(np.uint8)


@dataclass(frozen=True)
class Blocks:
    """A matrix that is in blocks of GGUF in its file. read: -> (OC, row_bytes) uint8"""

    kind: int
    row_bytes: int
    read: Callable[[], Bytes]


@dataclass(frozen=True)
class Streamed:
    """A model whose arrays stay in a file until they are asked for, one layer of one at a time.

    path: of the file or folder, for errors
    config: a `Llama2Config` or a `GPT2Config`
    shapes: of every array, with all of its layers, by the names of `config.shapes()`
    read: (name, layer) -> that layer's slice, float32; layer is 0 for an array without layers
    dtype: (name, layer) -> F32, F16 or BF16: the narrowest of these that holds the slice exactly
    blocks: (name, layer) -> the slice in blocks; None: it has none, or none to multiply with
    """

    path: str
    config: Any
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str, int], Array]
    dtype: Callable[[str, int], str] = lambda name, layer: "F32"
    blocks: Callable[[str, int], Blocks | None] = lambda name, layer: None


def slices(
    shapes: Mapping[str, tuple[int, ...]], without_layers: Collection[str]
) -> dict[tuple[str, int], tuple[int, ...]]:
    """(name, layer) -> shape of that layer's slice, in the order of `shapes`.

    Example: {"w": (2, 3), "b": (5,)}, ["b"] -> {("w", 0): (3,), ("w", 1): (3,), ("b", 0): (5,)}
    """
    found = {}
    for name, shape in shapes.items():
        if name in without_layers:
            found[name, 0] = shape
        else:
            found |= {(name, layer): shape[1:] for layer in range(shape[0])}
    return found
