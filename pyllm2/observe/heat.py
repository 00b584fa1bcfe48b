"""An array as a small picture: a grid of cells, each of which stands for one or more elements.

A cell shows the element with the largest magnitude of those it stands for, so that what stands out
in the array stands out in the picture; NaN counts as the largest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Colour = tuple[int, int, int]

ZERO: Colour = (46, 48, 54)
POSITIVE: Colour = (96, 176, 255)
NEGATIVE: Colour = (255, 150, 70)
NAN: Colour = (255, 0, 255)
INFINITE: Colour = (255, 255, 255)
SHADES = " .:-=+*#%@"
MOST_ELEMENTS = 2**20  # of a larger array every n-th row is shown


@dataclass
class Picture:
    """Cells in rows and columns.

    values: (rows, columns) float64   chosen: index of each cell's element, -1 where there is none
    """

    values: Array
    chosen: NDArray[np.int64]
    shape: tuple[int, ...]
    elements: tuple[int, int]  # rows and columns of elements in a cell
    scale: float  # largest finite magnitude
    every: int = 1  # n-th row of the array

    def index(self, row: int, column: int) -> tuple[int, ...] | None:
        """Where in the array the element of a cell is; None if the cell is empty."""
        flat = int(self.chosen[row, column])
        if flat < 0:
            return None
        return tuple(int(i) for i in np.unravel_index(flat, self.shape)) if self.shape else ()

    def colour(self, row: int, column: int) -> Colour | None:
        """None where a cell is empty."""
        if self.chosen[row, column] < 0:
            return None
        return colour(float(self.values[row, column]), self.scale)

    @property
    def legend(self) -> str:
        """Example: "each cell: the largest of 2 × 3 elements"; "" where it is one."""
        rows, columns = self.elements
        parts = [f"each cell: the largest of {rows} × {columns}"] if rows * columns > 1 else []
        parts += [f"every {self.every}th row"] if self.every > 1 else []
        return ", ".join(parts)


def colour(value: float, scale: float) -> Colour:
    """Grey at 0, blue at scale, orange at -scale; brightness goes with the square root."""
    if math.isnan(value):
        return NAN
    if math.isinf(value):
        return INFINITE
    share = math.sqrt(min(abs(value) / scale, 1.0)) if scale > 0 else 0.0
    end = POSITIVE if value >= 0 else NEGATIVE
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(ZERO, end, strict=True))
    return red, green, blue


def shade(value: float, scale: float) -> str:
    """The same as a character, for a terminal without colours: the sign is not shown."""
    if math.isnan(value):
        return "N"
    if math.isinf(value):
        return "I"
    share = math.sqrt(min(abs(value) / scale, 1.0)) if scale > 0 else 0.0
    return SHADES[round(share * (len(SHADES) - 1))]


def picture(array: Array, columns: int, rows: int) -> Picture:
    """A picture of at most `rows` × `columns` cells.

    A vector is written in lines, like text; of an array with more axes all but the last are rows.
    """
    array = np.asarray(array)
    flat = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(1, -1)
    every = max(1, -(-flat.size // MOST_ELEMENTS))
    every = every if len(flat) > every else 1
    shown = flat[::every]
    R, K = shown.shape
    numbers = np.arange(shown.size).reshape(R, K)
    if R == 1 and columns < K:  # in lines, each as wide as the picture
        per_cell = -(-K // (columns * rows))
        numbers = _padded(numbers, 1, columns * per_cell).reshape(-1, columns * per_cell)
        elements = 1, per_cell
    else:
        elements = -(-R // rows), -(-K // columns)
    a, b = elements
    numbers = _padded(numbers, a, b)
    n, m = numbers.shape[0] // a, numbers.shape[1] // b
    blocks = numbers.reshape(n, a, m, b).transpose(0, 2, 1, 3).reshape(n, m, -1)
    values = np.append(shown.reshape(-1).astype(np.float64), 0.0)[blocks]  # -1: the one appended
    with np.errstate(all="ignore"):
        size = np.where(np.isnan(values), np.inf, np.abs(values))
    pick = np.argmax(np.where(blocks < 0, -1.0, size), axis=-1)[..., None]
    values = np.take_along_axis(values, pick, -1)[..., 0]
    finite = values[np.isfinite(values)]
    scale = float(np.abs(finite).max()) if finite.size else 0.0
    chosen = np.take_along_axis(blocks, pick, -1)[..., 0]
    chosen = np.where(chosen < 0, -1, chosen // K * every * K + chosen % K)  # in the whole array
    return Picture(values, chosen, array.shape, elements, scale, every)


def _padded(numbers: NDArray[np.int64], a: int, b: int) -> NDArray[np.int64]:
    """With -1 to multiples of a and b."""
    R, K = numbers.shape
    return np.pad(numbers, ((0, -R % a), (0, -K % b)), constant_values=-1)


def lines_of(found: Picture, coloured: bool) -> list[str]:
    """The picture for a terminal: two rows of cells per line in colour, else one in characters."""
    R, K = found.values.shape
    if not coloured:
        return [
            "".join(
                shade(float(found.values[r, k]), found.scale) if found.chosen[r, k] >= 0 else " "
                for k in range(K)
            ).rstrip()
            for r in range(R)
        ]
    lines = []
    for r in range(0, R, 2):
        cells = []
        for k in range(K):
            top = found.colour(r, k)
            below = found.colour(r + 1, k) if r + 1 < R else None
            cells.append(half_block(top, below))
        lines.append("".join(cells) + "\x1b[0m")
    return lines


def half_block(top: Colour | None, below: Colour | None) -> str:
    """Two cells above each other as one character."""
    if top is None and below is None:
        return "\x1b[0m "
    if top is None and below is not None:
        return f"\x1b[0;38;2;{below[0]};{below[1]};{below[2]}m▄"
    assert top is not None
    first = f"\x1b[0;38;2;{top[0]};{top[1]};{top[2]}"
    return f"{first}m▀" if below is None else f"{first};48;2;{below[0]};{below[1]};{below[2]}m▀"
