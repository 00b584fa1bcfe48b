"""Two orders of the numbers that RoPE turns in pairs, and the way from one to the other.

    interleaved   pairs 2i and 2i + 1        llama2.c, Meta, GGUF of architecture llama, pyllm2
    half-split    pairs i and i + hs/2       Hugging Face, GGUF of architectures qwen2 and qwen3

What makes queries and keys (rows of wq and wk, their biases, q_norm and k_norm) is in one of the
two; reordered, the model computes the same. Nothing in a file says which it has: the container and
the architecture decide.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)  # rows may be bytes, each row's blocks


def interleaved(rows: NDArray[Scalar], heads: int) -> NDArray[Scalar]:
    """From half-split order. rows: (heads · hs, …)

    Example: interleaved([0, 1, 2, 3], 1) -> [0, 2, 1, 3]
    """
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])  # (heads, 2, hs/2, …)
    return halves.swapaxes(1, 2).reshape(rows.shape)


def half_split(rows: NDArray[Scalar], heads: int) -> NDArray[Scalar]:
    """From interleaved order. rows: (heads · hs, …)

    Example: half_split([0, 2, 1, 3], 1) -> [0, 1, 2, 3]
    """
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])  # (heads, hs/2, 2, …)
    return pairs.swapaxes(1, 2).reshape(rows.shape)
