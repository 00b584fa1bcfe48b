"""The parts of csrc/train_gpt2.c that stand by themselves, called through ctypes."""

from __future__ import annotations

import ctypes

import numpy as np

from .gpt2_tiny import FIELDS
from .oracle import pointer


def twister(library, seed):
    state = np.zeros(625, np.int32)
    library.mersenne_seed(pointer(state), ctypes.c_uint32(seed))
    return state


def normals(library, state, n, mean=0.0, std=1.0):
    got, as_c = np.zeros(n, np.float32), ctypes.c_float
    library.mersenne_normals(pointer(got), ctypes.c_int64(n), as_c(mean), as_c(std), pointer(state))
    return got


class Config(ctypes.Structure):
    _fields_ = [(f, ctypes.c_int32) for f in FIELDS]


def first_weights(library, values):
    """Of a model with these FIELDS."""
    S, _, L, _, C, Vp = values
    floats = np.zeros((Vp + S) * C + L * (12 * C * C + 13 * C) + 2 * C, np.float32)
    library.shim_draw(ctypes.byref(Config(*values)), pointer(floats))
    return floats


class CLoader:
    """The loader of tokens.c, in the way of `Loader`."""

    def __init__(self, library, pattern, B, T, rank=0, processes=1, shuffle=False):
        self.parts, self.tokens = library, np.zeros(B * T + 1, np.int32)
        shape = np.array([B, T, rank, processes, shuffle], np.int64)
        self.num_tokens = library.shim_open(str(pattern).encode(), pointer(shape))

    def next(self):
        position = np.zeros(4, np.int64)
        self.parts.shim_next(pointer(self.tokens), pointer(position))
        return self.tokens.copy(), tuple(position.tolist())
