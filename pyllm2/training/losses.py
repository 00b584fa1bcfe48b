"""The mean loss of a batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mean_loss(losses: NDArray[np.float32]) -> np.float32:
    """Mean over all positions, summed in order in float32, as llm.c sums: the original's bits.

    losses: any shape, float32
    """
    return np.cumsum(losses.reshape(-1), dtype=np.float32)[-1] / np.float32(losses.size)
