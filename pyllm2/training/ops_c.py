"""The optimizer of `ops.py` over csrc/adamw.c: same names, same order."""

from __future__ import annotations

from ctypes import c_double, c_float

import numpy as np
from numpy.typing import NDArray

from pyllm2.c_library import Library, floats, written_in_place

Array = NDArray[np.float32]


class Ops:
    """One build of the C library, as an ops module."""

    def __init__(self, build: str, threads: int | None = None) -> None:
        self.build = build
        self._call = Library("adamw", build, threads).call

    def adamw_update(
        self, w: Array, dw: Array, m: Array, v: Array, t: int, lr: float,
        beta1: float, beta2: float, eps: float, weight_decay: float, scale: float = 1.0,
    ) -> None:  # fmt: skip
        """w, m and v are written in place: TypeError if they are not float32 without gaps."""
        arrays = (written_in_place(w), floats(dw), written_in_place(m), written_in_place(v))
        numbers = map(c_float, (lr, beta1, beta2, eps, weight_decay, scale))
        self._call("update", *arrays, w.size, t, *numbers)

    def global_norm(self, dw: Array) -> float:
        return self._call("global_norm", floats(dw), dw.size, returns=c_double)
