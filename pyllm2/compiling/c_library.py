"""A library of csrc as Python calls it, with every argument checked against its C prototype."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyllm2.compiling import c_build
from pyllm2.compiling.c_header import Function, Interface, Struct
from pyllm2.compiling.processors import processors

Buffers = TypeVar("Buffers")


def floats(a: ArrayLike) -> NDArray[np.float32]:
    """Contiguous float32: the array itself if it is that already."""
    return np.ascontiguousarray(a, dtype=np.float32)


def int32(a: ArrayLike) -> NDArray[np.int32]:
    """Contiguous int32."""
    return np.ascontiguousarray(a, dtype=np.int32)


def int8(a: ArrayLike) -> NDArray[np.int8]:
    """Contiguous int8."""
    return np.ascontiguousarray(a, dtype=np.int8)


def uint8(a: ArrayLike) -> NDArray[np.uint8]:
    """Contiguous bytes."""
    return np.ascontiguousarray(a, dtype=np.uint8)


def aligned_floats(n: int) -> NDArray[np.float32]:
    """n floats, not initialised, from the start of a cache line: products are twice as fast."""
    memory = np.empty(n + 15, np.float32)
    first = -(memory.ctypes.data // 4) % 16
    return memory[first : first + n]


def writeable(a: NDArray[np.float32]) -> NDArray[np.float32]:
    """The array itself, for a struct that C writes through; TypeError if it is read-only."""
    if not a.flags.writeable:
        raise TypeError("C cannot write into a read-only array")
    return a


class Library:
    """A loaded library: `library.rmsnorm(...)` calls the C function PREFIX_rmsnorm."""

    def __init__(
        self, loaded: ctypes.CDLL, interface: Interface, prefix: str, threads: int | None = None
    ) -> None:
        self._loaded, self._interface, self._prefix = loaded, interface, prefix
        self._threads = threads

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = self._on_threads(self._function(name).bound(self._loaded))
        setattr(self, name, call)
        return call

    def prepared(self, name: str, **known: Any) -> Callable[..., Any]:
        """`library.name` with some arguments given once for all calls.

        With OpenMP the call takes a number of threads, by name, at most `most_threads`.
        """
        return self._on_threads(self._function(name).prepared(self._loaded, **known))

    @property
    def most_threads(self) -> int:
        """The number of threads that functions use; 1 without OpenMP."""
        if not hasattr(self._loaded, "omp_set_num_threads"):
            return 1
        return self._threads or _usual_threads(self._loaded)

    def _function(self, name: str) -> Function:
        try:
            return self._interface.functions[self._prefix + name]
        except KeyError:
            raise AttributeError(f"no header declares {self._prefix}{name}") from None

    def _on_threads(self, call: Callable[..., Any]) -> Callable[..., Any]:
        if hasattr(self._loaded, "omp_set_num_threads"):
            return _on_threads(self._loaded, self._threads, call)
        return call

    def struct(self, name: str, **fields: Any) -> Struct:
        """A new struct PREFIX_name; fields that are not given are zero or NULL."""
        return self._interface.structs[self._prefix + name](**fields)

    def fields(self, name: str) -> tuple[str, ...]:
        """The names of the fields of struct PREFIX_name, in order."""
        return tuple(self._interface.structs[self._prefix + name].converts)


def library(name: str, build: str, threads: int | None = None) -> Library:
    """A build ("fast" or "strict") of the library `name` of csrc, compiled if need be.

    threads: the number that its functions use; None for all.

    Raises BackendError as `c_build.compiled_library` does.
    """
    loaded = c_build.compiled_library(name, build)
    return Library(loaded, c_build.interface(name), f"{name}_", threads)


# ---- threads and forks -------------------------------------------------------------------------


class _OpenMP(threading.local):
    """What OpenMP has been told in this thread of Python: it keeps one number for each."""

    threads = 0  # 0: nothing yet


_openmp = _OpenMP()
_forked = False  # True in a forked child, where OpenMP would wait for threads that are not there
_all_buffers: weakref.WeakSet[KeptBuffers[Any]] = weakref.WeakSet()


def _on_threads(
    loaded: ctypes.CDLL, threads: int | None, call: Callable[..., Any]
) -> Callable[..., Any]:
    """The call on `threads` threads, or on one in a forked child.

    It takes another number by name.
    """
    usual = threads or _usual_threads(loaded)

    def with_threads(*arguments: Any, threads: int = usual) -> Any:
        wanted = 1 if _forked else threads
        if _openmp.threads != wanted:
            loaded.omp_set_num_threads(ctypes.c_int32(wanted))
            _openmp.threads = wanted
        return call(*arguments)

    return with_threads


@functools.cache
def _usual_threads(loaded: ctypes.CDLL) -> int:
    """OpenMP's own choice: $OMP_NUM_THREADS, or one per processor, if a quota leaves so many."""
    found: list[int] = []  # asked in a new thread, where no number has been set
    asking = threading.Thread(target=lambda: found.append(loaded.omp_get_max_threads()))
    asking.start()
    asking.join()
    return found[0] if os.environ.get("OMP_NUM_THREADS") else min(found[0], processors())


def _after_fork() -> None:
    """A child has none of OpenMP's threads, and locks may be held by threads that it lacks."""
    global _forked
    _forked = True
    for buffers in _all_buffers:
        buffers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class KeptBuffers(Generic[Buffers]):
    """Buffers of the latest shape, kept for the next call, for one thread at a time."""

    def __init__(self, make: Callable[..., Buffers]) -> None:
        self._make = make
        self.clear()
        _all_buffers.add(self)

    def clear(self) -> None:
        """Forget the buffers, and the lock with whoever holds it."""
        self._lock = threading.Lock()
        self._shape: tuple[Any, ...] | None = None
        self._kept: Buffers | None = None

    @contextmanager
    def of(self, *shape: Any) -> Iterator[Buffers]:
        """make(*shape), or those of the last call if it had the same shape.

        Until the block ends, other threads that ask for buffers wait.
        """
        with self._lock:
            if self._kept is None or self._shape != shape:
                self._kept = None  # free the old buffers first
                self._kept, self._shape = self._make(*shape), shape
            yield self._kept
