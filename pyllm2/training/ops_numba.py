"""The ops of `ops.py` in Numba: the same names in the same order, with explicit loops.

`Ops("fast")` shares the elements between threads and lets LLVM fuse multiply-add. `Ops("strict")`
computes what llm.c's CPU trainer does, to the last bit.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from pyllm2.compiling import numba_build

ONE = np.float32(1)


def adamw_update(w, dw, m, v, t, lr, beta1, beta2, eps, weight_decay, scale=1.0):
    lr_, b1, b2, eps_ = np.float32(lr), np.float32(beta1), np.float32(beta2), np.float32(eps)
    decay, scale_ = np.float32(weight_decay), np.float32(scale)
    correction1 = ONE - np.float32(math.pow(b1, np.float32(t)))
    correction2 = ONE - np.float32(math.pow(b2, np.float32(t)))
    for i in prange(len(w)):
        g = scale_ * dw[i]
        m[i] = b1 * m[i] + (ONE - b1) * g
        v[i] = b2 * v[i] + (ONE - b2) * g * g
        m_hat, v_hat = m[i] / correction1, v[i] / correction2
        w[i] -= lr_ * (m_hat / (np.float32(math.sqrt(v_hat)) + eps_) + decay * w[i])


def global_norm(dw):
    total = 0.0
    for i in prange(len(dw)):
        total += np.float64(dw[i]) * np.float64(dw[i])
    return math.sqrt(total)


class Ops(numba_build.Ops):
    """One build of both functions above, as an ops module."""

    def __init__(self, build: str, threads: int | None = None) -> None:
        super().__init__(numba_build.public_functions(__name__), build, threads)
