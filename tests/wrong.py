"""Ops that are slightly wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np


def off_by(ops: Any, part: float, name: str) -> Any:
    """The ops with the results of one scaled by 1 + part."""

    def scaled(*inputs: Any) -> Any:
        found = getattr(ops, name)(*inputs)
        if isinstance(found, np.ndarray):
            return found * found.dtype.type(1 + part)
        return tuple(a * a.dtype.type(1 + part) for a in found)

    return SimpleNamespace(**{**vars(ops), name: scaled})
