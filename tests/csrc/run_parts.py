"""Functions of csrc/run.c, called one by one."""

from __future__ import annotations

import numpy as np


def encode(library, text):
    """The ids of a text with the loaded vocabulary."""
    out = np.zeros(len(text) + 3, np.int32)
    return out[: library.encode(text, out)].tolist()


def decode(library, previous, token):
    """The text of a token after `previous`, and whether it is printed."""
    out, shown = np.zeros(512, np.uint8), np.zeros(1, np.int32)
    n = library.decode(previous, token, out, shown)
    return out[:n].tobytes(), bool(shown[0])


def generator(seed):
    """The state of xorshift64*."""
    return np.array([seed], np.uint64)


def sample(library, logits, temperature, topp, random):
    """The sampled id. Leaves the logits unchanged and advances the generator."""
    copy = np.array(logits, np.float32)
    return library.sample(copy, len(copy), temperature, topp, random)
