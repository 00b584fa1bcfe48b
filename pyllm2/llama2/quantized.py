"""A matrix, or a stack of one a layer, in int8 with a scale a group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Quantized:
    """values: (rows, cols) or (L, rows, cols) int8; scales: (groups,) or (L, groups) float32.

    Groups of `group_size` are cut from each flattened matrix.
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
