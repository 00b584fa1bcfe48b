"""Functions of csrc/train_gpt2.c, called one by one."""

from __future__ import annotations

import numpy as np


def normals(library, n, mean=0.0, std=1.0):
    """n normals from the generator that `library.seed` has set."""
    got = np.zeros(n, np.float32)
    library.normals(got, n, mean, std)
    return got


def first_weights(library, values):
    """The initial weights of a model with these FIELDS."""
    S, _, L, _, C, Vp = values
    floats = np.zeros((Vp + S) * C + L * (12 * C * C + 13 * C) + 2 * C, np.float32)
    library.draw(floats, np.array(values, np.int32))
    return floats


class CLoader:
    """The loader of gpt2/loader.c with the methods of `Loader`."""

    def __init__(self, library, pattern, B, T, rank=0, processes=1, shuffle=False):
        self.parts, self.tokens = library, np.zeros(B * T + 1, np.int32)
        shape = np.array([B, T, rank, processes, shuffle], np.int64)
        self.num_tokens = library.open(str(pattern).encode(), shape)

    def next(self):
        position = np.zeros(4, np.int64)
        self.parts.next(self.tokens, position)
        return self.tokens.copy(), tuple(position.tolist())
