"""A model as a folder of Meta: `params.json` and `consolidated.00.pth`, `.01`, …

A large model is cut into slices for several processors: every file has all names, and a tensor is
its slices joined along rows or columns, or, if the slices have its whole shape, any of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import numpy as np

from pyllm2.errors import FileError, FormatError
from pyllm2.formats.json_file import Settings, read_object
from pyllm2.formats.tensors import Array, Shape, Tensors, words
from pyllm2.formats.torch_pickle import open_torch

PARAMS = "params.json"
_MOST_PARAMS_BYTES = 2**20
_SLICE = re.compile(r"consolidated\.(\d\d)\.pth")


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether this is a folder with a `params.json`."""
    return os.path.isfile(os.path.join(path, PARAMS))


def read_params(folder: str | os.PathLike[str]) -> Settings:
    """The object in `params.json`. Raises FileError, FormatError."""
    path = os.path.join(folder, PARAMS)
    return Settings(path, read_object(path, _MOST_PARAMS_BYTES))


def open_weights(folder: str | os.PathLike[str]) -> SlicedTensors:
    """The slices of the folder, none of which has been read.

    Raises FileError if there are none or one is missing; FormatError, also if the slices do not
    have the same names and shapes.
    """
    try:
        found = sorted(name for name in os.listdir(folder) if _SLICE.fullmatch(name))
    except OSError as error:
        raise FileError(folder, (error.strerror or str(error)).lower()) from None
    expected = [f"consolidated.{i:02}.pth" for i in range(max(len(found), 1))]
    for name in expected:
        if name not in found:
            raise FileError(os.path.join(folder, name), "no such file: download incomplete?")
    return SlicedTensors(
        os.fspath(folder), [open_torch(os.path.join(folder, name)) for name in expected]
    )


class SlicedTensors:
    """Tensors that are cut into slices, one per file."""

    def __init__(self, path: str, files: list[Tensors]) -> None:
        """Raises FormatError unless the slices have the same names and shapes."""
        self.path, self.files = path, files
        first = files[0]
        for other in files[1:]:
            for name in sorted(first.keys() ^ other.keys()):
                missing = other if name in first else first
                raise FormatError(missing.path, f"tensor {name!r} is missing")
            other.require({name: place.shape for name, place in first.items()})

    def slice_shape(self, name: str) -> Shape | None:
        """The shape of each slice of a tensor; None if there is no tensor of that name."""
        return self.files[0][name].shape if name in self.files[0] else None

    def require(self, shapes: Mapping[str, Shape]) -> None:
        """Check that these whole tensors are here. Raises FormatError."""
        for name, shape in shapes.items():
            self._axis(name, shape)

    def refuse_others(self, known: set[str]) -> None:
        """Raises FormatError for a tensor that is not one of these names."""
        self.files[0].refuse_others(known)

    def read(self, name: str, shape: Shape) -> Array:
        """A whole tensor as float32: the memory of one, and of one slice, is needed.

        Raises FileError; FormatError if it is missing, or its slices do not give that shape.
        """
        axis = self._axis(name, shape)
        if axis is None:
            return self.files[0][name].read(name)
        out = np.empty(shape, np.float32)
        parts = np.split(out, len(self.files), axis)  # views
        for part, file in zip(parts, self.files, strict=True):
            part[...] = file[name].read(name)
        return out

    def _axis(self, name: str, shape: Shape) -> int | None:
        """The axis along which the slices are joined; None: each of them is the tensor."""
        n, first = len(self.files), self.files[0]
        found = self.slice_shape(name)
        if found is None or found == shape:
            first.require({name: shape})
            return None
        for axis, whole in enumerate(shape):
            if found == (*shape[:axis], whole // n, *shape[axis + 1 :]) and whole % n == 0:
                first.require({name: found})
                return axis
        of = f"tensor {name!r}: shape = {words(found)}"
        slices = "" if n == 1 else f" in {n} slices of equal size"
        raise FormatError(first[name].path, f"{of}: expected {words(shape)}{slices}")
