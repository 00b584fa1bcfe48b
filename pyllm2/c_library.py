"""A library of csrc as Python calls it: arrays become pointers, numbers become C's numbers."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyllm2 import native


def floats(a: ArrayLike) -> NDArray[np.float32]:
    """float32 without gaps: the array itself if it is that already."""
    return np.ascontiguousarray(a, dtype=np.float32)


def int32(a: ArrayLike) -> NDArray[np.int32]:
    """int32 without gaps."""
    return np.ascontiguousarray(a, dtype=np.int32)


def int8(a: ArrayLike) -> NDArray[np.int8]:
    """int8 without gaps."""
    return np.ascontiguousarray(a, dtype=np.int8)


def pointer(a: NDArray[Any]) -> c_void_p:
    """Where the elements are. The array must outlive the pointer."""
    return c_void_p(a.__array_interface__["data"][0])


def written_in_place(a: NDArray[Any]) -> NDArray[np.float32]:
    """The array itself, fit to be written to by C; TypeError if only a copy of it would be."""
    if a.dtype != np.float32 or not a.flags.c_contiguous or not a.flags.writeable:
        raise TypeError("C writes into float32 arrays without gaps, not read-only, and no others")
    return a


class Library:
    """One build of csrc/NAME.c, whose functions begin with PREFIX_ (NAME_ if nothing is said).

    threads: how many it may use, None for all. OpenMP has one number for the whole process.
    """

    def __init__(
        self, name: str, build: str, threads: int | None = None, prefix: str | None = None
    ) -> None:
        self._prefix = name if prefix is None else prefix
        self._loaded = native.compiled_library(name, build)
        if threads is not None and hasattr(self._loaded, "omp_set_num_threads"):
            self._loaded.omp_set_num_threads(c_int32(threads))

    def call(self, name: str, *arguments: Any, returns: Any = None) -> Any:
        """PREFIX_name(arguments). `returns` is a ctypes type; without one there is no result.

        Of an array the pointer is passed, of a struct its address, None as NULL, an int as
        int64_t, a float as float, and what is ctypes already as it is.
        """
        function = getattr(self._loaded, f"{self._prefix}_{name}")
        function.restype = returns
        return function(*map(_as_c, arguments))


def _as_c(a: Any) -> Any:
    if isinstance(a, np.ndarray):
        return pointer(a)
    if isinstance(a, Structure):
        return ctypes.byref(a)
    if isinstance(a, int | np.integer):
        return c_int64(int(a))
    if isinstance(a, float | np.floating):
        return c_float(float(a))
    return a
