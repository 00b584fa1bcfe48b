"""Arrays in memory layouts that users have."""

from __future__ import annotations

from typing import Any

import numpy as np


def with_gaps(a: Any) -> Any:
    """An equal array as a transposed view with a gap after every element."""
    if not isinstance(a, np.ndarray):
        return a
    memory = np.full([2 * n for n in a.shape[::-1]], 7, a.dtype)
    view = memory[(slice(None, None, 2),) * a.ndim].T
    view[...] = a
    return view
