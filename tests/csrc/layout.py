"""Where buffers lie in one block of memory."""

from __future__ import annotations

import numpy as np


def offsets(struct):
    """The offset of each pointer, in floats, of a struct that was bound to address 0."""
    return [(getattr(struct, name) or 0) / 4 for name, _ in struct._fields_]


def starts(shapes):
    """The offsets of arrays of these shapes, one after the other."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    return list(np.cumsum([0, *sizes[:-1]]))
