"""The optimizer of `ops.py` in C: the same names and order, over csrc/common/adamw.c."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyllm2.compiling.c_library import floats, library

Array = NDArray[np.float32]


class Ops:
    """One build of the C library, as an ops module."""

    def __init__(self, build: str, threads: int | None = None) -> None:
        self.build = build
        self._c = library("adamw", build, threads)

    def adamw_update(
        self,
        w: Array,
        dw: Array,
        m: Array,
        v: Array,
        t: int,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        scale: float = 1.0,
    ) -> None:
        """w, m and v are updated in place: TypeError unless they are contiguous float32 arrays."""
        hyper = (lr, beta1, beta2, eps, weight_decay, scale)
        self._c.update(w, floats(dw), m, v, w.size, t, *hyper)

    def global_norm(self, dw: Array) -> float:
        return self._c.global_norm(floats(dw), dw.size)
